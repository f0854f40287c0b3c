"""GGUF ``cohere2`` to Hugging Face ``Cohere2ForCausalLM``: Command R7B and A.

Both rotate neighbouring pairs, in layers that slide alone, so rows stay where they are; one LayerNorm without
a bias is before attention and MLP.
"""

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout, layer_types
from muxd.importer.layout import ModelLayout
from muxd.importer.source import GgufFile

_PER_LAYER = {old: new for old, new in PER_LAYER.items() if old != "ffn_norm.weight"}


def plan_cohere2(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = decoder_config(file, "cohere2", "Cohere2ForCausalLM", layer_norm=True)
    layers = config["num_hidden_layers"]
    config |= {
        "attention_bias": False,
        "layer_types": layer_types(file, "cohere2", layers, every=4),
        "logit_scale": file.number("cohere2.logit_scale"),
        "sliding_window": file.integer("cohere2.attention.sliding_window"),
    }
    return decoder_layout(file, config, _PER_LAYER)
