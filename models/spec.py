"""What muxd knows about a model without touching its weights: ``config.json`` as one frozen struct.

Owns ``ModelSpec`` and ``read_spec``. Everybody may use it: it imports no torch, so the deciding rooms size
rows and check contexts with the same facts the worker computes with.
"""

from pathlib import Path

from msgspec import Struct, structs

from muxd.errors import ModelFolderError, NoRow
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models.config_file import Fields, shown
from muxd.models.files import read_json
from muxd.models.folder import check_folder, refuse_quantised
from muxd.models.rope import FactorScaling, Rope, per_layer_type, single

# Models that see and read -> what reads in them, and its ``model_type``.
_WRAPPERS = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "mistral"),
}
# Saved without a head, to be pooled.
_HEADLESS = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
_SLIDING, _FULL = "sliding_attention", "full_attention"  # of ``layer_types``


class ModelSpec(Struct, frozen=True):
    """The shape of a transformer, a decoder but for ``encoder``, and the constants its formulas need."""

    architecture: str  # the name in config.json, key of muxd.models.registry
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    tied_embeddings: bool
    norm_eps: float
    attention_scale: float  # multiplies q·k before the softmax
    rope: Rope  # of layers that see everything
    local_rope: Rope  # of layers with a window
    windows: tuple[int | None, ...]  # per layer: a token sees itself and window - 1 before it; None: all
    dtype: Dtype | None = None  # of the weights by config.json, where that is one that can be served
    logit_softcap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False  # of each head, before it is turned
    gelu: bool = False  # gates by GELU's tanh form and not by SiLU
    norm_offset: bool = False  # norms' weights lie around zero, and 1 + w multiplies
    norms_after: bool = False  # what attention and MLP give is normed, too, before it is added
    beyond_float16: bool = False  # activations beyond 65,504: in float16 every logit becomes NaN
    embed_scale: float = 1.0  # multiplies embeddings, rounded to the model's type
    kinds: int = 0  # of an encoder's tokens
    encoder: bool = False  # every token sees its whole text; it has no head
    headless: bool = False  # saved without a head: it can only be pooled
    wrapped: bool = False  # the text part of a model that also sees: its tensors' names carry a prefix

    @property
    def blocks_per_row(self) -> int:
        """Head blocks in one row: one per layer and KV head."""
        return self.layers * self.kv_heads

    def tokens_per_row(self, block_bytes: int, itemsize: int) -> int:
        """See ``tokens_per_row``."""
        return tokens_per_row(block_bytes, self.head_dim, itemsize)


def tokens_per_row(block_bytes: int, head_dim: int, itemsize: int) -> int:
    """T of docs/design.md §1: tokens whose K and V of one KV head fit one head block.

    Raises NoRow, a ConfigError, when not even one fits.
    """
    least = 2 * head_dim * itemsize
    if block_bytes < least:
        raise NoRow(
            f"pool.block_bytes: {block_bytes} holds no token of a model with head_dim {head_dim}; "
            f"at least {least} are needed"
        )
    return block_bytes // least


def read_spec(folder: Path) -> ModelSpec:
    """Read ``config.json`` as transformers 4.x or 5.x writes it.

    Of a model that sees and reads (``text_config`` beside ``vision_config``) the part that reads. Raises
    ModelFolderError naming the file, the field and the reason.
    """
    path = folder / "config.json"
    check_folder(folder)
    outer = Fields(path, read_json(path))
    refuse_quantised(path, outer.raw)
    readers = {
        "LlamaForCausalLM": _llama,
        "MistralForCausalLM": _mistral,
        "Qwen2ForCausalLM": _qwen2,
        "Qwen3ForCausalLM": _qwen3,
        "Gemma3ForCausalLM": _gemma3,
        "BertModel": _bert,
    }
    architecture = named = _architecture(outer)
    fields = outer
    if named in _HEADLESS:
        architecture = _HEADLESS[named]
    if named in _WRAPPERS:
        architecture, text_type = _WRAPPERS[named]
        fields = _text(outer, text_type)
    if architecture not in readers:
        known = ", ".join(sorted(readers.keys() | _WRAPPERS.keys()))
        raise ModelFolderError(f"{path}: architecture {shown(named)} is not known; known: {known}")
    fields.must_be("partial_rotary_factor", 1.0, default=1.0)
    ends = {*outer.ids("eos_token_id"), *fields.ids("eos_token_id")}
    spec = readers[architecture](fields, tuple(sorted(ends)))
    spec = structs.replace(spec, wrapped=named in _WRAPPERS, dtype=_dtype(fields) or _dtype(outer))
    if named in _HEADLESS:
        spec = structs.replace(spec, headless=True, tied_embeddings=True)
    if spec.heads % spec.kv_heads:
        raise ModelFolderError(
            f"{path}: num_attention_heads {spec.heads} is not a multiple of "
            f"num_key_value_heads {spec.kv_heads}"
        )
    if spec.head_dim % 2:
        raise ModelFolderError(f"{path}: head_dim {spec.head_dim} is odd; rotary embedding needs pairs")
    for rope in (spec.rope, spec.local_rope):
        if isinstance(rope.scaling, FactorScaling) and 2 * len(rope.scaling.factors) != spec.head_dim:
            raise ModelFolderError(
                f"{path}: long_factor does not list {spec.head_dim // 2} factors, one a pair"
            )
        if not rope.finite(spec.head_dim):
            raise ModelFolderError(
                f"{path}: rope_theta and rope_scaling, or rope_parameters: angles that float32 cannot hold"
            )
    return spec


