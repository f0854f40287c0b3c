"""What the Runner promises the daemon besides right tokens: isolation, threads, clear refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.direct_runner import GREEDY, DirectRunner, int32
from support.logits import continuation_logits
from support.tiny_models import gemma3, llama

from muxd.kernels import native as kernels
from muxd.messages import Chunk, Decode, Joined, NewRows, Prefill, Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder)
    return folder


def test_warm_up_touches_no_block_of_the_pool_and_leaves_no_sequence(folder: Path) -> None:
    direct = DirectRunner(folder)
    direct.runner.warm_up()
    assert bool((direct.pool == 0xFF).all())
    assert not direct.runner._sequences


def test_only_the_sequences_own_blocks_change(folder: Path) -> None:
    direct = DirectRunner(folder, rows=16)
    direct.generate([[5, 6, 7], [8] * 40], 20)
    blocks = direct.pool.view(-1, 8192)
    changed = {int(i) for i in (blocks != 0xFF).any(1).nonzero()}
    per_row = direct.spec.blocks_per_row
    rows = [row for held in direct._rows.values() for row in held]
    owned = {b for row in rows for b in direct._blocks[row * per_row : (row + 1) * per_row]}
    assert changed == owned


def test_share_becomes_threads_and_never_none(folder: Path) -> None:
    direct = DirectRunner(folder, cores=2)
    direct.prefill([(1, 0, [5, 6, 7], True)])
    seen = []
    for share in (100, 50, 1, 100):
        direct.decode([1], share)
        seen.append(torch.get_num_threads())
    assert seen == [2, 1, 1, 2]


def test_forgotten_sequences_are_gone(folder: Path) -> None:
    direct = DirectRunner(folder)
    direct.prefill([(1, 0, [5, 6], True), (2, 0, [7, 8], True)])
    direct.prefill([(3, 0, [9], True)], forget=[1])
    assert set(direct.runner._sequences) == {2, 3}


def test_chunks_without_last_sample_nothing(folder: Path) -> None:
    direct = DirectRunner(folder)
    done = direct.prefill([(1, 0, [5, 6], False), (2, 0, [7], True), (3, 0, [8], False)])
    assert len(done.tokens) == 1
    assert direct.logits[-1].shape == (1, direct.spec.vocab_size)
    assert done.logprobs is None
    assert done.seconds > 0


def test_rows_granted_ahead_are_usable_later(folder: Path) -> None:
    direct = DirectRunner(folder)
    direct._rows[1] = []
    ahead = direct._grow(1, 3 * direct.tokens)
    chunk = Chunk(1, 0, int32([5, 6, 7]), int32(ahead), True, GREEDY, 3)
    first = direct.runner.prefill(Prefill(1, 100, direct._new(ahead), [chunk], [])).tokens
    rest = [direct.runner.decode(Decode(i, 100, NewRows(), [1], [], [])).tokens[0] for i in range(2, 42)]
    other = DirectRunner(folder, seed=5)
    assert first + rest == other.generate([[5, 6, 7]], 41)[0]


STEPS = {"paged": {"paged": True}, "torch": {"native": False}, "native": {"native": True}}


@pytest.fixture(params=STEPS)
def step(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Whatever computes, as options of a ``DirectRunner``."""
    if request.param == "native" and (why := kernels.missing()):
        pytest.skip(why)
    return STEPS[request.param]


@pytest.mark.parametrize("row", [3, -1, 10**6])
def test_rows_nobody_named_are_refused(folder: Path, step: dict[str, Any], row: int) -> None:
    direct = DirectRunner(folder, rows=64, **step)
    direct.runner._step.learn(NewRows(int32([63]), int32(list(range(direct.spec.blocks_per_row)))))
    chunk = Chunk(1, 0, int32([5]), int32([row]), True, GREEDY, 1)
    with pytest.raises(ValueError, match=rf"rows \[{row}\] were never named"):
        direct.runner.prefill(Prefill(1, 100, NewRows(), [chunk], []))


@pytest.mark.parametrize("past", [0, 10**6, None])
def test_tokens_the_model_has_not_are_refused(folder: Path, step: dict[str, Any], past: int | None) -> None:
    """In a prompt, and in a sequence that another worker has prefilled."""
    direct = DirectRunner(folder, **step)
    token = -1 if past is None else direct.spec.vocab_size + past
    with pytest.raises(ValueError, match=f"token ids must lie in .0, {direct.spec.vocab_size}"):
        direct.prefill([(1, 0, [5, token], True)])
    direct.prefill([(2, 0, [5], True)])
    joined = Joined(3, int32([5, token]), int32(direct._rows[2]), GREEDY, 2)
    with pytest.raises(ValueError, match=f"token ids must lie in .0, {direct.spec.vocab_size}"):
        direct.runner.decode(Decode(9, 100, NewRows(), [3], [], [], joined=[joined]))


