"""What muxd knows about a model without touching its weights, as one frozen struct; ``spec`` reads it.

No torch: the deciding rooms size rows and check contexts with the same facts the worker computes with.
"""

from msgspec import Struct

from muxd.errors import NoRow
from muxd.messages import Dtype
from muxd.models.mixture import Experts
from muxd.models.rope import Rope


class ModelSpec(Struct, frozen=True):
    """The shape of a transformer, a decoder but for ``encoder``, and the constants its formulas need."""

    architecture: str  # the name in config.json, key of muxd.models.registry
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    tied_embeddings: bool
    norm_eps: float
    attention_scale: float  # multiplies q·k before the softmax
    rope: Rope  # of layers that see everything
    local_rope: Rope  # of layers with a window
    windows: tuple[int | None, ...]  # per layer: a token sees itself and window - 1 before it; None: all
    dtype: Dtype | None = None  # of the weights by config.json, where that is one that can be served
    logit_softcap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False  # of each head, before it is turned
    gelu: bool = False  # gates by GELU's tanh form and not by SiLU
    norm_offset: bool = False  # norms' weights lie around zero, and 1 + w multiplies
    norms_after: bool = False  # what attention and MLP give is normed, too, before it is added
    beyond_float16: bool = False  # activations beyond 65,504: in float16 every logit becomes NaN
    experts: Experts | None = None  # in place of some layers' MLP
    embed_scale: float = 1.0  # multiplies embeddings, rounded to the model's type
    kinds: int = 0  # of an encoder's tokens
    encoder: bool = False  # every token sees its whole text; it has no head
    headless: bool = False  # saved without a head: it can only be pooled
    wrapped: bool = False  # the text part of a model that also sees: its tensors' names carry a prefix

    @property
    def blocks_per_row(self) -> int:
        """Head blocks in one row: one per layer and KV head."""
        return self.layers * self.kv_heads

    def experts_of(self, layer: int) -> Experts | None:
        """Of a layer that has them in place of its MLP."""
        return self.experts if self.experts is not None and self.experts.layers[layer] else None

    def tokens_per_row(self, block_bytes: int, itemsize: int) -> int:
        """See ``tokens_per_row``."""
        return tokens_per_row(block_bytes, self.head_dim, itemsize)


def tokens_per_row(block_bytes: int, head_dim: int, itemsize: int) -> int:
    """T of docs/design.md §1: tokens whose K and V of one KV head fit one head block.

    Raises NoRow, a ConfigError, when not even one fits.
    """
    least = 2 * head_dim * itemsize
    if block_bytes < least:
        raise NoRow(
            f"pool.block_bytes: {block_bytes} holds no token of a model with head_dim {head_dim}; "
            f"at least {least} are needed"
        )
    return block_bytes // least
