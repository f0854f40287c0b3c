"""A change that is watched or not, and a unit whose models leave: who is refused, who is waited for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry
from support.lanes import lane_spec

from muxd.clock import VirtualClock
from muxd.engine.lane import LaneSpec
from muxd.engine.memory import Terms
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.stream import TokenStream
from muxd.engine.unit import Unit
from muxd.errors import Busy, ModelNotReady, ModelUnloaded, WorkerLost
from muxd.fleet.operation import Operation
from muxd.fleet.steps import Step
from muxd.messages import BatchDone, Decode, Prefill, Sampling
from muxd.pool.ledger import Ledger


def played(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(_of(scene))


async def _of(scene: Callable[[], Awaitable[None]]) -> None:
    await scene()


# ---- watching ------------------------------------------------------------------------------------


def test_every_watcher_hears_the_last_step_whenever_it_came() -> None:
    async def scene() -> None:
        change, more = Operation("m", "loaded", "reading"), asyncio.Event()

        async def work() -> None:
            change.tell("m", "weights", 1, 2)
            await more.wait()
            change.tell("m", "ready", 2, 2)

        change.start(work())
        early = change.watch()
        assert [(await anext(early)).stage for _ in range(2)] == ["reading", "weights"]
        late = [anext(change.watch()) for _ in range(2)]
        assert {(await step).stage for step in late} == {"weights"}
        more.set()
        assert [step async for step in early][-1] == Step("m", "ready", 2, 2)
        assert [step async for step in change.watch()] == [Step("m", "ready", 2, 2)]

    played(scene)


def test_a_failure_reaches_every_watcher_and_needs_none(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async def fail() -> None:
            raise ModelNotReady("no folder")

        alone = Operation("n", "loaded", "reading")
        alone.start(fail())
        await alone.finished()
        watched = Operation("m", "loaded", "reading")
        watched.start(fail())
        for _ in range(2):
            with pytest.raises(ModelNotReady, match="no folder"):
                [step async for step in watched.watch()]

    played(scene)
    assert not caplog.records  # "exception was never retrieved"


# ---- leaving -------------------------------------------------------------------------------------


class Bench:
    """Two models; ``step`` plays the oldest batch's worker."""

    def __init__(self) -> None:
        self.ledger = Ledger(64)
        for name in "ab":
            self.ledger.add_model(name, 2, 32, row_tokens=4)
        self.scheduler = Scheduler([spec("a"), spec("b")], self.ledger, Shares([50, 100]), Settings())
        self.observer = Observer(Metrics(CollectorRegistry()))
        self.sent: list[tuple[str, Prefill | Decode]] = []
        self.clock = VirtualClock()
        send = lambda model, command: self.sent.append((model, command))  # noqa: E731
        self.unit = Unit(self.scheduler, send, self.clock, self.observer)
        for name in "ab":
            self.unit.worker_ready(name)

    def submit(self, model: str, tokens: int = 3) -> TokenStream:
        sampling = Sampling(temperature=0.0)
        return self.unit.submit(Request("r", model, [1] * 6, tokens, sampling, frozenset()))

    def step(self) -> None:
        model, command = self.sent.pop(0)
        count = len(command.chunks) if isinstance(command, Prefill) else len(command.seqs)
        self.clock.advance(0.1)
        self.unit.batch_done(model, BatchDone(command.batch, [5] * count, 0.1))


def spec(name: str) -> LaneSpec:
    return lane_spec(name, 50, 4, 2, 60, 8, 100, 16)


GONE = ModelUnloaded("a is unloaded")


def test_a_leaving_model_refuses_finishes_and_is_gone() -> None:
    async def scene() -> None:
        bench = Bench()
        running = bench.submit("a")
        bench.unit.refuse("a", GONE)
        with pytest.raises(ModelUnloaded):
            bench.submit("a")
        assert bench.submit("b")
        empty = bench.unit.emptied("a")
        with pytest.raises(Busy, match="a still has requests"):
            bench.unit.close_model("a")
        while bench.sent:
            assert empty.is_set() == ("a" not in [model for model, _ in bench.sent])
            bench.step()
        assert [token async for delta in running for token in delta.tokens] == [5, 5, 5]
        assert bench.unit.emptied("a").is_set()
        bench.unit.close_model("a")
        bench.ledger.audit()
        assert list(bench.ledger.usage()) == list(bench.scheduler.lanes) == ["b"]
        with pytest.raises(ModelUnloaded):
            bench.submit("a")
        assert bench.observer.outcomes == {"served": 2, "refused": 2}

    played(scene)


def test_a_refusal_outlives_the_worker_and_ends_with_the_next_lane() -> None:
    async def scene() -> None:
        bench = Bench()
        bench.submit("a")
        bench.unit.refuse("a", GONE)
        bench.unit.worker_lost("a", WorkerLost("killed"))
        bench.unit.worker_ready("a")
        with pytest.raises(ModelUnloaded):
            bench.submit("a")
        bench.unit.worker_lost("a", GONE, final=True)
        assert bench.unit.emptied("a").is_set()
        bench.unit.close_model("a")
        bench.unit.open_model(spec("a"), Terms(0, 64, max_rows=32))
        bench.unit.worker_ready("a")
        assert bench.submit("a")

    played(scene)


def test_a_client_that_leaves_a_running_batch_is_waited_for() -> None:
    """Its rows are being written: the worker may not be taken away before."""

    async def scene() -> None:
        bench = Bench()
        stream = bench.submit("a")
        empty = bench.unit.emptied("a")
        stream.close()
        assert not empty.is_set()
        bench.step()
        assert empty.is_set()

    played(scene)
