"""What muxd knows about a model: the shape of a transformer and the constants of its formulas.

Owns ``ModelSpec``, which ``muxd.models.spec`` reads from a folder. No torch.
"""

from msgspec import Struct, structs

from muxd.errors import NoRow
from muxd.kernels.row_layout import KvHeads, LayerRows, RowLayout, laid_out, uniform
from muxd.messages import Dtype
from muxd.models.delta import DeltaNet
from muxd.models.mixture import Experts
from muxd.models.rope import STILL, Rope
from muxd.models.schemes import Scheme


class Norms(Struct, frozen=True):
    """Where a layer's norms are: for each place the stored name, or None where there is no norm."""

    before_attention: str | None = None
    after_attention: str | None = None  # of what attention gives, before it is added
    before_mlp: str | None = None
    after_mlp: str | None = None

    def placed(self) -> list[tuple[str, str]]:
        """(place, stored name) of those that are there."""
        named = [(place, getattr(self, place)) for place in self.__struct_fields__]
        return [(place, stored) for place, stored in named if stored is not None]


# A word is used for different places by different families.
PRE = Norms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")
POST = Norms(after_attention="post_attention_layernorm", after_mlp="post_feedforward_layernorm")
AROUND = Norms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
AROUND_GLM = Norms(
    before_attention="input_layernorm",
    after_attention="post_self_attn_layernorm",
    before_mlp="post_attention_layernorm",
    after_mlp="post_mlp_layernorm",
)
SHARED = Norms(before_attention="input_layernorm")  # attention and MLP read the same

_ALL = 1 << 62  # tokens


