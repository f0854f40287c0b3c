"""EXAONE 4 (LG AI Research 2025): OLMo 2's norms after each block, with queries and keys normalised a head at
a time; layers that see everything do not turn where others have a window.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from muxd.models.layers import Norm, Weights
from muxd.models.llama import Llama
from muxd.models.olmo2 import PostNormLayer
from muxd.models.spec import ModelSpec


class Exaone4(Llama):
    """Llama's embedding, final norm and head around layers of its own."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Exaone4Layer":
        return Exaone4Layer(spec, weights, layer)


class Exaone4Layer(PostNormLayer):
    """With norms over d that all heads share."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        super().take_norms(norm)
        self.qk_norms = norm("q_norm"), norm("k_norm")
