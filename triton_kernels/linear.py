"""y = x Wᵀ (+ residual): a weight packed once into oneDNN's layout where that is faster, else used as it is.

Called through ``muxd.models``' Linear slots; the worker chooses by ``pack``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainLinear:
    """``F.linear`` on the mapped weight, [outputs, inputs], without a copy."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, inputs] -> [n, outputs], plus ``add`` [n, outputs] where given."""
        y = F.linear(x, self.weight)
        return y if add is None else y.add_(add)


class PackedLinear:
    """The same product from a private copy in oneDNN's blocked layout; the residual is added in float32.

    Two private operators of torch: ``packs`` says whether this build and CPU have them.
    """

    def __init__(self, weight: Tensor):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, inputs] -> [n, outputs], plus ``add`` [n, outputs] where given."""
        if add is None:
            y: Tensor = _linear(x, self.weight, None, "none", [], "")
        else:
            y = _linear_add(x, add, self.weight, None, "add")
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
