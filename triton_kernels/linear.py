"""y = x Wᵀ (+ bias, + residual): a weight packed once into oneDNN's layout where that is faster, else as is.

Called through ``muxd.models``' Linear slots; the worker chooses by ``pack``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainLinear:
    """``F.linear`` on the mapped weight [outputs, inputs] and bias [outputs], without a copy."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, inputs] -> [n, outputs], plus ``add`` [n, outputs] where given."""
        y = F.linear(x, self.weight, self.bias)
        return y if add is None else y.add_(add)


class PackedLinear:
    """The same product from a private copy in oneDNN's blocked layout; what is added is added in float32.

    Two private operators of torch: ``packs`` says whether this build and CPU have them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight, None), bias

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, inputs] -> [n, outputs], plus ``add`` [n, outputs] where given."""
        if add is None:
            y: Tensor = _linear(x, self.weight, self.bias, "none", [], "")
        else:
            y = _linear_add(x, add, self.weight, self.bias, "add")
        return y


def packs(dtype: torch.dtype) -> bool:
    """Whether packing serves ``dtype`` here: bfloat16, on a CPU with its instructions."""
    if dtype is not torch.bfloat16:
        return False
    try:
        probe = torch.eye(16, dtype=dtype)
        return torch.equal(PackedLinear(probe)(probe, add=probe), probe + probe)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


_linear = torch.ops.mkldnn._linear_pointwise.default
_linear_add = torch.ops.mkldnn._linear_pointwise.binary
