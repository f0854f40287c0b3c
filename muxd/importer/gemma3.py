"""GGUF ``gemma2`` and ``gemma3`` to Hugging Face's ``Gemma2ForCausalLM``, ``Gemma3ForCausalLM`` (text only).

Gemma's RMSNorm multiplies with 1 + w. llama.cpp stores that sum, Hugging Face stores w. What a GGUF does not
say (which layers slide, the local rope base, the attention scale) follows llama.cpp's loader for these
architectures, which fixes the same values.
"""

from typing import Any

from gguf import ReaderTensor

from muxd.importer.decoder import decoder_layout, layer_types
from muxd.importer.layout import ModelLayout, TensorPlan
from muxd.importer.scaling import rope_scaling
from muxd.importer.source import GgufFile

_PER_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
_NORMS = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}
_SLIDING_PATTERN = 6  # every sixth layer sees the whole context
# Layers of 27B, the one size whose attention scale is not head_dim.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}


def plan_gemma2(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    layers = file.integer("gemma2.block_count")
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    config = _config(file, "gemma2", "Gemma2ForCausalLM") | {
        "model_type": "gemma2",
        "rope_theta": file.number("gemma2.rope.freq_base", 10_000.0),
        "sliding_window": file.integer("gemma2.attention.sliding_window"),
        "layer_types": [("full" if i % 2 else "sliding") + "_attention" for i in range(layers)],
        **{cap: file.number(f"gemma2.{cap}") for cap in caps},
    }
    return _plan(file, config, _PER_LAYER)


def plan_gemma3(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = _config(file, "gemma3", "Gemma3ForCausalLM") | {
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.number("gemma3.final_logit_softcapping", 0.0) or None,
        "rope_theta": file.number("gemma3.rope.freq_base", 1_000_000.0),
        **_sliding(file, file.integer("gemma3.block_count")),
    }
    return _plan(file, config, _PER_LAYER | _NORMS)


def _plan(file: GgufFile, config: dict[str, Any], per_layer: dict[str, str]) -> ModelLayout:
    def make(name: str, source: ReaderTensor) -> TensorPlan:
        return TensorPlan(name, source, subtract=1.0 if name.endswith("norm.weight") else 0.0)

    return decoder_layout(file, config, per_layer, make)


def _config(file: GgufFile, prefix: str, architecture: str) -> dict[str, Any]:
    """What the two have in common."""
    layers = file.integer(f"{prefix}.block_count")
    heads, hidden = file.integer(f"{prefix}.attention.head_count"), file.integer(f"{prefix}.embedding_length")
    if heads < 1:
        file.fail(f"metadata key '{prefix}.attention.head_count' must be above 0")
    head_dim = file.integer(f"{prefix}.attention.key_length", 256)
    return {
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": file.integer(f"{prefix}.feed_forward_length"),
        "max_position_embeddings": file.integer(f"{prefix}.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": file.integer(f"{prefix}.attention.head_count_kv", heads),
        "query_pre_attn_scalar": hidden // heads if layers == _LAYERS_27B[prefix] else head_dim,
        "rms_norm_eps": file.number(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_scaling": rope_scaling(file, prefix, "linear"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(file.array("tokenizer.ggml.tokens", str)),
    }


def _sliding(file: GgufFile, layers: int) -> dict[str, Any]:
    kinds = layer_types(file, "gemma3", layers, every=_SLIDING_PATTERN)
    return {
        "sliding_window": file.integer("gemma3.attention.sliding_window"),
        "sliding_window_pattern": file.integer("gemma3.attention.sliding_window_pattern", _SLIDING_PATTERN),
        "layer_types": kinds,
        "rope_local_base_freq": file.number("gemma3.rope.freq_base_swa", 10_000.0),
    }
