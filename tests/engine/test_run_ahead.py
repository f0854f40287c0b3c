"""Decode steps that are sent before the one in front of them is done: when, for whom, and what is undone."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.bench_unit import EOS, BenchUnit
from support.bench_worker import Spec
from support.examples import examples

from muxd.engine.actions import Ahead, BatchDone, Launch, Withdraw, Withdrawn
from muxd.engine.policies import POLICIES
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.settings import Settings
from muxd.messages import Constraint, Decode, Sampling

AHEAD = Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4, run_ahead=True)


def make(*specs: Spec, blocks: int = 64, policy: str = "mux") -> BenchUnit:
    return BenchUnit(list(specs) or [Spec("a")], blocks, settings=AHEAD, policy=policy)


def running(
    unit: BenchUnit, *prompts: int, eos: frozenset[int] = frozenset(), tokens: int = 20
) -> list[Sequence]:
    """Prompts that are prefilled one after another; a step is in flight and one is behind it."""
    made = [unit.arrive("a", prompt, tokens, eos) for prompt in prompts]
    while any(sequence.phase is Phase.WAITING for sequence in made):
        unit.finish("a")
    return made


def behind(unit: BenchUnit, model: str = "a") -> list[int]:
    command = unit.workers[model].behind
    return command.seqs if command is not None else []


def test_a_step_is_sent_behind_the_running_one_and_begins_when_that_is_done() -> None:
    unit = make()
    (one,) = running(unit, 5)
    worker = unit.workers["a"]
    assert isinstance(worker.busy, Decode)
    assert worker.behind is not None
    first, second = worker.busy.batch, worker.behind.batch
    before = unit.shares.free
    worker.done(5)
    actions = unit.handle(BatchDone("a", first, [5]))
    launched = [action for action in actions if isinstance(action, Launch)]
    assert [(launch.flight.command.batch, launch.ahead) for launch in launched] == [(second, True)]
    assert [action.flight.sequences for action in actions if isinstance(action, Ahead)] == [[one]]
    assert unit.shares.free == before
    assert unit.emitted[one.id][-1] == 5


def test_its_rows_are_there_before_the_tokens_are() -> None:
    """T = 4: the row of token 8 is granted with the step that is sent while token 7 is computed."""
    unit = make()
    (one,) = running(unit, 6)
    while one.computed < 7:
        unit.finish("a")
    assert len(one.rows) == 3
    assert one.computed == 7


def test_a_stop_one_step_late_ends_the_stream_at_once_and_frees_the_rows_after_the_step() -> None:
    unit = make()
    one, other = running(unit, 5, 5, eos=frozenset([EOS]))
    batch = unit.workers["a"].busy
    assert batch is not None
    assert behind(unit) == [one.id, other.id]
    sent = len(unit.emitted[one.id])
    unit.workers["a"].done(5)
    unit.handle(BatchDone("a", batch.batch, [EOS, 5]))
    assert unit.outcome[one.id] == "served"
    assert one.phase is Phase.RUNNING
    assert one.rows
    assert behind(unit) == [other.id]
    unit.finish("a")  # the step that ran with it: its token is dropped
    assert one.phase is Phase.ENDED  # type: ignore[comparison-overlap]
    assert not one.rows
    assert len(unit.emitted[one.id]) == sent
    unit.run()
    assert unit.ledger.unheld_blocks == unit.ledger.total_blocks


def test_a_known_last_token_is_not_run_past() -> None:
    unit = make()
    (one,) = running(unit, 5, tokens=3)
    assert behind(unit) == [one.id]  # the third token
    unit.finish("a")
    assert behind(unit) == []
    unit.finish("a")
    assert unit.outcome[one.id] == "served"
    assert len(unit.emitted[one.id]) == 3


def test_no_step_is_sent_while_a_prompt_could_go_next() -> None:
    unit = make()
    running(unit, 5)
    late = unit.arrive("a", 5)
    assert behind(unit)  # sent before it came
    unit.finish("a")
    assert not behind(unit)
    unit.finish("a")
    assert late.batch is not None  # at the second step's end, not a third


def test_no_step_is_sent_while_another_model_waits_for_the_share() -> None:
    unit = make(Spec("a", share=100), Spec("b", share=100))
    running(unit, 5)
    unit.arrive("b", 5)
    for _ in range(8):
        assert len(unit.busy()) == 1
        unit.finish(unit.busy()[0])
        assert not behind(unit, "b")
        if unit.all[1].phase is Phase.RUNNING:
            assert not behind(unit)


def test_side_by_side_both_run_ahead() -> None:
    unit = make(Spec("a"), Spec("b"))
    running(unit, 5)
    unit.arrive("b", 5, 20)
    while not behind(unit, "b"):
        unit.finish("b" if "b" in unit.busy() else "a")
    unit.finish("a")
    assert behind(unit)


def test_nobody_is_preempted_for_a_step_that_is_not_due() -> None:
    """Four rows of four tokens, all held: the step of a ninth token is not sent early."""
    unit = BenchUnit(
        [Spec("a", blocks=1, prefix_cache=False)], 4, settings=Settings(0.5, 16, look_ahead=0, run_ahead=True)
    )
    one, other = running(unit, 6, 6)
    while one.computed < 7:
        unit.finish("a")
    assert not behind(unit)
    assert not unit.preempted
    unit.finish("a")
    assert unit.preempted == [other.id]
    unit.run()
    assert set(unit.outcome.values()) == {"served"}


def test_a_reader_who_leaves_is_in_neither_step_for_longer_than_they_run() -> None:
    unit = make()
    one, other = running(unit, 5, 5)
    unit.cancel(one)
    unit.finish("a")
    assert one.rows
    assert behind(unit) == [other.id]
    unit.finish("a")
    assert one.phase is Phase.ENDED
    assert not one.rows


@pytest.mark.parametrize("final", [False, True])
def test_a_lost_worker_takes_both_steps_with_it(final: bool) -> None:
    unit = make()
    one, other = running(unit, 5, 5, eos=frozenset([EOS]))
    batch = unit.workers["a"].busy
    assert batch is not None
    unit.workers["a"].done(5)
    unit.handle(BatchDone("a", batch.batch, [EOS, 5]))
    unit.lose("a", final=final)
    assert unit.shares.free == unit.shares.limit
    assert unit.outcome == {one.id: "served", **({other.id: "failed"} if final else {})}
    assert not one.rows
    assert not other.rows
    assert unit.ledger.unheld_blocks == unit.ledger.total_blocks
    if not final:
        assert other.suspect
        unit.revive("a")
        unit.run()
        assert unit.outcome[other.id] == "served"


def test_off_by_default() -> None:
    unit = BenchUnit([Spec("a")])
    unit.arrive("a", 5)
    unit.finish("a")
    assert unit.workers["a"].busy is not None
    assert unit.workers["a"].behind is None


ARRIVE = st.tuples(st.just("arrive"), st.integers(0, 1), st.integers(1, 12), st.integers(1, 12))
FINISH = st.tuples(st.just("finish"), st.integers(0, 2), st.integers(0, 15), st.just(0))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0), st.just(0))


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.one_of(ARRIVE, FINISH, FINISH, FINISH, CANCEL), min_size=25, max_size=90),
    st.integers(8, 40),
    st.sampled_from(["no", "apart", "beside"]),
    st.sampled_from(sorted(POLICIES)),
)
def test_any_stops_and_leavings(
    script: list[tuple[str, int, int, int]], blocks: int, split: str, policy: str
) -> None:
    """``BenchUnit.check`` after every event: no row that a step may still write is given back."""
    specs = [
        Spec("a", blocks=2, max_running=4, split=split != "no", beside=split == "beside"),
        Spec("b", blocks=1, row_tokens=2, max_running=4),
    ]
    unit, told = BenchUnit(specs, blocks, settings=AHEAD, policy=policy), dict[int, int]()
    for kind, which, first, second in script:
        busy = unit.busy()
        if kind == "arrive":
            unit.arrive(specs[which].name, first, second, frozenset([EOS]))
        elif kind == "cancel" and unit.all:
            unit.cancel(unit.all[which % len(unit.all)])
        elif kind == "finish" and busy:
            stop_some(unit, busy[which % len(busy)], first, told)
    unit.run()
    assert set(unit.outcome) == {sequence.id for sequence in unit.all}
    assert unit.ledger.unheld_blocks == unit.ledger.total_blocks
    assert unit.shares.free == unit.shares.limit
    for seq, sent in told.items():
        assert len(unit.emitted.get(seq, [])) == sent, "a token after the stop"


def stop_some(unit: BenchUnit, name: str, stops: int, told: dict[int, int]) -> None:
    """The worker's batch is done, with ``stops``. Notes who was stopped by a step."""
    command = unit.workers[name].busy
    if isinstance(command, Decode):
        for i, seq in enumerate(command.seqs):
            if stops >> i & 1 and seq not in unit.outcome:
                told[seq] = len(unit.emitted.get(seq, []))
    unit.finish(name, stops=stops)


