"""What happens to requests when workers are lost or hang: rule by rule, and by property."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bench_unit import EOS, BenchUnit
from support.bench_worker import Spec
from support.examples import examples

from muxd.engine.policies import POLICIES
from muxd.engine.settings import Settings
from muxd.messages import NO_TOKEN, Prefill

SPECS = [
    Spec("a", blocks=3, row_tokens=4, share=50, min_blocks=9, max_running=4),
    Spec("b", blocks=2, row_tokens=2, share=30, max_running=3),
    Spec("c", blocks=1, row_tokens=8, share=100, max_running=8),
]
SPLIT = [replace(SPECS[0], split=True), replace(SPECS[1], split=True), SPECS[2]]
BESIDE = [replace(SPECS[0], split=True, beside=True), replace(SPECS[1], split=True, beside=True), SPECS[2]]

QUARTERS = (25, 50, 75, 100)


def lost(unit: BenchUnit, model: str = "a") -> None:
    unit.lose(model)
    unit.revive(model)


# ---- one rule at a time -----------------------------------------------------------------------------


def test_streams_of_a_lost_worker_go_on_where_they_were_and_the_others_do_not_notice() -> None:
    unit = BenchUnit([Spec("a"), Spec("b")], total_blocks=3000)
    streams = [unit.arrive("a", prompt=4, max_tokens=20) for _ in range(3)]
    other = unit.arrive("b", prompt=4, max_tokens=20)
    while any(len(unit.emitted.get(s.id, [])) < 5 for s in [*streams, other]):
        unit.finish(unit.busy()[0])
    before = unit.workers["b"]
    lost(unit)
    unit.run()
    assert unit.workers["b"] is before
    assert set(unit.outcome.values()) == {"served"}
    assert [len(unit.emitted[s.id]) for s in unit.all] == [20] * 4
    assert other.id not in unit.resumed


def test_those_of_the_fatal_batch_are_tried_alone_and_the_others_go_on_beside_nobody_of_them() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000)
    fatal = [unit.arrive("a", prompt=4, max_tokens=9) for _ in range(3)]
    while any(s.id not in unit.emitted for s in fatal):
        unit.finish("a")
    assert len(unit.workers["a"].busy.seqs) == 3  # type: ignore[union-attr]
    innocent = unit.arrive("a", prompt=4, max_tokens=9)
    unit.lose("a")
    assert [s.suspect for s in [*fatal, innocent]] == [True] * 3 + [False]
    start = len(unit.launches)
    unit.revive("a")
    unit.run()  # ``check`` has looked at every batch meanwhile
    tried = [c for _, _, c in unit.launches[start:] if isinstance(c, Prefill)]
    assert [[chunk.seq for chunk in c.chunks] for c in tried[:3]] == [[s.id] for s in fatal]
    assert set(unit.outcome.values()) == {"served"}


def test_a_request_that_kills_again_when_it_runs_alone_fails_by_its_name() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000)
    first, poison, last = (unit.arrive("a", prompt=4, max_tokens=9) for _ in range(3))
    deaths = 0
    while unit.busy():
        alive = unit.workers["a"]
        if poison.id in {s.id for f in unit.scheduler.lanes["a"].flights for s in f.sequences}:
            deaths += 1
            assert unit.scheduler.accused("a") == (deaths == 2)
            lost(unit)
        else:
            assert unit.workers["a"] is alive
            unit.finish("a")
    assert deaths == 2
    assert unit.outcome == {first.id: "served", poison.id: "failed", last.id: "served"}
    assert unit.errors == {poison.id: "request_kills_worker"}


def test_a_suspect_that_has_taken_a_step_alone_is_none_any_more() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000)
    stream = unit.arrive("a", prompt=4, max_tokens=50)
    for _ in range(5):
        unit.finish("a")
        unit.finish("a")
        unit.finish("a")
        lost(unit)
        assert stream.suspect
    assert stream.id not in unit.outcome
    assert unit.resumed == [stream.id] * 5


def test_a_death_that_is_nobodys_fault_makes_no_suspects() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000)
    stream = unit.arrive("a", prompt=4, max_tokens=5)
    for _ in range(4):
        unit.lose("a", blameless=True)
        unit.revive("a")
        assert not stream.suspect
    unit.run()
    assert unit.outcome == {stream.id: "served"}


def test_a_row_without_finite_logits_ends_its_request_and_nobody_elses() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000)
    one, other = unit.arrive("a", prompt=4, max_tokens=6), unit.arrive("a", prompt=4, max_tokens=6)
    while other.id not in unit.emitted:
        unit.finish("a")
    unit.finish("a", nothing_for={one.id})
    assert unit.outcome == {one.id: "failed"}
    assert unit.errors == {one.id: "no_finite_logits"}
    unit.run()
    assert unit.outcome[other.id] == "served"
    assert unit.ledger.held_blocks == 0


# ---- workers that hang ------------------------------------------------------------------------------

TIMED = Settings(
    drain_timeout=0.5, prefill_tokens=16, look_ahead=4, batch_timeout=10, batch_timeout_factor=20
)


def hangs(unit: BenchUnit) -> list[tuple[float, bool]]:
    """Let time pass, as the driver does, until a worker is given up: when, and what was said."""
    said: list[tuple[float, bool]] = []
    began = unit.now
    while not (said and said[-1][1]):
        due = unit.scheduler.deadline(unit.now)
        assert due is not None
        unit.now = max(due, unit.now)
        known = len(unit.overdue)
        unit.tick()
        said += [(unit.now - began, one.last) for one in unit.overdue[known:]]
    return said


def test_a_batch_that_takes_ten_seconds_where_milliseconds_are_usual_is_asked_for_and_given_up() -> None:
    unit = BenchUnit([Spec("a"), Spec("b")], total_blocks=3000, settings=TIMED, rungs=(100,))
    stream = unit.arrive("a", prompt=4, max_tokens=50)
    for _ in range(4):
        unit.finish("a")
    other = unit.arrive("b", prompt=4, max_tokens=3)
    unit.finish("a")
    while "a" not in unit.busy():
        unit.finish("b")
    assert hangs(unit) == [(10.0, False), (11.0, True)]
    assert unit.scheduler.deadline(unit.now) is None or not unit.scheduler.lanes["a"].ready
    unit.lose("a")
    unit.run()  # the share is free: the other model is served while this one has no worker
    assert unit.outcome == {other.id: "served"}
    unit.revive("a")
    unit.run()
    assert unit.outcome[stream.id] == "served"


def test_what_is_expected_to_be_slow_gets_twenty_times_as_long() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000, settings=TIMED)
    unit.arrive("a", prompt=4, max_tokens=50)
    for _ in range(4):
        unit.finish("a", seconds=3.0)
    (looked, first), (replaced, last) = hangs(unit)
    assert [looked, replaced] == pytest.approx([60.0, 61.0])
    assert (first, last) == (False, True)


def test_what_may_compile_gets_longer() -> None:
    """Of a model nothing is known at first; a new worker's first batch may still compile."""
    unit = BenchUnit([Spec("a")], total_blocks=3000, settings=TIMED)
    unit.arrive("a", prompt=4, max_tokens=50)
    assert hangs(unit) == [(300.0, False), (301.0, True)]
    lost(unit)
    for _ in range(4):
        unit.finish("a")
    lost(unit)
    assert hangs(unit) == [(60.0, False), (61.0, True)]


