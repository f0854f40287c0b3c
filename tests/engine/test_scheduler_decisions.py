"""The decision tree of ``engine/scheduler.py``, rule by rule, and MuxServe's shipped bugs staying dead."""

import itertools

import pytest
from support.bench_unit import EOS, BenchUnit
from support.bench_worker import Spec

from muxd.engine.actions import BatchDone, Tick
from muxd.engine.policies import POLICIES
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.errors import Busy, ContextTooLong, QueueFull
from muxd.messages import Decode, Prefill


def kinds(unit: BenchUnit, start: int = 0) -> list[tuple[str, str]]:
    return [(model, type(command).__name__) for _, model, command in unit.launches[start:]]


def running(unit: BenchUnit, model: str, prompt: int = 4, max_tokens: int = 500) -> None:
    """One stream of ``model`` past its prefill."""
    sequence = unit.arrive(model, prompt, max_tokens)
    while sequence.id not in unit.emitted:
        unit.finish(model if model in unit.busy() else unit.busy()[0])


def oldest(unit: BenchUnit) -> str:
    """The model whose batch was launched first."""
    return min(unit.busy(), key=lambda model: unit.workers[model].busy.batch)  # type: ignore[union-attr]


# ---- rule 1: one prefill in the unit, models in turn ------------------------------------------------


def test_prefills_go_round_robin_over_models() -> None:
    unit = BenchUnit([Spec("a"), Spec("b"), Spec("c")], total_blocks=600)
    for model in "aabbcc":
        unit.arrive(model, prompt=16, max_tokens=1)
    for _ in range(6):
        unit.finish(unit.busy()[0])
    assert [model for model, kind in kinds(unit) if kind == "Prefill"] == list("abcabc")


