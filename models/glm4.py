"""GLM-4-0414 (GLM Team 2024): Llama with norms after each block too; half of each head turns, interleaved,
which is an order of stored rows (``ModelSpec.head_order``).

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from torch import Tensor

from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.llama import Llama, LlamaLayer
from muxd.models.spec import ModelSpec


class Glm4(Llama):
    """Llama's embedding, final norm and head around layers of its own."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Glm4Layer":
        return Glm4Layer(spec, weights, layer)


class Glm4Layer(LlamaLayer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        super().take_norms(norm)
        self.after_attention, self.after_mlp = norm("after_attention"), norm("after_mlp")

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = self.after_attention(self.o(self.seen(self.before_attention(x), angles, attend)), add=x)
        return self.after_mlp(self.mlp(self.before_mlp(x)), add=x)