def test_an_answer_that_comes_after_the_question_is_taken() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000, settings=TIMED)
    stream = unit.arrive("a", prompt=4, max_tokens=5)
    for _ in range(3):
        unit.finish("a")
    unit.now += 10.5
    unit.tick()
    assert [one.last for one in unit.overdue] == [False]
    unit.run()
    assert unit.outcome == {stream.id: "served"}


# ---- by property ------------------------------------------------------------------------------------

arrivals = st.tuples(
    st.integers(0, 2), st.integers(1, 30), st.integers(1, 12), st.integers(0, 3), st.sampled_from([0, 8])
)
policies = st.sampled_from(sorted(POLICIES))
either = st.sampled_from([SPECS, SPLIT, BESIDE])


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(arrivals, min_size=1, max_size=12),
    policies,
    either,
    st.booleans(),
    st.sampled_from([40, 300]),
    st.randoms(),
)
def test_whoever_kills_is_found_and_everybody_else_is_served(
    drawn: list[Any], policy: str, specs: list[Spec], ahead: bool, total: int, random: Random
) -> None:
    """A poisonous request kills whatever batch it is in, after some tokens; the others see a pause."""
    small = Settings(drain_timeout=0.5, prefill_tokens=8, look_ahead=4, run_ahead=ahead)
    unit = BenchUnit(specs, total, settings=small, policy=policy)
    poisons: dict[int, int] = {}  # id -> tokens after which it kills
    pending = list(drawn)
    while pending or unit.busy():
        if pending and (not unit.busy() or random.random() < 0.3):
            model, prompt, tokens, kind, same = pending.pop()
            sequence = unit.arrive(specs[model].name, prompt, tokens, same=same)
            if kind == 0:
                poisons[sequence.id] = random.randrange(tokens)
            continue
        name = random.choice(unit.busy())
        model = name.partition("/")[0]
        flown = {s.id: s for flight in unit.scheduler.lanes[model].flights for s in flight.sequences}
        deadly = any(i in poisons and s.generated >= poisons[i] for i, s in flown.items())
        if deadly:
            unit.lose(model)
            unit.revive(model)
        else:
            unit.finish(name)
    for sequence in unit.all:
        if sequence.id in poisons and unit.outcome[sequence.id] == "failed":
            assert unit.errors[sequence.id] == "request_kills_worker"
        else:
            assert unit.outcome[sequence.id] in ("served", "refused"), "an innocent request"
            early = len(unit.emitted.get(sequence.id, [])) <= poisons.get(sequence.id, 99)
            assert early, "it was to kill, and was served"
    assert unit.ledger.held_blocks == 0
    assert unit.shares.free == unit.shares.limit


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(arrivals, min_size=1, max_size=10), policies, either, st.booleans(), st.randoms())
def test_deaths_and_dead_rows_at_any_time_end_every_request_once(
    drawn: list[Any], policy: str, specs: list[Spec], ahead: bool, random: Random
) -> None:
    small = Settings(drain_timeout=0.5, prefill_tokens=8, look_ahead=4, run_ahead=ahead)
    unit = BenchUnit(specs, 40, settings=small, policy=policy)
    pending, deaths = list(drawn), 0
    while pending or unit.busy():
        if pending and (not unit.busy() or random.random() < 0.3):
            model, prompt, tokens, _, same = pending.pop()
            unit.arrive(specs[model].name, prompt, tokens, frozenset([EOS]), same=same)
            continue
        name = random.choice(unit.busy())
        model, what = name.partition("/")[0], random.random()
        if what < 0.1 and deaths < 30:
            deaths += 1
            unit.lose(model, blameless=random.random() < 0.3)
            unit.revive(model)
        elif what < 0.2:
            flown = [s.id for flight in unit.scheduler.lanes[model].flights for s in flight.sequences]
            unit.finish(name, nothing_for=set(random.sample(flown, 1)))
        elif what < 0.25 and unit.all:
            unit.cancel(random.choice(unit.all))
        else:
            unit.finish(name, token=5, stops=random.randrange(4))
    assert set(unit.outcome) == {sequence.id for sequence in unit.all}
    assert unit.ledger.held_blocks == 0
    assert unit.shares.free == unit.shares.limit
    assert NO_TOKEN not in {token for tokens in unit.emitted.values() for token in tokens}


