"""Llama (Touvron et al. 2023; Grattafiori et al. 2024): pre-norm decoder, rotary grouped-query attention,
SwiGLU. Qwen2 and Qwen2.5 (Qwen Team 2024) are the same with a bias on queries, keys and values, Mistral 7B
(Jiang et al. 2023) is the same with a window in ``spec.windows``, which ``attend`` knows, Mixtral (Jiang et
al. 2024) with experts in place of the SwiGLU.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

import torch.nn.functional as F
from torch import Tensor

from muxd.kernels.ops import silu_gate
from muxd.models.experts import Mixture
from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.spec import ModelSpec


class Llama:
    """The whole model: embedding, layers, final norm, head."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self.embed = weights.tensor("embed")
        self.rotary = weights.rotary(spec.rope, spec.head_dim)
        self.layers = [self.layer(spec, weights, layer) for layer in range(spec.layers)]
        self.norm = weights.norm("norm", spec.norm_eps)
        self.head = weights.linear("embed" if spec.tied_embeddings else "head")

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "LlamaLayer":
        return LlamaLayer(spec, weights, layer)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] -> [n, hidden]."""
        x = F.embedding(tokens, self.embed)
        angles = self.rotary(positions)
        for layer in self.layers:
            x = layer(x, angles, attend)
        return x

    def output(self, hidden: Tensor) -> Tensor:
        """[m, hidden] -> the same, normed."""
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden] -> [m, vocab]."""
        return self.head(self.norm(hidden))


class LlamaLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    qk_norms: tuple[Norm, Norm] | None = None  # of each query and key, where a relative has them

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        name = f"layers.{layer}."
        self.layer, self.head_dim = layer, spec.head_dim
        self.input_norm = weights.norm(name + "input_norm", spec.norm_eps)
        self.qkv = weights.linear(name + "qkv", bias=spec.qkv_bias)
        self.o = weights.linear(name + "o", bias=spec.o_bias)
        self.mlp_norm = weights.norm(name + "post_attention_norm", spec.norm_eps)
        experts = spec.experts_of(layer)
        self.mlp = Mixture(experts, weights, name) if experts else SwiGlu(weights, name)

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        qkv = self.qkv(self.input_norm(x)).view(x.shape[0], -1, self.head_dim)  # [n, h + 2g, d]
        seen = attend(self.layer, qkv, angles, self.qk_norms)  # [n, h · d]
        x = self.o(seen, add=x)
        return self.mlp(self.mlp_norm(x), add=x)


class SwiGlu:
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, weights: Weights, layer: str):
        self.gate_up, self.down = weights.linear(layer + "gate_up"), weights.linear(layer + "down")

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, hidden] -> [n, hidden], plus ``add`` where given."""
        return self.down(silu_gate(self.gate_up(x)), add=add)
