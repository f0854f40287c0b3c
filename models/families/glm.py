"""GLM-4: interleaved rope on half of a head, gate and up in one matrix, biases on queries, keys, values."""

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import decoder, everywhere, gated_by_silu
from muxd.models.model_spec import AROUND_GLM, ModelSpec
from muxd.models.rope import partial


def glm(fields: Fields) -> ModelSpec:
    """GLM-4 9B of 2024."""
    gated_by_silu(fields)
    head_dim = fields.integer("head_dim", 128)
    spec = decoder(
        fields,
        kv_heads=fields.integer("num_key_value_heads", 2),
        head_dim=head_dim,
        rope=partial(fields, head_dim, 0.5),
        windows=everywhere(fields),
        max_positions=131_072,
        norm_eps=1.5625e-7,
    )
    bias = fields.flag("attention_bias", True)
    return structs.replace(spec, interleaved=True, fused_gate_up=True, qkv_bias=bias)


def glm4(fields: Fields) -> ModelSpec:
    """GLM-4-0414: norms around each block."""
    return structs.replace(glm(fields), norms=AROUND_GLM)
