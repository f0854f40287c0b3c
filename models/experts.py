"""A mixture of experts in place of a layer's MLP (Shazeer et al. 2017; Mixtral: Jiang et al. 2024): a router
scores all experts for each token, the best few compute, and what they give is added by the router's weights.

The weights are a softmax over all scores, or over those of the chosen alone: that is the same as making what
a softmax over all gives them add up to one.
"""

import torch
from torch import Tensor

from muxd.kernels.grouped import group
from muxd.kernels.ops import clamped_gate, gelu_tanh_gate, grouped_linear, silu_gate
from muxd.models.layers import Weights
from muxd.models.mixture import Experts
from muxd.models.tensors import SHARED_GATE


class Mixture:
    """``muxd.models.layers.Linear`` in form: x [n, hidden] -> [n, hidden]."""

    def __init__(self, experts: Experts, weights: Weights, layer: str):
        """``layer``: the prefix of its tensors' names."""

        def of_all(name: str) -> tuple[Tensor, Tensor | None]:
            weight = weights.tensor(f"{layer}experts.{name}")
            bias = weights.tensor(f"{layer}experts.{name}.bias") if experts.biased else None
            return weight, None if bias is None else bias.view(weight.shape[:2])

        self.experts, self.router = experts, weights.linear(f"{layer}router", bias=experts.biased)
        self.gate_up, self.gate_up_bias = of_all("gate_up")  # [experts, 2 · inner, hidden], gates first
        self.down, self.down_bias = of_all("down")  # [experts, hidden, inner]
        self.scales = weights.tensor(f"{layer}router_scale") if experts.scaled else None
        self.shared = SharedExpert(weights, layer) if experts.shared else None
        self.summed = weights.summed

    def __call__(self, x: Tensor, add: Tensor | None = None, scored: Tensor | None = None) -> Tensor:
        """x [n, hidden] -> [n, hidden], plus ``add`` where given. ``scored`` [n, hidden]: what the router
        reads in place of x."""
        weights, chosen = route(self.router(x if scored is None else scored), self.experts)
        if self.scales is not None:
            weights = weights * self.scales[chosen]
        groups = group(chosen, self.experts.count)
        both = grouped_linear(x, self.gate_up, groups, bias=self.gate_up_bias, gather=True)
        active = self.gated(both)
        given = grouped_linear(active, self.down, groups, bias=self.down_bias)
        # Back to the order of tokens, so that sums are the same whoever else is in the batch.
        pairs = torch.empty_like(given).index_copy_(0, groups.order, given).view(*chosen.shape, -1)
        mixed = torch.bmm(weights[:, None].to(x.dtype), pairs)[:, 0]  # added in float32, whatever the type
        mixed = self.summed(mixed)
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        return mixed if add is None else add.add_(mixed)

    def gated(self, both: Tensor) -> Tensor:
        """[pairs, 2 · inner] -> [pairs, inner]."""
        if self.experts.gelu:
            return gelu_tanh_gate(both)
        alpha, limit = self.experts.alpha, self.experts.limit
        return clamped_gate(both, alpha, limit) if limit else silu_gate(both)


class SharedExpert:
    """What every token goes to besides (Dai et al. 2024), as much as its gate lets through."""

    def __init__(self, weights: Weights, layer: str):
        self.gate = weights.linear(f"{layer}{SHARED_GATE}")
        self.gate_up, self.down = (
            weights.linear(f"{layer}shared.gate_up"),
            weights.linear(f"{layer}shared.down"),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        return torch.sigmoid(self.gate(x)) * self.down(silu_gate(self.gate_up(x)))


def route(scores: Tensor, experts: Experts) -> tuple[Tensor, Tensor]:
    """The router's ``scores`` [n, experts] -> weights float32 [n, chosen], and whose, int64 [n, chosen]."""
    best, chosen = scores.float().topk(experts.chosen, -1)
    if experts.normalised:
        return torch.softmax(best, -1), chosen
    return torch.exp(best - torch.logsumexp(scores.float(), -1, keepdim=True)), chosen
