"""A device that queues, in virtual time: the daemon's part of a step is hidden, and nothing else changes."""

from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.costs import model, table
from support.examples import examples

from muxd.clock import VirtualClock
from muxd.config import Config, ModelConfig, Policy, PoolConfig, SchedulerConfig, Split
from muxd.cost.profile import Overhead
from muxd.cost.table import CostTable
from muxd.engine.actions import Action, Ahead, Cancelled, Emit, Ended, Event, Rejected, Stepped
from muxd.engine.policies import POLICIES
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Phase
from muxd.errors import ConfigError
from muxd.sim.build import make_scheduler
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Outcome, Records
from muxd.sim.virtual_unit import VirtualUnit, request_of
from muxd.sim.workload import Item, Workload
from muxd.sim.world import World

STEP = 0.01


def gpu(*names: str, overhead: Overhead) -> CostTable:
    models = {name: model(0.0005, STEP, overhead=overhead) for name in names}
    return table(gpu=True, memory=None, **models)


def config(*names: str, pool: str = "16M", split: Split = "no", policy: Policy = "mux") -> Config:
    scheduler = SchedulerConfig(
        policy=policy, prefill_tokens=64, look_ahead=8, drain_timeout=0.05, split_phases=split
    )
    return Config(pool=PoolConfig(pool), scheduler=scheduler, model=[ModelConfig(n, n) for n in names])


class Told:
    """What a scheduler did: tokens and ends of each sequence, and steps that were sent ahead."""

    def __init__(self, scheduler: Scheduler):
        self.tokens, self.ends, self.ahead = Counter[int](), Counter[int](), 0
        self._handle, self._lanes = scheduler.handle, scheduler.lanes
        scheduler.handle = self.handle  # type: ignore[method-assign]

    def handle(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Stepped):
            for model, _ in event.steps:
                step = self._lanes[model].step
                assert step is not None
                self.tokens.update(sequence.id for sequence in step.sequences)
        actions = self._handle(event, now)
        for action in actions:
            match action:
                case Emit():
                    self.tokens.update(sequence.id for sequence in action.sequences)
                case Ended() | Rejected():
                    self.ends[action.sequence.id] += 1
                case Ahead():
                    self.ahead += 1
        return actions


@pytest.mark.parametrize("host", [0.0, 0.004, STEP, 0.015, 0.1])
@pytest.mark.parametrize("output", [2, 3, 10, 11])
def test_a_stream_pays_the_overhead_once_or_every_other_step_where_it_is_longer(
    host: float, output: int
) -> None:
    cost = gpu("a", overhead=Overhead(batch=host, request=0.003))
    item = Item(1.0, "a", 60, output)
    records = World(make_scheduler(config("a"), cost), cost, Workload([item], {})).run()
    steps = output - 1
    if host <= STEP:
        expected = steps * STEP + host
    else:  # two steps, then the wait for the first one's answer
        expected = -(-steps // 2) * (STEP + host) + (0 if steps % 2 else STEP)
    assert records.end[0] - records.first[0] == pytest.approx(expected)
    assert records.end[0] - 1.0 == pytest.approx(cost.alone("a", 60, output))


RECIPES = st.builds(
    Recipe,
    models=st.sampled_from([["a"], ["a", "b"], ["c", "a", "b"]]),
    rate=st.floats(0.5, 60),
    duration=st.just(3.0),
    alpha=st.floats(0, 2.5),
    lengths=st.sampled_from(["uniform:1-90,1-60", "constant:30,40", "uniform:100-200,1-3"]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=examples(30))
@given(
    RECIPES,
    st.sampled_from(["512K", "16M"]),
    st.floats(0, 3 * STEP),
    st.sampled_from(["yes", "no"]),
    st.sampled_from(sorted(POLICIES)),
)
def test_with_and_without_everybody_ends_once_with_the_same_tokens(
    recipe: Recipe, pool: str, host: float, split: Split, policy: Policy
) -> None:
    """Tokens of an overhead of their own make answers of small batches overtake, were they not kept back."""
    workload = generate(recipe)
    cost = gpu(*recipe.models, overhead=Overhead(batch=host / 2, token=host / 2))
    found = []
    for ahead in (True, False):
        scheduler = make_scheduler(config(*recipe.models, pool=pool, split=split, policy=policy), cost)
        scheduler.settings = structs.replace(scheduler.settings, run_ahead=ahead)
        told = Told(scheduler)
        records = World(scheduler, cost, workload).run()  # audits the ledger
        assert set(records.outcome.tolist()) <= {Outcome.SERVED}
        assert told.ends == Counter(dict.fromkeys(range(len(workload.items)), 1))
        assert scheduler.ledger.unheld_blocks == scheduler.ledger.total_blocks
        assert ahead or not told.ahead
        found.append(told.tokens)
    assert found[0] == found[1]
    assert found[0] == Counter({i: item.output_tokens for i, item in enumerate(workload.items)})


def busy(cost: CostTable, workload: Workload, *, ahead: bool) -> tuple[float, float, Records]:
    """Share-seconds computed, the last token's time, and what became of the requests."""
    scheduler = make_scheduler(config("a"), cost)
    scheduler.settings = structs.replace(scheduler.settings, run_ahead=ahead)
    world = World(scheduler, cost, workload)
    records = world.run()
    return world.device.busy, float(records.end.max()), records


@settings(max_examples=examples(40))
@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 40), st.floats(0, 0.03))
def test_one_models_device_is_never_less_busy(streams: int, prompt: int, output: int, host: float) -> None:
    """The same work, in no more time: of streams that come together, each step is one for all."""
    cost = gpu("a", overhead=Overhead(batch=host))
    workload = Workload([Item(0.0, "a", prompt, output)] * streams, {})
    with_ahead, without = (busy(cost, workload, ahead=ahead) for ahead in (True, False))
    assert with_ahead[0] == pytest.approx(without[0])
    assert with_ahead[1] <= without[1] + 1e-9
    assert with_ahead[0] / with_ahead[1] >= without[0] / without[1] - 1e-9
    if output > 3 and host > 0.001:
        assert with_ahead[1] < without[1]


