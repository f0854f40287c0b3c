"""BERT: an encoder, with positions that are learned."""

from muxd.models.config_file import Fields
from muxd.models.families.common import everywhere, head_dim_of
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import STILL


def bert(fields: Fields) -> ModelSpec:
    fields.must_be("hidden_act", "gelu", default="gelu")
    fields.must_be("position_embedding_type", "absolute", default="absolute")
    fields.must_be("is_decoder", False, default=False)
    heads, head_dim = fields.integer("num_attention_heads"), head_dim_of(fields)
    return ModelSpec(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        max_positions=fields.integer("max_position_embeddings", 512),
        bos_id=None,
        tied_embeddings=True,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        attention_scale=head_dim**-0.5,
        rope=STILL,
        local_rope=STILL,
        windows=everywhere(fields),
        kinds=fields.integer("type_vocab_size", 2),
        encoder=True,
        headless=True,
    )
