"""Unmeasured: the list of lines that filter by ``torch.topk``, as it was made before.

``sampling_kernel`` counts tokens by how far they lie below the best and lists those of the first bins. Here
the best 1024 of every line of the batch are found and sorted by torch, whatever a line asks for; what lies
behind them is not drawn.
"""

from typing import Any

import torch
from torch import Tensor

from muxd.kernels import sampling_kernel
from muxd.kernels.sampling import SamplingLines


def sample(
    logits: Tensor, lines: SamplingLines, counts: Tensor, *, shortlist: int = 1024, **options: Any
) -> Tensor:
    """As ``sampling_kernel.sample`` of lines that filter; equal logits rank in topk's order."""
    own = {"shortlist": shortlist, **options}
    tokens, (adjust, weigh, _, collect, pick) = sampling_kernel.sample_calls(logits, lines, counts, **own)
    adjust.run()
    weigh._replace(options={**weigh.options, "FILTERED": False}).run()
    adjusted, _, _, cuts, _, listed, *_ = collect.arguments
    values, ids = torch.topk(adjusted, min(shortlist, adjusted.shape[1]))
    bits = (values + 0.0).view(torch.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    listed[:, : values.shape[1]] = (keys << 32) | (0x7FFFFFFF - ids)
    cuts[:, 1] = values.shape[1]
    pick.run()
    return tokens
