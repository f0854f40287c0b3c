"""Qwen3-Next, Qwen3.5 and 3.6 (Qwen Team 2025, 2026), text: most layers are a Gated DeltaNet (Yang, Kautz and
Hatamizadeh 2024), which keeps a state of each sequence where attention keeps keys and values; in the others
each head's output goes through a gate, and a quarter of a head turns.

Shapes: n tokens of any sequences one after another, h query heads, d head_dim; of a Gated DeltaNet v value
heads of e channels, c channels of queries, keys and values together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from muxd.kernels.delta_rule import gated_norm
from muxd.models.delta import DeltaNet
from muxd.models.experts import Mixture
from muxd.models.layers import Angles, Attend, Weights
from muxd.models.llama import Llama, SwiGlu
from muxd.models.qwen3 import Qwen3Layer
from muxd.models.spec import ModelSpec


class Qwen35(Llama):
    """Llama's embedding, final norm and head around layers of two kinds."""

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "GatedLayer | DeltaLayer":
        if delta := spec.delta_of(layer):
            return DeltaLayer(spec, delta, weights, layer)
        return GatedLayer(spec, weights, layer)


class GatedLayer(Qwen3Layer):
    """Qwen3's, with a gate for what each head gives."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        super().__init__(spec, weights, layer)
        self.gate = weights.linear(f"layers.{layer}.o_gate")

    def seen(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> what each head sees, through its gate [n, h · d]."""
        return torch.sigmoid(self.gate(x)) * super().seen(x, angles, attend)


class DeltaLayer:
    """x + delta(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: ModelSpec, delta: DeltaNet, weights: Weights, layer: int):
        name = f"layers.{layer}."
        self.layer, self.channels, self.values = layer, delta.channels, (delta.value_heads, delta.value_dim)
        self.eps, offset = spec.norm_eps, spec.norm_offset
        self.before_attention = weights.norm(name + "before_attention", spec.norm_eps, offset=offset)
        self.before_mlp = weights.norm(name + "before_mlp", spec.norm_eps, offset=offset)
        self.qkvz, self.ba = weights.linear(name + "qkvz"), weights.linear(name + "ba")
        self.conv = weights.tensor(name + "conv").view(delta.channels, delta.kernel)
        self.rate, self.bias = -torch.exp(weights.tensor(name + "a_log")), weights.tensor(name + "dt_bias")
        self.state_norm, self.out = weights.tensor(name + "state_norm"), weights.linear(name + "out")
        experts = spec.experts_of(layer)
        self.mlp = Mixture(experts, weights, name) if experts else SwiGlu(weights, name)

    def recalled(self, x: Tensor, attend: Attend) -> Tensor:
        """x [n, hidden] -> what each value head reads of its state, normed and gated [n, v · e]."""
        assert attend.recur is not None
        mixed, z = self.qkvz(x).split((self.channels, self.values[0] * self.values[1]), -1)
        b, a = self.ba(x).float().chunk(2, -1)
        decay = self.rate * F.softplus(a + self.bias)  # in log space: how much of a state is kept
        read = attend.recur(self.layer, mixed, decay, torch.sigmoid(b), self.conv)
        shape = (x.shape[0], *self.values)
        return gated_norm(read.view(shape), z.reshape(shape), self.state_norm, self.eps).flatten(1)

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = self.out(self.recalled(self.before_attention(x), attend), add=x)
        return self.mlp(self.before_mlp(x), add=x)
