"""The native step over weights of every format, beside torch over the numbers that they stand for."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.block_folders import make_blocks
from support.direct_runner import DirectRunner
from support.logits import continuation_logits
from support.tiny_models import cohere2, gemma2, gemma3, gemma4, glm4, llama, mixtral, phi3, qwen3_moe

from muxd.kernels import native as kernels
from muxd.messages import NO_TOKEN, KvDtype, WeightsName
from muxd.models import blocks

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 64}  # fmt: skip
PROMPTS = [random.Random(n).choices(range(3, 300), k=n) for n in (1, 9, 40, 90)]
STEPS = 4

pytestmark = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())


def logits(direct: DirectRunner) -> torch.Tensor:
    """Of prompts and some tokens after them: of one by one, of few and of many rows."""
    for prompt in PROMPTS:
        direct.generate([prompt], 2)
    direct.generate(PROMPTS, STEPS)
    direct.generate([PROMPTS[1]] * 13, 2)
    return torch.cat([rows.float() for rows in direct.logits if len(rows)])


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The distance of two distributions, mean over rows, in nats; sequences differ from their first tokens
    on where a tie is broken otherwise, so only what both computed from the same tokens counts."""
    return float((wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1).median())


@pytest.mark.parametrize("kind", blocks.SIZES)
def test_blocks_of_a_file_are_computed_as_they_are(tmp_path: Path, kind: str, native: bool) -> None:
    llama(tmp_path / "m", **SHAPE)
    make_blocks(tmp_path / "m", kind)
    wanted = logits(DirectRunner(tmp_path / "m", "float32"))  # dequantised where torch computes
    assert float(wanted.std()) > 0.3
    found = logits(DirectRunner(tmp_path / "m", "float32", native=native))
    assert apart(found, wanted) < 0.02  # a code or scale in the wrong place is off by more than 0.5
    assert float((found - wanted).abs().median()) < 0.05 * float(wanted.std())


@pytest.mark.parametrize("kind", ["q8_0", "q4_1", "q4_k"])
def test_experts_of_blocks(tmp_path: Path, kind: str, native: bool) -> None:
    """Every expert chosen, or the choice would differ where scores are almost alike."""
    mixtral(tmp_path / "m", **SHAPE | {"num_local_experts": 3, "num_experts_per_tok": 3})
    make_blocks(tmp_path / "m", kind)
    wanted = logits(DirectRunner(tmp_path / "m", "float32", native=False))
    found = logits(DirectRunner(tmp_path / "m", "float32", native=native))
    assert apart(found, wanted) < 0.02
    assert float((found - wanted).abs().median()) < 0.05 * float(wanted.std())


def test_a_prompt_is_mixed_in_parts_where_experts_are_wide(tmp_path: Path, native: bool) -> None:
    wide = {"intermediate_size": 120_000, "hidden_size": 32, "num_hidden_layers": 1, "num_local_experts": 3}
    reference = mixtral(tmp_path / "m", **wide)  # of 2 experts a token: 17 tokens at a time
    direct = DirectRunner(tmp_path / "m", "float32", cores=2, native=native)
    found = direct.generate([PROMPTS[2]], 2)[0]
    wanted = continuation_logits(reference, PROMPTS[2], found)
    assert found == wanted.argmax(-1).tolist()
    torch.testing.assert_close(torch.cat(direct.logits).float(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.01), ("int4", 0.5), ("bfloat16", 1e-3)])
def test_weights_made_at_the_load(tmp_path: Path, weights: WeightsName, most: float) -> None:
    llama(tmp_path / "m", **SHAPE)
    wanted = logits(DirectRunner(tmp_path / "m", "float32"))
    direct = DirectRunner(tmp_path / "m", "float32", native=True, weights=weights)
    assert apart(logits(direct), wanted) < most


@pytest.mark.parametrize("make", [phi3, glm4, gemma4])
def test_codes_of_matrices_that_are_cut_and_put_in_order(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "m")
    wanted = logits(DirectRunner(tmp_path / "m", "float32", native=False))
    found = logits(DirectRunner(tmp_path / "m", "float32", native=True, weights="int8"))
    assert apart(found, wanted) < 0.02


