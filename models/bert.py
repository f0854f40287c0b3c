"""BERT (Devlin et al. 2019) as an encoder of texts: post-norm layers, learned positions, every token sees its
whole text. Nothing is kept of it: K and V live for one batch, in which a text is never cut.

Shapes: n tokens of any texts one after another, h heads, d head_dim.
"""

from itertools import pairwise

import torch
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
        x = self.norm(F.embedding(tokens, self.words) + F.embedding(positions, self.places) + self.kind)
        texts = Texts(positions)
        for layer in self.layers:
            x = layer(x, texts)
        return x

    def output(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError("an encoder has no head: nothing is sampled from it")


class Texts:
    """Where each text of a batch lies. On a CPU they are attended to one by one, elsewhere together under a
    mask, so that nobody waits for the device to say where they end."""

    def __init__(self, positions: Tensor):
        begins = positions == 0
        self.lengths: list[int] | None = None
        if positions.device.type == "cpu":
            starts = [*begins.nonzero().flatten().tolist(), len(positions)]
            self.lengths = [stop - start for start, stop in pairwise(starts)]
        else:
            text = begins.cumsum(0)
            self.same = text[:, None] == text[None]  # [n, n]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """[h, n, d] each -> [h, n, d]; each token sees those of its text."""
        if self.lengths is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.same, scale=scale)
        parts = zip(q.split(self.lengths, 1), k.split(self.lengths, 1), v.split(self.lengths, 1), strict=True)
        seen = [F.scaled_dot_product_attention(*part, None, 0.0, False, scale=scale) for part in parts]
        return torch.cat(seen, 1)


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

    def __call__(self, x: Tensor, texts: Texts) -> Tensor:
        """x [n, hidden] -> [n, hidden]."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, self.head_dim).permute(1, 2, 0, 3)  # [h, n, d] each
        seen = texts.attend(q, k, v, self.scale)
        x = self.attention_norm(self.o(seen.transpose(0, 1).flatten(1)) + x)
        return self.mlp_norm(self.down(F.gelu(self.up(x))) + x)


class LayerNorm:
    """Ba et al. 2016, over the last axis."""

    def __init__(self, weights: Weights, name: str, eps: float):
        self.weight, self.bias, self.eps = weights.tensor(name), weights.tensor(f"{name}.bias"), eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