def test_a_long_prompt_is_cut_to_the_token_budget_and_fills_up_with_the_next() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=600)
    unit.arrive("a", prompt=20, max_tokens=1)
    unit.arrive("a", prompt=5, max_tokens=1)
    unit.finish("a")
    first, second = (command for _, _, command in unit.launches[:2])
    assert isinstance(first, Prefill)
    assert isinstance(second, Prefill)
    assert [(c.seq, c.start, len(c.tokens) // 4, c.last) for c in first.chunks] == [(0, 0, 16, False)]
    assert [(c.seq, c.start, len(c.tokens) // 4, c.last) for c in second.chunks] == [
        (0, 16, 4, True),
        (1, 0, 5, True),
    ]


def test_a_model_blocked_on_rows_does_not_hold_the_others_back() -> None:
    unit = BenchUnit([Spec("big", blocks=8), Spec("small", blocks=1)], total_blocks=64)
    running(unit, "big", prompt=24)
    unit.arrive("big", prompt=20)  # its rows are not free
    unit.arrive("small", prompt=4, max_tokens=2)
    unit.finish("big")
    assert set(unit.busy()) == {"small", "big"}


# ---- rule 2: a prefill short of share holds new decode steps, within bounds -------------------------


def three_models(**settings: float) -> BenchUnit:
    """Two decoding models take the whole device; the third one's prompt finds no share."""
    unit = BenchUnit(
        [Spec("a", share=50), Spec("b", share=50), Spec("c", share=100)],
        total_blocks=3000,
        settings=Settings(drain_timeout=settings.get("drain_timeout", 0.5), prefill_tokens=16, look_ahead=4),
    )
    running(unit, "a")
    running(unit, "b")
    while len(unit.busy()) < 2:
        unit.finish(unit.busy()[0])
    unit.arrive("c", prompt=4)
    return unit


def test_a_waiting_prefill_stops_new_decodes_until_it_has_its_share() -> None:
    """MuxServe's gate was defeated by a mixed-up return tuple: decodes went on every second tick."""
    unit = three_models()
    start = len(unit.launches)
    unit.finish("a")
    unit.finish("b")
    assert kinds(unit, start) == [("c", "Prefill")]


def test_a_held_stream_gets_its_step_when_the_drain_timeout_is_over() -> None:
    unit = three_models()
    start = len(unit.launches)
    unit.finish("a")
    assert unit.scheduler.deadline(unit.now) == pytest.approx(unit.now + 0.5)
    unit.now += 0.5  # b's step is a long one
    unit.handle(Tick())
    assert kinds(unit, start) == [("a", "Decode")]


def test_a_held_prefill_waits_at_most_four_drain_timeouts_and_one_step() -> None:
    """Steps longer than the drain timeout are always overdue; without a bound c would starve."""
    unit = three_models(drain_timeout=0.1)
    arrived = unit.now
    step = 0.3
    while not any(model == "c" for model, _ in kinds(unit)):
        unit.finish(oldest(unit), step)
        assert unit.now - arrived < 10
    assert unit.now - arrived <= 4 * 0.1 + 2 * step


def test_prefills_of_one_model_leave_its_own_streams_their_steps() -> None:
    unit = BenchUnit([Spec("a")], total_blocks=3000)
    running(unit, "a")
    for _ in range(20):
        unit.arrive("a", prompt=16, max_tokens=1)
    start = len(unit.launches)
    for _ in range(10):
        unit.finish("a", seconds=0.6)
    sequence = [kind for _, kind in kinds(unit, start)]
    assert "Prefill" in sequence
    assert all(pair != ("Prefill", "Prefill") for pair in itertools.pairwise(sequence))


# ---- rule 3: decodes round-robin while the share lasts ----------------------------------------------


def test_decodes_take_turns_when_the_share_does_not_last() -> None:
    unit = BenchUnit([Spec(m, share=50) for m in "abc"], total_blocks=3000)
    for model in "abc":
        running(unit, model)
    while any(isinstance(w.busy, Prefill) for w in unit.workers.values()):
        unit.finish(unit.busy()[0])
    for _ in range(60):  # until nobody's pace is of the time when it was alone
        unit.finish(oldest(unit))
    start = len(unit.launches)
    for _ in range(12):
        unit.finish(oldest(unit))
    steps = [model for model, _ in kinds(unit, start)]
    assert {model: steps.count(model) for model in "abc"} == {"a": 4, "b": 4, "c": 4}


def test_a_busy_model_uses_what_a_quiet_one_leaves_and_gives_it_back() -> None:
    unit = BenchUnit([Spec("a", share=50), Spec("b", share=50)], total_blocks=3000)
    running(unit, "a")
    assert unit.launches[-1][2].share == 100
    unit.arrive("b", prompt=4, max_tokens=50)
    unit.finish("a")
    shares = {model: command.share for _, model, command in unit.launches[-2:]}
    assert shares == {"a": 50, "b": 50}


def test_equal_shares_and_underscores_in_names_are_nothing_special() -> None:
    """The released system keyed workers by (name, percentage) and split names at underscores."""
    unit = BenchUnit([Spec("llm_a_1", share=50), Spec("llm_a", share=50)], total_blocks=600)
    first, second = unit.arrive("llm_a_1", 4, 3), unit.arrive("llm_a", 4, 3)
    unit.run()
    assert unit.outcome == {first.id: "served", second.id: "served"}


# ---- shares -----------------------------------------------------------------------------------------


def test_overbooking_is_bounded_in_total_not_per_request() -> None:
    """Threshold 3 of the released code admitted three 30 % decodes beside a 100 % prefill: 190 %."""
    shares = Shares([10, 20, 30, 40, 50, 60, 70, 80, 90, 100], overbook=30)
    shares.book(100)
    booked = []
    for who in "abc":
        if (share := shares.grant(30, [])) is not None:
            shares.book(share)
            booked.append(who)
    assert booked == ["a"]
    with pytest.raises(ValueError, match="130 of 130 %"):
        shares.book(10)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_worker_under_a_fixed_cap_is_never_booked_for_more(policy: str) -> None:
    """Alone it would get the whole device, of which it could use 33 %: nobody could run beside it."""
    specs = [Spec(name, share=33, cap=33) for name in "abc"]
    unit = BenchUnit(specs, total_blocks=600, rungs=tuple(range(1, 101)), policy=policy)
    for name in "abc":
        unit.arrive(name, 8, 20)
    unit.run()
    assert {command.share for _, _, command in unit.launches} == {33}
    free = BenchUnit([Spec("a", share=33)], total_blocks=600, rungs=tuple(range(1, 101)))
    free.arrive("a", 8, 2)
    assert free.launches[-1][2].share == 100


# ---- rows and quotas --------------------------------------------------------------------------------


def test_quota_counts_blocks_not_sequences() -> None:
    """One long sequence weighs what many short ones weigh; a count of sequences would admit it."""
    unit = BenchUnit([Spec("a", blocks=2, min_blocks=0), Spec("b", blocks=2, min_blocks=32)], total_blocks=64)
    unit.arrive("a", prompt=56, max_tokens=4)  # 15 rows, 30 of the 32 blocks it may take
    unit.arrive("a", prompt=4, max_tokens=8)
    while isinstance(unit.workers["a"].busy, Prefill) and unit.scheduler.lanes["a"].running == []:
        unit.finish("a")
    assert unit.ledger.usage()["a"].blocks <= 32
    assert unit.scheduler.lanes["a"].admitted == 1
    unit.arrive("b", prompt=56, max_tokens=4)
    unit.finish("a")
    assert unit.scheduler.lanes["b"].admitted == 1


def test_a_starved_prefill_keeps_its_guarantee() -> None:
    """Read as low use, it made the released quota adaptation take blocks from the model that waited."""
    unit = three_models()
    unit.ledger.set_quota("c", 100)
    for _ in range(6):
        unit.arrive("c", prompt=40)
    for _ in range(200):
        unit.finish(unit.busy()[0])
    assert unit.ledger.usage()["c"].min_blocks == 100
    assert unit.emitted.get(2)


def test_out_of_rows_preempts_the_youngest_of_the_model_most_over_and_loses_no_token() -> None:
    unit = BenchUnit([Spec("a", blocks=1), Spec("b", blocks=1, min_blocks=6)], total_blocks=16)
    sequences = [unit.arrive("a", prompt=4, max_tokens=30), unit.arrive("a", prompt=4, max_tokens=30)]
    sequences.append(unit.arrive("b", prompt=4, max_tokens=16))
    unit.run()
    assert unit.preempted
    assert set(unit.preempted) <= {sequences[0].id, sequences[1].id}
    assert [len(unit.emitted[s.id]) for s in sequences] == [30, 30, 16]
    assert set(unit.outcome.values()) == {"served"}


def test_a_prompt_preempted_to_make_room_is_not_admitted_into_that_room() -> None:
    """It was: one chunk of a, preempted for b, admitted again, for ever; b never got its row."""
    unit = BenchUnit(
        [Spec("a", blocks=1), Spec("b", blocks=1, min_blocks=2)], 12, settings=Settings(0.5, 8, 4)
    )
    unit.arrive("b", prompt=4, max_tokens=40)
    unit.finish("b")
    unit.arrive("a", prompt=36, max_tokens=4)
    unit.run(steps=500)
    assert unit.outcome == {0: "served", 1: "served"}


def test_a_quota_that_a_waiting_prompt_could_not_fit_is_refused_and_changes_nothing() -> None:
    """Admitted into fewer rows than it has tokens, the prompt would take its worker down."""
    unit = BenchUnit([Spec("a", blocks=2)], total_blocks=64)
    unit.arrive("a", prompt=40, max_tokens=4)
    with pytest.raises(Busy, match="longer than the 16 tokens"):
        unit.scheduler.set_quota("a", 0, 8)
    assert unit.ledger.usage()["a"].max_blocks == 64
    unit.run()
    assert unit.outcome == {0: "served"}
    unit.scheduler.set_quota("a", 0, 8)
    assert unit.outcome[unit.arrive("a", prompt=40).id] == "refused"


def test_a_sequence_alone_can_use_all_the_pool_leaves_it() -> None:
    unit = BenchUnit([Spec("a", blocks=2), Spec("b", blocks=2, min_blocks=16)], total_blocks=64)
    unit.arrive("a", prompt=10, max_tokens=10_000)
    unit.run()
    assert len(unit.emitted[0]) == 24 * 4 - 10  # (64 - 16) / 2 rows of 4 tokens


# ---- refusals, ends, losses -------------------------------------------------------------------------


def test_refusals_name_their_reason() -> None:
    unit = BenchUnit([Spec("a", max_queue=1, max_context=32)], ready=False)
    unit.arrive("a", prompt=4)
    refused = []
    for prompt in (4, 32):
        sequence = unit.arrive("a", prompt=prompt)
        refused.append(unit.outcome[sequence.id])
    assert refused == ["refused", "refused"]
    lane = unit.scheduler.lanes["a"]
    assert isinstance(unit.scheduler._refusal(lane, unit.all[1]), QueueFull)
    assert isinstance(unit.scheduler._refusal(lane, unit.all[2]), ContextTooLong)


def test_the_stopping_token_is_not_part_of_the_answer() -> None:
    unit = BenchUnit([Spec("a")])
    sequence = unit.arrive("a", prompt=4, max_tokens=8, eos=frozenset([EOS]))
    unit.finish("a", token=5)
    unit.finish("a", token=EOS)
    assert unit.emitted[sequence.id] == [5]
    assert unit.outcome[sequence.id] == "served"


def test_a_cancelled_sequence_in_flight_frees_its_rows_when_the_step_is_done() -> None:
    unit = BenchUnit([Spec("a")])
    sequence = unit.arrive("a", prompt=4, max_tokens=100)
    unit.finish("a")
    unit.cancel(sequence)
    assert unit.ledger.unheld_blocks < unit.ledger.total_blocks  # the step is still writing
    unit.finish("a")
    assert unit.ledger.unheld_blocks == unit.ledger.total_blocks
    assert unit.busy() == []


def test_a_model_that_is_given_up_fails_its_queue_and_refuses_newcomers() -> None:
    unit = BenchUnit([Spec("a"), Spec("b")], ready=False)
    waiting = unit.arrive("a", prompt=4)
    unit.lose("a", final=True)
    late = unit.arrive("a", prompt=4)
    assert unit.outcome == {waiting.id: "failed", late.id: "refused"}


def test_an_answer_from_before_the_loss_is_dropped() -> None:
    unit = BenchUnit([Spec("a")])
    sequence = unit.arrive("a", prompt=4)
    old = unit.launches[-1][2].batch
    unit.lose("a")
    unit.revive("a")
    unit.handle(BatchDone("a", old, [5]))
    assert sequence.id not in unit.emitted


def test_decode_commands_name_only_rows_that_are_new() -> None:
    unit = BenchUnit([Spec("a", row_tokens=4)])
    unit.arrive("a", prompt=4, max_tokens=12)
    unit.run()
    decodes = [c for _, _, c in unit.launches if isinstance(c, Decode)]
    grown = [len(c.grown) for c in decodes]
    # The prompt fills one row; 15 tokens are written (the last one sampled never is): 3 rows more
    assert sum(grown) == 3
    assert all(len(c.rows.ids) == 4 * n for c, n in zip(decodes, grown, strict=True))
