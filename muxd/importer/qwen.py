"""GGUF ``qwen2``, ``qwen3`` and ``qwen3moe`` to Hugging Face's names.

llama.cpp rotates these by halves (``llama_model_rope_type``: NeoX), as Hugging Face does, so its
converter leaves rows where they are; norms and biases are stored as they are.
"""

from typing import Any

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout, mixture
from muxd.importer.layout import ModelLayout, check_shape
from muxd.importer.source import GgufFile

_BIASES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
_NORMS = {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}


def plan_qwen2(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    return _plan(file, decoder_config(file, "qwen2", "Qwen2ForCausalLM"), PER_LAYER | _BIASES)


def plan_qwen3(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = decoder_config(file, "qwen3", "Qwen3ForCausalLM") | {"attention_bias": False}
    return _plan(file, config, PER_LAYER | _NORMS)


def plan_qwen3moe(file: GgufFile) -> ModelLayout:
    """llama.cpp has it fixed that chosen experts' weights add up to one. Raises ModelFolderError as above."""
    config = decoder_config(file, "qwen3moe", "Qwen3MoeForCausalLM")
    config |= {
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": file.integer("qwen3moe.expert_feed_forward_length"),
        "norm_topk_prob": True,
        "num_experts": file.integer("qwen3moe.expert_count"),
        "num_experts_per_tok": file.integer("qwen3moe.expert_used_count"),
    }
    names = mixture("mlp", "gate", "gate_proj", "up_proj", "down_proj") | _NORMS
    return _plan(file, config, names, config["num_experts"])


def _plan(file: GgufFile, config: dict[str, Any], per_layer: dict[str, str], experts: int = 0) -> ModelLayout:
    """No GGUF of these says that layers slide, and llama.cpp lets none."""
    config |= {"use_sliding_window": False, "sliding_window": None}
    layout = decoder_layout(file, config, per_layer, experts=experts)
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    for plan in layout.tensors:
        for part, heads in (("q_proj.", "num_attention_heads"), ("k_proj.", "num_key_value_heads")):
            if part in plan.name:
                rows = config[heads] * head_dim
                check_shape(file, plan, (rows,) if plan.name.endswith("bias") else (rows, hidden))
    return layout
