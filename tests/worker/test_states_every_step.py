"""Models whose layers keep a state, by every step: torch's, the native one as compiled for this CPU and for
the least, and a GPU's over its references; against transformers in float32, whatever is computed beside them,
however a prompt is cut, and whoever had the rows before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.direct_runner import DirectRunner
from support.logits import continuation_logits, greedy_choices, reference_logits, undecided
from support.tiny import byte_tokenizer
from support.tiny_models import STATES, qwen3_5, qwen3_5_moe, words

from muxd.cost import probe
from muxd.kernels import native as kernels
from muxd.messages import StepName
from muxd.worker import cuda_step
from muxd.worker.profile import Bench
from muxd.worker.quality import compare

STEPS = 40  # past row borders
Pair = tuple[Path, Any]


def of_one_tensor(folder: Path) -> Any:
    """Experts as they are published: all of a layer in one tensor, gates first."""
    model = qwen3_5_moe(folder)
    tensors, experts = load_file(folder / "model.safetensors"), model.config.num_experts
    for layer in range(model.config.num_hidden_layers):
        (prefix,) = {name.partition(".experts.")[0] for name in tensors if f".{layer}.mlp.experts." in name}
        each = [
            {part: tensors.pop(f"{prefix}.experts.{i}.{part}_proj.weight") for part in ("gate", "up", "down")}
            for i in range(experts)
        ]
        both = [torch.cat((one["gate"], one["up"])) for one in each]
        tensors[f"{prefix}.experts.gate_up_proj"] = torch.stack(both)
        tensors[f"{prefix}.experts.down_proj"] = torch.stack([one["down"] for one in each])
    save_file(tensors, folder / "model.safetensors")
    return model


def with_more_heads(folder: Path) -> Any:
    """What predicts several tokens at once is stored beside the model, and left out."""
    model = qwen3_5(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"mtp.fc.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    return model


VARIANTS = STATES | {
    "experts of one tensor": (of_one_tensor, {}),
    "with heads that are left out": (with_more_heads, {}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    make, changes = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, **changes)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("one")
    return folder, qwen3_5(folder)


@pytest.fixture(params=["torch", "native", "least", "paged"], scope="module")
def options(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Of ``DirectRunner``."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            yield {"native": False}
            return
        if request.param == "paged":
            patch.setattr(cuda_step, "buckets_for", lambda most: (1, 2, 4))
            yield {"paged": True, "native": False}
            return
        if why := kernels.missing():
            pytest.skip(why)
        if request.param == "least":
            compiled = kernels.library("x86-64-v3")
            patch.setattr(kernels, "library", lambda: compiled)
        yield {"native": True}


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.float(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cores", [1, 3])
def test_unequal_prompts_decode_to_the_same_tokens_and_logits(
    pair: Pair, options: dict[str, Any], cores: int
) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, cores=cores, **options)
    prompts = [words(n) for n in (1, 5, 64, 90)]
    for i, tokens in enumerate(direct.generate(prompts, STEPS)):
        wanted = continuation_logits(reference, prompts[i], tokens)
        if not undecided(reference, prompts[i] + tokens):
            assert tokens == wanted.argmax(-1).tolist()
            close(torch.stack([logits[i] for logits in direct.logits]), wanted)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_how_a_prompt_is_cut_changes_nothing(pair: Pair, options: dict[str, Any], chunk: int) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, **options)
    tokens, other = words(61), words(9)
    running = direct.prefill([(7, 0, other, True)]).tokens
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        done = direct.prefill([(1, start, part, start + chunk >= len(tokens))])
        close(direct.logits[-1][0], reference_logits(reference, tokens)[-1]) if done.tokens else None
        running += direct.decode([7]) if start % 3 == 0 else []
    found = done.tokens + direct.decode([1]) + direct.decode([1])
    assert found == greedy_choices(reference, tokens, found)
    assert running == greedy_choices(reference, other, running)


def test_chunks_of_several_sequences_in_one_batch(pair: Pair, options: dict[str, Any]) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, **options)
    first, second, third = words(45), words(30), words(12)
    direct.prefill([(1, 0, first[:20], False)])
    done = direct.prefill([(1, 20, first[20:], True), (2, 0, second[:9], False), (3, 0, third, True)])
    close(direct.logits[-1], torch.stack([reference_logits(reference, x)[-1] for x in (first, third)]))
    last = direct.prefill([(2, 9, second[9:], True)])
    for prompt, token in zip((first, third, second), done.tokens + last.tokens, strict=True):
        assert [token] == greedy_choices(reference, prompt, [token])


def test_rows_that_others_had_and_a_pool_of_narrow_blocks(one: Pair, options: dict[str, Any]) -> None:
    """A state begins as zeros whatever lies there; computed again it is what it was."""
    folder, reference = one
    direct, start = DirectRunner(folder, block_bytes=1024, rows=40, **options), words(25)
    before = direct.prefill([(1, 0, start, True)]).tokens + direct.decode([1]) + direct.decode([1])
    direct.free(1)
    direct.prefill([(2, 0, words(40), True)])
    again = direct.prefill([(1, 0, start + before, True)], prompt_tokens=len(start)).tokens
    after = again + direct.decode([2, 1])[1:] + direct.decode([1])
    assert before + after == greedy_choices(reference, start, before + after)


def test_a_warm_up_and_batches_touch_no_other_block(one: Pair, options: dict[str, Any]) -> None:
    direct = DirectRunner(one[0], block_bytes=4096, **options)
    direct.runner.warm_up()
    assert bool((direct.pool == 0xFF).all())
    direct.generate([[5, 6, 7], [8] * 40], 20)
    changed = (direct.pool.view(-1, 4096) != 0xFF).any(1).nonzero().flatten().tolist()
    assert set(changed) <= set(direct.blocks_in_use())


@pytest.mark.parametrize("kept", ["auto", "fp8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_stay_near(one: Pair, options: dict[str, Any], dtype: Any, kept: Any) -> None:
    """A state is float32 in a pool of any type."""
    folder, reference = one
    direct = DirectRunner(folder, dtype=dtype, kv_dtype=kept, **options)
    tokens = direct.generate([words(60)], 30)[0]
    wanted = continuation_logits(reference, words(60), tokens)
    found = torch.stack([logits[0] for logits in direct.logits]).float()
    assert float((found - wanted).abs().mean()) < 0.05 * float(wanted.abs().max())


@pytest.mark.parametrize(
    ("make", "weights", "most"),
    [(qwen3_5, "int8", 0.02), (qwen3_5_moe, "int8", 0.02), (qwen3_5, "int4", 0.5)],
)
def test_codes_instead_of_floats(make: Any, weights: Any, most: float, native: bool, tmp_path: Path) -> None:
    """Of prompts short and long: their products go by codes, and by tiles where the CPU has them."""
    if not native:
        pytest.skip("made for the native step")
    reference = make(tmp_path)
    for length in (7, 150):
        prompt = words(length)
        direct = DirectRunner(tmp_path, native=True, weights=weights)
        tokens = direct.generate([prompt], 8)[0]
        wanted = continuation_logits(reference, prompt, tokens)
        found = torch.stack([logits[0] for logits in direct.logits])
        assert float((found - wanted).square().mean() / wanted.square().mean()) < most


def test_a_prompt_is_mixed_in_parts_beside_a_shared_expert(options: dict[str, Any], tmp_path: Path) -> None:
    """Experts so wide that 17 tokens are mixed at a time."""
    wide = {"moe_intermediate_size": 120_000, "hidden_size": 32, "num_experts": 3, "num_experts_per_tok": 2}
    reference = qwen3_5_moe(tmp_path, num_hidden_layers=1, layer_types=["full_attention"], **wide)
    direct = DirectRunner(tmp_path, cores=2, **options)
    tokens = direct.generate([words(40)], 2)[0]
    close(torch.cat(direct.logits), continuation_logits(reference, words(40), tokens))


@pytest.mark.parametrize("step", ["native", "torch"])
def test_processes_that_measure_give_states_their_rows(one: Pair, step: StepName) -> None:
    if step == "native" and (why := kernels.missing()):
        pytest.skip(why)
    bench = Bench(probe.Setup(str(one[0]), "float32", 4096, 4 << 20, 1, step=step))
    assert bench.state_rows == 14
    assert len(bench.decode(probe.Decode(4, 64, 100, least=3))) >= 3
    assert len(bench.prefill(probe.Prefill(96, 32, 100, chunks=3, least=2))) >= 2
    with pytest.raises(ValueError, match="does not fit the pool"):
        bench.decode(probe.Decode(40, 64, 100))


def test_what_formats_cost_in_quality_is_read_in_windows(one: Pair) -> None:
    """Each window begins with a state of its own."""
    byte_tokenizer(one[0])
    found = [
        said
        for said in compare(probe.Compare(str(one[0]), 1, "a text " * 150))
        if isinstance(said, probe.Compared)
    ]
    assert [said.weights for said in found][:2] == ["float32", "file"]
    assert found[1].perplexity == pytest.approx(found[0].perplexity, rel=1e-3)
    assert found[1].divergence < 1e-4
