"""What the daemon tells muxctl: status, models, processes. Reads what the rooms publish, changes nothing."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muxd import __version__
from muxd.admin.schemas import DeviceRow, ModelRow, PoolStatus, ProcessRow, RequestStatus, Status
from muxd.clock import Clock
from muxd.device.cpu import threads
from muxd.device.nvml import Reading
from muxd.engine.observer import Observer
from muxd.engine.scheduler import Scheduler
from muxd.fleet.catalog import Entry
from muxd.pool.arena import Arena

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(kw_only=True)
class Report:
    """What the local door's Steward tells without changing anything."""

    entries: Mapping[str, Entry]
    arena: Arena
    scheduler: Scheduler
    observer: Observer
    clock: Clock
    address: Callable[[], str]
    cores: int
    stop: Callable[[], None]
    readings: Callable[[], list[Reading]] = list
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock.now()

    def devices(self) -> list[DeviceRow]:
        """Asks the driver; from a thread."""
        return [_device(reading) for reading in self.readings()]

    def status(self) -> Status:
        ledger, outcomes = self.arena.ledger, self.observer.outcomes
        lanes = self.scheduler.lanes.values()
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=self.clock.now() - self._began,
            address=self.address(),
            policy="mux",
            cores=self.cores,
            pool=PoolStatus(
                self.arena.nbytes,
                self.arena.block_bytes,
                ledger.total_blocks,
                ledger.free_blocks,
                ledger.cached_blocks,
            ),
            models=dict(Counter(entry.state for entry in self.entries.values())),
            requests=RequestStatus(
                running=sum(lane.admitted for lane in lanes),
                waiting=sum(lane.queued for lane in lanes),
                served=outcomes["served"],
                refused=outcomes["refused"],
                cancelled=outcomes["cancelled"],
                failed=outcomes["failed"],
            ),
        )

    def models(self) -> list[ModelRow]:
        return [self._model(entry) for entry in self.entries.values()]

    def ps(self) -> list[ProcessRow]:
        rows = [self._process(os.getpid(), "daemon", restarts=0)]
        for entry in self.entries.values():
            if entry.life.pid is not None:
                rows.append(
                    self._process(entry.life.pid, "worker", restarts=entry.life.restarts, model=entry.name)
                )
        return [row for row in rows if row is not None]

    def _model(self, entry: Entry) -> ModelRow:
        usage = self.arena.ledger.usage().get(entry.name)
        lane = self.scheduler.lanes.get(entry.name)
        block = self.arena.block_bytes
        return ModelRow(
            name=entry.name,
            state=entry.state,
            detail=entry.detail,
            chat=entry.template is not None,
            pid=entry.life.pid,
            share=lane.spec.share if lane else entry.config.share,
            weights_bytes=entry.opened.plan.bytes if entry.opened and lane else 0,
            kv_used_bytes=usage.blocks * block if usage else 0,
            kv_min_bytes=usage.min_blocks * block if usage else 0,
            kv_max_bytes=usage.max_blocks * block if usage else 0,
            running=lane.admitted if lane else 0,
            waiting=lane.queued if lane else 0,
            ttft_p99_ms=self.observer.ttft_p99_ms(entry.name),
            tokens_total=self.observer.tokens_out[entry.name],
            since_seconds=self.clock.now() - entry.life.since if entry.life.since else 0.0,
            ttft_slo=entry.config.ttft_slo,
            tpot_slo=entry.config.tpot_slo,
            goodput=self.observer.attainment.rolling(entry.name),
        )

    def _threads(self, model: str) -> int:
        """Threads of the model's own share; it may use more while others are quiet."""
        lane = self.scheduler.lanes.get(model)
        return threads(self.scheduler.shares.floor(lane.spec.share), self.cores) if lane else 1

    def _process(self, pid: int, role: str, *, restarts: int, model: str = "") -> ProcessRow | None:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            memory = _private_bytes(pid)
        except (OSError, ProcessLookupError):
            return None  # it has just ended
        began = float(fields[19]) / _TICK
        uptime = float(Path("/proc/uptime").read_text().split()[0]) - began
        return ProcessRow(
            pid=pid,
            role="worker" if role == "worker" else "daemon",
            model=model,
            phases="prefill+decode" if role == "worker" else "",
            cores=self._threads(model),
            memory_bytes=memory,
            cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICK,
            restarts=restarts,
            uptime_seconds=max(0.0, uptime),
        )


def _private_bytes(pid: int) -> int:
    """Anonymous resident memory: what the process holds beyond pool and weights."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _device(one: Reading) -> DeviceRow:
    return DeviceRow(
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
