"""GGUF ``phi3`` to Hugging Face ``Phi3ForCausalLM``: Phi-3, 3.5, Phi-4 and 4-mini.

Rows stay where they are: llama.cpp rotates by halves, and has queries, keys and values in one matrix, gate
and up in another, as the model is published. It ignores the file's window; transformers, and this, does not.
"""

import math
from typing import Any

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout
from muxd.importer.layout import ModelLayout, check_shape
from muxd.importer.rope_factors import pair_factors
from muxd.importer.source import GgufFile

_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_FUSED = {"attn_qkv.weight": "self_attn.qkv_proj.weight", "ffn_up.weight": "mlp.gate_up_proj.weight"}
_APART = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight")
_PER_LAYER = {old: new for old, new in PER_LAYER.items() if old not in _APART} | _FUSED


def plan_phi3(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = decoder_config(file, "phi3", "Phi3ForCausalLM", partial=True)
    if config["rope_scaling"]:
        file.fail("metadata key 'phi3.rope.scaling.type': Phi has factors for its rope, or nothing")
    context = config["max_position_embeddings"]
    config |= {
        "original_max_position_embeddings": file.integer(
            "phi3.rope.scaling.original_context_length", context
        ),
        "sliding_window": file.integer("phi3.attention.sliding_window", 0) or None,
    }
    if scaling := _longrope(file, config):
        config["rope_scaling"] = scaling
    layout = decoder_layout(file, config, _PER_LAYER, read={_LONG, _SHORT})
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    rows = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * head_dim
    for plan in layout.tensors:
        for part, expected in (("qkv_proj.", rows), ("gate_up_proj.", 2 * config["intermediate_size"])):
            if part in plan.name:
                check_shape(file, plan, (expected, hidden))
    return layout


def _longrope(file: GgufFile, config: dict[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling``, None without the tensors. The magnitude is only told where it is not the one that
    transformers would compute: most programs do not know its key."""
    present = [name for name in (_LONG, _SHORT) if name in file.tensors]
    if len(present) < 2:
        if present:
            file.fail(f"tensor {present[0]!r} is there alone; {_LONG!r} and {_SHORT!r} belong together")
        return None
    pairs = round(config["head_dim"] * config["partial_rotary_factor"]) // 2
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": pair_factors(file, _LONG, pairs),
        "short_factor": pair_factors(file, _SHORT, pairs),
    }
    usual = _magnitude(config["max_position_embeddings"], config["original_max_position_embeddings"])
    told = file.number("phi3.rope.scaling.attn_factor", usual)
    return scaling if math.isclose(told, usual, rel_tol=1e-5) else scaling | {"attention_factor": told}


def _magnitude(context: int, original: int) -> float:
    """Phi-3 technical report (Abdin et al. 2024), of LongRoPE: sqrt(1 + ln(stretch) / ln(trained))."""
    if context <= original or original < 2:
        return 1.0
    return math.sqrt(1 + math.log(context / original) / math.log(original))
