"""What the daemon tells muxctl: status, models, processes. Reads what the rooms publish, changes nothing."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from muxd import __version__
from muxd.admin.schemas import ModelRow, PoolStatus, ProcessRow, RequestStatus, Status
from muxd.clock import Clock
from muxd.device.cpu import threads
from muxd.engine.observer import Observer
from muxd.engine.scheduler import Scheduler
from muxd.fleet.catalog import Entry
from muxd.pool.arena import Arena

_TICK = os.sysconf("SC_CLK_TCK")


class Report:
    """The Steward of the local door."""

    def __init__(
        self,
        *,
        entries: Mapping[str, Entry],
        arena: Arena,
        scheduler: Scheduler,
        observer: Observer,
        clock: Clock,
        address: Callable[[], str],
        cores: int,
        stop: Callable[[], None],
    ):
        self._entries, self._arena, self._scheduler = entries, arena, scheduler
        self._observer, self._clock, self._address, self._cores = observer, clock, address, cores
        self.stop = stop
        self._began = clock.now()

    def status(self) -> Status:
        ledger, outcomes = self._arena.ledger, self._observer.outcomes
        lanes = self._scheduler.lanes.values()
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=self._clock.now() - self._began,
            address=self._address(),
            policy="mux",
            cores=self._cores,
            pool=PoolStatus(
                self._arena.nbytes, self._arena.block_bytes, ledger.total_blocks, ledger.free_blocks
            ),
            models=dict(Counter(entry.state for entry in self._entries.values())),
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
        return [self._model(entry) for entry in self._entries.values()]

    def ps(self) -> list[ProcessRow]:
        rows = [self._process(os.getpid(), "daemon", restarts=0)]
        for entry in self._entries.values():
            if entry.life.pid is not None:
                rows.append(
                    self._process(entry.life.pid, "worker", restarts=entry.life.restarts, model=entry.name)
                )
        return [row for row in rows if row is not None]

    def _model(self, entry: Entry) -> ModelRow:
        usage = self._arena.ledger.usage().get(entry.name)
        lane = self._scheduler.lanes.get(entry.name)
        block = self._arena.block_bytes
        return ModelRow(
            name=entry.name,
            state=entry.state,
            detail=entry.detail,
            chat=entry.template is not None,
            pid=entry.life.pid,
            share=lane.spec.share if lane else entry.config.share,
            weights_bytes=entry.opened.plan.bytes if entry.opened else 0,
            kv_used_bytes=usage.blocks * block if usage else 0,
            kv_min_bytes=usage.min_blocks * block if usage else 0,
            kv_max_bytes=usage.max_blocks * block if usage else 0,
            running=lane.admitted if lane else 0,
            waiting=lane.queued if lane else 0,
            ttft_p99_ms=self._observer.ttft_p99_ms(entry.name),
            tokens_total=self._observer.tokens_out[entry.name],
            since_seconds=self._clock.now() - entry.life.since if entry.life.since else 0.0,
        )

    def _threads(self, model: str) -> int:
        """Threads of the model's own share; it may use more while others are quiet."""
        lane = self._scheduler.lanes.get(model)
        return threads(self._scheduler.shares.floor(lane.spec.share), self._cores) if lane else 1

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
