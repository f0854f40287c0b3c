"""Jumps over decode steps that decide nothing: nothing else may come of them, and most steps are jumped."""

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec import Struct, structs
from support.costs import SHAPE, model, table
from support.examples import examples

from muxd.config import Config, ModelConfig, Policy, PoolConfig, SchedulerConfig, Split
from muxd.cost.law import Memory
from muxd.cost.profile import Overhead
from muxd.cost.table import CostTable
from muxd.engine.actions import Action, BatchDone, Event, Stepped
from muxd.engine.policies import POLICIES
from muxd.engine.scheduler import Scheduler
from muxd.sim.build import make_scheduler
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Outcome
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

MEMORY = Memory(3e9, [50, 100], [2e9, 3e9])


class Case(Struct, frozen=True):
    """What is simulated with and without."""

    recipe: Recipe
    pool: str
    policy: Policy = "mux"
    gpu: bool = True
    split: Split = "no"
    host: float = 0.0  # seconds of overhead, half of them a token
    shared_prefix: int = 0
    share: int = 0
    overbook: int = 0
    max_running: int = 0
    prefix_cache: bool = True
    adapt_period: float = 8.0
    batch_timeout: float = 10.0
    memory: bool = True
    window: int = 0  # tokens, of one of two layers

    def cost(self) -> CostTable:
        overhead = Overhead(batch=self.host / 2, token=self.host / 2, request=self.host)
        sizes = {
            name: model(0.0005, 0.004 * (i + 1), weights=10_000_000 * (i + 1), overhead=overhead)
            for i, name in enumerate(self.recipe.models)
        }
        if self.window:
            shape = structs.replace(SHAPE, windows=(None, self.window))
            sizes = {name: structs.replace(size, shape=shape) for name, size in sizes.items()}
        return table(gpu=self.gpu, memory=MEMORY if self.memory else None, **sizes)

    def config(self) -> Config:
        scheduler = SchedulerConfig(
            policy=self.policy, prefill_tokens=64, look_ahead=8, drain_timeout=0.05, split_phases=self.split,
            overbook=self.overbook, adapt_period=self.adapt_period, batch_timeout=self.batch_timeout,
        )  # fmt: skip
        models = [
            ModelConfig(n, n, share=self.share, max_running=self.max_running, prefix_cache=self.prefix_cache)
            for n in self.recipe.models
        ]
        return Config(pool=PoolConfig(self.pool), scheduler=scheduler, model=models)


