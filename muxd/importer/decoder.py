"""What GGUF files of Llama and its relatives have in common: names of tensors and of metadata."""

from collections.abc import Set
from typing import Any

from muxd.importer.layout import Make, ModelLayout, TensorPlan, check_shape, plan_tensors
from muxd.importer.rope_factors import factor_scaling
from muxd.importer.scaling import rope_scaling
from muxd.importer.source import GgufFile

GLOBALS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PER_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_MLP = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")


def mixture(place: str, router: str, gate: str, up: str, down: str) -> dict[str, str]:
    """``PER_LAYER`` of a mixture of experts, whose matrices are in ``place``."""
    dense = {old: new for old, new in PER_LAYER.items() if old not in _MLP}
    each = {f"ffn_{part}_exps.weight": name for part, name in (("gate", gate), ("up", up), ("down", down))}
    experts = {old: f"{place}.experts.{{expert}}.{name}.weight" for old, name in each.items()}
    return dense | {"ffn_gate_inp.weight": f"{place}.{router}.weight"} | experts


def decoder_config(
    file: GgufFile,
    prefix: str,
    architecture: str,
    *,
    partial: bool = False,
    layer_norm: bool = False,
    scaling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """config.json of ``architecture`` from the keys below ``prefix``, which is the ``model_type`` too.

    ``partial``: rope may turn a part of a head. ``layer_norm``: it is no RMSNorm. ``scaling``: of the rope,
    where it is not said as Llama's is. Raises ModelFolderError naming the metadata key or tensor that does
    not fit.
    """
    hidden = file.integer(f"{prefix}.embedding_length")
    heads = file.integer(f"{prefix}.attention.head_count")
    if heads < 1 or hidden < 1:
        names = f"'{prefix}.attention.head_count' and '{prefix}.embedding_length'"
        file.fail(f"metadata keys {names} must be above 0")
    head_dim = file.integer(f"{prefix}.attention.key_length", hidden // heads)
    turned = _turned(file, prefix, head_dim, partial=partial)
    theta = file.number(f"{prefix}.rope.freq_base", 10000.0)
    context = file.integer(f"{prefix}.context_length")
    scaling = (
        scaling
        or factor_scaling(file, theta, turned, context)
        or rope_scaling(file, prefix, "linear", "yarn")
    )
    norm, kind = ("layer_norm_eps", "layer_norm") if layer_norm else ("rms_norm_eps", "layer_norm_rms")
    return {
        "architectures": [architecture],
        "model_type": prefix,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": file.integer(f"{prefix}.feed_forward_length"),
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": file.integer(f"{prefix}.block_count"),
        "num_key_value_heads": file.integer(f"{prefix}.attention.head_count_kv", heads),
        norm: file.number(f"{prefix}.attention.{kind}_epsilon"),
        **({"partial_rotary_factor": turned / head_dim} if partial else {}),
        "rope_scaling": scaling,
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(file.array("tokenizer.ggml.tokens", str)),
    }


def decoder_layout(
    file: GgufFile,
    config: dict[str, Any],
    per_layer: dict[str, str],
    make: Make = TensorPlan,
    *,
    read: Set[str] = frozenset(),
    experts: int = 0,
) -> ModelLayout:
    """``config`` and the tensors, the embedding's first; the head may be the embedding. Raises as
    ``plan_tensors``."""
    tensors = plan_tensors(
        file,
        config["num_hidden_layers"],
        GLOBALS,
        per_layer,
        frozenset({"output.weight"}),
        make,
        read,
        experts,
    )
    check_shape(file, tensors[0], (config["vocab_size"], config["hidden_size"]))
    return ModelLayout(config, tensors)


def _turned(file: GgufFile, prefix: str, head_dim: int, *, partial: bool) -> int:
    key = f"{prefix}.rope.dimension_count"
    turned = file.integer(key, head_dim)
    if (turned != head_dim and not partial) or head_dim % 2:
        file.fail("rope over a part of the head (or an odd head size) cannot be imported")
    if not 0 < turned <= head_dim or turned % 2:
        file.fail(f"metadata key {key!r} is {turned}, expected an even number up to {head_dim}")
    return turned


def layer_types(file: GgufFile, prefix: str, layers: int, *, every: int) -> list[str]:
    """Hugging Face's, by ``attention.sliding_window_pattern``: which layers slide, or that all do but the
    n-th, 2n-th ...; ``every`` is that n where the file does not say. Raises ModelFolderError."""
    key = f"{prefix}.attention.sliding_window_pattern"
    if isinstance(file.get(key), list):
        slides = file.array(key, bool)
        if len(slides) != layers:
            file.fail(f"metadata key {key!r} has {len(slides)} entries for {layers} layers")
    else:
        every = file.integer(key, every)
        if every < 1:
            file.fail(f"metadata key {key!r} must be above 0")
        slides = [(layer + 1) % every != 0 for layer in range(layers)]
    return [("sliding" if one else "full") + "_attention" for one in slides]