class ModelSpec(Struct, frozen=True):
    """The shape of a transformer, a decoder but for ``encoder``, and the constants its formulas need."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    bos_id: int | None
    tied_embeddings: bool
    norm_eps: float
    attention_scale: float  # multiplies q·k before the softmax
    rope: Rope  # of layers that see everything
    local_rope: Rope  # of layers with a window
    windows: tuple[int | None, ...]  # per layer: a token sees itself and window - 1 before it; None: all
    architecture: str = ""  # the name in config.json, key of muxd.models.registry
    eos_ids: tuple[int, ...] = ()
    dtype: Dtype | None = None  # of the weights by config.json, where that is one that can be served
    attention_softcap: float | None = None  # of scores, before the mask
    logit_softcap: float | None = None
    logit_scale: float = 1.0  # multiplies logits, before their soft cap
    residual_scale: float = 1.0  # multiplies what attention and MLP add
    embed_scale: float = 1.0  # multiplies embeddings
    embed_scale_rounded: bool = False  # to the model's type, before it does
    unturned: tuple[int, ...] = ()  # layers that turn neither queries nor keys
    interleaved: bool = False  # stored heads pair (2i, 2i + 1), and not (i, i + half of what turns)
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False  # before they are turned, of each head
    sinks: bool = False  # of attention, one a head
    wide_qk_norm: bool = False  # or over all heads together
    all_heads: tuple[int, int] = (0, 0)  # of a rank: queries and keys of all ranks, as often as one is there
    gelu: bool = False  # gates by GELU's tanh form and not by SiLU
    norms: Norms = PRE
    norm_offset: bool = False  # norms' weights lie around zero, and 1 + w multiplies
    norm_centred: bool = False  # norms subtract the mean: LayerNorm, without a bias
    parallel: bool = False  # attention and MLP read the same normed input, and both are added
    fused_qkv: bool = False  # stored in one piece, as gate and up may be
    fused_gate_up: bool = False
    experts: Experts | None = None  # in place of some layers' MLP
    delta: DeltaNet | None = None  # in place of some layers' attention
    output_gate: bool = False  # of attention: a sigmoid multiplies what each head gives
    beyond_float16: bool = False  # activations beyond 65,504: in float16 every logit becomes NaN
    kinds: int = 0  # of an encoder's tokens
    encoder: bool = False  # every token sees its whole text; it has no head
    headless: bool = False  # saved without a head: it can only be pooled
    scheme: Scheme | None = None  # how its matrices are quantised, where several tensors tell
    wrapped: bool = False  # the text part of a model that also sees: its tensors' names carry a prefix
    layer_heads: tuple[KvHeads, ...] = ()  # what each layer keeps; empty: ``kv_heads`` of ``head_dim``
    keys_as_values: tuple[int, ...] = ()  # layers whose keys, as they are projected, are their values, too
    value_norm: bool = False  # values are normalised, without a weight
    wide_mlps: tuple[int, ...] = ()  # layers whose MLP is twice as wide
    layer_inputs: int = 0  # numbers that each layer gets of a token beside its state
    layer_vocab: int = 0  # tokens that have such numbers
    layer_scaled: bool = False  # what a layer leaves is multiplied by a number of its own

    def rope_of(self, layer: int) -> Rope:
        """What turns the queries and keys of ``layer``."""
        if layer in self.unturned:
            return STILL
        return self.rope if self.windows[layer] is None else self.local_rope

    def experts_of(self, layer: int) -> Experts | None:
        """Of a layer that has them, in place of its MLP or beside it."""
        return self.experts if self.experts is not None and self.experts.layers[layer] else None

    def dense(self, layer: int) -> bool:
        """Whether a layer has an MLP."""
        experts = self.experts_of(layer)
        return experts is None or experts.beside

    def inner_of(self, layer: int) -> int:
        """How wide the MLP of a layer is."""
        return self.intermediate_size * (2 if layer in self.wide_mlps else 1)

    def keeps_state(self, layer: int) -> bool:
        """Whether it does in place of attending: it has no K and V."""
        return self.delta_of(layer) is not None

    def delta_of(self, layer: int) -> DeltaNet | None:
        """What keeps it."""
        return self.delta if self.delta is not None and self.delta.layers[layer] else None

    def within(self, context: int) -> "ModelSpec":
        """The same for sequences of at most ``context`` tokens: LongRoPE has factors for short ones."""
        ropes = {"rope": self.rope.within(context), "local_rope": self.local_rope.within(context)}
        return structs.replace(self, **ropes)

    @property
    def head_order(self) -> tuple[int, ...]:
        """Which of a stored head's rows lies where, so that (i, i + head_dim / 2) turn together, as the
        kernels have it; empty where they do. Of queries and keys alike: no score changes.
        """
        turned = self.head_dim if self.rope.turned is None else self.rope.turned
        half = turned // 2
        first = range(0, turned, 2) if self.interleaved else range(half)
        second = range(1, turned, 2) if self.interleaved else range(half, turned)
        still = range(turned, self.head_dim)
        middle = len(still) // 2
        order = (*first, *still[:middle], *second, *still[middle:])
        return () if order == tuple(range(self.head_dim)) else order

    @property
    def row_layout(self) -> RowLayout:
        """Where in a row each layer's keys and values lie."""
        if self.layer_heads:
            return laid_out(self.layer_heads)
        return uniform(self.layers, self.kv_heads, self.head_dim)

    def rows_of(self, layer: int) -> LayerRows:
        """Where in a row the keys and values of ``layer`` lie, how many heads, and how wide."""
        return self.row_layout.layers[layer]

    @property
    def blocks_per_row(self) -> int:
        """Head blocks in one row: one a KV head and layer, two where heads are twice as wide as others."""
        return self.row_layout.blocks

    @property
    def layer_blocks(self) -> tuple[int, ...]:
        """Head blocks of a row that each layer has of its own."""
        return tuple(at.kv_heads * at.width * at.own for at in self.row_layout.layers)

    @property
    def kept_windows(self) -> tuple[int | None, ...]:
        """By layer, for how many tokens its keys and values are needed, also by layers that read them; None:
        for all."""
        layers = self.row_layout.layers
        longest: dict[int, int] = {}  # by first block; a window without end is longer than any
        for at, window in zip(layers, self.windows, strict=True):
            if at.kv_heads:
                longest[at.first] = max(longest.get(at.first, 0), window or _ALL)
        kept = (longest[at.first] if at.kv_heads else _ALL for at in layers)
        return tuple(None if tokens == _ALL else tokens for tokens in kept)

    def tokens_per_row(self, block_bytes: int, itemsize: int) -> int:
        """See ``tokens_per_row``."""
        return tokens_per_row(block_bytes, self.row_layout.head_dim, itemsize)


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
