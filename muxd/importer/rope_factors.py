"""``rope_freqs.weight`` of Llama 3.1 and later: a factor for every pair of the rotary embedding.

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


def factor_scaling(file: GgufFile, theta: float, head_dim: int, context: int) -> dict[str, Any] | None:
    """Hugging Face's ``rope_scaling``, None without the tensor. Raises ModelFolderError for one that does not
    fit the head, or whose factors divide nothing."""
    if TENSOR not in file.tensors:
        return None
    factors = np.asarray(file.tensors[TENSOR].data).reshape(-1)
    if factors.dtype != np.float32 or len(factors) != head_dim // 2:
        file.fail(f"tensor {TENSOR!r} must be {head_dim // 2} float32 numbers")
    if not np.isfinite(factors).all() or not (np.abs(factors) > 1e-30).all():
        file.fail(f"tensor {TENSOR!r} holds factors that are 0 or not finite")
    largest = round(float(factors.max()), 3)
    if largest > 1 and theta > 1:
        low, high, original = _PUBLISHED
        plain = Rope(theta).inverse_frequencies(head_dim)
        stretched = Llama3Scaling(largest, low, high, original).stretched(plain, theta)
        if np.allclose(plain / stretched, factors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    listed = [float(factor) for factor in factors]
    return {
        "rope_type": "longrope",
        "long_factor": listed,
        "short_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
