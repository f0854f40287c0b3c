"""Llama, Mistral, Mixtral, and what differs from them in constants: Granite's multipliers, SmolLM3's layers
without rope, Phi's fused matrices and rope on part of a head."""

from typing import Any

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import (
    FULL,
    SLIDING,
    Windows,
    by_kind,
    decoder,
    everywhere,
    gated_by_silu,
    grouped,
    head_dim_of,
    kinds_of,
    window_of,
)
from muxd.models.mixture import mixtral_experts
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import partial, single


def llama(fields: Fields) -> ModelSpec:
    """Biases are all there or none is."""
    gated_by_silu(fields)
    bias = fields.flag("attention_bias", False)
    spec = decoder(
        fields,
        kv_heads=grouped(fields),
        head_dim=head_dim_of(fields),
        rope=single(fields),
        windows=everywhere(fields),
    )
    return structs.replace(spec, qkv_bias=bias, o_bias=bias)


def mistral(fields: Fields) -> ModelSpec:
    """One window for all layers, or none."""
    gated_by_silu(fields)
    fields.must_be("attention_bias", False, default=False)
    layers, window = fields.integer("num_hidden_layers"), window_of(fields)
    kind = FULL if window is None else SLIDING
    if set(kinds_of(fields, layers) or [kind]) != {kind}:
        raise fields.refuse("layer_types", f"must be {kind} in all layers, as sliding_window is {window}")
    return decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim_of(fields),
        rope=single(fields),
        windows=(window,) * layers,
        max_positions=131_072,
    )


def mixtral(fields: Fields) -> ModelSpec:
    """Experts in every layer, and one window for all or none."""
    gated_by_silu(fields)
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", 8),
        head_dim=head_dim_of(fields),
        rope=single(fields, theta=1_000_000.0),
        windows=(window_of(fields, absent=None),) * fields.integer("num_hidden_layers"),
        max_positions=131_072,
        norm_eps=1e-5,
    )
    return structs.replace(spec, experts=mixtral_experts(fields))


def granite(fields: Fields) -> ModelSpec:
    """Llama with a multiplier for embeddings, scores, what is added, and logits."""
    return structs.replace(
        llama(fields),
        attention_scale=fields.number("attention_multiplier", 1.0),
        embed_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1.0 / fields.number("logits_scaling", 1.0),
    )


def smollm3(fields: Fields) -> ModelSpec:
    """``no_rope_layers`` has a 1 for a layer that turns; left out, every fourth does not. By default those
    that do not turn are the ones that slide."""
    gated_by_silu(fields)
    bias, layers = fields.flag("attention_bias", False), fields.integer("num_hidden_layers")
    turning = _turning(fields, layers)
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=head_dim_of(fields),
        rope=single(fields, theta=2_000_000.0),
        windows=_smollm3_windows(fields, turning),
        max_positions=32_768,
        tied=True,
    )
    unturned = tuple(i for i, turns in enumerate(turning) if not turns)
    return structs.replace(spec, unturned=unturned, qkv_bias=bias, o_bias=bias)


def _turning(fields: Fields, layers: int) -> list[int]:
    listed = fields.raw.get("no_rope_layers")
    if listed is None:
        every = fields.integer("no_rope_layer_interval", 4)
        return [int((i + 1) % every != 0) for i in range(layers)]
    known = isinstance(listed, list) and all(type(one) is int and one in (0, 1) for one in listed)
    if not known or len(listed) < layers:
        raise fields.refuse("no_rope_layers", f"must list {layers} times 1, or 0 for a layer without rope")
    return [int(one) for one in listed[:layers]]


def _smollm3_windows(fields: Fields, turning: list[int]) -> Windows:
    slides = fields.flag("use_sliding_window", False)
    window = window_of(fields, absent=None) if slides else None
    kinds = kinds_of(fields, len(turning))
    if kinds is None:
        kinds = [SLIDING if window is not None and not turns else FULL for turns in turning]
    return by_kind(fields, kinds, window, "use_sliding_window or sliding_window")


def phi3(fields: Fields) -> ModelSpec:
    """Phi-3, Phi-3.5 and Phi-4: one matrix for queries, keys and values, one for gate and up."""
    gated_by_silu(fields)
    fields.must_be("attention_bias", False, default=False)
    layers, head_dim = fields.integer("num_hidden_layers"), head_dim_of(fields)
    spec = decoder(
        fields,
        kv_heads=grouped(fields),
        head_dim=head_dim,
        rope=partial(_trained(fields), head_dim, 1.0),
        windows=(window_of(fields, absent=None),) * layers,
        max_positions=4096,
        norm_eps=1e-5,
    )
    return structs.replace(spec, fused_qkv=True, fused_gate_up=True)


def _trained(fields: Fields) -> Fields:
    """As transformers reads Phi's rope: the trained context stands outside, and "su" and "yarn" are what
    LongRoPE was called in early files."""
    own: dict[str, Any] = {}
    original = fields.integer("original_max_position_embeddings", 4096)
    for key in ("rope_scaling", "rope_parameters"):
        if (table := fields.table(key)) is not None:
            kinds = {name: table.raw[name] for name in ("rope_type", "type") if name in table.raw}
            renamed = {name: "longrope" for name, kind in kinds.items() if kind in ("su", "yarn")}
            own[key] = table.raw | renamed | {"original_max_position_embeddings": original}
    return Fields(fields.path, fields.raw | own)
