"""A factor for every pair of the rotary embedding: ``rope_freqs.weight`` of Llama 3.1 and later, and what Phi
has for long and for short texts.

llama.cpp's converter computes the factors from Hugging Face's ``llama3`` scaling and forgets what it was, so
that is looked for; what no such scaling gives is kept as it is, as LongRoPE with one list of factors.
"""

from typing import Any

import numpy as np

from muxd.importer.source import GgufFile
from muxd.models.rope import Llama3Scaling, Rope

TENSOR = "rope_freqs.weight"
# Low and high frequency factor and trained context, of all models that Meta has published.
_PUBLISHED = (1.0, 4.0, 8192)


def pair_factors(file: GgufFile, name: str, pairs: int) -> list[float]:
    """Of the tensor ``name``, one a pair that turns. Raises ModelFolderError for another count or type, and
    for what divides nothing."""
    factors = np.asarray(file.tensors[name].data).reshape(-1)
    if factors.dtype != np.float32 or len(factors) != pairs:
        file.fail(f"tensor {name!r} must be {pairs} float32 numbers")
    if not np.isfinite(factors).all() or not (np.abs(factors) > 1e-30).all():
        file.fail(f"tensor {name!r} holds factors that are 0 or not finite")
    return [float(factor) for factor in factors]


def factor_scaling(file: GgufFile, theta: float, head_dim: int, context: int) -> dict[str, Any] | None:
    """Hugging Face's ``rope_scaling``, None without the tensor. Raises ModelFolderError for one that does not
    fit the head, or whose factors divide nothing."""
    if TENSOR not in file.tensors:
        return None
    listed = pair_factors(file, TENSOR, head_dim // 2)
    largest = round(max(listed), 3)
    if largest > 1 and theta > 1:
        low, high, original = _PUBLISHED
        plain = Rope(theta).inverse_frequencies(head_dim)
        stretched = Llama3Scaling(largest, low, high, original).stretched(plain, theta)
        if np.allclose(plain / stretched, listed, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return {
        "rope_type": "longrope",
        "long_factor": listed,
        "short_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
