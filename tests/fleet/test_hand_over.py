"""Two units of one daemon and a model that changes between them under random traffic: nobody is lost, told
twice or overtaken by a later one of the queue."""

import asyncio
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.examples import examples
from support.lanes import lane_spec

from muxd.clock import VirtualClock
from muxd.engine.journal import newest
from muxd.engine.memory import Terms
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.stream import TokenStream
from muxd.engine.trace import RequestTimes, Stay
from muxd.engine.unit import Unit
from muxd.errors import ModelUnloaded, MuxdError, RequestKillsWorker, WorkerLost
from muxd.messages import BatchDone, Decode, Prefill, Sampling
from muxd.pool.ledger import Ledger

GONE = ModelUnloaded("m is elsewhere")


class Side:
    """One unit; ``step`` plays the worker of its oldest batch."""

    def __init__(self, name: str, blocks: int, clock: VirtualClock, observer: Observer, ids: "count[int]"):
        self.ledger = Ledger(blocks)
        settings = Settings(prefill_tokens=8, look_ahead=4)
        scheduler = Scheduler([], self.ledger, Shares([50, 100]), settings)
        self.sent: list[Prefill | Decode] = []
        self.clock = clock
        self.unit = Unit(
            scheduler, lambda model, command: self.sent.append(command), clock, observer, ids, device=name
        )

    def open(self) -> None:
        spec = lane_spec("m", 50, 4, 2, 60, 3, 100, 16)
        self.unit.open_model(spec, Terms(0, self.ledger.total_blocks, max_rows=32))

    def step(self) -> None:
        command = self.sent.pop(0)
        last = isinstance(command, Prefill)
        n = sum(c.last for c in command.chunks) if last else len(command.seqs)  # type: ignore[union-attr]
        self.clock.advance(0.1)
        self.unit.batch_done("m", BatchDone(command.batch, [5] * n, 0.1))


class Pair:
    """The model is open at ``sides[self.at]`` and, until it is empty there, at the other."""

    def __init__(self, blocks: tuple[int, int]):
        self.clock = VirtualClock()
        self.observer = Observer(Metrics(CollectorRegistry()))
        ids = count(1)
        self.sides = [Side(f"cpu:{i}", n, self.clock, self.observer, ids) for i, n in enumerate(blocks)]
        self.at = 0
        self.sides[0].open()
        self.sides[0].unit.worker_ready("m")
        self.streams: list[tuple[TokenStream, int]] = []
        self.refused = self.cancelled = 0

    def submit(self, prompt: int, tokens: int) -> None:
        id = f"r-{len(self.streams) + self.refused}"
        request = Request(id, "m", [1] * prompt, tokens, Sampling(), frozenset())
        try:
            self.streams.append((self.sides[self.at].unit.submit(request), tokens))
        except MuxdError:
            self.refused += 1

    def move(self) -> None:
        here, there = self.sides[self.at], self.sides[1 - self.at]
        if "m" in there.unit.lanes:
            if not there.unit.lanes["m"].empty:
                return  # it still drains there
            there.unit.close_model("m")
        there.open()
        self.at = 1 - self.at
        here.unit.refuse("m", GONE)
        here.unit.hand_over("m", there.unit)
        for sequence in here.unit.lanes["m"].waiting:
            stays = sequence.batch is not None or sequence.generated
            assert stays or len(sequence.tokens) >= there.unit.lanes["m"].spec.max_context
        there.unit.worker_ready("m")

    def lose(self, side: Side) -> None:
        if "m" in side.unit.lanes:
            side.sent.clear()
            side.unit.worker_lost("m", WorkerLost("killed"))
            side.unit.worker_ready("m")

    def check(self) -> None:
        for side in self.sides:
            side.ledger.audit()
        for side in self.sides:
            if "m" in side.unit.lanes:
                waiting = [s for s in side.unit.lanes["m"].waiting if not s.generated]
                order = [(not s.suspect, s.arrived) for s in waiting]
                assert order == sorted(order)


steps = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 50), st.integers(1, 12)),
    st.tuples(st.just("submit"), st.integers(1, 50), st.integers(1, 12)),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.just("move")),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(st.just("lose"), st.integers(0, 1)),
)


async def play(script: list[tuple[Any, ...]], blocks: tuple[int, int]) -> None:
    pair = Pair(blocks)
    cancelled = perform(pair, script)
    failed = await read(pair, cancelled)
    outcomes = pair.observer.outcomes
    assert outcomes["refused"] == pair.refused
    assert sum(outcomes.values()) == pair.observer.arrivals == len(pair.streams) + pair.refused
    assert outcomes["failed"] >= failed
    for side in pair.sides:
        assert side.ledger.unheld_blocks == side.ledger.total_blocks
        assert side.unit.idle
    for n in range(len(pair.streams) + pair.refused):
        whole_story(pair, f"r-{n}")


