"""Granite 3, dense (Granite Team 2024): Llama in which what is embedded, what a block adds, and the logits
are multiplied by constants; that of the scores is ``spec.attention_scale``, which ``attend`` knows.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from torch import Tensor

from muxd.models.layers import Angles, Attend, Weights
from muxd.models.llama import Llama, LlamaLayer
from muxd.models.spec import ModelSpec


class Granite(Llama):
    """Llama's embedding, final norm and head, multiplied, around layers of its own."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        super().__init__(spec, weights)
        self.embed_scale, self.logit_scale = spec.embed_scale, spec.logit_scale

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "GraniteLayer":
        return GraniteLayer(spec, weights, layer)

    def embedded(self, tokens: Tensor) -> Tensor:
        return super().embedded(tokens) * self.embed_scale

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) * self.logit_scale


class GraniteLayer(LlamaLayer):
    """x + s · attention(norm(x)), then x + s · mlp(norm(x))."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        super().__init__(spec, weights, layer)
        self.scale = spec.residual_scale

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = x + self.o(self.seen(self.before_attention(x), angles, attend)) * self.scale
        return x + self.mlp(self.before_mlp(x)) * self.scale