# ---- a batch of each phase at once, in two processes or in one -------------------------------------------

both_ways = pytest.mark.parametrize("beside", [False, True], ids=["apart", "beside"])


@both_ways
def test_decode_steps_run_ahead_and_prefills_do_not(beside: bool) -> None:
    unit = make(Spec("a", split=True, beside=beside))
    one = unit.arrive("a", 5, 20)
    unit.finish("a/prefill")
    assert behind(unit, "a/decode") == [one.id]
    for token in (11, 12, 13):
        unit.finish("a/decode", token=token)
        assert behind(unit, "a/decode") == [one.id]
    assert unit.emitted[one.id] == [5, 11, 12, 13]
    assert unit.workers["a/prefill"].behind is None


@both_ways
def test_a_prompt_is_computed_beside_both_steps_and_is_in_the_next_after_them(beside: bool) -> None:
    """Its own prefill does not end the steps in a row; without a rule nobody would ever let it in."""
    unit = make(Spec("a", split=True, beside=beside))
    one = unit.arrive("a", 5, 40)
    unit.finish("a/prefill")
    other = unit.arrive("a", 5, 40)
    assert unit.busy() == ["a/decode"] or other.batch is not None
    while other.phase is Phase.WAITING:
        unit.finish("a/prefill" if "a/prefill" in unit.busy() else "a/decode")
    for _ in range(2):  # the step that runs, and the one behind it
        unit.finish("a/decode")
    running = unit.workers["a/decode"].busy
    assert running is not None
    assert isinstance(running, Decode)
    assert running.seqs == [one.id, other.id]
    assert behind(unit, "a/decode") == [one.id, other.id]