@pytest.mark.parametrize("split", ["yes", "no"])
@pytest.mark.parametrize("heard", [True, False])
def test_a_reader_who_leaves_while_a_step_is_ahead(split: Split, heard: bool) -> None:
    """``heard``: before the step in front ends on the device, or between that and its answer."""
    cost = gpu("a", overhead=Overhead(batch=0.004))
    workload = Workload([Item(0.0, "a", 20, 30)] * 2, {})
    scheduler, clock, records = (
        make_scheduler(config("a", split=split), cost),
        VirtualClock(),
        Records(workload),
    )
    unit = VirtualUnit(scheduler, cost, clock, records)
    unit.start()
    for i, item in enumerate(workload.items):
        unit.submit(i, request_of(i, item, list(range(100 * i, 100 * i + 20))))

    def go() -> None:
        clock.advance(unit.due() - clock.now())
        assert unit.advance(clock.now()), "a device at work needs no tick here"

    lane = scheduler.lanes["a"]
    while lane.ahead is None or len(lane.ahead.sequences) < 2:
        go()
    if not heard:
        go()  # the step in front has ended; the one behind it computes
    gone = lane.running[0]
    unit._handle(Cancelled(gone))
    assert gone.rows, "two steps may still write them"
    while gone.phase is not Phase.ENDED:
        go()
    assert not gone.rows
    assert len(lane.running) == 1
    while unit.device.due < inf:
        go()
    assert [Outcome(code) for code in records.outcome] == [Outcome.OPEN, Outcome.SERVED]
    assert scheduler.ledger.unheld_blocks == scheduler.ledger.total_blocks
    scheduler.ledger.audit()


def test_a_device_that_does_not_queue_gets_no_step_ahead() -> None:
    cost = table(a=model(0.0005, STEP, overhead=Overhead(batch=0.004)))
    scheduler = make_scheduler(config("a"), cost)
    told = Told(scheduler)
    records = World(scheduler, cost, Workload([Item(0.0, "a", 20, 11)], {})).run()
    assert told.ahead == 0
    assert records.end[0] - records.first[0] == pytest.approx(10 * 0.014)


@pytest.mark.parametrize("pool", ["auto", "60%"])
def test_a_pool_that_only_the_gpu_knows_is_refused(pool: str) -> None:
    with pytest.raises(ConfigError, match=rf"pool.bytes: a simulation has no device to take '{pool}' of"):
        make_scheduler(config("a", pool=pool), gpu("a", overhead=Overhead()))
