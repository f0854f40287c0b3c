"""Random events into the real scheduler and ledger: the invariants of docs/design.md §3 and §5 hold.

``BenchUnit.check`` audits after every event; here are the drivers and what must be true at the end.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bench_unit import EOS, BenchUnit
from support.bench_worker import Spec
from support.examples import examples

from muxd.engine.actions import Lent, Recalled, Tick
from muxd.engine.policies import POLICIES
from muxd.engine.settings import Settings
from muxd.errors import Busy, ConfigError
from muxd.messages import Constraint, Pooling, Sampling
from muxd.pool.ledger import LedgerError
from muxd.pool.windowed import Windowed

# Models that differ in blocks per row, tokens per row, share and guarantee.
SPECS = [
    Spec("a_model", blocks=3, row_tokens=4, share=50, min_blocks=9, max_running=4),
    Spec("b.model", blocks=2, row_tokens=2, share=30, max_running=3),
    Spec("c", blocks=1, row_tokens=8, share=100, min_blocks=4, max_running=8),
]
ENCODING = [SPECS[0], SPECS[1], replace(SPECS[2], whole=True)]
PAIRS = [replace(SPECS[0], split=True), replace(SPECS[1], split=True), SPECS[2]]
BESIDE = [replace(SPECS[0], split=True, beside=True), replace(SPECS[1], split=True, beside=True), SPECS[2]]
# Sequences of one own rows of a state besides; alone, or beside a pair.
KEEPING = [SPECS[0], replace(SPECS[1], blocks=1, state_rows=2), SPECS[2]]
KEEPING_APART = [SPECS[0], replace(SPECS[1], blocks=1, state_rows=1, split=True), SPECS[2]]
KEEPING_BESIDE = [SPECS[0], replace(KEEPING_APART[1], beside=True), SPECS[2]]
SLIDING = [
    replace(SPECS[0], windowed=Windowed(9, (0, 2)), split=True, beside=True),
    replace(SPECS[1], windowed=Windowed(3, (1,)), split=True),
    replace(SPECS[2], windowed=Windowed(5, (0,))),
]
# One batch a model at once, or two for some.
either = st.sampled_from(
    [SPECS, PAIRS, BESIDE, ENCODING, KEEPING, KEEPING_APART, KEEPING_BESIDE, SLIDING, SLIDING]
)

models = st.integers(0, 2)
same = st.sampled_from([0, 0, 8, 17])  # tokens that prompts have in common
policies = st.sampled_from(sorted(POLICIES))
SAMPLINGS = {
    "held": Sampling(constraint=Constraint("json_object")),
    "scored": Sampling(prompt_logprobs=1),
}
# Most are answered; others are held to a form, scored, or embedded.
hows = st.sampled_from(["", "", "", "", *SAMPLINGS, "mean", "last"])
adapters = st.sampled_from([0, 0, 1, 2])
arrive = st.tuples(
    st.just("arrive"), models, st.integers(1, 40), st.integers(1, 30), st.booleans(), same, hows, adapters
)
finish = st.tuples(st.just("finish"), models, st.sampled_from([0.001, 0.05, 0.7]), st.booleans())
cancel = st.tuples(st.just("cancel"), st.integers(0, 200))
lose = st.tuples(st.just("lose"), models)
nap = st.tuples(st.sampled_from(["retire", "sleep", "wake"]), models)
pause = st.tuples(st.just("pause"), st.sampled_from([0.1, 3.0]))
quota = st.tuples(
    st.just("quota"), models, st.integers(0, 12), st.sampled_from([12, 24]), st.floats(0.1, 9.0)
)
loan = st.tuples(st.sampled_from(["lend", "recall"]), st.integers(0, 1))
LOAN = 12  # head blocks that come and go together
events = st.lists(
    st.one_of(arrive, finish, finish, finish, cancel, lose, nap, pause, quota, loan), max_size=80
)


def play(unit: BenchUnit, script: list[tuple[Any, ...]]) -> None:
    """Apply a drawn script; steps that cannot happen now are skipped."""
    for kind, *args in script:
        if kind == "arrive":
            model, prompt, max_tokens, with_eos, common, how, adapter = args
            eos = frozenset([EOS]) if with_eos else frozenset()
            if unit.specs[SPECS[model].name].whole:
                how = "mean"
            pooling: Pooling = how if how in ("mean", "last") else ""
            asked = SAMPLINGS.get(how, Sampling(temperature=0.0))
            tokens = 0 if pooling or how == "scored" else max_tokens
            unit.arrive(
                SPECS[model].name, prompt, tokens, eos, same=common, sampling=asked, pooling=pooling,
                adapter=adapter,
            )  # fmt: skip
        elif kind == "finish" and unit.busy():
            model, seconds, stop = args
            busy = unit.busy()
            unit.finish(busy[model % len(busy)], seconds, EOS if stop else 5)
        elif kind == "cancel" and unit.all:
            unit.cancel(unit.all[args[0] % len(unit.all)])
        elif kind == "lose" and not unit.scheduler.lanes[SPECS[args[0]].name].asleep:
            unit.lose(SPECS[args[0]].name)
            unit.revive(SPECS[args[0]].name)
        elif kind in ("retire", "sleep", "wake"):
            unit.nap(SPECS[args[0]].name, kind)
        elif kind == "pause":
            unit.now += args[0]
            unit.handle(Tick())
        elif kind in ("lend", "recall"):
            first = unit.ledger.total_blocks + args[0] * LOAN
            with suppress(LedgerError):  # it is there already, or is not there
                unit.handle((Lent if kind == "lend" else Recalled)(first, LOAN))
        elif kind == "quota":
            model, least, most, weight = args
            with suppress(ConfigError, Busy):
                unit.scheduler.set_quota(SPECS[model].name, least, most, weight)
            unit.handle(Tick())


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(events, st.sampled_from([24, 40, 200]), st.sampled_from([0, 20, 50]), policies, either, st.booleans())
def test_every_request_ends_once_and_every_block_returns(
    script: list[tuple[Any, ...]], total: int, overbook: int, policy: str, specs: list[Spec], ahead: bool
) -> None:
    small = Settings(drain_timeout=0.5, prefill_tokens=8, look_ahead=4, adapt_period=2.0, run_ahead=ahead)
    unit = BenchUnit(specs, total, overbook=overbook, settings=small, policy=policy, lendable=2 * LOAN)
    play(unit, script)
    unit.run()
    assert set(unit.outcome) == {sequence.id for sequence in unit.all}
    assert unit.ledger.held_blocks == unit.ledger.leaving_blocks == 0
    assert unit.shares.free == unit.shares.limit


@settings(max_examples=examples(200))
@given(events, policies, either, st.booleans())
def test_served_streams_have_exactly_the_tokens_asked_for(
    script: list[tuple[Any, ...]], policy: str, specs: list[Spec], ahead: bool
) -> None:
    small = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4, run_ahead=ahead)
    unit = BenchUnit(specs, 40, policy=policy, settings=small, lendable=2 * LOAN)
    play(unit, [step for step in script if step[0] not in ("cancel", "quota")])
    unit.run()
    for sequence in unit.all:
        sent = len(unit.emitted.get(sequence.id, []))
        if unit.outcome[sequence.id] == "served" and not sequence.request.eos:
            room = unit.scheduler.lanes[sequence.model].spec.max_context - sequence.prompt_tokens
            assert sent == min(sequence.request.max_tokens, room)
        if unit.outcome[sequence.id] == "refused":
            assert sent == 0


@settings(max_examples=examples(100))
@given(events, either)
def test_a_model_below_its_guarantee_is_never_preempted_nor_refused_rows(
    script: list[tuple[Any, ...]], specs: list[Spec]
) -> None:
    unit = BenchUnit(specs, 24, lendable=2 * LOAN)
    below: list[str] = []
    for step in script:
        before = unit.ledger.usage()
        known = len(unit.preempted)
        play(unit, [step])
        for victim in unit.preempted[known:]:
            use = before[unit.all[victim].model]
            others = [u for model, u in before.items() if model != unit.all[victim].model]
            if step[0] in ("quota", "recall"):
                continue  # guarantees or memory moved in the middle of the step
            if use.blocks <= use.min_blocks and any(u.blocks > u.min_blocks for u in others):
                below.append(unit.all[victim].model)
    assert not below
