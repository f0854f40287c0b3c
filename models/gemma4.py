"""Gemma 4, text (Gemma Team 2026; as transformers computes it): Gemma 3 with heads of two sizes, whose values
are normalised, too; what a layer leaves is multiplied by a number of its own. The small ones (E2B, E4B) have
layers that read an earlier one's keys and values, which ``attend`` knows, and give each layer an input of a
token's own (per-layer embeddings, Gemma 3n); the one with experts (26B-A4B) has them beside the MLP.

Shapes: n tokens of any sequences one after another, h query heads, g KV heads, d head_dim, p numbers of a
layer's input; g and d are a layer's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from muxd.models.experts import Mixture
from muxd.models.gemma2 import Gemma2, Gemma2Layer
from muxd.models.layers import Angles, Attend, Norm, Weights
from muxd.models.mixture import Experts
from muxd.models.spec import ModelSpec
from muxd.models.tensors import LOOKED_UP


class Gemma4(Gemma2):
    """Gemma 2's embedding, final norm and head around layers of its own."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        super().__init__(spec, weights)
        self.inputs = LayerInputs(spec, weights) if spec.layer_inputs else None
        self.ends = [LayerEnd(spec, weights, layer) for layer in range(spec.layers)]

    def layer(self, spec: ModelSpec, weights: Weights, layer: int) -> "Gemma4Layer":
        return Gemma4Layer(spec, weights, layer)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] -> [n, hidden]."""
        x = self.embedded(tokens)
        inputs = self.inputs(tokens, x).unbind(1) if self.inputs else (None,) * len(self.layers)
        turns = self.turns(positions)
        for layer, end, angles, own in zip(self.layers, self.ends, turns, inputs, strict=True):
            x = end(layer(x, angles, attend), own)
        return x


class Gemma4Layer(Gemma2Layer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))), where norm(mlp) + norm(experts) may stand
    for the MLP."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        super().__init__(spec, weights, layer)
        name, rows = f"layers.{layer}.", spec.rows_of(layer)
        if rows.own:  # of queries, keys and values, over d; values' has no weight
            values = weights.plain_norm(rows.head_dim, spec.norm_eps)
            turned = (weights.norm(name + part, spec.norm_eps) for part in ("q_norm", "k_norm"))
            self.qk_norms = (*turned, values)
        else:
            self.qk_norms = (weights.norm(name + "q_norm", spec.norm_eps),)
        experts = spec.experts_of(layer)
        self.both = MlpAndExperts(experts, spec, weights, name) if experts else None

    def __call__(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        x = self.after_attention(self.o(self.seen(self.before_attention(x), angles, attend)), add=x)
        given = self.mlp(self.before_mlp(x))
        return self.after_mlp(given if self.both is None else self.both(x, given), add=x)


class MlpAndExperts:
    """norm(what the MLP gives) + norm(experts(norm(x))); the router reads x by a norm of its own."""

    def __init__(self, experts: Experts, spec: ModelSpec, weights: Weights, name: str):
        def norm(part: str) -> Norm:
            return weights.norm(name + part, spec.norm_eps)

        self.experts, self.after_dense = Mixture(experts, weights, name), norm("after_dense")
        self.before, self.after = norm("before_experts"), norm("after_experts")
        self.read, self.scale = norm("router_norm"), spec.hidden_size**-0.5

    def __call__(self, x: Tensor, given: Tensor) -> Tensor:
        """x, given [n, hidden] -> [n, hidden]."""
        mixed = self.experts(self.before(x), scored=self.read(x) * self.scale)
        return self.after(mixed, add=self.after_dense(given))


class LayerInputs:
    """(norm(made of the embedding) + looked up by token) / √2, for each layer."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self.table, self.made = weights.tensor(LOOKED_UP), weights.linear("input_made")
        self.norm, self.size = weights.norm("input_norm", spec.norm_eps), spec.layer_inputs
        # Rounded to the model's type, as the embedding's.
        self.scale = torch.tensor(self.size**0.5, dtype=self.table.dtype)
        self.made_scale = spec.hidden_size**-0.5

    def __call__(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens [n], their embeddings x [n, hidden] -> [n, layers, p]."""
        told = F.embedding(tokens, self.table) * self.scale
        made = (self.made(x) * self.made_scale).view(-1, self.size)
        both: Tensor = self.norm(made, add=told.view(-1, self.size)) * 2**-0.5
        return both.view(len(tokens), -1, self.size)


class LayerEnd:
    """x + norm(out(gelu(gate(x)) · input)) where a layer has an input of its own, then times its number."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        name = f"layers.{layer}."
        self.scalar = weights.tensor(name + "scalar")
        if spec.layer_inputs:
            self.gate, self.out = weights.linear(name + "input_gate"), weights.linear(name + "input_out")
            self.norm = weights.norm(name + "after_input", spec.norm_eps)

    def __call__(self, x: Tensor, own: Tensor | None) -> Tensor:
        """x [n, hidden], own [n, p] -> [n, hidden]."""
        if own is not None:
            x = self.norm(self.out(F.gelu(self.gate(x), approximate="tanh") * own), add=x)
        return x * self.scalar
