"""GGUF ``olmo2`` to Hugging Face ``Olmo2ForCausalLM``: norms behind the blocks, rows where they are, as
llama.cpp rotates by halves, too."""

from muxd.importer.decoder import GLOBALS, PER_LAYER, decoder_config
from muxd.importer.layout import ModelLayout, TensorPlan, check_shape, plan_tensors
from muxd.importer.source import GgufFile

_BEFORE = ("attn_norm.weight", "ffn_norm.weight")
_PER_LAYER = {name: stored for name, stored in PER_LAYER.items() if name not in _BEFORE} | {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}


def plan_olmo2(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit. OLMo 3's files have this
    name, too: they slide, and are refused by that key."""
    if file.integer("olmo2.attention.sliding_window", 0):
        file.fail("metadata key 'olmo2.attention.sliding_window': OLMo 3 cannot be imported")
    config = decoder_config(file, "olmo2", "Olmo2ForCausalLM") | {"attention_bias": False}
    layers, optional = config["num_hidden_layers"], frozenset({"output.weight"})
    tensors = plan_tensors(file, layers, GLOBALS, _PER_LAYER, optional, TensorPlan)
    check_shape(file, tensors[0], (config["vocab_size"], config["hidden_size"]))
    return ModelLayout(config, tensors)
