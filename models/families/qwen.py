"""Qwen 2, 2.5 and 3: biases on queries, keys and values, or norms of each head; late layers may slide. With
experts: all slide or none does."""

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import (
    Windows,
    by_kind,
    decoder,
    gated_by_silu,
    head_dim_of,
    kinds_of,
    window_of,
)
from muxd.models.mixture import qwen3_experts
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import single


def qwen2(fields: Fields) -> ModelSpec:
    gated_by_silu(fields)
    fields.must_be("attention_bias", True, default=True)  # not in published files: the bias is always there
    return structs.replace(_qwen(fields, head_dim_of(fields)), qkv_bias=True)


def qwen3(fields: Fields) -> ModelSpec:
    gated_by_silu(fields)
    bias = fields.flag("attention_bias", False)
    spec = _qwen(fields, fields.integer("head_dim", 128))
    return structs.replace(spec, qkv_bias=bias, o_bias=bias, qk_norm=True)


def qwen3_moe(fields: Fields) -> ModelSpec:
    """Defaults of its own: a published file has them all."""
    gated_by_silu(fields)
    bias = fields.flag("attention_bias", False)
    window = window_of(fields) if fields.flag("use_sliding_window", False) else None
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=head_dim_of(fields),
        rope=single(fields),
        windows=(window,) * fields.integer("num_hidden_layers"),
        max_positions=32_768,
    )
    return structs.replace(spec, qkv_bias=bias, o_bias=bias, qk_norm=True, experts=qwen3_experts(fields))


def _qwen(fields: Fields, head_dim: int) -> ModelSpec:
    return decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim,
        rope=single(fields),
        windows=_late_windows(fields, fields.integer("num_hidden_layers")),
        max_positions=32_768,
    )


def _late_windows(fields: Fields, layers: int) -> Windows:
    """``use_sliding_window`` lets ``layer_types`` slide, or all from ``max_window_layers`` on."""
    window = window_of(fields) if fields.flag("use_sliding_window", False) else None
    kinds = kinds_of(fields, layers)
    if kinds is None:
        first = fields.integer("max_window_layers", 28, least=0)
        return tuple(window if i >= first else None for i in range(layers))
    return by_kind(fields, kinds, window, "use_sliding_window or sliding_window")
