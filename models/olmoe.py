"""OLMoE (Muennighoff et al. 2024): Llama with experts, and OLMo 2's norms over all heads together.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

from torch import Tensor

from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.llama import Llama, LlamaLayer
from muxd.models.olmo2 import Olmo2Layer
from muxd.models.spec import ModelSpec


class Olmoe(Llama):
    """Llama's embedding, final norm and head around layers of its own."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "OlmoeLayer":
        return OlmoeLayer(spec, weights, layer)


class OlmoeLayer(Olmo2Layer):
    """Normed where Llama's is, before attention and experts."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        LlamaLayer.take_norms(self, norm)
        self.q_norm, self.k_norm = norm("q_norm"), norm("k_norm")

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        return LlamaLayer.__call__(self, x, angles, attend)
