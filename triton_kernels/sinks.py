"""Attention sinks: a learned score for each head that takes weight and gives nothing (gpt-oss, OpenAI 2025;
after what softmax does by itself, Xiao et al. 2023).

weights = exp(s_j) / (exp(sink) + Σ exp(s_i)): a softmax over the scores and the sink, without the sink's own.
The kernels add exp(sink) to the total of their running softmax, after the last key.
"""

import torch
from torch import Tensor


def weights(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """scores [..., s] -> the same; ``sinks`` [..., 1], one for each line, or None for a plain softmax."""
    if sinks is None:
        return torch.softmax(scores, -1)
    sunk = torch.cat((scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)), -1)
    return torch.softmax(sunk, -1)[..., :-1]
