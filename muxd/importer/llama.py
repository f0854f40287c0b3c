"""GGUF ``llama``, which Mistral's and Mixtral's files are too, ``granite`` and ``smollm3`` to Hugging Face's
names.

llama.cpp rotates neighbouring pairs (2i, 2i+1), Hugging Face halves (i, i + d/2), so the converter reordered
the rows of q and k inside each head. ``_halves_order`` undoes that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import ReaderTensor

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout, mixture
from muxd.importer.layout import ModelLayout, TensorPlan, check_shape
from muxd.importer.rope_factors import TENSOR
from muxd.importer.source import GgufFile

_NO_BIASES = {"attention_bias": False, "mlp_bias": False}


def plan_llama(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    if experts := file.integer("llama.expert_count", 0):
        return _mixtral(file, experts)
    return _plan(file, decoder_config(file, "llama", "LlamaForCausalLM"))


def _mixtral(file: GgufFile, experts: int) -> ModelLayout:
    """Its files are ``llama`` with experts; chosen ones' weights add up to one."""
    config = decoder_config(file, "llama", "MixtralForCausalLM")
    config |= {
        "model_type": "mixtral",
        "num_local_experts": experts,
        "num_experts_per_tok": file.integer("llama.expert_used_count"),
        "sliding_window": None,
    }
    return _plan(file, config, mixture("block_sparse_moe", "gate", "w1", "w3", "w2"), experts)


def plan_granite(file: GgufFile) -> ModelLayout:
    """With Granite's multipliers. Raises ModelFolderError as above."""
    config = decoder_config(file, "granite", "GraniteForCausalLM")
    multipliers = {
        "attention_multiplier": "granite.attention.scale",
        "embedding_multiplier": "granite.embedding_scale",
        "residual_multiplier": "granite.residual_scale",
        "logits_scaling": "granite.logit_scale",
    }
    return _plan(file, config | {name: file.number(key) for name, key in multipliers.items()})


def plan_smollm3(file: GgufFile) -> ModelLayout:
    """Every fourth layer does not turn: no GGUF says so, and llama.cpp's loader has it fixed. Raises
    ModelFolderError as above."""
    config = decoder_config(file, "smollm3", "SmolLM3ForCausalLM")
    return _plan(file, config | {"no_rope_layer_interval": 4, "use_sliding_window": False})


def _plan(
    file: GgufFile, config: dict[str, Any], per_layer: dict[str, str] = PER_LAYER, experts: int = 0
) -> ModelLayout:
    config |= _NO_BIASES
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, hidden = config["head_dim"], config["hidden_size"]

    def make(name: str, source: ReaderTensor) -> TensorPlan:
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if f".{part}." in name:
                check_shape(file, TensorPlan(name, source), (count * head_dim, hidden))
                return TensorPlan(name, source, row_order=_halves_order(count, head_dim))
        return TensorPlan(name, source)

    return decoder_layout(file, config, per_layer, make, read={TENSOR}, experts=experts)


def _halves_order(heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Row order that turns pairs back into halves: within a head, new row h*d/2 + i is old row 2*i + h.

    The converter did ``w.reshape(heads, 2, d/2, in).swapaxes(1, 2)``; this is its inverse.
    """
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
