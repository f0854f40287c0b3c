"""Early refusal, in virtual time: those refused would have been late, those admitted mostly are not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bench_worker import Spec
from support.examples import examples
from support.lanes import lane_spec
from support.timed_unit import Arrival, TimedUnit

from muxd.engine.actions import Launch, Tick
from muxd.engine.flight import Flight
from muxd.engine.forecast import Forecast
from muxd.engine.lane import Lane
from muxd.engine.request import Request
from muxd.engine.sequence import Sequence
from muxd.engine.settings import Settings
from muxd.engine.slo import Slo
from muxd.errors import CannotMeetSlo
from muxd.messages import Decode, NewRows, Prefill, Sampling

TARGET = 1.0
TARGETS = {"a": Slo(ttft=TARGET), "b": Slo(ttft=TARGET)}


def cost(command: Prefill | Decode) -> float:
    """Half a device is half as fast at prefill; decode does not care."""
    if isinstance(command, Prefill):
        tokens = sum(len(chunk.tokens) // 4 for chunk in command.chunks)
        return 0.004 + 0.002 * tokens * 100 / command.share
    return 0.01 + 0.001 * len(command.seqs)


def workload(
    seed: int, seconds: float, rates: dict[str, float], prompt: dict[str, int], answer: int
) -> list[Arrival]:
    """Poisson arrivals, lognormal lengths around the given medians."""
    draw = random.Random(seed)
    arrivals = []
    for model, rate in rates.items():
        time = draw.expovariate(rate)
        while time < seconds:
            lengths = [max(1, int(draw.lognormvariate(0, 0.6) * mean)) for mean in (prompt[model], answer)]
            arrivals.append(Arrival(time, model, lengths[0], lengths[1]))
            time += draw.expovariate(rate)
    return sorted(arrivals, key=lambda one: one.time)


# What runs short: the one prefill at a time, slots, or rows. All offer about twice what can be served.
OVERLOADS = {
    "prefill": (dict(a=6.0, b=3.0), dict(a=60, b=120), 4, 4000, 8),
    "slots": (dict(a=12.0, b=2.0), dict(a=8, b=8), 40, 4000, 4),
    "rows": (dict(a=12.0, b=2.0), dict(a=16, b=16), 40, 160, 32),
    "all": (dict(a=8.0, b=4.0), dict(a=30, b=60), 30, 600, 6),
}


def two_models(blocks: int, slots: int, *, admission: str) -> TimedUnit:
    specs = [Spec("a", blocks=2, max_running=slots), Spec("b", blocks=1, max_running=slots, min_blocks=20)]
    return TimedUnit(
        specs,
        blocks,
        targets=TARGETS if admission == "slo" else None,
        seconds=cost,
        audit=False,
        settings=Settings(0.3, 64, 8),
    )


def met(unit: TimedUnit) -> set[int]:
    return {id for id, seconds in unit.first.items() if seconds <= TARGET}


@pytest.mark.parametrize("kind", OVERLOADS)
def test_under_overload_those_refused_would_have_missed_and_those_admitted_mostly_meet(kind: str) -> None:
    rates, prompt, answer, blocks, slots = OVERLOADS[kind]
    arrivals = workload(1, 20.0, rates, prompt, answer)
    queueing = two_models(blocks, slots, admission="queue")
    queueing.play(arrivals)
    unit = two_models(blocks, slots, admission="slo")
    unit.play(arrivals)
    admitted = len(unit.all) - len(unit.refused)
    assert len(met(unit)) >= 0.8 * admitted
    assert len(met(unit)) >= 1.8 * len(met(queueing))
    assert len(unit.refused) >= 0.25 * len(arrivals)
    assert len(unit.refused.keys() & met(queueing)) <= 0.1 * len(unit.refused)


def test_a_unit_that_keeps_up_refuses_nobody() -> None:
    arrivals = workload(2, 20.0, dict(a=2.0, b=2.0), dict(a=16, b=16), 10)
    unit = two_models(4000, 32, admission="slo")
    unit.play(arrivals)
    assert not unit.refused
    assert len(met(unit)) == len(arrivals)


def taught(target: float = TARGET) -> TimedUnit:
    """One model that prefills 16 tokens a batch in 0.1 s; one request has been served."""
    unit = TimedUnit([Spec("a")], 6000, targets={"a": Slo(ttft=target)}, seconds=lambda command: 0.1)
    unit.play([Arrival(0.0, "a", 16, 1)])
    return unit


def test_who_knows_nothing_admits() -> None:
    unit = TimedUnit([Spec("a")], 6000, targets=TARGETS)
    assert unit.forecast is not None
    assert unit.forecast.ttft("a", 10_000, unit.scheduler.lanes, 0.0) is None
    for _ in range(50):
        unit.offer(Arrival(0.0, "a", 100, 1))
    assert not unit.refused


def test_the_estimate_is_what_waits_ahead() -> None:
    unit = taught()
    assert unit.forecast is not None
    began = unit.now
    for _ in range(5):
        unit.offer(Arrival(began, "a", 16, 1))
    unit.now += 0.05  # half of the first batch is over
    estimate = unit.forecast.ttft("a", 16, unit.scheduler.lanes, unit.now)
    assert estimate == pytest.approx(0.05 + 4 * 0.1 + 0.1)


@pytest.mark.parametrize(("spec", "blocks"), [(Spec("a", max_running=1), 6000), (Spec("a", blocks=8), 64)])
def test_with_all_slots_or_rows_taken_it_is_how_long_a_request_stays(spec: Spec, blocks: int) -> None:
    unit = TimedUnit([spec], blocks, targets={"a": Slo(ttft=60.0)}, seconds=lambda command: 0.1)
    unit.play([Arrival(0.0, "a", 16, 12)])  # one step prefills it, eleven decode it
    assert unit.forecast is not None
    for _ in range(3):
        unit.offer(Arrival(unit.now, "a", 16, 12))
    lane = unit.scheduler.lanes["a"]
    assert (lane.admitted, lane.queued) == (1, 2)
    unit.finish("a", 0.1)  # the scheduler has tried, and says why no more start
    assert lane.blocked in ("slots", "rows")
    estimate = unit.forecast.ttft("a", 16, unit.scheduler.lanes, unit.now)
    assert estimate == pytest.approx(3 * 1.2 + 0.1)


def test_a_refusal_says_when_to_come_back_and_then_it_fits() -> None:
    unit = taught(target=0.5)
    for _ in range(30):
        unit.offer(Arrival(unit.now, "a", 16, 1), force=True)
    late = unit.offer(Arrival(unit.now, "a", 16, 1))
    error = unit.refused[late.id]
    assert isinstance(error, CannotMeetSlo)
    assert (error.status, error.retry_after) == (429, 3.0)  # 3.1 s of work, 0.5 s allowed
    assert error.message == (
        "a could send the first token in about 3.1 s, later than its ttft_slo of 0.5 s; try again in 3 s"
    )
    again = Arrival(unit.now + error.retry_after, "a", 16, 1)
    unit.play([again])
    assert unit.outcome[len(unit.all) - 1] == "served"
    assert unit.first[len(unit.all) - 1] <= 0.5


def test_a_prompt_too_long_for_its_target_runs_when_nothing_is_ahead() -> None:
    """Refused for good it would never be, and a model that got faster would learn of it."""
    unit = taught(target=0.2)
    unit.play([Arrival(unit.now, "a", 160, 1)])
    assert not unit.refused


def test_a_model_without_a_target_refuses_nobody() -> None:
    unit = TimedUnit([Spec("a"), Spec("b")], 6000, targets={"b": Slo(ttft=0.01)})
    unit.play([Arrival(0.0, "a", 64, 4) for _ in range(40)])
    assert not unit.refused


def test_cached_prefixes_make_prompts_cheaper() -> None:
    """A prompt of which three quarters were found leaves a quarter to compute; so will the next."""
    forecast, lane = Forecast(TARGETS, 512), Lane(lane_spec("a", 100, 4, 2, 1000, 8, 8, 100))
    sequence = Sequence(1, Request("r", "a", [1] * 16, 4, Sampling(), frozenset()), 0.0)
    sequence.cached, sequence.started = 12, 0.0
    command = Prefill(1, 100, NewRows(), [], [])
    flight = Flight("a", 1, True, [sequence], [4], 100, 0.0, command)
    forecast.observe(Tick(), [Launch(flight)], 0.0)
    lane.learn_cost(flight, 0.04)
    assert forecast.ttft("a", 100, {"a": lane}, 1.0) == pytest.approx(25 * 0.01)


@settings(max_examples=examples(60))
@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 60), st.integers(1, 60))
def test_more_ahead_never_means_sooner(ahead: list[int], prompt: int, more: int) -> None:
    unit = taught()
    assert unit.forecast is not None
    for tokens in ahead:
        unit.offer(Arrival(unit.now, "a", tokens, 1), force=True)
    before = unit.forecast.ttft("a", prompt, unit.scheduler.lanes, unit.now)
    longer = unit.forecast.ttft("a", prompt + more, unit.scheduler.lanes, unit.now)
    unit.offer(Arrival(unit.now, "a", more, 1), force=True)
    after = unit.forecast.ttft("a", prompt, unit.scheduler.lanes, unit.now)
    assert before is not None
    assert longer is not None
    assert after is not None
    assert 0 <= before <= min(longer, after)
