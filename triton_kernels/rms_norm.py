"""Root-mean-square layer normalisation (Zhang and Sennrich 2019), in the two roundings models use."""

import torch.nn.functional as F
from torch import Tensor


class RmsNorm:
    """x / rms(x) · w over the last axis. ``w`` is kept in the model's type."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps, self.shape = weight, eps, tuple(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class OffsetRmsNorm:
    """x / rms(x) · (1 + w), all in float32 and rounded once: Gemma's weights are stored around zero."""

    def __init__(self, weight: Tensor, eps: float):
        self.weight, self.eps, self.shape = 1.0 + weight.float(), eps, tuple(weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.shape, self.weight, self.eps).to(x.dtype)
