"""Where a request's time went: against a slow and obvious account of the same history, and rule by rule."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bench_unit import BenchUnit
from support.bench_worker import Spec
from support.examples import examples
from support.lanes import lane_spec
from support.timed_unit import Arrival, TimedUnit

from muxd.engine.actions import Action, Arrived, BatchDone, Cancelled, Event, WorkerReady
from muxd.engine.journal import FINISHED, Journal
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.trace import RequestTimes
from muxd.messages import Sampling
from muxd.pool.ledger import Ledger

SPECS = [
    Spec("a_model", blocks=3, row_tokens=4, share=50, min_blocks=9, max_running=4),
    Spec("b.model", blocks=2, row_tokens=2, share=30, max_running=3),
    Spec("c", blocks=1, row_tokens=8, share=100, min_blocks=4, max_running=8),
]


class Naive(BenchUnit):
    """Books every interval between two events to every open request, by looking at each of them."""

    def __init__(self, total: int):
        super().__init__(SPECS, total, ready=False, settings=Settings(0.5, 8, 4))
        self.journal = Journal(self.scheduler.lanes, self.ledger)
        self.books: dict[int, dict[str, float]] = {}
        self._seen = 0.0
        for spec in SPECS:
            self.revive(spec.name)

    def handle(self, event: Event) -> list[Action]:
        for sequence in self.all:
            over = sequence.id in self.outcome and event != Cancelled(sequence)
            if sequence.id in self.books and not over:
                book, where = self.books[sequence.id], self.where(sequence)
                book[where] = book.get(where, 0.0) + self.now - self._seen
        self._seen = self.now
        if isinstance(event, Arrived):
            self.books[event.sequence.id] = {}
        actions = super().handle(event)
        self.journal.observe(event, actions, self.now)
        return actions

    def where(self, sequence: Sequence) -> str:
        lane = self.scheduler.lanes[sequence.model]
        if sequence.batch is not None:
            if not lane.flights[0].prefill:
                return "decode"
            return "recompute" if sequence.preemptions + sequence.reruns else "prefill"
        return "held" if sequence.phase is Phase.RUNNING else lane.blocked or "busy"


def booked(times: RequestTimes) -> dict[str, float]:
    stages = {key: getattr(times, key) for key in ("prefill", "recompute", "decode", "held")}
    return {key: seconds for key, seconds in {**times.waits, **stages}.items() if seconds > 1e-9}


models = st.integers(0, 2)
arrive = st.tuples(st.just("arrive"), models, st.integers(1, 40), st.integers(1, 12))
finish = st.tuples(st.just("finish"), models, st.sampled_from([0.001, 0.05, 0.7]))
cancel = st.tuples(st.just("cancel"), st.integers(0, 200))
lose = st.tuples(st.just("lose"), models)
events = st.lists(st.one_of(arrive, arrive, finish, finish, finish, cancel, lose), max_size=60)


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
@given(events, st.sampled_from([24, 60, 400]))
def test_the_parts_are_those_of_a_naive_account_and_add_up(script: list[tuple[Any, ...]], total: int) -> None:
    unit = Naive(total)
    for kind, *args in script:
        busy = unit.busy()
        if kind == "arrive":
            unit.arrive(SPECS[args[0]].name, args[1], args[2])
        elif kind == "finish" and busy:
            unit.finish(busy[args[0] % len(busy)], args[1])
        elif kind == "cancel" and unit.all:
            unit.cancel(unit.all[args[0] % len(unit.all)])
        elif kind == "lose":
            unit.now += 0.02
            unit.lose(SPECS[args[0]].name)
            unit.now += 0.3
            unit.revive(SPECS[args[0]].name)
    unit.run()
    for sequence in unit.all:
        (times,) = unit.journal.find(f"{sequence.request.id}", unit.now)
        assert times.state == unit.outcome[sequence.id]
        naive = {key: seconds for key, seconds in unit.books[sequence.id].items() if seconds > 1e-9}
        assert booked(times) == pytest.approx(naive, abs=1e-9)
        assert sum(booked(times).values()) == pytest.approx(times.total, abs=1e-6)
        assert (times.preemptions, times.reruns) == (sequence.preemptions, sequence.reruns)


def test_a_running_request_is_explained_up_to_now() -> None:
    unit = TimedUnit([Spec("a")], 600)
    sequence = unit.offer(Arrival(0.0, "a", 16, 100))
    unit.finish("a", 0.25)
    unit.now += 0.125
    (times,) = unit.journal.find(sequence.request.id, unit.now)
    assert (times.state, times.prefill, times.decode, times.total) == ("running", 0.25, 0.125, 0.375)
    assert times.ttft == 0.25


def test_who_prefilled_meanwhile_is_named() -> None:
    unit = TimedUnit([Spec("quiet"), Spec("loud")], 6000)
    unit.play([Arrival(0.0, "loud", 64, 1), Arrival(0.001, "quiet", 4, 1)])
    (times,) = unit.journal.find("cmpl-1-0", unit.now)
    assert times.beside["loud"] == pytest.approx(times.waits["turn"])
    assert times.waits["turn"] > 0.01


def test_a_full_pool_and_full_slots_have_their_own_names() -> None:
    unit = TimedUnit([Spec("rows", blocks=4), Spec("slots", max_running=1)], 44)
    unit.play([Arrival(0.0, model, 16, 12) for model in ("rows", "rows", "slots", "slots")])
    assert unit.journal.find("cmpl-1-0", 1)[0].waits["rows"] > 0.05
    assert unit.journal.find("cmpl-3-0", 1)[0].waits["slots"] > 0.05


def test_preemption_is_counted_and_its_recomputation_timed() -> None:
    unit = TimedUnit([Spec("a", blocks=2)], 24)
    unit.play([Arrival(0.0, "a", 8, 24), Arrival(0.0, "a", 8, 24)])
    assert unit.preempted
    times = unit.journal.find(f"cmpl-{unit.preempted[0]}-0", unit.now)[0]
    assert times.preemptions == unit.preempted.count(unit.preempted[0])
    assert times.recompute > 0
    marks = unit.journal.timeline.snapshot(unit.now).marks
    assert [m.detail for m in marks if m.kind == "preempted"] == [f"cmpl-{i}-0" for i in unit.preempted]


def test_a_prefix_that_was_there_is_counted_once() -> None:
    unit = TimedUnit([Spec("a")], 600)
    first = unit.arrive("a", 20, same=20)
    unit.run()
    again = unit.arrive("a", 20, same=20)
    unit.run()
    assert [unit.journal.find(s.request.id, unit.now)[0].cached_tokens for s in (first, again)] == [0, 16]


# ---- finding ----------------------------------------------------------------------------------------


class Plain:
    """A scheduler and its journal, without a bench: for many requests."""

    def __init__(self) -> None:
        ledger = Ledger(64)
        ledger.add_model("m", 2, 32)
        lane = lane_spec("m", 50, 4, 2, 100, 8, 100, 32)
        self.scheduler = Scheduler([lane], ledger, Shares([50, 100]), Settings())
        self.journal = Journal(self.scheduler.lanes, ledger)
        self.now, self.count = 0.0, 0
        self.handle(WorkerReady("m"))

    def handle(self, event: Event) -> None:
        self.journal.observe(event, self.scheduler.handle(event, self.now), self.now)

    def arrive(self, id: str, http_id: str = "", prompt: int = 4) -> None:
        request = Request(id, "m", [123454321] * prompt, 1, Sampling(), frozenset(), http_id)
        self.count += 1
        self.handle(Arrived(Sequence(self.count, request, self.now)))

    def finish(self) -> None:
        [flight] = self.scheduler.lanes["m"].flights
        self.now += 0.01
        self.handle(BatchDone("m", flight.batch, [5] * len(flight.sequences)))

    def ids(self, id: str) -> list[str]:
        return [times.id for times in self.journal.find(id, self.now)]


def test_found_by_answer_choice_and_http_id() -> None:
    bench = Plain()
    for choice in (0, 1):
        bench.arrive(f"chatcmpl-ab-{choice}", "from-client/7")
    bench.finish()  # the first; the second came while it ran
    assert bench.ids("chatcmpl-ab") == bench.ids("from-client/7") == ["chatcmpl-ab-0", "chatcmpl-ab-1"]
    assert bench.ids("chatcmpl-ab-1") == ["chatcmpl-ab-1"]
    assert bench.ids("chatcmpl") == bench.ids("other") == []


def test_no_id_finds_nothing() -> None:
    bench = Plain()
    bench.arrive("cmpl-1-0")
    assert bench.ids("") == []


def test_an_http_id_used_twice_means_the_newest_answer() -> None:
    bench = Plain()
    for id in ("cmpl-1-0", "cmpl-2-0"):
        bench.arrive(id, "same")
        bench.finish()
    assert bench.ids("same") == ["cmpl-2-0"]


def test_a_refusal_is_remembered_with_its_reason() -> None:
    bench = Plain()
    bench.arrive("cmpl-1-0", "long", prompt=200)
    (times,) = bench.journal.find("long", bench.now)
    assert (times.state, times.total, times.waits) == ("refused", 0.0, {})
    assert "200 tokens" in times.detail


def test_only_the_newest_ends_are_remembered_and_no_token_ids() -> None:
    bench = Plain()
    for number in range(FINISHED + 50):
        bench.arrive(f"cmpl-{number}-0")
        bench.finish()
    assert bench.ids("cmpl-49") == []
    assert bench.ids("cmpl-50") == ["cmpl-50-0"]
    told = msgspec.json.encode(
        [bench.journal.find("cmpl-100", bench.now), bench.journal.timeline.snapshot(bench.now)]
    )
    assert b"123454321" not in told
