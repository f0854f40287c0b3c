"""Root-mean-square layer normalisation (Zhang and Sennrich 2019), in the two roundings models use, and of
what the mean is taken from (Ba et al. 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor


class RmsNorm:
    """x / rms(x) · w over the last axis. ``w`` is kept in the model's type."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps, self.shape = weight, eps, tuple(weight.shape)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = F.rms_norm(x, self.shape, self.weight, self.eps)
        return y if add is None else add + y


class OffsetRmsNorm:
    """x / rms(x) · (1 + w), all in float32 and rounded once: Gemma's weights are stored around zero."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps, self.shape = 1.0 + weight.float(), eps, tuple(weight.shape)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = F.rms_norm(x.float(), self.shape, self.weight, self.eps).to(x.dtype)
        return y if add is None else add + y


class LayerNorm:
    """(x - mean(x)) / rms(x - mean(x)) · w, all in float32 and rounded once: LayerNorm without a bias."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps, self.shape = weight.float(), eps, tuple(weight.shape)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = F.layer_norm(x.float(), self.shape, self.weight, None, self.eps).to(x.dtype)
        return y if add is None else add + y


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """The reference of ``rms_norm_kernel``: norm(x + before) + after, each only where given.

    ``offset`` multiplies by 1 + w instead of w. x, before, after [n, hidden]. ``before`` is the residual
    stream of a pre-norm block and is updated in place to x + before, rounded once; ``after`` is the residual
    around a post-norm (Gemma). The norm and the sum behind it are computed in float32 and rounded once.
    """
    if before is not None:
        x = before.add_(x)
    full = x.float()
    normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    normed = normed * (weight.float() + (1.0 if offset else 0.0))
    return (normed if after is None else normed + after.float()).to(x.dtype)
