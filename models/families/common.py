"""What the families' readers share: a decoder as most have it, head sizes, windows by layer."""

from muxd.errors import ModelFolderError
from muxd.models.config_file import Fields
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import Rope

SLIDING, FULL = "sliding_attention", "full_attention"  # of ``layer_types``
Windows = tuple[int | None, ...]


def decoder(
    fields: Fields,
    *,
    kv_heads: int,
    head_dim: int,
    rope: Rope,
    windows: Windows,
    local_rope: Rope | None = None,
    max_positions: int = 2048,
    norm_eps: float = 1e-6,
    tied: bool = False,
    intermediate: int | None = None,
) -> ModelSpec:
    """Llama's shape, gated by SiLU without biases; a relative replaces what it has otherwise. The last four
    are defaults of fields that a file may leave out; without ``intermediate`` it may not."""
    key = "intermediate_size"
    inner = fields.integer(key) if intermediate is None else fields.integer(key, intermediate)
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=fields.integer("num_attention_heads"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        max_positions=max(fields.integer("max_position_embeddings", max_positions), rope.positions),
        bos_id=fields.optional_id("bos_token_id"),
        tied_embeddings=fields.flag("tie_word_embeddings", tied),
        norm_eps=fields.number("rms_norm_eps", norm_eps),
        attention_scale=head_dim**-0.5,
        rope=rope,
        local_rope=rope if local_rope is None else local_rope,
        windows=windows,
    )


def gated_by_silu(fields: Fields) -> None:
    """Refuses another gate, and biases in it."""
    fields.must_be("hidden_act", "silu", default="silu")
    fields.must_be("mlp_bias", False, default=False)


def grouped(fields: Fields) -> int:
    """KV heads where a file may leave them out: as many as queries have."""
    return fields.integer("num_key_value_heads", fields.integer("num_attention_heads"))


def head_dim_of(fields: Fields) -> int:
    """``head_dim``, by default the heads' part of the hidden size."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.raw.get("head_dim") is None and hidden % heads:
        raise ModelFolderError(
            f"{fields.path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads} "
            "and head_dim is not given"
        )
    return fields.integer("head_dim", hidden // heads)


def everywhere(fields: Fields) -> Windows:
    """No layer has a window."""
    return (None,) * fields.integer("num_hidden_layers")


def window_of(fields: Fields, absent: int | None = 4096) -> int | None:
    """``sliding_window``: null is none; absent, it is as in transformers."""
    return fields.optional_integer("sliding_window") if "sliding_window" in fields.raw else absent


def alternating(fields: Fields, layers: int, pattern: int) -> Windows:
    """``layer_types`` (5.x), else every ``sliding_window_pattern``-th layer is full."""
    kinds = kinds_of(fields, layers)
    if kinds is None:
        every = fields.integer("sliding_window_pattern", pattern)
        kinds = [SLIDING if (i + 1) % every else FULL for i in range(layers)]
    return by_kind(fields, kinds, window_of(fields))


def by_kind(fields: Fields, kinds: list[str], window: int | None, why: str = "sliding_window") -> Windows:
    """Refuses layers that slide by a window that is not there; ``why``: what says that there is none."""
    if SLIDING in kinds and window is None:
        raise fields.refuse("layer_types", f"names {SLIDING}, but {why} says no")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def kinds_of(fields: Fields, layers: int) -> list[str] | None:
    """``layer_types``, checked; None when absent."""
    kinds: list[str] | None = fields.raw.get("layer_types")
    known = (FULL, SLIDING)
    if kinds is None or (
        isinstance(kinds, list) and len(kinds) == layers and all(kind in known for kind in kinds)
    ):
        return kinds
    raise fields.refuse("layer_types", f"must list {layers} times one of {', '.join(known)}")
