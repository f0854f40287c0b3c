"""What the daemon tells muxctl: status, models, processes. Reads what the rooms publish, changes nothing."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from muxd import __version__
from muxd.admin.schemas import DeviceInfo, ModelInfo, PoolStatus, ProcessInfo, RequestStatus, Role, Status
from muxd.clock import Clock
from muxd.device.cpu import threads
from muxd.device.nvml import Reading
from muxd.engine.observer import Observer
from muxd.engine.unit import Unit
from muxd.fleet.adapters import Adapter, served
from muxd.fleet.catalog import Entry
from muxd.fleet.counts import asked, lanes
from muxd.fleet.site import Site
from muxd.pool.arena import Arena
from muxd.text.pool import TextPool

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(kw_only=True)
class Report:
    """What the local door's AdminService tells without changing anything."""

    entries: Mapping[str, Entry]
    sites: Mapping[str, Site]
    observer: Observer
    clock: Clock
    address: Callable[[], str]
    stop: Callable[[], None]
    readings: Callable[[], list[Reading]] = list
    texts: TextPool | None = None
    file: str = ""  # of the configuration, absolute
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock.now()

    def devices(self) -> list[DeviceInfo]:
        """Asks the driver; from a thread."""
        return [_device(reading) for reading in self.readings()]

    @property
    def several(self) -> bool:
        """More than one device, or a mesh: then rows say which."""
        return len(self.sites) > 1 or any(len(site.device.members) > 1 for site in self.sites.values())

    def status(self) -> Status:
        outcomes = self.observer.outcomes
        lanes = [lane for site in self.sites.values() for lane in site.unit.lanes.values()]
        pools = {name: _pool(site.arena) for name, site in self.sites.items()}
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=self.clock.now() - self._began,
            address=self.address(),
            policy=self._units[0].policy,
            cores=sum(site.device.cores for site in self.sites.values()),
            pool=_together(list(pools.values())),
            models=dict(Counter(model.state for model in served(self.entries).values())),
            requests=RequestStatus(
                running=sum(lane.admitted for lane in lanes),
                waiting=sum(lane.queued for lane in lanes),
                served=outcomes["served"],
                refused=outcomes["refused"],
                cancelled=outcomes["cancelled"],
                failed=outcomes["failed"],
            ),
            devices=pools if self.several else {},
            config=self.file,
            pinned=sum(entry.pinned for entry in self.entries.values()),
        )

    @property
    def _units(self) -> list[Unit]:
        return [site.unit for site in self.sites.values()]

    def models(self) -> list[ModelInfo]:
        return [
            self._adapter(one) if isinstance(one, Adapter) else self._model(one)
            for one in served(self.entries).values()
        ]

    def ps(self) -> list[ProcessInfo]:
        rows = [self._process(os.getpid(), "")]
        if self.texts:
            rows += [self._process(pid, "", self.texts.restarts, role="text") for pid in self.texts.pids]
        for site in self.sites.values():
            for supervisor in site.supervisors.values():
                for label, pid in supervisor.life.pids.items():
                    phases, _, rank = label.partition("/")
                    row = self._process(pid, phases, supervisor.life.restarts, supervisor.entry, site)
                    at = supervisor.members[int(rank or 0)]
                    rows.append(row and structs.replace(row, **self._seat(site, int(rank or 0), at)))
        return [row for row in rows if row is not None]

    def _seat(self, site: Site, rank: int, member: int) -> dict[str, Any]:
        """Of a worker: which rank it is, and on which device."""
        return {"rank": rank, "device": site.name.split("+")[member] if self.several else ""}

    def _model(self, entry: Entry) -> ModelInfo:
        """While it moves, what it holds and serves at both devices."""
        held = lanes(self.sites.values(), entry.name)
        uses = [(site.arena.ledger.usage()[entry.name], site.arena.block_bytes) for site, _ in held]
        lane, now = entry.lane, asked(self.sites.values(), entry)
        return ModelInfo(
            name=entry.name,
            state=entry.state,
            detail=entry.detail,
            chat=entry.chat,
            pid=entry.life.pid,
            share=lane.spec.share if lane else entry.config.share,
            weights_bytes=entry.opened.plan.bytes if entry.opened and lane else 0,
            kv_used_bytes=sum(use.blocks * block for use, block in uses),
            kv_min_bytes=sum(use.min_blocks * block for use, block in uses),
            kv_max_bytes=sum(use.max_blocks * block for use, block in uses),
            running=now.running,
            waiting=now.waiting,
            ttft_p99_ms=self.observer.ttft[entry.name].quantile_ms(0.99),
            tokens_total=self.observer.tokens_out[entry.name],
            since_seconds=self.clock.now() - entry.life.since if entry.life.since else 0.0,
            config=entry.config,
            goodput=self.observer.attainment.rolling(entry.name),
            device=entry.device if self.several else "",
            row_tokens=lane.spec.row_tokens if lane else 0,
            row_bytes=next((one.spec.blocks_per_row * site.arena.block_bytes for site, one in held), 0),
            state_rows=lane.spec.state_rows if lane else 0,
            pinned=entry.pinned,
        )

    def _adapter(self, one: Adapter) -> ModelInfo:
        """Its requests and weights are its own, rows and share its base's."""
        base, now = self._model(one.entry), asked(self.sites.values(), one)
        return structs.replace(
            base,
            name=one.name,
            state=one.state,
            detail=one.detail or f"adapter of {one.base}",
            weights_bytes=one.weight_bytes if base.weights_bytes else 0,
            kv_used_bytes=0,
            kv_min_bytes=0,
            kv_max_bytes=0,
            running=now.running,
            waiting=now.waiting,
            ttft_p99_ms=self.observer.ttft[one.name].quantile_ms(0.99),
            tokens_total=self.observer.tokens_out[one.name],
            config=one.config,
            goodput=self.observer.attainment.rolling(one.name),
        )

    def _process(
        self,
        pid: int,
        phases: str,
        restarts: int = 0,
        entry: Entry | None = None,
        site: Site | None = None,
        role: Role = "daemon",
    ) -> ProcessInfo | None:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            memory = _private_bytes(pid)
        except (OSError, ProcessLookupError):
            return None  # it has just ended
        began = float(fields[19]) / _TICK
        uptime = float(Path("/proc/uptime").read_text().split()[0]) - began
        return ProcessInfo(
            pid=pid,
            role="worker" if phases else role,
            model=entry.name if entry else "",
            phases="prefill+decode" if phases == "both" else phases,
            cores=_threads(site, entry.name) if site and entry else 1,
            memory_bytes=memory,
            cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICK,
            restarts=restarts,
            uptime_seconds=max(0.0, uptime),
        )


