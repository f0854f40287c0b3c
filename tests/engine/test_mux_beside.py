"""What mux runs beside each other, and in which order; and servers, which run nothing beside each other."""

from itertools import pairwise

import pytest
from msgspec import structs
from support.bench_unit import BenchUnit
from support.bench_worker import Spec

from muxd.engine.settings import Settings
from muxd.messages import Prefill

SMALL = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4, adapt_period=4.0)
QUARTERS = (25, 50, 75, 100)


def quarters(*specs: Spec, policy: str = "mux") -> BenchUnit:
    return BenchUnit(list(specs), 6000, settings=SMALL, policy=policy, rungs=QUARTERS)


def stream(unit: BenchUnit, model: str, max_tokens: int = 500) -> None:
    """One running sequence of ``model`` more."""
    sequence = unit.arrive(model, 4, max_tokens)
    while sequence.id not in unit.emitted:
        busy = unit.busy()
        unit.finish(model if model in busy else busy[0])


def prefills(unit: BenchUnit) -> list[str]:
    return [name for name, worker in unit.workers.items() if isinstance(worker.busy, Prefill)]


@pytest.mark.parametrize(("models", "part"), [(1, 100), (2, 50), (3, 25), (4, 25), (9, 25)])
def test_an_equal_part_fits_as_often_as_there_are_models(models: int, part: int) -> None:
    unit = quarters(*[Spec(f"m{i}", share=0) for i in range(models)])
    assert {lane.spec.share for lane in unit.scheduler.lanes.values()} == {part}


def test_a_model_that_failed_leaves_its_part_to_the_others() -> None:
    unit = quarters(*[Spec(name, share=0) for name in "abc"], Spec("own", share=75))
    lanes = unit.scheduler.lanes
    assert [lanes[name].spec.share for name in ("a", "b", "c", "own")] == [25, 25, 25, 75]
    for name in ("b", "c"):
        unit.lose(name, final=True)
    assert [lanes[name].spec.share for name in ("a", "own")] == [50, 75]
    unit.revive("b")
    assert lanes["a"].spec.share == 25


def test_three_models_on_four_parts_step_beside_each_other() -> None:
    unit = quarters(*[Spec(name, share=0) for name in "abc"])
    for name in "abc":
        stream(unit, name)
    while prefills(unit):
        unit.finish(prefills(unit)[0])
    assert len(unit.busy()) == 3


def test_the_first_prefill_leaves_one_part_and_a_second_has_its_models_share() -> None:
    unit = quarters(*[Spec(name, share=0) for name in ("stream", "a", "b", "c")])
    stream(unit, "stream")
    for name in "abc":
        unit.arrive(name, 16)
    unit.finish("stream")
    running = {name: worker.busy for name, worker in unit.workers.items() if worker.busy is not None}
    assert {name: command.share for name, command in running.items()} == {"a": 75, "b": 25}
    assert prefills(unit) == ["a", "b"]


@pytest.mark.parametrize(("shares", "prefill"), [((50, 50), 50), ((25, 50), 75), ((50, 25, 50), 75)])
def test_a_prefill_leaves_what_the_least_demanding_stream_needs(
    shares: tuple[int, ...], prefill: int
) -> None:
    """At three quarters, the only other model's streams at half the device would stand still beside it."""
    streams = [f"stream{i}" for i in range(len(shares) - 1)]
    specs = [Spec(name, share=share) for name, share in zip([*streams, "new"], shares, strict=True)]
    unit = quarters(*specs)
    for name in streams:
        stream(unit, name)
    unit.arrive("new", 64)
    while "new" not in unit.busy():
        unit.finish(unit.busy()[0])
    command = unit.workers["new"].busy
    assert isinstance(command, Prefill)
    assert command.share == prefill


def test_a_small_model_does_not_wait_for_the_steps_of_large_ones() -> None:
    """Two large ones at half the device each and a small one: in turns it would step as seldom as they do."""
    seconds = {"large": 0.1, "huge": 0.1, "small": 0.004}
    unit = BenchUnit([Spec(name, share=50) for name in seconds], 6000, settings=SMALL)
    for name in seconds:
        stream(unit, name, 2500)
    ends: dict[str, float] = {}
    since = len(unit.launches)
    while len(unit.launches) < since + 1500:
        for name in unit.busy():
            ends.setdefault(name, unit.now + seconds[name])
        first = min(ends, key=ends.__getitem__)
        unit.finish(first, seconds=max(0.0, ends.pop(first) - unit.now))
    steps = [model for _, model, _ in unit.launches[since + 1000 :]]  # paces are learnt
    assert steps.count("small") > 3 * steps.count("large") > 0
    assert steps.count("large") == pytest.approx(steps.count("huge"), abs=2)


@pytest.mark.parametrize("later", [False, True])
def test_with_targets_who_must_start_soonest_goes_first_and_nobody_is_passed_over_for_ever(
    later: bool,
) -> None:
    """``later``: a target that a lane is given while it serves."""
    specs = [Spec("late", ttft_slo=30.0), Spec("urgent", ttft_slo=0.0 if later else 0.2), Spec("any")]
    unit = BenchUnit(specs, 6000, settings=SMALL)
    if later:
        lane = unit.scheduler.lanes["urgent"]
        lane.adopt(structs.replace(lane.spec.config, ttft_slo=0.2))
    blocker = unit.arrive("any", 16, 1)
    since = len(unit.launches)
    for _ in range(6):
        unit.arrive("late", 16, 1)
    for _ in range(40):
        unit.arrive("urgent", 16, 1)
    while blocker.id not in unit.outcome:
        unit.finish(unit.busy()[0])
    unit.run(3000)
    prompts = [model for _, model, command in unit.launches[since:] if isinstance(command, Prefill)]
    assert prompts.count("urgent") > prompts.count("late") > 0
    places = [i for i, model in enumerate(prompts) if model == "late"]
    assert max(b - a for a, b in pairwise(places)) <= 2 * len(specs)


def test_servers_take_turns_on_the_whole_device_and_keep_to_their_part_of_the_pool() -> None:
    unit = quarters(*[Spec(name, blocks=2) for name in "abc"], policy="servers")
    for name in "abc":
        unit.arrive(name, 8, 8)
    while unit.busy():
        assert len(unit.busy()) == 1
        unit.finish(unit.busy()[0])
    assert {command.share for _, _, command in unit.launches} == {100}
    assert {use.max_blocks for use in unit.ledger.usage().values()} == {2000}
    models = [model for _, model, _ in unit.launches[:9]]
    assert sorted(models[:3]) == sorted(models[3:6]) == ["a", "b", "c"], "in turn"
