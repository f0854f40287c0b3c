"""Ranks of a tensor-parallel group compute what one process does: unchanged pages, real gloo, real pools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_process import play, results, scenario
from support.tiny_models import gemma3, llama, mistral, qwen2, qwen3
from torch import Tensor

SHAPES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
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
OVER_4 = ("mistral", "gemma3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, (make, changes) in SHAPES.items():
        found[name] = tmp_path_factory.mktemp("model")
        make(found[name], **changes)
    return found


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, folder in folders.items():
        found |= results(name, scenario(folder))
    return found


def compare(ranks: list[dict[str, Tensor]], alone: dict[str, Tensor], name: str) -> None:
    for rank in ranks:
        assert torch.equal(rank[name], ranks[0][name]), "logits of the ranks differ"
        assert torch.equal(rank[f"{name} tokens"], alone[f"{name} tokens"])
    torch.testing.assert_close(ranks[0][name], alone[name], atol=1e-4, rtol=0)


def test_two_ranks_are_one(folders: dict[str, Path], alone: dict[str, Tensor], tmp_path: Path) -> None:
    ranks = play(folders, 2, tmp_path)
    for name in folders:
        compare(ranks, alone, name)


def test_four_ranks_are_one(folders: dict[str, Path], alone: dict[str, Tensor], tmp_path: Path) -> None:
    ranks = play({name: folders[name] for name in OVER_4}, 4, tmp_path)
    for name in OVER_4:
        compare(ranks, alone, name)
