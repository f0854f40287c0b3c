"""A mixture of experts in place of a layer's MLP (Shazeer et al. 2017; Mixtral: Jiang et al. 2024): a router
scores all experts for each token, the best few compute, and what they give is added by the router's weights.

The weights are a softmax over all scores, or over those of the chosen alone: that is the same as making what
a softmax over all gives them add up to one.
"""

import torch
from torch import Tensor

from muxd.kernels.grouped import group
from muxd.kernels.ops import grouped_linear, silu_gate
from muxd.models.layers import Weights
from muxd.models.mixture import Experts


class Mixture:
    """``muxd.models.layers.Linear`` in form: x [n, hidden] -> [n, hidden]."""

    def __init__(self, experts: Experts, weights: Weights, layer: str):
        """``layer``: the prefix of its tensors' names."""
        self.experts, self.router = experts, weights.linear(f"{layer}router")
        self.gate_up = weights.tensor(f"{layer}experts.gate_up")  # [experts, 2 · inner, hidden]
        self.down = weights.tensor(f"{layer}experts.down")  # [experts, hidden, inner]

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, hidden] -> [n, hidden], plus ``add`` where given."""
        weights, chosen = route(self.router(x), self.experts)
        groups = group(chosen, self.experts.count)
        active = silu_gate(grouped_linear(x, self.gate_up, groups, gather=True))
        given = grouped_linear(active, self.down, groups)
        # Back to the order of tokens, so that sums are the same whoever else is in the batch.
        pairs = torch.empty_like(given).index_copy_(0, groups.order, given).view(*chosen.shape, -1)
        mixed = torch.bmm(weights[:, None].to(x.dtype), pairs)[:, 0]  # added in float32, whatever the type
        return mixed if add is None else add.add_(mixed)


def route(scores: Tensor, experts: Experts) -> tuple[Tensor, Tensor]:
    """The router's ``scores`` [n, experts] -> weights float32 [n, chosen], and whose, int64 [n, chosen]."""
    best, chosen = scores.float().topk(experts.chosen, -1)
    if experts.normalised:
        return torch.softmax(best, -1), chosen
    return torch.exp(best - torch.logsumexp(scores.float(), -1, keepdim=True)), chosen
