"""Gemma 3, text (Gemma Team 2025): norms before and after each block, normalised queries and keys,
most layers with a sliding window and a rotary base of their own, GeGLU.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from muxd.kernels.ops import gelu_tanh_gate
from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.spec import ModelSpec


class Gemma3:
    """The whole model: scaled embedding, layers, final norm, head with optional soft cap."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self.embed = weights.tensor("embed")
        # Rounded to the model's type before it multiplies, as the model was trained: √640 is 25.25 in bf16.
        self.scale = torch.tensor(spec.embed_scale, dtype=self.embed.dtype)
        self.windows = spec.windows
        self.rotary = weights.rotary(spec.rope, spec.head_dim)
        self.local_rotary = weights.rotary(spec.local_rope, spec.head_dim)
        self.layers = [Gemma3Layer(spec, weights, layer) for layer in range(spec.layers)]
        self.norm = weights.norm("norm", spec.norm_eps, offset=spec.norm_offset)
        self.head = weights.linear("embed" if spec.tied_embeddings else "head")
        self.softcap = spec.logit_softcap

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] -> [n, hidden]."""
        x = F.embedding(tokens, self.embed) * self.scale
        everywhere, nearby = self.rotary(positions), self.local_rotary(positions)
        for layer, window in zip(self.layers, self.windows, strict=True):
            x = layer(x, everywhere if window is None else nearby, attend)
        return x

    def output(self, hidden: Tensor) -> Tensor:
        """[m, hidden] -> the same, normed."""
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden] -> [m, vocab]."""
        logits = self.head(self.norm(hidden))
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


class Gemma3Layer:
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        def norm(part: str) -> Norm:
            return weights.norm(f"layers.{layer}.{part}", spec.norm_eps, offset=spec.norm_offset)

        self.layer, self.head_dim = layer, spec.head_dim
        self.input_norm, self.post_attention_norm = norm("input_norm"), norm("post_attention_norm")
        self.qkv, self.o = weights.linear(f"layers.{layer}.qkv"), weights.linear(f"layers.{layer}.o")
        self.qk_norms = norm("q_norm"), norm("k_norm")
        self.mlp_norm, self.post_mlp_norm = norm("pre_feedforward_norm"), norm("post_feedforward_norm")
        self.gate_up = weights.linear(f"layers.{layer}.gate_up")
        self.down = weights.linear(f"layers.{layer}.down")

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        qkv = self.qkv(self.input_norm(x)).view(x.shape[0], -1, self.head_dim)  # [n, h + 2g, d]
        seen = attend(self.layer, qkv, angles, self.qk_norms)  # [n, h · d]
        x = self.post_attention_norm(self.o(seen), add=x)
        return self.post_mlp_norm(self.down(gelu_tanh_gate(self.gate_up(self.mlp_norm(x)))), add=x)
