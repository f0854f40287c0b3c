"""GGUF ``gemma3`` to Hugging Face ``Gemma3ForCausalLM`` (text only).

Gemma's RMSNorm multiplies with 1 + w. llama.cpp stores that sum, Hugging Face stores w. What a GGUF does not
say (which layers slide, the local rope base, the attention scale) follows llama.cpp's loader for this
architecture, which fixes the same values.
"""

from typing import Any

from gguf import ReaderTensor

from muxd.importer.layout import ModelLayout, TensorPlan, check_shape, linear_rope_scaling, plan_tensors
from muxd.importer.source import GgufFile

_GLOBALS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
_SLIDING_PATTERN = 6  # every sixth layer sees the whole context
_LAYERS_27B = 62  # the one size whose attention scale is not head_dim


def plan_gemma3(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = _config(file)

    def make(name: str, source: ReaderTensor) -> TensorPlan:
        return TensorPlan(name, source, subtract=1.0 if name.endswith("norm.weight") else 0.0)

    tensors = plan_tensors(
        file, config["num_hidden_layers"], _GLOBALS, _PER_LAYER, frozenset({"output.weight"}), make
    )
    check_shape(file, tensors[0], (config["vocab_size"], config["hidden_size"]))
    return ModelLayout(config, tensors)


def _config(file: GgufFile) -> dict[str, Any]:
    layers = file.integer("gemma3.block_count")
    heads, hidden = file.integer("gemma3.attention.head_count"), file.integer("gemma3.embedding_length")
    if heads < 1:
        file.fail("metadata key 'gemma3.attention.head_count' must be above 0")
    head_dim = file.integer("gemma3.attention.key_length", 256)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.number("gemma3.final_logit_softcapping", 0.0) or None,
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": file.integer("gemma3.feed_forward_length"),
        "max_position_embeddings": file.integer("gemma3.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": file.integer("gemma3.attention.head_count_kv", heads),
        "query_pre_attn_scalar": hidden // heads if layers == _LAYERS_27B else head_dim,
        "rms_norm_eps": file.number("gemma3.attention.layer_norm_rms_epsilon"),
        "rope_scaling": linear_rope_scaling(file, "gemma3"),
        "rope_theta": file.number("gemma3.rope.freq_base", 1_000_000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(file.array("tokenizer.ggml.tokens", str)),
        **_sliding(file, layers),
    }


def _sliding(file: GgufFile, layers: int) -> dict[str, Any]:
    pattern = file.integer("gemma3.attention.sliding_window_pattern", _SLIDING_PATTERN)
    if pattern < 1:
        file.fail("metadata key 'gemma3.attention.sliding_window_pattern' must be above 0")
    return {
        "sliding_window": file.integer("gemma3.attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "layer_types": [
            "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
        ],
        "rope_local_base_freq": file.number("gemma3.rope.freq_base_swa", 10_000.0),
    }
