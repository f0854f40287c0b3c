"""gpt-oss: experts in every layer, attention sinks, every other layer slides."""

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import FULL, SLIDING, by_kind, decoder, kinds_of, window_of
from muxd.models.mixture import gpt_oss_experts
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import single

# Where a file says nothing of it.
_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def gpt_oss(fields: Fields) -> ModelSpec:
    fields.must_be("hidden_act", "silu", default="silu")
    if fields.table("rope_parameters") is None and fields.table("rope_scaling") is None:
        fields = Fields(fields.path, fields.raw | {"rope_scaling": _ROPE})
    layers, bias = fields.integer("num_hidden_layers"), fields.flag("attention_bias", True)
    kinds = kinds_of(fields, layers) or [FULL if i % 2 else SLIDING for i in range(layers)]
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", 8),
        head_dim=fields.integer("head_dim", 64),
        rope=single(fields, theta=150_000.0),
        windows=by_kind(fields, kinds, window_of(fields, absent=128)),
        max_positions=131_072,
        norm_eps=1e-5,
    )
    return structs.replace(spec, qkv_bias=bias, o_bias=bias, sinks=True, experts=gpt_oss_experts(fields))
