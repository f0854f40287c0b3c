"""MuxServe's published table: the real one where it lies beside the repository, and small ones made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muxd.cost.published import Published

REAL = Path(__file__).parents[3] / "shared/data/muxserve/llama-a100-latency.json"
needs_real = pytest.mark.skipif(
    not REAL.exists(), reason=f"MuxServe's latency table is not there: put its llama.json at {REAL}"
)

SHARES, BATCHES, LENGTHS = (30, 60, 100), (1, 2, 4, 8), (32, 64, 128)
Milliseconds = Callable[[int, int, int], float]


def linear(share: int, batch: int, length: int) -> float:
    """A floor of 10 ms, a millisecond for every 32 tokens, in inverse proportion to the share."""
    return (10 + batch * length / 32) * 100 / share


def raw_table(
    prefill: Milliseconds = linear, decoding: Milliseconds = linear, model: str = "llama-7b", gpus: int = 1
) -> dict[str, Any]:
    cells = {
        str(s): {
            str(b): {str(n): {"prefill": prefill(s, b, n), "decoding": decoding(s, b, n)} for n in LENGTHS}
            for b in BATCHES
        }
        for s in SHARES
    }
    return {model: {str(gpus): cells}}


def published(folder: Path, raw: dict[str, Any]) -> Published:
    file = folder / "llama.json"
    file.write_text(json.dumps(raw))
    return Published.read(file)
