"""How long a prompt or a stream can wait under mux: the bounds of engine/design.md."""

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct, structs
from support.bench_unit import BenchUnit
from support.bench_worker import Spec
from support.examples import examples
from support.timed_unit import Arrival, TimedUnit

from muxd.engine.settings import Settings
from muxd.messages import Decode, Prefill

QUARTERS = (25, 50, 75, 100)
CLOSE = 1e-9  # seconds: sums of floats
SMALL = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4, adapt_period=4.0)


def stream(unit: BenchUnit, model: str) -> None:
    """One running sequence of ``model`` more."""
    sequence = unit.arrive(model, 4, 500)
    while sequence.id not in unit.emitted:
        busy = unit.busy()
        unit.finish(model if model in busy else busy[0])


class Crowd(Struct, frozen=True):
    """Models that all want the device. ``prefill`` and ``step``: seconds that each one's batches take."""

    shares: list[int]
    prefill: list[float]
    step: list[float]
    targets: list[float]  # ttft_slo
    patience: float  # drain_timeout
    arrivals: list[Arrival]

    @property
    def turn(self) -> float:
        """P + 4 d + (M + 2) D of the design: one model's prefill, the hold before it and the owed steps."""
        return max(self.prefill) + 4 * self.patience + (len(self.shares) + 2) * max(self.step)

    @property
    def pause(self) -> float:
        """d + P + (M + 2) D: what a stream waits at most."""
        return self.turn - 3 * self.patience


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    """Up to six models of quite different speed; requests come faster than they can be served, or not."""
    count = draw(st.integers(1, 6))

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    targets = each(st.sampled_from([0.0, 0.5, 5.0])) if draw(st.booleans()) else [0.0] * count
    arrival = st.tuples(st.integers(0, count - 1), st.integers(1, 40), st.integers(1, 20))
    gap, asked = draw(st.floats(0.02, 0.5)), draw(st.lists(arrival, min_size=5, max_size=40))
    return Crowd(
        each(st.sampled_from(QUARTERS)), each(st.floats(0.01, 0.5)), each(st.floats(0.01, 0.5)), targets,
        draw(st.sampled_from([0.05, 0.2, 0.5])),
        [Arrival(gap * i, "abcdef"[model], *lengths) for i, (model, *lengths) in enumerate(asked)],
    )  # fmt: skip


def played(crowd: Crowd) -> TimedUnit:
    """All of it; rows are plenty."""
    models = "abcdef"[: len(crowd.shares)]
    specs = [
        Spec(name, share=share, blocks=1, max_running=50, ttft_slo=target)
        for name, share, target in zip(models, crowd.shares, crowd.targets, strict=True)
    ]

    def seconds(command: Prefill | Decode) -> float:
        model = next(name for name, worker in unit.workers.items() if worker.busy is command)
        taken = crowd.prefill if isinstance(command, Prefill) else crowd.step
        return taken[models.index(model)]

    scheduling = Settings(drain_timeout=crowd.patience, prefill_tokens=16, look_ahead=4)
    unit = TimedUnit(specs, 1200, settings=scheduling, rungs=QUARTERS, seconds=seconds, audit=False)
    unit.play(crowd.arrivals)
    return unit


FLOOD = Crowd(
    [50] * 6, [0.3] * 6, [0.25] * 6, [0.0] * 6, 0.2,
    [Arrival(0.21 * i, "abcdef"[i * i % 6], 16, 12) for i in range(90)],
)  # fmt: skip
WHOLE = structs.replace(FLOOD, shares=[100] * 6)
# Steps of a and b take longer than the patience with streams, and do not end together.
HELD = Crowd(
    [50, 50, 100], [0.1] * 3, [0.2] * 3, [0.0] * 3, 0.05,
    [Arrival(0.0, "a", 4, 200), Arrival(0.1, "b", 4, 200), Arrival(1.0, "c", 4, 4)],
)  # fmt: skip


@settings(max_examples=examples(40))
@given(crowds())
@example(FLOOD)
@example(WHOLE)
@example(HELD)
def test_mux_starts_every_prompt_within_the_stated_bound(crowd: Crowd) -> None:
    """From when it is at the head of its queue, and those before it are computed."""
    unit = played(crowd)
    begun: dict[int, float] = {}
    computed: dict[int, float] = {}
    for time, model, command in unit.launches:
        for chunk in command.chunks if isinstance(command, Prefill) else ():
            begun.setdefault(chunk.seq, time)
            computed[chunk.seq] = time + crowd.prefill["abcdef".index(model)]
    bound = len(crowd.shares) * crowd.turn * (2 if any(crowd.targets) else 1)
    for one in unit.all:
        before = [computed[other.id] for other in unit.all[: one.id] if other.model == one.model]
        assert begun[one.id] - max([one.arrived, *before]) <= bound + CLOSE


@settings(max_examples=examples(40))
@given(crowds())
@example(FLOOD)
@example(WHOLE)
def test_mux_gives_every_stream_its_next_token_within_the_stated_bound(crowd: Crowd) -> None:
    """The published algorithm does not: a flood of prompts can stop a stream for as long as it lasts."""
    unit = played(crowd)
    gaps = [b - a for times in unit.times.values() for a, b in itertools.pairwise(times)]
    assert max(gaps, default=0.0) <= crowd.pause + CLOSE


@pytest.mark.parametrize("policy", ["mux", "round_robin"])
@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_a_stream_that_needs_the_whole_device_steps_as_often_as_those_that_need_half(
    seconds: float, policy: str
) -> None:
    """Those never end their steps at the same time, so the whole device is never free by itself."""
    specs = [Spec("big", share=100), Spec("a"), Spec("b")]
    unit = BenchUnit(specs, 3000, settings=SMALL, policy=policy)
    for model in ("big", "a", "b"):
        stream(unit, model)
    since = len(unit.launches)
    while len(unit.launches) < since + 60:
        oldest = min(unit.busy(), key=lambda model: unit.workers[model].busy.batch)  # type: ignore[union-attr]
        unit.finish(oldest, seconds=seconds)
    steps = [model for _, model, _ in unit.launches[since:]]
    assert min(steps.count(model) for model in ("big", "a", "b")) >= 12, steps
