"""What GGUF files of Llama and its relatives have in common: names of tensors and of metadata."""

from typing import Any

from muxd.importer.layout import linear_rope_scaling
from muxd.importer.rope_factors import factor_scaling
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


def decoder_config(file: GgufFile, prefix: str, architecture: str) -> dict[str, Any]:
    """config.json of ``architecture`` from the keys below ``prefix``, which is the ``model_type`` too.

    Raises ModelFolderError naming the metadata key or tensor that does not fit.
    """
    hidden = file.integer(f"{prefix}.embedding_length")
    heads = file.integer(f"{prefix}.attention.head_count")
    if heads < 1 or hidden < 1:
        names = f"'{prefix}.attention.head_count' and '{prefix}.embedding_length'"
        file.fail(f"metadata keys {names} must be above 0")
    head_dim = file.integer(f"{prefix}.attention.key_length", hidden // heads)
    if file.integer(f"{prefix}.rope.dimension_count", head_dim) != head_dim or head_dim % 2:
        file.fail("rope over a part of the head (or an odd head size) cannot be imported")
    theta = file.number(f"{prefix}.rope.freq_base", 10000.0)
    context = file.integer(f"{prefix}.context_length")
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
        "rms_norm_eps": file.number(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_scaling": factor_scaling(file, theta, head_dim, context) or linear_rope_scaling(file, prefix),
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(file.array("tokenizer.ggml.tokens", str)),
    }