class Watch:
    """Counts what the scheduler is told, and looks at its books after every jump."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler, self.done, self.jumps, self.jumped = scheduler, 0, 0, 0
        self.seen: dict[int, list[object]] = {}  # after the answer of this number
        self._handle = scheduler.handle
        scheduler.handle = self.handle  # type: ignore[method-assign]

    def handle(self, event: Event, now: float) -> list[Action]:
        before = (0, 0)
        if isinstance(event, Stepped):
            before = self._tokens(), sum(use.rows for use in self.scheduler.ledger.usage().values())
        actions = self._handle(event, now)
        if isinstance(event, BatchDone):
            self.done += 1
            self.seen[event.batch] = self._state(now)
        elif isinstance(event, Stepped):
            self.jumps += 1
            self.jumped += len(event.steps)
            assert not actions
            assert self._tokens() > before[0]
            self._check()
        return actions

    def _state(self, now: float) -> list[object]:
        """Whose turn it is, what is in flight and behind that, and who runs."""
        turns = self.scheduler._board.decodable._turn
        lanes = self.scheduler.lanes.values()
        flights = [flight for lane in lanes for flight in lane.all_flights]
        return [
            now,
            sorted(turns, key=turns.__getitem__),
            [(one.batch, one.began, one.due, one.asked, one.share) for one in flights],
            [
                (s.id, s.batch, s.computed, len(s.tokens), len(s.rows), s.faded)
                for lane in lanes
                for s in lane.running
            ],
        ]

    def _tokens(self) -> int:
        return sum(s.generated for lane in self.scheduler.lanes.values() for s in lane.running)

    def _check(self) -> None:
        scheduler = self.scheduler
        scheduler.ledger.audit()
        flights = [flight for lane in scheduler.lanes.values() for flight in lane.flights]
        assert scheduler.shares.booked == sum(flight.share for flight in flights)
        for lane in scheduler.lanes.values():
            held = {row for s in lane.sequences() for row in s.rows}
            assert len(held) <= scheduler.ledger.usage()[lane.spec.model].rows
            for sequence in lane.running:
                assert sequence.remaining == 1
                assert sequence.generated < sequence.request.max_tokens
                assert len(sequence.rows) * lane.spec.row_tokens >= sequence.computed
                assert sequence.faded == lane.passed(sequence.computed)
                assert sequence.batch in {flight.batch for flight in lane.all_flights} | {None}


def run(case: Case, workload: Workload, *, jumps: bool) -> tuple[World, Watch, list[object]]:
    """And everything that may be asked of it afterwards."""
    cost = case.cost()
    scheduler = make_scheduler(case.config(), cost)
    watch = Watch(scheduler)
    world = World(scheduler, cost, workload, shared_prefix=case.shared_prefix, jumps=jumps)
    records = world.run()
    lanes = [
        (
            lane.decode_ended, lane.step_seconds, lane.token_seconds, lane.pace, lane.launched, lane.stepped,
            lane.answer_tokens, lane.prefilled_at, lane.promised, lane.admitted,
        )
        for lane in scheduler.lanes.values()
    ]  # fmt: skip
    found: list[object] = [
        records.first.tobytes(), records.end.tobytes(), records.outcome.tobytes(), records.errors,
        records.preemptions, world.device.moved, world.device.busy, world.clock.now(), lanes,
        scheduler.ledger.usage(), scheduler.deadline(world.clock.now()),
    ]  # fmt: skip
    return world, watch, found


RECIPES = st.builds(
    Recipe,
    models=st.sampled_from([["a"], ["a", "b"], ["c", "a", "b"]]),
    rate=st.floats(0.5, 60),
    duration=st.floats(0.5, 3.0),
    alpha=st.floats(0, 2.5),
    cv=st.sampled_from([1.0, 3.0]),
    lengths=st.sampled_from(["uniform:1-90,1-200", "constant:30,140", "uniform:100-200,1-9"]),
    seed=st.integers(0, 1000),
)
CASES = st.builds(
    Case,
    recipe=RECIPES,
    pool=st.sampled_from(["512K", "1M", "2M", "16M"]),
    policy=st.sampled_from(sorted(POLICIES)),
    gpu=st.booleans(),
    split=st.sampled_from(["yes", "no"]),
    host=st.sampled_from([0.0, 0.001, 0.004, 0.02]),
    shared_prefix=st.sampled_from([0, 0, 40, 200]),
    share=st.sampled_from([0, 50, 100]),
    overbook=st.sampled_from([0, 50]),
    max_running=st.sampled_from([0, 1, 3]),
    prefix_cache=st.booleans(),
    adapt_period=st.sampled_from([0.3, 8.0]),
    batch_timeout=st.sampled_from([0.0, 0.5, 10.0]),
    memory=st.booleans(),
    window=st.sampled_from([0, 0, 1, 20, 50, 97]),
)


@settings(max_examples=examples(80))
@given(CASES)
def test_the_same_to_the_last_bit(case: Case) -> None:
    """And every step that is jumped over is one answer less of which the scheduler hears."""
    workload = generate(case.recipe)
    _, watch, jumped = run(case, workload, jumps=True)
    _, plain, stepped = run(case, workload, jumps=False)
    event(f"{10 * watch.jumped // max(1, plain.done)} of 10 steps and prefills jumped")
    assert jumped == stepped
    assert plain.jumps == 0
    assert watch.seen == {number: plain.seen[number] for number in watch.seen}
    assert watch.done + watch.jumped == plain.done


def streams(*tokens: int) -> Workload:
    """One of each model at once: answers of so many tokens."""
    items = [Item(0.5 + i / 1000, "abc"[i], 40, count) for i, count in enumerate(tokens)]
    return Workload(items, {})


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_stream_alone_is_jumped_to_its_end(policy: Policy, gpu: bool) -> None:
    case = Case(Recipe(["a"], 1.0, 1.0), "16M", policy, gpu=gpu, host=0.001, adapt_period=1e3)
    world, watch, jumped = run(case, streams(1000), jumps=True)
    assert jumped == run(case, streams(1000), jumps=False)[2]
    assert watch.jumped >= 990
    assert watch.jumps < 10
    assert world.events < 20, "a scheduler that is asked for nothing"


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("policy", ["mux", "spatial", "fcfs", "round_robin"])
def test_models_beside_each_other_are_jumped_together(policy: Policy, gpu: bool) -> None:
    case = Case(Recipe(["a", "b"], 1.0, 1.0), "16M", policy, gpu=gpu, share=50, adapt_period=1e3)
    _, watch, jumped = run(case, streams(1000, 500), jumps=True)
    assert jumped == run(case, streams(1000, 500), jumps=False)[2]
    assert watch.jumped >= 1450
    assert watch.jumps < 20


@pytest.mark.parametrize("window", [32, 100])
def test_streams_whose_rows_fade_are_jumped_as_others_are(window: int) -> None:
    case = Case(Recipe(["a", "b"], 1.0, 1.0), "16M", "mux", share=50, adapt_period=1e3, window=window)
    _, watch, jumped = run(case, streams(1000, 500), jumps=True)
    assert jumped == run(case, streams(1000, 500), jumps=False)[2]
    assert watch.jumped >= 1450


def test_most_steps_of_a_unit_that_is_not_full_are_jumped() -> None:
    case = Case(
        Recipe(["a", "b"], 1.0, 120.0, lengths="sharegpt"), "16M", split="yes", host=0.001, adapt_period=1e3
    )
    workload = generate(case.recipe)
    world, watch, jumped = run(case, workload, jumps=True)
    _, plain, stepped = run(case, workload, jumps=False)
    assert jumped == stepped
    assert watch.jumped > 0.8 * plain.done
    assert (world.records.outcome == Outcome.SERVED).all()
    assert not np.isnan(world.records.end).any()
