"""Ranks of a tensor-parallel group compute what one process does: unchanged pages, real gloo, real pools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.adapters import EVERYWHERE, adapter
from support.mxfp4_folders import make_mxfp4
from support.rank_process import Part, play, results, scenario
from support.tiny_models import gemma3, gpt_oss, llama, mistral, olmoe, qwen2, qwen3
from torch import Tensor
from transformers import PreTrainedModel

from muxd.errors import ModelFolderError
from muxd.models.cut import cut_spec
from muxd.models.registry import ARCHITECTURES
from muxd.models.spec import read_spec

Shapes = dict[str, tuple[Callable[..., Any], dict[str, Any]]]
SHAPES: Shapes = {
    "llama": (llama, {}),
    "llama, heads that do not divide": (
        llama,
        {"hidden_size": 90, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 101},
    ),
    "llama with biases and its own head": (llama, {"attention_bias": True, "tie_word_embeddings": False}),
    "qwen2": (qwen2, {}),
    "qwen3": (qwen3, {}),
    "mistral": (mistral, {}),
    "gemma3": (gemma3, {}),  # one KV head: it is on every rank
    "olmoe": (olmoe, {}),  # experts, and norms over all heads
    "gpt oss": (gpt_oss, {}),  # experts with biases, and sinks
}
# Fused matrices, rope on a part of a head or interleaved, multipliers, caps, a layer norm, norms elsewhere.
RELATED: Shapes = {
    name: (getattr(tiny_models, name), {})
    for name in (
        "phi3", "granite", "gemma2", "smollm3", "glm", "glm4", "cohere2", "exaone4", "mixtral", "qwen3_moe",
        "olmo2", "olmo3",
    )
}  # fmt: skip
RELATED["olmo3, heads that do not divide"] = (
    tiny_models.olmo3,
    {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
)
RELATED["olmo2, one KV head"] = (tiny_models.olmo2, {"num_key_value_heads": 1})
RELATED["qwen3_moe, some layers dense"] = (
    tiny_models.qwen3_moe,
    {"mlp_only_layers": [0], "attention_bias": True, "moe_intermediate_size": 65},
)
REFUSED = {
    "BertModel", "Gemma4ForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "Qwen3NextForCausalLM",
}  # fmt: skip
ADAPTED = ("llama, heads that do not divide", "llama with biases and its own head")
OVER_4: Shapes = {
    **{name: SHAPES[name] for name in ("mistral", "gemma3", "olmoe", "gpt oss")},
    "mixtral": (tiny_models.mixtral, {"num_attention_heads": 8}),
}
PAGED = ("llama, heads that do not divide", "gemma3", "olmoe", "gpt oss")


def made(shapes: Shapes, root: Path) -> dict[str, Part]:
    parts = {name: Part(str(root / f"model{number}")) for number, name in enumerate(shapes)}
    for name, (make, changes) in shapes.items():
        model = make(Path(parts[name].folder), **changes)
        if name in ADAPTED:
            parts[name].adapters = adapters(Path(parts[name].folder), model)
    return parts


def adapters(base: Path, model: PreTrainedModel, targets: tuple[str, ...] = EVERYWHERE) -> list[str]:
    """One is everywhere, one in few places."""
    folders = [base.parent / f"{base.name}-{name}" for name in ("everywhere", "few")]
    adapter(folders[0], model, seed=1, targets=targets)
    adapter(folders[1], model, seed=2, rank=3, targets=(targets[0], targets[-1]), layers=[0, 2])
    return [str(folder) for folder in folders]


def compare(parts: dict[str, Part], ranks: list[dict[str, Tensor]]) -> None:
    for name, part in parts.items():
        alone = results(name, scenario(part))
        for rank in ranks:
            assert torch.equal(rank[name], ranks[0][name]), "logits of the ranks differ"
            assert torch.equal(rank[f"{name} tokens"], alone[f"{name} tokens"]), name
        torch.testing.assert_close(ranks[0][name], alone[name], atol=1e-4, rtol=0)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    parts = made(SHAPES, tmp_path)
    compare(parts, play(parts, 2, tmp_path))


@pytest.mark.slow
def test_two_ranks_of_relatives_are_one(tmp_path: Path) -> None:
    parts = made(RELATED, tmp_path)
    compare(parts, play(parts, 2, tmp_path))


@pytest.mark.slow
def test_four_ranks_are_one(tmp_path: Path) -> None:
    parts = made(OVER_4, tmp_path)
    compare(parts, play(parts, 4, tmp_path))


@pytest.mark.slow
def test_ranks_whose_k_and_v_stay_where_they_are_are_one(tmp_path: Path) -> None:
    """By the step of a GPU, over host tensors."""
    parts = made({name: SHAPES[name] for name in PAGED}, tmp_path)
    for part in parts.values():
        part.paged, part.adapters = True, []
    compare(parts, play(parts, 2, tmp_path))


@pytest.mark.slow
def test_adapters_of_fused_matrices_and_experts_as_published_are_cut(tmp_path: Path) -> None:
    """gpt-oss's inner width of three blocks is two and one, of zeros no block."""
    parts = {name: Part(str(tmp_path / name)) for name in ("phi3", "gpt-oss")}
    phi3 = tiny_models.phi3(tmp_path / "phi3")
    fused = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    parts["phi3"].adapters = adapters(tmp_path / "phi3", phi3, fused)
    make_mxfp4(tmp_path / "gpt-oss", gpt_oss(tmp_path / "gpt-oss"))
    compare(parts, play(parts, 2, tmp_path))


def test_every_architecture_is_cut_here_or_refused_by_name(tmp_path: Path) -> None:
    makes = {make for make, _ in (SHAPES | RELATED).values()}
    cut = {type(make(tmp_path / make.__name__)).__name__ for make in makes}
    assert cut == ARCHITECTURES.keys() - REFUSED
    whys = {
        "bert": "encoder", "gemma4": "heads of several kinds", "qwen3_5": "keep a state",
        "qwen3_5_moe": "keep a state", "qwen3_next": "keep a state",
    }  # fmt: skip
    refused = set()
    for name, why in whys.items():
        getattr(tiny_models, name)(tmp_path / name)
        spec = read_spec(tmp_path / name)
        with pytest.raises(ModelFolderError, match=f"model.tp: {spec.architecture} cannot be cut .* {why}"):
            cut_spec(spec, 2)
        refused.add(spec.architecture)
    assert refused == REFUSED
