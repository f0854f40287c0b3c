"""Gemma 2 (Gemma Team 2024): norms before and after each block, GeGLU, every second layer with a sliding
window; soft caps of the scores, which ``attend`` knows, and of the logits.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from muxd.kernels.ops import gelu_tanh_gate
from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.llama import Llama, LlamaLayer, SwiGlu
from muxd.models.spec import ModelSpec


class Gemma2(Llama):
    """Scaled embedding, layers, final norm, head with a soft cap, which may be missing."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        super().__init__(spec, weights)
        # Rounded to the model's type before it multiplies, as the model was trained: √640 is 25.25 in bf16.
        self.scale = torch.tensor(spec.embed_scale, dtype=self.embed.dtype)
        self.softcap = spec.logit_softcap

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Gemma2Layer":
        return Gemma2Layer(spec, weights, layer)

    def embedded(self, tokens: Tensor) -> Tensor:
        return super().embedded(tokens) * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden] -> [m, vocab]."""
        logits = super().logits(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class Gemma2Layer(LlamaLayer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        super().take_norms(norm)
        self.after_attention, self.after_mlp = norm("after_attention"), norm("after_mlp")

    def gated(self, weights: Weights, name: str) -> "GeGlu":
        return GeGlu(weights, name)

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = self.after_attention(self.o(self.seen(self.before_attention(x), angles, attend)), add=x)
        return self.after_mlp(self.mlp(self.before_mlp(x)), add=x)


class GeGlu(SwiGlu):
    """down(gelu(gate(x)) · up(x)), with GELU's tanh form."""

    gate = staticmethod(gelu_tanh_gate)