@both_ways
@pytest.mark.parametrize("final", [False, True])
def test_lost_workers_of_both_phases_take_both_steps_with_them(final: bool, beside: bool) -> None:
    unit = make(Spec("a", split=True, beside=beside))
    one = unit.arrive("a", 5, 20)
    unit.finish("a/prefill")
    assert behind(unit, "a/decode") == [one.id]
    unit.lose("a", final=final)
    assert unit.outcome == ({one.id: "failed"} if final else {})
    assert unit.shares.free == unit.shares.limit
    assert unit.ledger.unheld_blocks == unit.ledger.total_blocks


def test_who_waits_goes_to_another_unit_while_two_steps_run() -> None:
    unit = make(Spec("a", max_running=1))
    (one,) = running(unit, 5)
    waiting = unit.arrive("a", 5)
    assert behind(unit) == [one.id]
    actions = unit.handle(Withdraw("a", 1000))
    assert [action.sequence for action in actions if isinstance(action, Withdrawn)] == [waiting]
    lane = unit.scheduler.lanes["a"]
    unit.all.remove(waiting)
    while not lane.empty:
        assert lane.flights
        unit.finish("a")
    assert unit.outcome == {one.id: "served"}
    assert lane.ahead is None


@pytest.mark.parametrize(
    "sampling", [Sampling(constraint=Constraint("json_object")), Sampling(bad_words=((5, 6),))]
)
def test_who_is_held_to_what_was_said_last_steps_in_turn_with_those_who_run_ahead(sampling: Sampling) -> None:
    """Its mask needs the token that the step in front picks; the others' steps do not wait for it."""
    unit = make()
    held = unit.arrive("a", 5, 20, sampling=sampling)
    one, other = running(unit, 5, 5)
    counts = []
    for _ in range(12):
        assert held.id not in behind(unit)
        unit.finish("a")
        counts.append([len(unit.emitted[each.id]) for each in (held, one, other)])
    first, last = counts[0], counts[-1]
    steps = [end - begin for begin, end in zip(first, last, strict=True)]
    assert steps[1] == steps[2] == 11
    assert steps[0] >= 5
    unit.run()
    assert unit.ledger.unheld_blocks == unit.ledger.total_blocks


def test_single_tokens_that_are_not_wanted_hold_nobody_back() -> None:
    unit = make()
    one = unit.arrive("a", 5, 20, sampling=Sampling(bias=((3, 1.0),), allowed=(3, 4), bad_words=((5,),)))
    unit.finish("a")
    assert behind(unit) == [one.id]
