"""Cohere's Command R7B and A: attention and MLP beside each other, LayerNorm, interleaved rope in layers that
slide and none in those that see everything, a scale of the logits."""

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import alternating, decoder, gated_by_silu, grouped
from muxd.models.model_spec import SHARED, ModelSpec
from muxd.models.rope import single


def cohere2(fields: Fields) -> ModelSpec:
    gated_by_silu(fields)
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise fields.refuse("hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}")
    for key, served in (
        ("head_dim", hidden // heads),  # transformers takes no other
        ("use_qk_norm", False),
        ("use_parallel_block", True),
        ("use_gated_activation", True),
        ("rotary_pct", 1.0),
    ):
        fields.must_be(key, served, default=served)
    bias, layers = fields.flag("attention_bias", False), fields.integer("num_hidden_layers")
    windows = alternating(fields, layers, 4)
    spec = decoder(
        fields,
        kv_heads=grouped(fields),
        head_dim=hidden // heads,
        rope=single(fields),
        windows=windows,
        max_positions=8192,
        tied=True,
    )
    return structs.replace(
        spec,
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        norms=SHARED,
        norm_centred=True,
        parallel=True,
        interleaved=True,
        unturned=tuple(i for i, window in enumerate(windows) if window is None),
        logit_scale=fields.number("logit_scale", 0.0625),
        qkv_bias=bias,
        o_bias=bias,
    )
