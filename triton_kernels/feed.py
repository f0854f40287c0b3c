"""The tokens a decode step begins with: told by the host, or those that the step before has just picked.

With the second kind a step can be queued while the one before it still runs: its tokens never visit the host.
"""

import torch
from torch import Tensor


def feed(tokens: Tensor, positions: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The reference. Token ids and positions of the step, int32 [b] each.

    tokens int32 [b]: an id, or -1 - i for ``before[i]``; before int64 [m], m > 0, NO_TOKEN read as 0 (what is
    computed for that line is dropped); positions int32 [b], -1 for
    padding lines, which come out at position 0.
    """
    there = (-1 - tokens).clamp(min=0).long()
    return torch.where(tokens >= 0, tokens, before[there].int().clamp(min=0)), positions.clamp(min=0)
