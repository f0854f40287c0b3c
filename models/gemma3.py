"""Gemma 3, text (Gemma Team 2025): Gemma 2 with normalised queries and keys in place of the soft cap of the
scores; most layers have a sliding window, and a rotary base of their own.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from muxd.models.gemma2 import Gemma2, Gemma2Layer
from muxd.models.layers import Norm, Weights
from muxd.models.spec import ModelSpec


class Gemma3(Gemma2):
    """Gemma 2's embedding, final norm and head around layers of its own."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Gemma3Layer":
        return Gemma3Layer(spec, weights, layer)


class Gemma3Layer(Gemma2Layer):
    """Gemma 2's, with norms over d that all heads share."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        super().take_norms(norm)
        self.qk_norms = norm("q_norm"), norm("k_norm")
