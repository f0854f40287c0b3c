"""Command R7B and A (Cohere 2024, 2025): attention and MLP read one normed input, and both are added. Norms
are LayerNorm without a bias (Ba et al. 2016), logits are scaled; layers with a window turn, interleaved, and
those that see everything do not.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from torch import Tensor

from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.llama import Llama, LlamaLayer
from muxd.models.spec import ModelSpec


class Cohere2(Llama):
    """Llama's embedding, final norm and head, whose logits are scaled, around layers of its own."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        super().__init__(spec, weights)
        self.logit_scale = spec.logit_scale

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Cohere2Layer":
        return Cohere2Layer(spec, weights, layer)

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden] -> [m, vocab]."""
        return super().logits(hidden) * self.logit_scale


class Cohere2Layer(LlamaLayer):
    """x + attention(norm(x)) + mlp(norm(x))."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        self.before_attention = norm("before_attention")

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        normed = self.before_attention(x)
        x = self.o(self.seen(normed, angles, attend), add=x)
        return self.mlp(normed, add=x)
