"""Qwen3 (Yang et al. 2025), with an MLP or with experts: Llama with each head's query and key normalised
before they are turned.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from muxd.models.layers import Norm, Weights
from muxd.models.llama import Llama, LlamaLayer
from muxd.models.spec import ModelSpec


class Qwen3(Llama):
    """Llama's embedding, final norm and head around layers of its own."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Qwen3Layer":
        return Qwen3Layer(spec, weights, layer)


class Qwen3Layer(LlamaLayer):
    """Llama's, with norms over d that all heads share; the plain ones: w multiplies, not Gemma's 1 + w."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        super().take_norms(norm)
        self.qk_norms = norm("q_norm"), norm("k_norm")
