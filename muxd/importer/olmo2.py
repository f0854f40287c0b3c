"""GGUF ``olmo2`` to Hugging Face ``Olmo2ForCausalLM`` and ``Olmo3ForCausalLM``, ``exaone4`` to
``Exaone4ForCausalLM``: norms behind the blocks, rows where they are, as llama.cpp rotates by halves, too."""

from typing import Any

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout, layer_types
from muxd.importer.layout import ModelLayout
from muxd.importer.rope_factors import TENSOR
from muxd.importer.scaling import rope_scaling
from muxd.importer.source import GgufFile

_BEFORE = ("attn_norm.weight", "ffn_norm.weight")
_PER_LAYER = {name: stored for name, stored in PER_LAYER.items() if name not in _BEFORE} | {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
# Of EXAONE 4 32B, whose first files do not say that it slides: llama.cpp knows it by its layers.
_LAYERS_32B, _WINDOW_32B = 64, 4096


def plan_olmo2(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit. OLMo 3's files have this
    name, too: they slide."""
    if window := file.integer("olmo2.attention.sliding_window", 0):
        return decoder_layout(file, _olmo3(file, window), _PER_LAYER)
    config = decoder_config(file, "olmo2", "Olmo2ForCausalLM") | {"attention_bias": False}
    return decoder_layout(file, config, _PER_LAYER)


def _olmo3(file: GgufFile, window: int) -> dict[str, Any]:
    """A scaling is of the layers that see everything."""
    scaling = rope_scaling(file, "olmo2", "yarn") or {"rope_type": "default"}
    config = decoder_config(file, "olmo2", "Olmo3ForCausalLM", scaling=scaling)
    theta = {"rope_theta": config.pop("rope_theta")}
    ropes = {"full_attention": config.pop("rope_scaling"), "sliding_attention": {"rope_type": "default"}}
    return config | {
        "model_type": "olmo3",
        "attention_bias": False,
        "layer_types": layer_types(file, "olmo2", config["num_hidden_layers"], every=4),
        "rope_parameters": {kind: rope | theta for kind, rope in ropes.items()},
        "sliding_window": window,
    }


def plan_exaone4(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = decoder_config(file, "exaone4", "Exaone4ForCausalLM")
    layers = config["num_hidden_layers"]
    window = file.integer("exaone4.attention.sliding_window", _WINDOW_32B if layers == _LAYERS_32B else 0)
    kinds = layer_types(file, "exaone4", layers, every=4) if window else ["full_attention"] * layers
    config |= {"layer_types": kinds, "sliding_window": window or None}
    return decoder_layout(file, config, _PER_LAYER, read={TENSOR})