def _threads(site: Site, model: str) -> int:
    """Threads of the model's own share; it may use more while others are quiet."""
    lane = site.unit.lanes.get(model)
    return threads(site.unit.shares.floor(lane.spec.share), site.device.cores) if lane else 1


def _pool(arena: Arena) -> PoolStatus:
    ledger = arena.ledger
    blocks, each = ledger.present_blocks, arena.block_bytes
    return PoolStatus(blocks * each, each, blocks, ledger.free_blocks, ledger.cached_blocks)


def _together(pools: list[PoolStatus]) -> PoolStatus:
    return PoolStatus(
        bytes=sum(pool.bytes for pool in pools),
        block_bytes=pools[0].block_bytes,
        total_blocks=sum(pool.total_blocks for pool in pools),
        free_blocks=sum(pool.free_blocks for pool in pools),
        cached_blocks=sum(pool.cached_blocks for pool in pools),
    )


def _private_bytes(pid: int) -> int:
    """Anonymous resident memory: what the process holds beyond pool and weights."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _device(one: Reading) -> DeviceInfo:
    return DeviceInfo(
        index=one.index,
        name=one.name,
        uuid=one.uuid,
        memory_used_bytes=one.memory_used,
        memory_total_bytes=one.memory_total,
        utilization_percent=one.utilization,
        power_watts=one.power,
        power_limit_watts=one.power_limit,
        temperature_celsius=one.temperature,
        throttled=list(one.throttled),
        health=one.health,
    )