def _architecture(fields: Fields) -> str:
    named = fields.raw.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    by_type = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "bert": "BertModel",
        "gemma3_text": "Gemma3ForCausalLM",
        "gemma3": "Gemma3ForConditionalGeneration",
        "mistral3": "Mistral3ForConditionalGeneration",
    }
    model_type = fields.text("model_type")
    return by_type.get(model_type, model_type)


def _dtype(fields: Fields) -> Dtype | None:
    """``dtype``, before transformers 4.56 ``torch_dtype``; None for anything else, the files know."""
    said = fields.raw.get("dtype") or fields.raw.get("torch_dtype")
    return next((dtype for dtype in ITEM_BYTES if said == dtype), None)


def _text(outer: Fields, text_type: str) -> Fields:
    """The fields of the text model; whether the head is tied is the outer model's to say."""
    text = outer.table("text_config")
    if text is None:
        raise outer.refuse("text_config", "is missing")
    text.must_be("model_type", text_type, default=text_type)
    own: dict[str, object] = {"tie_word_embeddings": outer.flag("tie_word_embeddings", True)}
    if text.raw.get("bos_token_id") is None:
        own["bos_token_id"] = outer.raw.get("bos_token_id")
    return Fields(outer.path, text.raw | own, "text_config.")


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
    layers, window = fields.integer("num_hidden_layers"), _window(fields)
    kind = _FULL if window is None else _SLIDING
    if set(_kinds(fields, layers) or [kind]) != {kind}:
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


def _qwen2(fields: Fields, eos_ids: tuple[int, ...]) -> ModelSpec:
    fields.must_be("attention_bias", True, default=True)  # not in published files: the bias is always there
    return _decoder(
        fields,
        "Qwen2ForCausalLM",
        eos_ids,
        kv_heads=fields.integer("num_key_value_heads"),
        head_dim=_head_dim(fields, fields.integer("num_attention_heads")),
        max_positions=fields.integer("max_position_embeddings", 32_768),
        windows=_late_windows(fields, fields.integer("num_hidden_layers")),
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
        windows=_late_windows(fields, fields.integer("num_hidden_layers")),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
    )


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
        windows=_windows(fields, layers),
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


def _windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """Gemma 3: ``layer_types`` (5.x), else every ``sliding_window_pattern``-th layer is full."""
    kinds = _kinds(fields, layers)
    if kinds is None:
        pattern = fields.integer("sliding_window_pattern", 6)
        kinds = [_SLIDING if (i + 1) % pattern else _FULL for i in range(layers)]
    window = fields.integer("sliding_window", 4096) if _SLIDING in kinds else None
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _late_windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """Qwen: ``use_sliding_window`` lets ``layer_types`` slide, or all from ``max_window_layers`` on."""
    window = _window(fields) if fields.flag("use_sliding_window", False) else None
    kinds = _kinds(fields, layers)
    if kinds is None:
        first = fields.integer("max_window_layers", 28, least=0)
        return tuple(window if i >= first else None for i in range(layers))
    if _SLIDING in kinds and window is None:
        raise fields.refuse(
            "layer_types", f"names {_SLIDING}, but use_sliding_window or sliding_window says no"
        )
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _window(fields: Fields) -> int | None:
    """``sliding_window``: null is none; absent, it is 4096 as in transformers."""
    absent = "sliding_window" not in fields.raw
    return 4096 if absent else fields.optional_integer("sliding_window")


def _kinds(fields: Fields, layers: int) -> list[str] | None:
    """``layer_types``, checked; None when absent."""
    kinds: list[str] | None = fields.raw.get("layer_types")
    known = (_FULL, _SLIDING)
    if kinds is None or (
        isinstance(kinds, list) and len(kinds) == layers and all(kind in known for kind in kinds)
    ):
        return kinds
    raise fields.refuse("layer_types", f"must list {layers} times one of {', '.join(known)}")
