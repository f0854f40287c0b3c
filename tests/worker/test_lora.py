"""Rows of adapters compute what transformers computes with the adapter merged into the weights, in float32:
prompts, chunks and steps, of the base and of several adapters in one batch.
"""

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from support.adapters import EVERYWHERE, adapter
from support.direct_runner import DirectRunner
from support.logits import greedy_choices, reference_logits
from support.tiny_models import RELATIVES, VARIANTS, Make, qwen3_moe, words
from transformers import PreTrainedModel

from muxd.errors import ModelFolderError
from muxd.messages import Dtype
from muxd.models.lora import read_lora

KINDS = ["llama biases", "qwen3", "mistral", "gemma3"]
CLOSE = 1e-4


class Family(NamedTuple):
    """A base, its adapters' folders, and the merged references: 0 is the base."""

    folder: Path
    adapters: list[Path]
    merged: list[PreTrainedModel]


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    make, changes = VARIANTS[request.param]
    return family_of(tmp_path_factory.mktemp(request.param.replace(" ", "-")), make, **changes)


def family_of(path: Path, make: Make, **changes: object) -> Family:
    """One adapter is everywhere, one of several ranks and scales, one in few places."""
    base = make(path / "base", **changes)
    folders = [path / name for name in ("everywhere", "patterns", "few")]
    merged = [
        adapter(folders[0], base, seed=1, rank=4, default=True),
        adapter(
            folders[1], base, seed=2, rank=3, ranks={"q_proj": 17, "down_proj": 33}, use_rslora=True,
            alpha_pattern={"o_proj": 11},
        ),
        adapter(folders[2], base, seed=3, rank=8, targets=("v_proj", "up_proj"), layers=[0, 2]),
    ]  # fmt: skip
    return Family(path / "base", folders, [base, *merged])


def direct(family: Family, native: bool) -> DirectRunner:
    return DirectRunner(family.folder, block_bytes=4096, adapters=family.adapters, native=native)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    assert float((got - wanted).abs().max()) <= CLOSE * scale


def test_a_batch_of_base_and_adapters_in_prompts_and_steps(family: Family, native: bool) -> None:
    runner = direct(family, native)
    prompts = {seq: words(9 + 7 * seq, seq) for seq in range(8)}
    whose = {seq: seq % 4 for seq in prompts}
    done = runner.prefill([(seq, 0, tokens, True) for seq, tokens in prompts.items()], adapters=whose)
    for seq, tokens in prompts.items():
        close(runner.logits[-1][seq], reference_logits(family.merged[whose[seq]], tokens)[-1])
    answers = {seq: [token] for seq, token in zip(prompts, done.tokens, strict=True)}
    draw = random.Random(0)
    for _ in range(6):
        order = draw.sample(list(prompts), len(prompts))
        for seq, token in zip(order, runner.decode(order), strict=True):
            answers[seq].append(token)
    for seq, tokens in answers.items():
        assert tokens == greedy_choices(family.merged[whose[seq]], prompts[seq], tokens)


def test_the_adapters_differ(family: Family) -> None:
    """Or nothing here would show anything."""
    last = [reference_logits(model, words(20))[-1] for model in family.merged]
    for i, one in enumerate(last):
        for other in last[:i]:
            assert float((one - other).abs().max()) > 100 * CLOSE


