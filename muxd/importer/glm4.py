"""GGUF ``glm4`` to Hugging Face ``Glm4ForCausalLM``: GLM-4-0414 and Z1.

Both rotate neighbouring pairs of the first part of a head, so rows stay where they are; gate and up are one
matrix in both. A word means another norm in each: llama.cpp's ``post_attention_norm`` is of what attention
gives, Hugging Face's ``post_attention_layernorm`` is before the MLP.
"""

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout
from muxd.importer.layout import ModelLayout, check_shape
from muxd.importer.source import GgufFile

_BIASES = {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"}
_PER_LAYER = {old: new for old, new in PER_LAYER.items() if old != "ffn_gate.weight"} | {
    "ffn_up.weight": "mlp.gate_up_proj.weight",
    "post_attention_norm.weight": "post_self_attn_layernorm.weight",
    "post_ffw_norm.weight": "post_mlp_layernorm.weight",
}


def plan_glm4(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit. Files of GLM-4V and
    GLM-OCR, whose rope has sections, or which predict several tokens, have this name, too: they are refused
    by those keys."""
    for key, what in (
        ("rope.dimension_sections", "a rope in sections (a model that also sees)"),
        ("nextn_predict_layers", "layers that predict further tokens"),
    ):
        told = file.get(f"glm4.{key}")
        if any(told) if isinstance(told, list) else told:
            file.fail(f"metadata key 'glm4.{key}': {what} cannot be imported")
    config = decoder_config(file, "glm4", "Glm4ForCausalLM", partial=True)
    biased = "blk.0.attn_q.bias" in file.tensors
    names = _PER_LAYER | (_BIASES if biased else {})
    layout = decoder_layout(file, config | {"attention_bias": biased}, names)
    for plan in layout.tensors:
        if "gate_up_proj." in plan.name:
            check_shape(file, plan, (2 * config["intermediate_size"], config["hidden_size"]))
    return layout
