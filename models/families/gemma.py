"""Gemma 2 and 3: norms around each block, scaled embeddings, GeGLU, layers that slide among some that see
everything. Defaults as in transformers: the larger Gemmas' files leave fields out."""

from msgspec import structs

from muxd.models.config_file import Fields
from muxd.models.families.common import alternating
from muxd.models.model_spec import AROUND, ModelSpec
from muxd.models.rope import Rope, per_layer_type, single


def gemma2(fields: Fields) -> ModelSpec:
    """Scores have a soft cap, and heads no norms."""
    rope = single(fields)
    spec = _gemma(fields, rope, rope, vocab_size=256_000, max_positions=8192, pattern=2)
    return structs.replace(
        spec,
        attention_softcap=cap(fields, "attn_logit_softcapping", 50.0),
        logit_softcap=cap(fields, "final_logit_softcapping", 30.0),
    )


def gemma3(fields: Fields) -> ModelSpec:
    """Two ropes, and norms of each head in place of the soft cap."""
    fields.must_be("attn_logit_softcapping", None, default=None)
    rope, local_rope = per_layer_type(fields, theta=1_000_000.0, local=10_000.0)
    spec = _gemma(fields, rope, local_rope, vocab_size=262_208, max_positions=131_072, pattern=6)
    softcap = cap(fields, "final_logit_softcapping", None)
    return structs.replace(spec, logit_softcap=softcap, qk_norm=True)


def _gemma(
    fields: Fields, rope: Rope, local_rope: Rope, *, vocab_size: int, max_positions: int, pattern: int
) -> ModelSpec:
    fields.must_be("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    fields.must_be("attention_bias", False, default=False)
    fields.must_be("use_bidirectional_attention", False, default=False)
    layers, hidden = fields.integer("num_hidden_layers", 26), fields.integer("hidden_size", 2304)
    return ModelSpec(
        vocab_size=fields.integer("vocab_size", vocab_size),
        hidden_size=hidden,
        layers=layers,
        heads=fields.integer("num_attention_heads", 8),
        kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=fields.integer("head_dim", 256),
        intermediate_size=fields.integer("intermediate_size", 9216),
        max_positions=fields.integer("max_position_embeddings", max_positions),
        bos_id=fields.optional_id("bos_token_id"),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        rope=rope,
        local_rope=local_rope,
        windows=alternating(fields, layers, pattern),
        gelu=True,
        norms=AROUND,
        norm_offset=True,
        beyond_float16=True,
        embed_scale=hidden**0.5,
        embed_scale_rounded=True,
    )


def cap(fields: Fields, key: str, absent: float | None) -> float | None:
    """null is none; absent, it is as in transformers."""
    return fields.optional_number(key) if key in fields.raw else absent