@pytest.mark.parametrize("make", [llama, gemma4])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_a_long_context_is_cut_between_threads(tmp_path: Path, kv_dtype: KvDtype, make: Any) -> None:
    make(tmp_path / "m", max_position_embeddings=4096)
    prompt = random.Random(1).choices(range(3, 300), k=2500)
    alone, together = (
        DirectRunner(tmp_path / "m", "float32", cores=cores, native=True, kv_dtype=kv_dtype)
        for cores in (1, 3)
    )
    torch.testing.assert_close(alone.generate([prompt], 6), together.generate([prompt], 6))
    for one, other in zip(alone.logits, together.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_more_threads_than_at_first(tmp_path: Path) -> None:
    """What a thread has for itself stays sound when others join it."""
    llama(tmp_path / "m")
    grown, whole = (DirectRunner(tmp_path / "m", "float32", cores=2, native=True) for _ in range(2))
    found = []
    for direct, shares in ((grown, (50, 100, 100)), (whole, (100, 100, 100))):
        tokens = direct.prefill([(0, 0, PROMPTS[2], True)], share=shares[0]).tokens
        tokens += direct.prefill([(1, 0, PROMPTS[3], True)], share=shares[1]).tokens
        found.append(tokens + direct.decode([0, 1], shares[2]))
    assert found[0] == found[1]


@pytest.mark.parametrize("make", [llama, qwen3_moe])
def test_what_is_not_finite_gives_no_token_and_harms_no_other_row(tmp_path: Path, make: Any) -> None:
    """A token whose embedding is NaN: its row has no token, the rows beside it have theirs."""
    model = make(tmp_path / "m", tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    model.save_pretrained(tmp_path / "m")
    for weights in ("file", "int8"):
        direct = DirectRunner(tmp_path / "m", "float32", native=True, weights=weights)
        sound = DirectRunner(tmp_path / "m", "float32", native=True, weights=weights)
        done = direct.prefill([(0, 0, [5, 6], True), (1, 0, [5, 7], True), (2, 0, [8, 9, 10], True)])
        beside = sound.prefill([(0, 0, [5, 6], True), (2, 0, [8, 9, 10], True)])
        assert done.tokens[1] == NO_TOKEN
        assert [done.tokens[0], done.tokens[2]] == beside.tokens


@pytest.mark.parametrize("context", [1, 40, 1500])
def test_keys_beyond_float16_give_no_token(tmp_path: Path, native: bool, context: int) -> None:
    """After so many tokens comes one whose keys the pool cannot hold; alone, in a tile, in a cut context."""
    model = llama(tmp_path / "m", max_position_embeddings=4096)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[7] = 0
        model.model.embed_tokens.weight[7, 0] = 1
        model.model.layers[0].self_attn.k_proj.weight[:, 0] = 3e4
    model.save_pretrained(tmp_path / "m")
    direct = DirectRunner(tmp_path / "m", "float16", cores=2, native=native)
    done = direct.prefill([(0, 0, [5] * context + [7], True), (1, 0, [8, 9], True)])
    assert done.tokens[0] == NO_TOKEN
    assert done.tokens[1] != NO_TOKEN
    assert [token == NO_TOKEN for token in direct.decode([0, 1])] == [True, False]


@pytest.mark.parametrize("make", [llama, gemma3, gemma2, gemma4, cohere2])
def test_bfloat16_is_no_further_from_float32_than_torchs(tmp_path: Path, make: Any, native: bool) -> None:
    """A prompt in chunks, past the window, and some tokens after it."""
    make(tmp_path / "m")
    no_further(tmp_path / "m", native)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 64), (5, 5, 32), (3, 1, 96), (4, 2, 24)])
def test_queries_that_fill_no_tile(
    tmp_path: Path, heads: int, kv_heads: int, head_dim: int, native: bool
) -> None:
    """Of a CPU that multiplies by tiles of sixteen rows: as above, whatever is behind the last row."""
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    llama(tmp_path / "m", hidden_size=32 * heads, **shape)
    no_further(tmp_path / "m", native)


def no_further(folder: Path, native: bool) -> None:
    prompt = random.Random(2).choices(range(3, 300), k=230)
    exact = DirectRunner(folder, "float32", native=False)
    plain, ours = (DirectRunner(folder, "bfloat16", native=step) for step in (False, native))
    for direct in (exact, plain, ours):
        for start in range(0, len(prompt), 100):
            part = prompt[start : start + 100]
            direct.prefill([(1, start, part, start + len(part) == len(prompt))])
    wanted, torchs, found = (direct.logits[-1].float() for direct in (exact, plain, ours))
    off = (torchs - wanted).abs().mean()
    assert float((found - wanted).abs().mean()) <= 1.1 * float(off)
