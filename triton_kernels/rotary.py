"""Rotary position embedding in place on the query and key heads of one fused projection."""

import torch
from torch import Tensor


def angles(
    positions: Tensor,
    inverse_frequencies: Tensor,
    dtype: torch.dtype,
    magnitudes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine, each [n, 1, head_dim] in ``dtype``, for ``positions`` [n]; times ``magnitudes``
    [head_dim / 2] where given.

    Angles are computed in float32 and rounded last, as the reference does. The sine carries the minus sign
    of the first half, so that rotating is one multiply and one multiply-add.
    """
    phase = positions.float()[:, None, None] * inverse_frequencies  # [n, 1, head_dim / 2]
    cos, sin = phase.cos(), phase.sin()
    if magnitudes is not None:
        cos, sin = cos * magnitudes, sin * magnitudes
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim / 2]) of ``x`` [n, heads, head_dim] in place."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), -1)
    return x.mul_(cos).addcmul_(swapped, sin)
