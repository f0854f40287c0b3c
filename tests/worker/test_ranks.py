"""Ranks of a tensor-parallel group compute what one process does: unchanged pages, real gloo, real pools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models
from support.rank_process import play, results, scenario
from support.tiny_models import gemma3, llama, mistral, qwen2, qwen3
from torch import Tensor

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
}
# Fused matrices, rope on a part of a head or interleaved, multipliers, caps, a layer norm, norms elsewhere.
RELATED: Shapes = {
    name: (getattr(tiny_models, name), {})
    for name in ("phi3", "granite", "gemma2", "smollm3", "glm4", "cohere2", "exaone4")
}
OVER_4 = ("mistral", "gemma3")


def made(shapes: Shapes, root: Path) -> dict[str, Path]:
    folders = {name: root / f"model{number}" for number, name in enumerate(shapes)}
    for name, (make, changes) in shapes.items():
        make(folders[name], **changes)
    return folders


def compare(folders: dict[str, Path], ranks: list[dict[str, Tensor]]) -> None:
    for name, folder in folders.items():
        alone = results(name, scenario(folder))
        for rank in ranks:
            assert torch.equal(rank[name], ranks[0][name]), "logits of the ranks differ"
            assert torch.equal(rank[f"{name} tokens"], alone[f"{name} tokens"])
        torch.testing.assert_close(ranks[0][name], alone[name], atol=1e-4, rtol=0)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    folders = made(SHAPES, tmp_path)
    compare(folders, play(folders, 2, tmp_path))


@pytest.mark.slow
def test_two_ranks_of_relatives_are_one(tmp_path: Path) -> None:
    folders = made(RELATED, tmp_path)
    compare(folders, play(folders, 2, tmp_path))


@pytest.mark.slow
def test_four_ranks_are_one(tmp_path: Path) -> None:
    folders = made({name: SHAPES[name] for name in OVER_4}, tmp_path)
    compare(folders, play(folders, 4, tmp_path))
