"""What each architecture's config.json means: one reader for each, from its fields to a ``ModelSpec``.

Defaults are transformers'. What a page does not compute is refused by file and field (ModelFolderError).
"""

from collections.abc import Callable

from msgspec import structs

from muxd.errors import ModelFolderError
from muxd.models.config_file import Fields
from muxd.models.mixture import mixtral, qwen3_moe
from muxd.models.model_spec import ModelSpec
from muxd.models.rope import Rope, per_layer_type, single
from muxd.models.windows import FULL, SLIDING, by_type, kinds_of, late_windows, window_of


def _llama(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    bias, heads = fields.flag("attention_bias", False), fields.integer("num_attention_heads")
    return _decoder(
        fields,
        "LlamaForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=_head_dim(fields, heads),
        max_positions=fields.integer("max_position_embeddings", 2048),
        windows=(None,) * fields.integer("num_hidden_layers"),
        qkv_bias=bias,
        o_bias=bias,
    )


def _mistral(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    fields.must_be("attention_bias", False, default=False)
    layers, window = fields.integer("num_hidden_layers"), window_of(fields)
    kind = FULL if window is None else SLIDING
    if set(kinds_of(fields, layers) or [kind]) != {kind}:
        raise fields.refuse("layer_types", f"must be {kind} in all layers, as sliding_window is {window}")
    return _decoder(
        fields,
        "MistralForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=_head_dim(fields, fields.integer("num_attention_heads")),
        max_positions=fields.integer("max_position_embeddings", 131_072),
        windows=(window,) * layers,
    )


def _mixtral(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    fields = fields.over(rope_theta=1e6, rms_norm_eps=1e-5)
    found = _decoder(
        fields,
        "MixtralForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads", 8),
        head_dim=_head_dim(fields, fields.integer("num_attention_heads")),
        max_positions=fields.integer("max_position_embeddings", 131_072),
        windows=(fields.optional_integer("sliding_window"),) * fields.integer("num_hidden_layers"),
    )
    return structs.replace(found, experts=mixtral(fields))


def _qwen2(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    fields.must_be("attention_bias", True, default=True)  # not in published files: the bias is always there
    return _decoder(
        fields,
        "Qwen2ForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=_head_dim(fields, fields.integer("num_attention_heads")),
        max_positions=fields.integer("max_position_embeddings", 32_768),
        windows=late_windows(fields, fields.integer("num_hidden_layers")),
        qkv_bias=True,
    )


def _qwen3(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    bias = fields.flag("attention_bias", False)
    return _decoder(
        fields,
        "Qwen3ForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=fields.integer("head_dim", 128),
        max_positions=fields.integer("max_position_embeddings", 32_768),
        windows=late_windows(fields, fields.integer("num_hidden_layers")),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
    )


def _qwen3_moe(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    bias = fields.flag("attention_bias", False)
    window = window_of(fields) if fields.flag("use_sliding_window", False) else None
    found = _decoder(
        fields,
        "Qwen3MoeForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=_head_dim(fields, fields.integer("num_attention_heads")),
        max_positions=fields.integer("max_position_embeddings", 32_768),
        windows=(window,) * fields.integer("num_hidden_layers"),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
    )
    return structs.replace(found, experts=qwen3_moe(fields))


def _decoder(
    fields: Fields,
    architecture: str,
    eos_ids: tuple[int, ...],
    *,
    kv_heads: int,
    head_dim: int,
    max_positions: int,
    windows: tuple[int | None, ...],
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norm: bool = False,
) -> ModelSpec:
    """What Llama and its relatives have in common: one rope, SwiGLU without biases."""
    fields.must_be("hidden_act", "silu", default="silu")
    fields.must_be("mlp_bias", False, default=False)
    rope = single(fields)
    return ModelSpec(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=fields.integer("num_attention_heads"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        max_positions=max(max_positions, rope.positions),
        eos_ids=eos_ids,
        bos_id=fields.optional_id("bos_token_id"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_scale=head_dim**-0.5,
        rope=rope,
        local_rope=rope,
        windows=windows,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
    )


def _gemma3(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    """Defaults as in transformers: the larger Gemmas' files leave them out."""
    fields.must_be("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    fields.must_be("attention_bias", False, default=False)
    fields.must_be("attn_logit_softcapping", None, default=None)
    fields.must_be("use_bidirectional_attention", False, default=False)
    heads, layers = fields.integer("num_attention_heads", 8), fields.integer("num_hidden_layers", 26)
    rope, local_rope = per_layer_type(fields)
    return ModelSpec(
        architecture="Gemma3ForCausalLM",
        vocab_size=fields.integer("vocab_size", 262_208),
        hidden_size=fields.integer("hidden_size", 2304),
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=fields.integer("head_dim", 256),
        intermediate_size=fields.integer("intermediate_size", 9216),
        max_positions=fields.integer("max_position_embeddings", 131_072),
        eos_ids=eos_ids,
        bos_id=fields.optional_id("bos_token_id"),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        rope=rope,
        local_rope=local_rope,
        windows=by_type(fields, layers),
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        qk_norm=True,
        gelu=True,
        norm_offset=True,
        norms_after=True,
        beyond_float16=True,
        embed_scale=fields.integer("hidden_size", 2304) ** 0.5,
    )


def _bert(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    fields.must_be("hidden_act", "gelu", default="gelu")
    fields.must_be("position_embedding_type", "absolute", default="absolute")
    fields.must_be("is_decoder", False, default=False)
    heads, layers = fields.integer("num_attention_heads"), fields.integer("num_hidden_layers")
    head_dim, rope = _head_dim(fields, heads), Rope(10_000.0)
    return ModelSpec(
        architecture="BertModel",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        max_positions=fields.integer("max_position_embeddings", 512),
        eos_ids=eos_ids,
        bos_id=None,
        tied_embeddings=True,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        attention_scale=head_dim**-0.5,
        rope=rope,  # none is used: positions are learned
        local_rope=rope,
        windows=(None,) * layers,
        kinds=fields.integer("type_vocab_size", 2),
        encoder=True,
        headless=True,
    )


def _head_dim(fields: Fields, heads: int) -> int:
    hidden = fields.integer("hidden_size")
    if fields.raw.get("head_dim") is None and hidden % heads:
        raise ModelFolderError(
            f"{fields.path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads} "
            "and head_dim is not given"
        )
    return fields.integer("head_dim", hidden // heads)


Reader = Callable[[Fields, tuple[int, ...]], ModelSpec]
READERS: dict[str, Reader] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "MixtralForCausalLM": _mixtral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "Gemma3ForCausalLM": _gemma3,
    "BertModel": _bert,
}
