"""How long a prompt or a stream can wait under mux: the bounds of engine/design.md."""

import itertools
from functools import cache

import pytest
from support.bench_unit import BenchUnit
from support.bench_worker import Spec
from support.timed_unit import Arrival, TimedUnit

from muxd.engine.settings import Settings
from muxd.messages import Decode, Prefill

SMALL = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4, adapt_period=4.0)


def stream(unit: BenchUnit, model: str) -> None:
    """One running sequence of ``model`` more."""
    sequence = unit.arrive(model, 4, 500)
    while sequence.id not in unit.emitted:
        busy = unit.busy()
        unit.finish(model if model in busy else busy[0])


D_TIMEOUT, P_BATCH, D_STEP = 0.2, 0.3, 0.25  # d, P and D of engine/design.md


@cache  # whoever looks at it leaves it as it is
def bounded(share: int) -> TimedUnit:
    """Six models that all want the device: prompts one after another, streams in between."""

    def seconds(command: Prefill | Decode) -> float:
        return P_BATCH if isinstance(command, Prefill) else D_STEP

    settings = Settings(drain_timeout=D_TIMEOUT, prefill_tokens=16, look_ahead=4)
    specs = [Spec(name, share=share, blocks=1, max_running=50) for name in "abcdef"]
    unit = TimedUnit(specs, 100_000, settings=settings, seconds=seconds, audit=False)
    unit.play([Arrival(0.21 * i, "abcdef"[i * i % 6], 16, 12) for i in range(150)])
    return unit


@pytest.mark.parametrize("share", [100, 50])
def test_mux_starts_every_prompt_within_the_stated_bound(share: int) -> None:
    unit = bounded(share)
    turn = P_BATCH + 4 * D_TIMEOUT + (6 + 2) * D_STEP
    begun: dict[int, float] = {}
    for time, _, command in unit.launches:
        for chunk in command.chunks if isinstance(command, Prefill) else ():
            begun.setdefault(chunk.seq, time)
    for one in unit.all:
        before = [o for o in unit.all[: one.id] if o.model == one.model and begun[o.id] >= one.arrived]
        assert begun[one.id] - one.arrived <= (1 + len(before)) * 6 * turn  # each has turns of its own


@pytest.mark.parametrize("share", [100, 50])
def test_mux_gives_every_stream_its_next_token_within_the_stated_bound(share: int) -> None:
    """The published algorithm does not: a flood of prompts can stop a stream for as long as it lasts."""
    unit = bounded(share)
    gaps = [b - a for times in unit.times.values() for a, b in itertools.pairwise(times)]
    assert len(gaps) > 1000
    assert max(gaps) <= D_TIMEOUT + P_BATCH + (6 + 2) * D_STEP


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