def perform(pair: Pair, script: list[tuple[Any, ...]]) -> set[int]:
    """Until nothing is sent any more; returns the numbers of the streams that were cancelled."""
    cancelled: set[int] = set()
    for kind, *args in script:
        if kind == "submit":
            pair.clock.advance(0.01)
            pair.submit(*args)
        elif kind == "step" and pair.sides[args[0]].sent:
            pair.sides[args[0]].step()
        elif kind == "move":
            pair.move()
        elif kind == "cancel" and pair.streams:
            n = args[0] % len(pair.streams)
            pair.streams[n][0].close()
            cancelled.add(n)
        elif kind == "lose":
            pair.lose(pair.sides[args[0]])
        pair.check()
    while any(side.sent for side in pair.sides):
        for side in pair.sides:
            if side.sent:
                side.step()
        pair.check()
    return cancelled


async def read(pair: Pair, cancelled: set[int]) -> int:
    """All that were not cancelled have what they asked for; returns how many have failed."""
    failed = 0
    for n, (stream, tokens) in enumerate(pair.streams):
        if n in cancelled:
            continue
        got: list[int] = []
        try:
            async with asyncio.timeout(5):
                async for delta in stream:
                    got += delta.tokens
        except RequestKillsWorker:
            failed += 1
            continue
        assert got == [5] * len(got)
        room = min(side.unit.lanes["m"].spec.max_context for side in pair.sides if "m" in side.unit.lanes)
        assert len(got) == tokens or len(got) >= room - 50
    return failed


def stages(one: RequestTimes | Stay) -> list[float]:
    return [sum(one.waits.values()), one.prefill, one.recompute, one.decode, one.held]


def whole_story(pair: Pair, id: str) -> list[Stay]:
    """What it says of each device follows on the one before, and adds up to the whole."""
    (one,) = newest([side.unit.journal.find(id, pair.clock.now()) for side in pair.sides])
    assert sum(stages(one)) == pytest.approx(one.total)
    came = one.arrived
    for stay in one.stays:
        assert stay.came == pytest.approx(came)
        assert sum(stages(stay)) == pytest.approx(stay.seconds)
        came += stay.seconds
    assert all(one.device != other.device for one, other in pairwise(one.stays))
    if one.stays:
        assert came == pytest.approx(one.arrived + one.total)
        parts = [sum(part) for part in zip(*map(stages, one.stays), strict=True)]
        assert parts == pytest.approx(stages(one))
    return one.stays


@settings(max_examples=examples(300))
@given(st.lists(steps, max_size=60), st.sampled_from([(64, 64), (64, 24), (20, 64)]))
def test_every_request_ends_once_wherever_it_was_begun(
    script: list[tuple[Any, ...]], blocks: tuple[int, int]
) -> None:
    asyncio.run(play(script, blocks))


def test_what_waits_goes_over_in_order_and_what_streams_stays() -> None:
    async def scene() -> None:
        pair = Pair((64, 64))
        for _ in range(6):
            pair.clock.advance(0.01)
            pair.submit(6, 3)
        pair.sides[0].step()  # the first prefill: who is in it streams
        begun = len(pair.sides[0].unit.lanes["m"].running)
        assert 0 < begun < 6
        pair.move()
        there = pair.sides[1].unit.lanes["m"]
        assert [s.request.id for s in there.sequences()] == [f"r-{n}" for n in range(begun, 6)] or (
            pair.sides[0].unit.lanes["m"].flight is not None
        )
        while any(side.sent for side in pair.sides):
            for side in pair.sides:
                if side.sent:
                    side.step()
        assert pair.observer.outcomes == {"served": 6}
        (times,) = pair.sides[1].unit.journal.find("r-5", pair.clock.now())
        assert times.state == "served"
        parts = sum(times.waits.values()) + times.prefill + times.recompute + times.decode + times.held
        assert abs(parts - times.total) < 1e-9
        assert pair.sides[0].unit.journal.find("r-5", pair.clock.now()) == []
        before, after = whole_story(pair, "r-5")
        assert (before.device, after.device) == ("cpu:0", "cpu:1")
        assert before.waits == {"busy": pytest.approx(0.1)}, "its own model's first prefill"
        assert before.prefill == before.decode == 0
        assert after.prefill > 0
        assert after.decode > 0
        assert whole_story(pair, "r-0") == []

    asyncio.run(scene())


def test_a_lane_that_has_failed_tells_who_joins_it() -> None:
    async def scene() -> None:
        pair = Pair((64, 64))
        for _ in range(5):
            pair.submit(6, 3)
        pair.sides[1].open()
        pair.sides[1].unit.worker_lost("m", WorkerLost("gone"), final=True)
        moved = pair.sides[0].unit.hand_over("m", pair.sides[1].unit)
        assert moved
        assert pair.observer.outcomes["failed"] == moved

    asyncio.run(scene())
