"""Products of a mixture of experts: each row with the matrix of its own expert, one grouped product for all.

A pair is (token, one of its ``fan`` experts), pair token · fan + i; pairs are sorted by expert, so that an
expert's rows are side by side (Gale et al. 2023, MegaBlocks, section 5, without its padding). Where each
expert's begin is a tensor on the device: shapes, and with them launches, depend on the number of tokens only.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """n · fan pairs by expert."""

    order: Tensor  # int64 [pairs]: the pair at each place
    starts: Tensor  # int32 [experts + 1]: where each expert's places begin, and the end
    fan: int


def group(chosen: Tensor, experts: int) -> Groups:
    """``chosen`` int64 [n, fan]: each token's experts. On any device; nothing is read back."""
    placed, order = chosen.flatten().sort(stable=True)
    bounds = torch.arange(experts + 1, device=chosen.device)
    return Groups(order, torch.searchsorted(placed, bounds, out_int32=True), chosen.shape[1])


def grouped_linear(
    x: Tensor, weight: Tensor, groups: Groups, *, bias: Tensor | None = None, gather: bool = False
) -> Tensor:
    """The reference, a Python loop over experts: [pairs, outputs] in the order of ``groups``.

    weight [experts, outputs, inputs], bias [experts, outputs]; x [pairs, inputs] in that order, too, or with
    ``gather`` [n, inputs], one row a token.
    """
    out = torch.empty(len(groups.order), weight.shape[1], dtype=x.dtype, device=x.device)
    starts = groups.starts.tolist()
    for expert, (start, stop) in enumerate(pairwise(starts)):
        if start < stop:
            own = x[groups.order[start:stop] // groups.fan] if gather else x[start:stop]
            added = None if bias is None else bias[expert]
            out[start:stop] = torch.nn.functional.linear(own, weight[expert], added)
    return out
