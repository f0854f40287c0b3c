"""Random events into the real scheduler and ledger: the invariants of docs/design.md §3 and §5 hold.

``BenchUnit.check`` audits after every event; here are the drivers and what must be true at the end.
"""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bench_unit import EOS, BenchUnit, Spec

from muxd.engine.settings import Settings

# Models that differ in blocks per row, tokens per row, share and guarantee.
SPECS = [
    Spec("a_model", blocks=3, row_tokens=4, share=50, min_blocks=9, max_running=4),
    Spec("b.model", blocks=2, row_tokens=2, share=30, max_running=3),
    Spec("c", blocks=1, row_tokens=8, share=100, min_blocks=4, max_running=8),
]

models = st.integers(0, 2)
arrive = st.tuples(st.just("arrive"), models, st.integers(1, 40), st.integers(1, 30), st.booleans())
finish = st.tuples(st.just("finish"), models, st.sampled_from([0.001, 0.05, 0.7]), st.booleans())
cancel = st.tuples(st.just("cancel"), st.integers(0, 200))
lose = st.tuples(st.just("lose"), models)
events = st.lists(st.one_of(arrive, finish, finish, finish, cancel, lose), max_size=80)


def play(unit: BenchUnit, script: list[tuple]) -> None:  # type: ignore[type-arg]
    """Apply a drawn script; steps that cannot happen now are skipped."""
    for kind, *args in script:
        if kind == "arrive":
            model, prompt, max_tokens, with_eos = args
            eos = frozenset([EOS]) if with_eos else frozenset()
            unit.arrive(SPECS[model].name, prompt, max_tokens, eos)
        elif kind == "finish" and unit.busy():
            model, seconds, stop = args
            busy = unit.busy()
            unit.finish(busy[model % len(busy)], seconds, EOS if stop else 5)
        elif kind == "cancel" and unit.all:
            unit.cancel(unit.all[args[0] % len(unit.all)])
        elif kind == "lose":
            unit.lose(SPECS[args[0]].name)
            unit.revive(SPECS[args[0]].name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events, st.sampled_from([24, 40, 200]), st.sampled_from([0, 20, 50]))
def test_every_request_ends_once_and_every_block_returns(script, total, overbook):
    unit = BenchUnit(
        SPECS, total, overbook=overbook, settings=Settings(drain_timeout=0.5, prefill_tokens=8, look_ahead=4)
    )
    play(unit, script)
    unit.run()
    assert set(unit.outcome) == {sequence.id for sequence in unit.all}
    assert unit.ledger.free_blocks == unit.ledger.total_blocks
    assert unit.shares.free == unit.shares.limit


@settings(max_examples=200, deadline=None)
@given(events)
def test_served_streams_have_exactly_the_tokens_asked_for(script):
    unit = BenchUnit(SPECS, 40)
    play(unit, [step for step in script if step[0] != "cancel"])
    unit.run()
    for sequence in unit.all:
        sent = len(unit.emitted.get(sequence.id, []))
        if unit.outcome[sequence.id] == "served" and not sequence.request.eos:
            room = unit.scheduler.lanes[sequence.model].spec.max_context - sequence.prompt_tokens
            assert sent == min(sequence.request.max_tokens, room)
        if unit.outcome[sequence.id] == "refused":
            assert sent == 0


@settings(max_examples=100, deadline=None)
@given(events, st.integers(0, 2))
def test_a_model_below_its_guarantee_is_never_preempted_nor_refused_rows(script, quiet):
    unit = BenchUnit(SPECS, 24)
    below: list[str] = []
    for step in script:
        before = unit.ledger.usage()
        known = len(unit.preempted)
        play(unit, [step])
        for victim in unit.preempted[known:]:
            use = before[unit.all[victim].model]
            others = [u for model, u in before.items() if model != unit.all[victim].model]
            if use.blocks <= use.min_blocks and any(u.blocks > u.min_blocks for u in others):
                below.append(unit.all[victim].model)
    assert not below
