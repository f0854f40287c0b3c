"""OLMo 2 (Walsh et al. 2024) and OLMo 3 (Olmo et al. 2025): what a block gives is normalised, and not what it
takes; queries and keys are normalised over all heads together. OLMo 3 has windows and a second rope besides.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from torch import Tensor

from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.llama import Llama, LlamaLayer
from muxd.models.spec import ModelSpec


class Olmo2(Llama):
    """Llama's embedding, final norm and head around layers of its own."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Olmo2Layer":
        return Olmo2Layer(spec, weights, layer)


class PostNormLayer(LlamaLayer):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        self.after_attention, self.after_mlp = norm("after_attention"), norm("after_mlp")

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = self.after_attention(self.o(self.seen(x, angles, attend)), add=x)
        return self.after_mlp(self.mlp(x), add=x)


class Olmo2Layer(PostNormLayer):
    """With norms over h · d of the queries and g · d of the keys."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        super().__init__(spec, weights, layer)
        self.q, self.k = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        super().take_norms(norm)
        self.q_norm, self.k_norm = norm("q_norm"), norm("k_norm")

    def seen(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> what each head sees [n, h · d]."""
        qkv = self.qkv(x)
        q, k = qkv[:, : self.q], qkv[:, self.q : self.q + self.k]
        q.copy_(self.q_norm(q))
        k.copy_(self.k_norm(k))
        return attend(self.layer, qkv.view(x.shape[0], -1, self.head_dim), angles)