@pytest.mark.parametrize(("ids", "first"), [([64], 0), ([-1], 0), ([0], 10**6), ([0], -1)])
def test_new_rows_outside_pool_or_table_are_refused(folder: Path, ids: list[int], first: int) -> None:
    direct = DirectRunner(folder, rows=64)
    blocks = list(range(first, first + direct.spec.blocks_per_row))
    with pytest.raises(ValueError, match=r"must lie in|ids below"):
        direct.runner.decode(Decode(1, 100, NewRows(int32(ids), int32(blocks)), [], [], []))


def test_tokens_without_a_row_are_refused(folder: Path) -> None:
    direct = DirectRunner(folder)
    direct.prefill([(1, 0, [5] * direct.tokens, True)])
    with pytest.raises(ValueError, match="sequence 1: no row for token 16"):
        direct.runner.decode(Decode(9, 100, NewRows(), [1], [], []))
    chunk = Chunk(2, 0, int32([5]), b"", True, GREEDY, 1)
    with pytest.raises(ValueError, match="sequence 2: no row for token 0"):
        direct.runner.prefill(Prefill(9, 100, NewRows(), [chunk], []))


def test_a_skipped_chunk_is_refused(folder: Path) -> None:
    direct = DirectRunner(folder)
    direct.prefill([(1, 0, [5, 6], False)])
    with pytest.raises(ValueError, match="chunk starts at 3, not 2"):
        direct.prefill([(1, 3, [7], True)])


def test_a_sampled_sequence_is_the_same_alone_batched_and_recomputed(folder: Path) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=11)
    start, count = [5, 6, 7, 8], 12
    alone = DirectRunner(folder)
    tokens = alone.prefill([(1, 0, start, True)], sampling).tokens
    for _ in range(count):
        tokens += alone.decode([1])
    crowd = DirectRunner(folder, seed=3)
    found = crowd.prefill([(1, 0, start, True)], sampling).tokens
    crowd.prefill([(seq, 0, [9] * seq, True) for seq in range(2, 12)], Sampling(temperature=1.5, seed=4))
    for _ in range(5):
        found.append(crowd.decode([*range(2, 12), 1])[-1])
    crowd.free(1)
    found += crowd.prefill([(1, 0, start + found, True)], sampling, prompt_tokens=len(start)).tokens
    while len(found) < len(tokens):
        found += crowd.decode([1])
    assert found == tokens


def test_logprobs_come_for_those_who_asked(folder: Path) -> None:
    direct = DirectRunner(folder)
    direct.prefill([(1, 0, [5, 6], True)])
    direct.prefill([(2, 0, [7, 8], True)], Sampling(temperature=0.0, logprobs=3))
    done = direct.decode_step([1, 2])
    assert done.logprobs is not None
    assert set(done.logprobs) == {1}
    wanted = torch.log_softmax(direct.logits[-1][1], -1)
    entry = done.logprobs[1]
    assert entry.logprob == pytest.approx(float(wanted.max()), abs=1e-5)
    assert [token for token, _ in entry.top] == wanted.topk(3).indices.tolist()
    assert entry.top[0] == pytest.approx((done.tokens[1], entry.logprob))


@pytest.mark.parametrize("make", [llama, gemma3])
def test_bfloat16_stays_near_float32(tmp_path: Path, make: type) -> None:
    reference = make(tmp_path)
    direct = DirectRunner(tmp_path, "bfloat16", block_bytes=2048, rows=400)
    prompts = [list(range(3, 3 + n)) for n in (4, 30, 41, 55, 60, 61, 62, 63, 64, 70)]
    tokens = [[t] for t in direct.prefill([(i, 0, p, True) for i, p in enumerate(prompts)]).tokens]
    for _ in range(3):
        for held, token in zip(tokens, direct.decode(list(range(len(prompts)))), strict=True):
            held.append(token)
    for i, start in enumerate(prompts):
        wanted = continuation_logits(reference, start, tokens[i])
        found = torch.stack([logits[i] for logits in direct.logits]).float()
        assert float((found - wanted).abs().max()) < 0.06 * float(wanted.abs().max())


def test_float16_serves_too(tmp_path: Path) -> None:
    reference = llama(tmp_path)
    direct = DirectRunner(tmp_path, "float16")
    start = [5, 9, 4, 30]
    wanted = continuation_logits(reference, start, direct.generate([start], 2)[0])
    found = torch.cat(direct.logits).float()
    assert float((found - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
