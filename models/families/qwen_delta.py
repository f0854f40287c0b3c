"""Qwen3-Next, Qwen3.5 and 3.6: three of four layers keep a state (Gated DeltaNet), the others attend through
a gate; a quarter of each head turns; norms multiply by 1 + w. What they have of Qwen 3 is read as there."""

from msgspec import structs

from muxd.kernels.row_layout import KvHeads
from muxd.models.config_file import Fields
from muxd.models.delta import delta_net
from muxd.models.families.common import decoder, everywhere, gated_by_silu
from muxd.models.mixture import qwen3_5_experts, qwen3_next_experts
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import partial


def qwen3_5(fields: Fields) -> ModelSpec:
    """With an MLP in each layer."""
    return _qwen(fields, kv_heads=4, fused=False)


def qwen3_5_moe(fields: Fields) -> ModelSpec:
    """With experts in each layer: there is no other MLP to be as wide as anything."""
    experts = qwen3_5_experts(fields)
    return structs.replace(
        _qwen(fields, kv_heads=2, fused=False, intermediate=experts.inner), experts=experts
    )


def qwen3_next(fields: Fields) -> ModelSpec:
    """With experts in most layers; matrices are stored by key head."""
    spec = _qwen(fields, kv_heads=2, fused=True, intermediate=5632)
    return structs.replace(spec, experts=qwen3_next_experts(fields))


def _qwen(fields: Fields, *, kv_heads: int, fused: bool, intermediate: int | None = None) -> ModelSpec:
    """``kv_heads``, ``intermediate``: where the file does not say. Positions of text are the same in all
    three sections of ``mrope_section``, so that the rope is a plain one."""
    gated_by_silu(fields)
    fields.must_be("attention_bias", False, default=False)
    fields.must_be("attn_output_gate", True, default=True)
    fields.must_be("use_sliding_window", False, default=False)
    head_dim = fields.integer("head_dim", 256)
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", kv_heads),
        head_dim=head_dim,
        rope=partial(fields, head_dim, 0.25),
        windows=everywhere(fields),
        max_positions=32_768,
        intermediate=intermediate,
    )
    delta = delta_net(fields, fused=fused)
    kept = tuple(KvHeads(0 if keeps else spec.kv_heads, head_dim) for keeps in delta.layers)
    return structs.replace(
        spec, qk_norm=True, norm_offset=True, output_gate=True, delta=delta, layer_heads=kept
    )