# ---- sleeping -----------------------------------------------------------------------------------------


def test_who_retires_starts_no_prompt_more_and_its_streams_end() -> None:
    unit = BenchUnit([Spec("a", max_running=1), Spec("b")], 600)
    first, second = unit.arrive("a", 8, 4), unit.arrive("a", 8, 4)
    unit.finish("a")
    unit.nap("a", "retire")
    while unit.busy():
        unit.finish(unit.busy()[0])
    lane = unit.scheduler.lanes["a"]
    assert (unit.outcome.get(first.id), unit.outcome.get(second.id)) == ("served", None)
    assert (lane.quiet, lane.empty, lane.blocked) == (True, False, "weights")
    unit.nap("a", "sleep")
    assert lane.blocked == "weights"
    unit.nap("a", "wake")
    unit.run()
    assert unit.outcome[second.id] == "served"


def test_who_sleeps_in_the_midst_of_a_stream_goes_on_token_for_token() -> None:
    unit = BenchUnit([Spec("a"), Spec("b")], 600)
    one = unit.arrive("a", 8, 6)
    for _ in range(3):
        unit.finish("a")
    sent = list(unit.emitted[one.id])
    unit.nap("a", "sleep")
    assert unit.resumed == [one.id]
    unit.nap("a", "wake")
    unit.run()
    assert unit.outcome[one.id] == "served"
    assert unit.emitted[one.id][: len(sent)] == sent
    assert len(unit.emitted[one.id]) == 6


def test_who_sleeps_leaves_its_part_to_the_others() -> None:
    unit = BenchUnit(
        [Spec("a", share=0), Spec("b", share=0), Spec("c", share=0)], 600, rungs=(25, 50, 75, 100)
    )
    lanes = unit.scheduler.lanes
    assert {lane.spec.share for lane in lanes.values()} == {25}
    unit.nap("c", "sleep")
    assert [lanes[name].spec.share for name in "ab"] == [50, 50]
    unit.nap("c", "wake")
    assert {lane.spec.share for lane in lanes.values()} == {25}
