"""A real process with a real admin door and a scripted service: ``python scripted_daemon.py SOCKET [deaf]``.

Prints "ready" when it listens; ends when told to stop, unless it is deaf.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from muxd.admin.schemas import (
    Audit,
    DeviceInfo,
    Drain,
    Drained,
    KeyInfo,
    LoadModel,
    ModelInfo,
    MoveModel,
    PinModel,
    PolicyState,
    PoolStatus,
    ProcessInfo,
    QuotaChange,
    QuotaInfo,
    Replan,
    RequestStatus,
    SleepModel,
    Status,
    UnloadModel,
    WakeModel,
)
from muxd.admin.server import AdminServer
from muxd.config import ModelConfig
from muxd.cost.peaks import CAPTURED, PEAKS
from muxd.cost.shapes import CATALOGUE
from muxd.engine.trace import Mark, RequestTimes, Sample, Span, Trace
from muxd.errors import Busy, ModelFolderError, NotFound, OutOfMemory
from muxd.fleet.events import Event
from muxd.fleet.log_lines import LogLine
from muxd.fleet.proposal import Proposal, ProposedModel
from muxd.fleet.reload import Reloaded
from muxd.fleet.steps import Step
from muxd.placement.host_view import HostDevice, HostedModel, HostView
from muxd.placement.memory import Budget
from muxd.placement.problem import ModelLoad
from muxd.watch.schemas import (
    AccountView,
    BlockRun,
    Change,
    DaemonView,
    DeviceView,
    FlightView,
    ModelView,
    Picture,
    RequestView,
    WeightsView,
)
from muxd.watch.watcher import Watcher

POOL = PoolStatus(bytes=1 << 30, block_bytes=8192, total_blocks=131072, free_blocks=98304, cached_blocks=100)
REQUESTS = RequestStatus(running=3, waiting=1, served=120, refused=4, cancelled=2, failed=1)
MODELS = [
    ModelInfo(
        name="smol_lm.2",
        state="ready",
        detail="",
        chat=True,
        pid=4711,
        share=50,
        weights_bytes=269 << 20,
        kv_used_bytes=12 << 20,
        kv_min_bytes=256 << 20,
        kv_max_bytes=1 << 30,
        running=3,
        waiting=0,
        ttft_p99_ms=41.6,
        tokens_total=98765,
        since_seconds=3700,
        config=ModelConfig("smol_lm.2", "/models/smol"),
    ),
    ModelInfo(
        name="gemma",
        state="failed",
        detail="model.safetensors: missing",
        chat=False,
        pid=None,
        share=50,
        weights_bytes=0,
        kv_used_bytes=0,
        kv_min_bytes=0,
        kv_max_bytes=1 << 30,
        running=0,
        waiting=0,
        ttft_p99_ms=None,
        tokens_total=0,
        since_seconds=5,
        config=ModelConfig("gemma", "/models/gemma"),
    ),
]
PROCESSES = [
    ProcessInfo(4710, "daemon", "", "", 0, 80 << 20, 12.34, 0, 3700),
    ProcessInfo(4711, "worker", "smol_lm.2", "prefill+decode", 1, 200 << 20, 1000.5, 2, 59),
]

GIB = 1 << 30
QUOTAS = [
    QuotaInfo("smol_lm.2", 2.0, 256 << 20, 512 << 20, GIB, 300 << 20, 16 << 20, 44 << 20, GIB),
    QuotaInfo("gemma", 1.0, 0, 256 << 20, GIB // 2, 0, 0, 0, GIB),
]
AUDIT = Audit("3 blocks lost: [7, 8, 9]", 131072, 98304, 100, 32665)
WHY = RequestTimes(
    id="chatcmpl-5-0",
    http_id="from/client?1",
    model="smol_lm.2",
    state="served",
    arrived=100.0,
    total=2.0,
    prompt_tokens=40,
    generated_tokens=12,
    waits={"share": 0.31, "turn": 0.04},
    prefill=0.15,
    recompute=0.2,
    decode=1.1,
    held=0.2,
    cached_tokens=32,
    preemptions=1,
    started=100.35,
    ttft=0.5,
    beside={"gemma": 0.3},
)
TRACE = Trace(
    now=200.0,
    spans=[
        Span("gemma", "prefill", 190.0, 190.25, 7, 50, 2, 96),
        Span("gemma", "decode", 191.0, None, 8, 100, 2, 2),
    ],
    marks=[Mark(190.5, "preempted", "gemma", "chatcmpl-5-0")],
    samples=[Sample(190.0, 60, 4, ("gemma",), (36,), (1,), (2,))],
)


EVENTS = [
    Event(7, 1_700_000_000.0, "moving", "gemma", "cuda:0", "cuda:0 to cuda:1: by an operator"),
    Event(8, 1_700_000_060.5, "policy", "", "cuda:1", "fcfs"),
]


LOG = [
    LogLine(5, 1_700_000_000.0, "info", "loaded gemma"),
    LogLine(6, 1_700_000_001.0, "warning", "slow \x1b[2J\nTraceback"),
    LogLine(7, 1_700_000_002.0, "info", "loaded smol"),
]
KEYS = [KeyInfo("alice", ["*"], True, 0, 1.0), KeyInfo("bob", ["gemma", "smol*"], False, 4, 0.5)]


PROPOSAL = Proposal(
    [
        ProposedModel("gemma", "cuda:0", "cuda:1", 2.5, 30.0, 0.0),
        ProposedModel("smol", "cuda:0", "cuda:0", 0.0, 0.0, 0.0, True),
    ],
    True, "adopt", 1.25, 0.5, ["gemma"],
)  # fmt: skip


_SMOL = ModelLoad("smol", "smol", CATALOGUE["llama-3.2-1b"], 1.5, 30, 60)
HOST_VIEW = HostView(
    {"cuda:0": HostDevice(80_000_000_000, 20_000_000_000)},
    (25, 50, 75, 100), PEAKS["a100"], CAPTURED, Budget(),
    [HostedModel(_SMOL, ModelConfig("smol", "/m/smol"), "cuda:0")],
)  # fmt: skip


PICTURE = Picture(
    1_700_000_000.0,
    DaemonView("0.2.0", 4710, 1_699_996_300.0, "mux", "http://127.0.0.1:8000", {"served": 120}),
    {
        "cuda:0": DeviceView(
            "cuda:0", 0, 8192, 1000,
            [
                BlockRun("smol_lm.2", "guaranteed", 200), BlockRun("smol_lm.2", "borrowed", 50),
                BlockRun("gemma", "cached", 100), BlockRun("", "free", 650),
            ],
            {"smol_lm.2": AccountView(200, 200, 1000, 250, 0), "gemma": AccountView(0, 300, 1000, 0, 100)},
            [WeightsView("smol_lm.2", 269 << 20, "resident"), WeightsView("gemma", 1 << 30, "loading", 0.4)],
            [FlightView("smol_lm.2", "decode", 1_699_999_999.9, 50, 3)],
        )
    },
    {
        name: ModelView(
            name, state, "", "", "cuda:0", True, True, False, 1_699_996_300.0, 50, in_use, running, 0,
            269 << 20, 20.0, 41.6, 500.0, 9.0, 12.0, 0.0, 98765, rate, 0.98,
        )
        for name, state, in_use, running, rate in (
            ("smol_lm.2", "ready", 50, 3, 123.4), ("gemma", "loading", 0, 0, 0.0),
        )
    },
    {
        "chatcmpl-5-0": RequestView(
            "chatcmpl-5-0", "smol_lm.2", "alice", "cuda:0", "served", 1_699_999_990.0, 350.0, 500.0, 2.0, 40,
            12,
        )
    },
    events=EVENTS,
    tokens={"smol_lm.2": [0.0, 100.0, 123.4]},
)  # fmt: skip


class ScriptedService:
    """Answers with the rows above; ``stopped`` tells that it was asked to stop."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(index=0, name="GPU of the script", health="lost: scripted")]

    def status(self) -> Status:
        return Status(
            version="0.2.0",
            pid=os.getpid(),
            uptime_seconds=3700,
            address="http://127.0.0.1:8000",
            policy="mux",
            cores=2,
            pool=POOL,
            models={"ready": 1, "failed": 1},
            requests=REQUESTS,
        )

    def models(self) -> list[ModelInfo]:
        return MODELS

    def ps(self) -> list[ProcessInfo]:
        return PROCESSES

    def quota(self) -> list[QuotaInfo]:
        return QUOTAS

    def set_quota(self, change: QuotaChange) -> list[QuotaInfo]:
        return [replace(row, weight=change.weight or row.weight) for row in QUOTAS]

    def policy(self) -> PolicyState:
        return PolicyState("mux", ["mux", "temporal", "spatial"])

    def set_policy(self, name: str) -> PolicyState:
        if name == "spatial":
            raise Busy("3 requests are being served; wait until muxd is idle")
        return PolicyState(name, ["mux", "temporal", "spatial"])

    def load(self, wanted: LoadModel) -> AsyncIterator[Step]:
        if wanted.model == "gone":
            raise NotFound("there is no model 'gone'")
        return self._loading(wanted.name)

    async def _loading(self, model: str) -> AsyncIterator[Step]:
        yield Step(model, "reading")
        yield Step(model, "weights", 1 << 20, 4 << 20)
        if model == "broken":
            raise ModelFolderError("model.safetensors: missing")
        if model == "defect":
            raise ValueError("secret 456")
        if model != "cut":
            yield Step(model, "ready", 4 << 20, 4 << 20)

    def unload(self, wanted: UnloadModel) -> AsyncIterator[Step]:
        return self._unloading(wanted)

    async def sleep(self, wanted: SleepModel) -> AsyncIterator[Step]:
        yield Step(wanted.model, "draining")
        yield Step(wanted.model, "asleep")

    async def wake(self, wanted: WakeModel) -> AsyncIterator[Step]:
        if wanted.model == "full":
            raise OutOfMemory("there is no room for full")
        yield Step(wanted.model, "starting")
        yield Step(wanted.model, "ready")

    async def _unloading(self, wanted: UnloadModel) -> AsyncIterator[Step]:
        if not wanted.now:
            yield Step(wanted.model, "draining", 0, 2)
        yield Step(wanted.model, "unloaded")

    def pin(self, wanted: PinModel) -> ModelInfo:
        return replace(MODELS[0], pinned=wanted.pinned, state="asleep")

    async def move(self, wanted: MoveModel) -> AsyncIterator[Step]:
        yield Step(wanted.model, "draining", 0, 2)
        yield Step(wanted.model, "moved")

    def audit(self) -> Audit:
        return AUDIT

    def why(self, id: str) -> list[RequestTimes]:
        if id not in (WHY.id, WHY.http_id):
            raise NotFound(f"no request {id!r}")
        return [WHY]

    async def replan(self, wanted: Replan) -> AsyncIterator[Proposal]:
        yield PROPOSAL

    async def host_view(self) -> HostView:
        return HOST_VIEW

    async def drain(self, wanted: Drain) -> AsyncIterator[Drained]:
        if wanted.end:
            yield Drained("ok", 1)
            return
        for left in (2, 1, 0):
            yield Drained("draining", left)

    async def reload(self) -> AsyncIterator[Reloaded]:
        yield Reloaded(False, "configuration not reloaded: muxd.toml: line 3")

    def keys(self) -> list[KeyInfo]:
        return KEYS

    def logged(self) -> list[LogLine]:
        return LOG

    async def follow_log(self) -> AsyncIterator[LogLine]:
        for one in LOG:
            yield one

    def happened(self, model: str = "") -> list[Event]:
        return [one for one in EVENTS if model in ("", one.model)]

    async def follow(self, model: str = "") -> AsyncIterator[Event]:
        for one in self.happened(model):
            yield one

    @contextmanager
    def watch(self, cut: Callable[[], None]) -> Iterator[Watcher]:
        watcher = Watcher(cut)
        watcher.put("picture", msgspec.json.encode(PICTURE))
        watcher.put("change", msgspec.json.encode(Change(PICTURE.time + 1, models={"gemma": None})))
        watcher.close()
        yield watcher

    def trace(self) -> list[Trace]:
        return [TRACE]

    def stop(self) -> None:
        self.stopped.set()


@contextmanager
def scripted(path: Path, *, deaf: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """The process, listening; killed at the end if it is still there."""
    command = [sys.executable, __file__, str(path), *(["deaf"] if deaf else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


async def main(path: Path, deaf: bool) -> None:
    service = ScriptedService()
    server = AdminServer(service, path)
    await server.start()
    print("ready", flush=True)
    await (asyncio.Event() if deaf else service.stopped).wait()
    await server.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:] == ["deaf"]))
