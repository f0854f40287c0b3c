"""Batches as a GPU runs them, K and V read where they lie: the same tokens as the CPU's way and transformers.

Every test runs over tensors of the CPU, by the kernels' references, and with `-m gpu` over those of a GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.direct_runner import GREEDY, DirectRunner, int32
from support.ledger_runner import LedgerRunner
from support.logits import continuation_logits, greedy_choices
from support.tiny_models import RELATIVES, gemma3, llama, quick, words
from support.tiny_models import VARIANTS as SHARED

from muxd.messages import Chunk, NewRows, Prefill, Sampling
from muxd.worker import cuda_state
from muxd.worker.cuda_graphs import BUCKETS
from muxd.worker.cuda_step import CudaStep

VARIANTS = (
    SHARED
    | RELATIVES
    | {
        "llama untied, head_dim not dividing a block": (
            llama,
            {"head_dim": 24, "num_key_value_heads": 3, "tie_word_embeddings": False},
        ),
        "gemma3 odd, soft cap": (
            gemma3,
            {"head_dim": 32, "num_key_value_heads": 2, "sliding_window": 7, "final_logit_softcapping": 5.0},
        ),
    }
)
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=0.9, top_p=0.9, seed=2**63 + 11),
    Sampling(temperature=1.3, top_k=20, min_p=0.02, seed=5),
    Sampling(temperature=0.0, repetition_penalty=1.4),
    Sampling(temperature=0.7, presence_penalty=0.8, frequency_penalty=0.5, seed=6, min_tokens=4,
             banned_first=(2, 7, 9, 11, 13)),
]  # fmt: skip


@pytest.fixture(scope="module", params=quick(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    make, changes = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder)
    return folder


def paged(folder: Path, device: str = "cpu", **options: Any) -> DirectRunner:
    return DirectRunner(folder, device=device, paged=True, **options)


# ---- the same tokens ----------------------------------------------------------------------------------


def test_unequal_prompts_give_the_tokens_and_logits_of_transformers_and_of_the_cpu(
    pair: tuple[Path, Any], device: str
) -> None:
    folder, reference = pair
    prompts = [words(n) for n in (1, 5, 33, 90)]
    direct = paged(folder, device, block_bytes=4096)
    direct.runner.warm_up()
    direct.logits.clear()
    found = direct.generate(prompts, 30)
    for i, (tokens, start) in enumerate(zip(found, prompts, strict=True)):
        wanted = continuation_logits(reference, start, tokens)
        assert tokens == wanted.argmax(-1).tolist(), f"prompt of {len(start)}"
        logits = torch.stack([logits[i] for logits in direct.logits]).float().cpu()
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert found == DirectRunner(folder, block_bytes=4096).generate(prompts, 30)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunked_prefill_beside_a_decoding_sequence(pair: tuple[Path, Any], device: str, chunk: int) -> None:
    folder, reference = pair
    direct = paged(folder, device, block_bytes=4096)
    tokens, other = words(61), words(9)
    running = direct.prefill([(7, 0, other, True)]).tokens
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        done = direct.prefill([(1, start, part, start + chunk >= len(tokens))])
        running += direct.decode([7]) if start % 3 == 0 else []
    found = done.tokens + direct.decode([1]) + direct.decode([1])
    assert found == greedy_choices(reference, tokens, found)
    assert running == greedy_choices(reference, other, running)


def test_chunks_of_several_sequences_in_one_batch(pair: tuple[Path, Any], device: str) -> None:
    folder, reference = pair
    direct = paged(folder, device, block_bytes=4096)
    first, second, third = words(45), words(30), words(12)
    assert direct.prefill([(1, 0, first[:20], False)]).tokens == []
    done = direct.prefill([(1, 20, first[20:], True), (2, 0, second[:9], False), (3, 0, third, True)])
    last = direct.prefill([(2, 9, second[9:], True)])
    for prompt, token in zip((first, third, second), done.tokens + last.tokens, strict=True):
        assert [token] == greedy_choices(reference, prompt, [token])


def test_a_shared_prefix_changes_nothing(pair: tuple[Path, Any], device: str) -> None:
    folder, reference = pair
    host = LedgerRunner({"m": folder}, 6000, device=device, paged=True)
    prefix = words(64, seed=1)
    other = host.start("m", prefix + words(9, seed=2))
    host.step(other)
    tokens = prefix + words(21, seed=3)
    found = host.start("m", tokens, chunk=9)
    assert found.shared == 64 // host.row_tokens["m"]
    for _ in range(10):
        host.step(found)
        host.step(other)
    assert found.answer == greedy_choices(reference, tokens, found.answer)
    assert other.answer == greedy_choices(reference, other.tokens[: other.prompt_tokens], other.answer)


def test_preempted_and_computed_again_in_other_rows(pair: tuple[Path, Any], device: str) -> None:
    folder, reference = pair
    direct = paged(folder, device, block_bytes=4096)
    start = words(25)
    before = direct.prefill([(1, 0, start, True)]).tokens + direct.decode([1]) + direct.decode([1])
    direct.free(1)
    direct.prefill([(2, 0, words(40), True)])
    again = direct.prefill([(1, 0, start + before, True)], prompt_tokens=len(start)).tokens
    found = before + again + direct.decode([2, 1])[1:] + direct.decode([1])
    assert found == greedy_choices(reference, start, found)


def test_bfloat16_stays_near_float32(pair: tuple[Path, Any], device: str) -> None:
    folder, reference = pair
    direct = paged(folder, device, dtype="bfloat16", block_bytes=4096)
    prompt = words(40)
    tokens = direct.generate([prompt], 4)[0]
    wanted = continuation_logits(reference, prompt, tokens)
    off = (torch.cat(direct.logits).float().cpu() - wanted).abs().amax(1)
    # Of two experts that score almost alike, rounding chooses the other one now and then, also transformers'.
    assert float(off.median() if direct.spec.experts else off.max()) < 0.06 * float(wanted.abs().max())


# ---- sampling -----------------------------------------------------------------------------------------


def test_sampled_tokens_are_those_of_the_cpu_also_after_preemption(folder: Path, device: str) -> None:
    """All kinds of sampling in one batch; half-way each sequence is computed again as if preempted."""

    def play(direct: DirectRunner, break_at: int) -> list[list[int]]:
        prompts = [words(12, seed=i) for i in range(len(SAMPLINGS))]
        out = []
        for i, sampling in enumerate(SAMPLINGS):
            out.append(direct.prefill([(i, 0, prompts[i], True)], sampling).tokens)
        for step in range(14):
            if step == break_at:
                for i, sampling in enumerate(SAMPLINGS):
                    direct.free(i)
                    whole, prompt = prompts[i] + out[i], len(prompts[i])
                    out[i] += direct.prefill([(i, 0, whole, True)], sampling, prompt_tokens=prompt).tokens
            for tokens, token in zip(out, direct.decode(list(range(len(SAMPLINGS)))), strict=True):
                tokens.append(token)
        return out

    wanted = play(DirectRunner(folder), 99)
    assert play(paged(folder, device), 99) == wanted
    assert [tokens[:15] for tokens in play(paged(folder, device), 6)] == wanted


def test_logprobs_are_those_of_the_cpu(folder: Path, device: str) -> None:
    asked = [Sampling(temperature=0.0, logprobs=3), Sampling(temperature=0.0), Sampling(seed=4, logprobs=0)]
    found = []
    for direct in (DirectRunner(folder), paged(folder, device)):
        for i, sampling in enumerate(asked):
            direct.prefill([(i, 0, words(9 + i), True)], sampling)
        found.append(direct.decode_step([0, 1, 2]))
    host, there = found
    assert there.tokens == host.tokens
    assert host.logprobs is not None
    assert there.logprobs is not None
    assert set(there.logprobs) == set(host.logprobs) == {0, 2}
    for i, wanted in host.logprobs.items():
        assert there.logprobs[i].logprob == pytest.approx(wanted.logprob, abs=1e-4)
        assert [token for token, _ in there.logprobs[i].top] == [token for token, _ in wanted.top]


def test_counts_of_a_sequence_that_ended_are_not_its_successors(folder: Path, device: str) -> None:
    strong = Sampling(temperature=0.0, repetition_penalty=1.8)
    direct = paged(folder, device)
    for i in range(9):  # slots are used again and again
        direct.prefill([(i, 0, words(30, seed=i), True)], strong, forget=[i - 1])
    found = direct.decode([8]) + direct.decode([8])
    alone = DirectRunner(folder)
    alone.prefill([(8, 0, words(30, seed=8), True)], strong)
    assert found == alone.decode([8]) + alone.decode([8])


# ---- memory -------------------------------------------------------------------------------------------


def test_warm_up_and_recording_touch_no_block_of_the_pool(folder: Path, device: str) -> None:
    direct = paged(folder, device)
    direct.runner.warm_up()
    assert bool((direct.pool == 0xFF).all())
    assert not direct.runner._sequences


def test_only_the_sequences_own_blocks_change(folder: Path, device: str) -> None:
    """Three sequences in a graph of four: the padding line writes nowhere."""
    direct = paged(folder, device, rows=16)
    direct.runner.warm_up()
    direct.generate([[5, 6, 7], [8] * 40, [9]], 20)
    blocks = direct.pool.view(-1, 8192)
    changed = {int(i) for i in (blocks != 0xFF).any(1).nonzero()}
    per_row = direct.spec.blocks_per_row
    rows = [row for held in direct._rows.values() for row in held]
    assert changed == {b for row in rows for b in direct._blocks[row * per_row : (row + 1) * per_row]}


def test_more_sequences_than_lines_and_than_the_largest_graph(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row lists move, so the graphs are recorded anew; the largest batches run without one."""
    monkeypatch.setattr(cuda_state, "_LINES", 2)
    monkeypatch.setattr(cuda_state.RowLists.__init__, "__defaults__", (2, 0))
    direct, alone = paged(folder, device, rows=600), DirectRunner(folder, rows=600)
    direct.runner.warm_up()
    count = BUCKETS[-1] + 2
    prompts = [words(3 + i % 5, seed=i) for i in range(count)]
    for few in (1, 3, count):
        found = direct.generate(prompts[:few], 3)
        direct.prefill([(count + 1, 0, [5], True)], forget=list(range(few)))
        assert found == alone.generate(prompts[:few], 3)


def test_what_would_be_a_fault_of_all_workers_is_refused(folder: Path) -> None:
    """An index out of range ends every process that shares a GPU."""
    direct = paged(folder)
    for token in (direct.spec.vocab_size, -1):
        with pytest.raises(ValueError, match="token ids must lie in"):
            direct.prefill([(1, 0, [5, token], True)])
    chunk = Chunk(2, 0, int32([5]), int32([3]), True, GREEDY, 1)
    with pytest.raises(ValueError, match=r"rows \[3\] were never named"):
        direct.runner.prefill(Prefill(1, 100, NewRows(), [chunk], []))
    short = paged(folder)
    short.runner._step._setup = _shorter(short)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="positions must lie below 8"):
        short.prefill([(1, 0, [5] * 9, True)])


def _shorter(direct: DirectRunner) -> Any:
    import msgspec

    step = direct.runner._step
    assert isinstance(step, CudaStep)
    return msgspec.structs.replace(step._setup, max_context=8)
