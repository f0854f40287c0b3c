"""Llama (Touvron et al. 2023; Grattafiori et al. 2024): pre-norm decoder, rotary grouped-query attention,
SwiGLU.

The same page computes what differs in constants and in how matrices are stored: Qwen2 and Qwen2.5 (Qwen Team
2024) with a bias on queries, keys and values; Mistral 7B (Jiang et al. 2023) with a window, which ``attend``
knows; SmolLM3 (Bakouch et al. 2025) with layers whose angles are all 0; Phi-3 and Phi-4 (Abdin et al. 2024),
whose matrices are stored fused and whose heads turn in part; GLM-4 (GLM Team 2024), interleaved besides;
Mixtral (Jiang et al. 2024) with experts; gpt-oss (OpenAI 2025) with experts and with
sinks, which ``attend`` knows.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from muxd.kernels.ops import silu_gate
from muxd.models.experts import Mixture
from muxd.models.layers import Angles, Attend, Layer, Norm, Turns, Weights
from muxd.models.spec import ModelSpec


class Llama:
    """The whole model: embedding, layers, final norm, head."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self.embed = weights.tensor("embed")
        self.turns = Turns(spec, weights)
        self.layers = [self.layer(spec, weights, layer) for layer in range(spec.layers)]
        offset, centred = spec.norm_offset, spec.norm_centred
        self.norm = weights.norm("norm", spec.norm_eps, offset=offset, centred=centred)
        self.head = weights.linear("embed" if spec.tied_embeddings else "head")

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> Layer:
        return LlamaLayer(spec, weights, layer)

    def embedded(self, tokens: Tensor) -> Tensor:
        """[n] -> [n, hidden]."""
        return F.embedding(tokens, self.embed)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] -> [n, hidden]."""
        x = self.embedded(tokens)
        for layer, angles in zip(self.layers, self.turns(positions), strict=True):
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

    qk_norms: tuple[Norm, ...] | None = None  # of each query and key, where a relative has them

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        name = f"layers.{layer}."

        def norm(part: str) -> Norm:
            offset, centred = spec.norm_offset, spec.norm_centred
            return weights.norm(name + part, spec.norm_eps, offset=offset, centred=centred)

        self.layer, self.head_dim = layer, spec.rows_of(layer).head_dim
        self.qkv = weights.linear(name + "qkv", bias=spec.qkv_bias)
        self.o = weights.linear(name + "o", bias=spec.o_bias)
        self.sinks = weights.tensor(name + "sinks") if spec.sinks else None
        experts = spec.experts_of(layer)
        in_place = experts if experts and not experts.beside else None
        self.mlp = Mixture(in_place, weights, name) if in_place else self.gated(weights, name)
        self.take_norms(norm)

    def gated(self, weights: Weights, name: str) -> "SwiGlu":
        return SwiGlu(weights, name)

    def take_norms(self, norm: Callable[[str], Norm]) -> None:
        """Those of the layer, by their places in ``muxd.models.model_spec.Norms``."""
        self.before_attention, self.before_mlp = norm("before_attention"), norm("before_mlp")

    def seen(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> what each head sees [n, h · d]."""
        qkv = self.qkv(x).view(x.shape[0], -1, self.head_dim)  # [n, h + 2g, d]
        return attend(self.layer, qkv, angles, self.qk_norms, self.sinks)

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = self.o(self.seen(self.before_attention(x), angles, attend), add=x)
        return self.mlp(self.before_mlp(x), add=x)


class SwiGlu:
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    gate = staticmethod(silu_gate)

    def __init__(self, weights: Weights, layer: str):
        self.gate_up, self.down = weights.linear(layer + "gate_up"), weights.linear(layer + "down")

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """x [n, hidden] -> [n, hidden], plus ``add`` where given."""
        return self.down(self.gate(self.gate_up(x)), add=add)
