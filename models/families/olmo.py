"""OLMo 2 and 3, and EXAONE 4: norms after each block alone. OLMoE: norms before, and experts."""

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import (
    FULL,
    SLIDING,
    Windows,
    alternating,
    by_kind,
    decoder,
    everywhere,
    gated_by_silu,
    grouped,
    head_dim_of,
    kinds_of,
    window_of,
)
from muxd.models.mixture import olmoe_experts
from muxd.models.model_spec import POST, ModelSpec
from muxd.models.rope import Rope, per_layer_type, single


def olmoe(fields: Fields) -> ModelSpec:
    """``clip_qkv`` is of training runs that were not published so."""
    gated_by_silu(fields)
    fields.must_be("clip_qkv", None, default=None)
    bias = fields.flag("attention_bias", False)
    spec = decoder(
        fields,
        kv_heads=grouped(fields),
        head_dim=head_dim_of(fields),
        rope=single(fields),
        windows=everywhere(fields),
        max_positions=4096,
        norm_eps=1e-5,
    )
    experts = olmoe_experts(fields)
    return structs.replace(spec, qkv_bias=bias, o_bias=bias, wide_qk_norm=True, experts=experts)


def olmo2(fields: Fields) -> ModelSpec:
    rope = single(fields)
    return _olmo(fields, everywhere(fields), rope, rope)


def olmo3(fields: Fields) -> ModelSpec:
    """Three of four layers slide; a scaled rope is of the others."""
    windows = alternating(fields, fields.integer("num_hidden_layers"), 4)
    return _olmo(fields, windows, *per_layer_type(fields, theta=500_000.0))


def _olmo(fields: Fields, windows: Windows, rope: Rope, local_rope: Rope) -> ModelSpec:
    gated_by_silu(fields)
    bias = fields.flag("attention_bias", False)
    spec = decoder(
        fields,
        kv_heads=grouped(fields),
        head_dim=head_dim_of(fields),
        rope=rope,
        local_rope=local_rope,
        windows=windows,
        norm_eps=1e-5,
    )
    return structs.replace(spec, qkv_bias=bias, o_bias=bias, norms=POST, wide_qk_norm=True)


def exaone4(fields: Fields) -> ModelSpec:
    """Norms of each head. Where layers slide, those alone turn; where ``sliding_window`` is null, all do."""
    gated_by_silu(fields)
    fields.must_be("attention_bias", False, default=False)
    layers, window = fields.integer("num_hidden_layers"), window_of(fields)
    kinds = kinds_of(fields, layers)
    if kinds is None:
        every = layers + 1 if window is None else fields.integer("sliding_window_pattern", 4)
        kinds = [FULL if window is None or (i + 1) % every == 0 else SLIDING for i in range(layers)]
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", 32),
        head_dim=head_dim_of(fields),
        rope=single(fields),
        windows=by_kind(fields, kinds, window),
        norm_eps=1e-5,
    )
    unturned = () if window is None else tuple(i for i, kind in enumerate(kinds) if kind == FULL)
    return structs.replace(spec, norms=POST, qk_norm=True, unturned=unturned)
