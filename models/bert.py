"""BERT (Devlin et al. 2019) as an encoder of texts: post-norm layers, learned positions, every token sees its
whole text. Nothing is kept of it: K and V live for one batch, in which a text is never cut.

Shapes: n tokens of any texts one after another, h heads, d head_dim.
"""

import torch.nn.functional as F
from torch import Tensor

from muxd.models.layers import Attend, Weights
from muxd.models.spec import ModelSpec


class Bert:
    """Embeddings, layers. There is no head: what it gives is pooled."""

    def __init__(self, spec: ModelSpec, weights: Weights):
        self.words, self.places = weights.tensor("embed"), weights.tensor("positions")
        self.kind = weights.tensor("kinds")[0]  # of tokens: all are of the first
        self.norm = LayerNorm(weights, "embed_norm", spec.norm_eps)
        self.layers = [BertLayer(spec, weights, layer) for layer in range(spec.layers)]

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions [n] -> [n, hidden]. A text begins where its position is 0."""
        x = F.embedding(tokens, self.words) + F.embedding(positions, self.places) + self.kind
        text = (positions == 0).cumsum(0)
        same = text[:, None] == text[None]  # [n, n]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, same)
        return x

    def output(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError("an encoder has no head: nothing is sampled from it")


class BertLayer:
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, spec: ModelSpec, weights: Weights, layer: int):
        name = f"layers.{layer}."
        self.heads, self.head_dim, self.scale = spec.heads, spec.head_dim, spec.attention_scale
        self.qkv = weights.linear(name + "qkv", bias=True)
        self.o = weights.linear(name + "o", bias=True)
        self.attention_norm = LayerNorm(weights, name + "attention_norm", spec.norm_eps)
        self.up = weights.linear(name + "up", bias=True)
        self.down = weights.linear(name + "down", bias=True)
        self.mlp_norm = LayerNorm(weights, name + "mlp_norm", spec.norm_eps)

    def __call__(self, x: Tensor, same: Tensor) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, self.head_dim).permute(1, 2, 0, 3)  # [h, n, d] each
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=same, scale=self.scale)
        x = self.attention_norm(self.o(seen.transpose(0, 1).flatten(1)) + x)
        return self.mlp_norm(self.down(F.gelu(self.up(x))) + x)


class LayerNorm:
    """Ba et al. 2016, over the last axis."""

    def __init__(self, weights: Weights, name: str, eps: float):
        self.weight, self.bias, self.eps = weights.tensor(name), weights.tensor(f"{name}.bias"), eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