def test_a_prompt_in_chunks_beside_another_adapters(family: Family, native: bool) -> None:
    runner, (first, second) = direct(family, native), (words(45), words(30, 1))
    assert runner.prefill([(1, 0, first[:20], False)], adapters={1: 2}).tokens == []
    done = runner.prefill([(1, 20, first[20:], True), (2, 0, second, True)], adapters={2: 1})
    for i, (tokens, model) in enumerate(((first, family.merged[2]), (second, family.merged[1]))):
        wanted = reference_logits(model, tokens)[-1]
        close(runner.logits[-1][i], wanted)
        assert done.tokens[i] == int(wanted.argmax())


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        ("phi3", ("qkv_proj", "gate_up_proj")),
        ("glm4", ("gate_up_proj",)),
        ("olmo2", ()),
        ("cohere2", ()),
        ("gemma4", ()),
        ("gemma4 experts, keys as values", ()),
    ],
)
def test_adapters_of_matrices_that_are_cut_or_put_in_order(
    tmp_path: Path, native: bool, kind: str, fused: tuple[str, ...]
) -> None:
    """As their base's: what is fused has one A, and B's rows go with the base's. Keys that are values
    have one adapter, and layers that read others' keys have none of theirs."""
    make, changes = (VARIANTS | RELATIVES)[kind]
    base = make(tmp_path / "base", **changes)
    apart = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    cut = {part for name in fused for part in apart[name]}
    targets = (*fused, *(name for name in EVERYWHERE if name not in cut))
    merged = adapter(tmp_path / "one", base, seed=4, targets=targets)
    runner = DirectRunner(tmp_path / "base", block_bytes=4096, adapters=[tmp_path / "one"], native=native)
    tokens = words(40)
    done = runner.prefill([(seq, 0, tokens, True) for seq in (1, 2)], adapters={2: 1})
    for seq, model in enumerate((base, merged)):
        close(runner.logits[-1][seq], reference_logits(model, tokens)[-1])
    answer = [done.tokens[1], *runner.decode([2]), *runner.decode([2])]
    assert answer == greedy_choices(merged, tokens, answer)


def test_a_number_that_is_no_adapter_is_refused(family: Family, native: bool) -> None:
    with pytest.raises(ValueError, match="no adapter 4"):
        direct(family, native).prefill([(1, 0, [5, 6], True)], adapters={1: 4})


def test_on_a_base_of_codes(family: Family, native: bool) -> None:
    """Adapters stay what they are where the base's matrices are int8: they move the logits as far as ever."""
    if not native:
        pytest.skip("torch has no codes")
    runner = DirectRunner(family.folder, block_bytes=4096, adapters=family.adapters, weights="int8")
    tokens = words(30)
    runner.prefill([(seq, 0, tokens, True) for seq in range(4)], adapters={seq: seq for seq in range(4)})
    base, wanted = runner.logits[-1][0], [reference_logits(one, tokens)[-1] for one in family.merged]
    for seq in range(1, 4):
        moved, far = runner.logits[-1][seq] - base, wanted[seq] - wanted[0]
        assert float((moved - far).norm()) <= 0.1 * float(far.norm())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves(family: Family, native: bool, dtype: Dtype) -> None:
    """Rounded as the base is, by no more; rows of one adapter are not side by side."""
    if dtype == "float16" and family.folder.parent.name.startswith("gemma"):
        pytest.skip("too large for float16")
    runner = DirectRunner(family.folder, dtype, block_bytes=4096, adapters=family.adapters, native=native)
    tokens, whose = words(30), {seq: seq % 4 for seq in range(8)}
    runner.prefill([(seq, 0, tokens, True) for seq in whose], adapters=whose)
    wanted = [reference_logits(one, tokens)[-1] for one in family.merged]
    for seq, number in whose.items():
        assert float((runner.logits[-1][seq] - wanted[number]).norm()) <= 0.1 * float(wanted[number].norm())
    for first in (3, 2, 1, 0):  # of two rows, the first and the last of a batch
        assert len(runner.decode([first, *(seq for seq in whose if seq % 4 != first), first + 4])) == 8


def test_attention_of_a_mixture_is_adapted_and_its_experts_are_not(tmp_path: Path, native: bool) -> None:
    base = qwen3_moe(tmp_path / "base")
    merged = adapter(tmp_path / "a", base, seed=1, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    runner = DirectRunner(tmp_path / "base", block_bytes=4096, adapters=[tmp_path / "a"], native=native)
    prompts = words(30), words(11, 2)
    runner.prefill([(0, 0, prompts[0], True), (1, 0, prompts[1], True)], adapters={0: 1})
    for seq, model in enumerate((merged, base)):
        close(runner.logits[-1][seq], reference_logits(model, prompts[seq])[-1])
    for name in ("mlp.experts.0.up_proj", "mlp.gate"):
        path = f"base_model.model.model.layers.0.{name}"
        pair = {f"{path}.lora_A.weight": torch.ones(4, 64), f"{path}.lora_B.weight": torch.ones(24, 4)}
        save_file(pair, tmp_path / "a" / "adapter_model.safetensors")
        with pytest.raises(ModelFolderError, match="adapts nothing that its base has"):
            read_lora(tmp_path / "a", runner.spec)
