"""GGUF ``llama`` to Hugging Face ``LlamaForCausalLM``.

llama.cpp rotates neighbouring pairs (2i, 2i+1), Hugging Face halves (i, i + d/2), so the converter reordered
the rows of q and k inside each head. ``_halves_order`` undoes that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
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
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def plan_llama(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    if "rope_freqs.weight" in file.tensors:
        file.fail(
            "per-frequency rope factors (tensor 'rope_freqs.weight', Llama 3.1 and later) cannot be imported"
        )
    if file.integer("llama.expert_count", 0):
        file.fail("mixture-of-experts models cannot be imported")
    config = _config(file)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, hidden = config["head_dim"], config["hidden_size"]

    def make(name: str, source: ReaderTensor) -> TensorPlan:
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if f".{part}." in name:
                check_shape(file, TensorPlan(name, source), (count * head_dim, hidden))
                return TensorPlan(name, source, row_order=_halves_order(count, head_dim))
        return TensorPlan(name, source)

    tensors = plan_tensors(
        file, config["num_hidden_layers"], _GLOBALS, _PER_LAYER, frozenset({"output.weight"}), make
    )
    check_shape(file, tensors[0], (config["vocab_size"], hidden))
    return ModelLayout(config, tensors)


def _halves_order(heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Row order that turns pairs back into halves: within a head, new row h*d/2 + i is old row 2*i + h.

    The converter did ``w.reshape(heads, 2, d/2, in).swapaxes(1, 2)``; this is its inverse.
    """
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _config(file: GgufFile) -> dict[str, Any]:
    hidden = file.integer("llama.embedding_length")
    heads = file.integer("llama.attention.head_count")
    if heads < 1 or hidden < 1:
        file.fail("metadata keys 'llama.attention.head_count' and 'llama.embedding_length' must be above 0")
    head_dim = file.integer("llama.attention.key_length", hidden // heads)
    if file.integer("llama.rope.dimension_count", head_dim) != head_dim or head_dim % 2:
        file.fail("rope over a part of the head (or an odd head size) cannot be imported")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": file.integer("llama.feed_forward_length"),
        "max_position_embeddings": file.integer("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": file.integer("llama.block_count"),
        "num_key_value_heads": file.integer("llama.attention.head_count_kv", heads),
        "rms_norm_eps": file.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_scaling": linear_rope_scaling(file, "llama"),
        "rope_theta": file.number("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(file.array("tokenizer.ggml.tokens", str)),
    }
