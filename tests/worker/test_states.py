"""States of sequences in the pool, by torch's step: which blocks are touched, which rows a state needs, and
that another process goes on with it (tokens by every step: ``test_states_every_step``)."""

import random
from pathlib import Path
from typing import Any

import pytest
from support.direct_runner import GREEDY, DirectRunner, int32
from support.ledger_runner import LedgerRunner
from support.logits import greedy_choices
from support.tiny_models import qwen3_5, words

from muxd.messages import Chunk, Decode, Joined, NewRows, Prefill, Sampling

Pair = tuple[Path, Any]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("one")
    return folder, qwen3_5(folder)


def direct_of(folder: Path, **options: Any) -> DirectRunner:
    return DirectRunner(folder, block_bytes=4096, native=False, **options)


def test_many_sequences_step_in_groups_and_keep_their_order(
    one: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = one
    monkeypatch.setattr("muxd.worker.states._SCRATCH_BYTES", 1)
    direct = direct_of(folder)
    prompts = [words(n, seed=1) for n in (3, 70, 2, 31, 1, 12)]
    for tokens, start in zip(direct.generate(prompts, 4), prompts, strict=True):
        assert tokens == greedy_choices(reference, start, tokens)


def test_warm_up_touches_no_block_of_the_pool_and_batches_only_their_own(one: Pair) -> None:
    direct = direct_of(one[0])
    direct.runner.warm_up()
    assert bool((direct.pool == 0xFF).all())
    assert not direct.runner._sequences
    direct.generate([[5, 6, 7], [8] * 40], 20)
    changed = (direct.pool.view(-1, 4096) != 0xFF).any(1).nonzero().flatten().tolist()
    assert set(changed) <= set(direct.blocks_in_use())
    assert len(changed) > 0.8 * len(direct.blocks_in_use())


def test_another_process_goes_on_with_the_state_that_one_has_left(one: Pair) -> None:
    folder, reference = one
    host = LedgerRunner({"m": folder}, 4000)
    it, start = host.start("m", words(33)), words(33)
    decoding = host.another("m")
    held = [*it.rows, *it.state]
    blocks = host.ledger._accounts["m"].table[held].ravel().tolist()
    joined = Joined(
        it.id, int32(it.tokens), int32(it.rows), GREEDY, len(start), state=int32(it.state)
    )  # fmt: skip
    command = Decode(1, 100, NewRows(int32(held), int32(blocks)), [it.id], [], [], joined=[joined])
    tokens = it.answer + decoding.decode(command).tokens
    while len(tokens) < 6:
        tokens += decoding.decode(Decode(len(tokens), 100, NewRows(), [it.id], [], [])).tokens
    assert tokens == greedy_choices(reference, start, tokens)


@pytest.mark.parametrize("many", [-1, 1])
def test_a_state_needs_just_its_rows(one: Pair, many: int) -> None:
    direct = direct_of(one[0])
    rows = direct._grow(1, 3)
    state = [direct._free.pop() for _ in range(direct._state_rows + many)]
    chunk = Chunk(1, 0, int32([5, 6, 7]), int32(rows), True, GREEDY, 3, state=int32(state))
    with pytest.raises(ValueError, match="sequence 1: its state needs"):
        direct.runner.prefill(Prefill(1, 100, direct._new(rows + state), [chunk], []))


def test_a_row_of_a_state_that_was_never_named_is_refused(one: Pair) -> None:
    direct = direct_of(one[0])
    rows = direct._grow(1, 3)
    state = [direct._free.pop() for _ in range(direct._state_rows)]
    chunk = Chunk(1, 0, int32([5, 6, 7]), int32(rows), True, GREEDY, 3, state=int32(state))
    with pytest.raises(ValueError, match="never named in NewRows"):
        direct.runner.prefill(Prefill(1, 100, direct._new(rows + state[:-1]), [chunk], []))


def test_sampled_answers_are_the_same_in_other_company(one: Pair) -> None:
    folder, _ = one
    sampling = Sampling(temperature=0.9, seed=5, repetition_penalty=1.2)
    draw = random.Random(3)
    answers = []
    for company in (0, 3):
        direct = direct_of(folder, seed=company)
        chunks = [(seq, 0, words(draw.randint(1, 40), seq), True) for seq in range(1, company + 1)]
        token = direct.prefill([(9, 0, words(20), True), *chunks], sampling).tokens[0]
        seqs = [9, *range(1, company + 1)]
        answers.append([token, *(direct.decode(seqs)[0] for _ in range(20))])
    assert answers[0] == answers[1]
