"""GGUF ``gpt-oss`` to Hugging Face ``GptOssForCausalLM``.

llama.cpp rotates by halves here, as Hugging Face does. All of a layer's gates are in one tensor and its ups
in another, outputs first; transformers has both in one, their rows taking turns, inputs first. A folder in
which blocks stay blocks has each expert's matrix by itself, as blocks lie along inputs.
"""

from typing import Any, NamedTuple

from gguf import ReaderTensor

from muxd.importer.decoder import PER_LAYER, decoder_config, decoder_layout, layer_types
from muxd.importer.layout import ModelLayout, TensorPlan, check_shape
from muxd.importer.scaling import rope_scaling
from muxd.importer.source import GgufFile

_ATTENTION = {old: new for old, new in PER_LAYER.items() if old.startswith("attn_")}
_BIASES = {old.replace("weight", "bias"): new.replace("weight", "bias") for old, new in _ATTENTION.items()}
_PER_LAYER = {
    **_ATTENTION,
    **{old: new for old, new in _BIASES.items() if "norm" not in old},
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
}


class _OfAll(NamedTuple):
    """What a layer has of all experts."""

    gate: ReaderTensor
    up: ReaderTensor
    down: ReaderTensor
    gate_bias: ReaderTensor
    up_bias: ReaderTensor
    down_bias: ReaderTensor


def plan_gpt_oss(file: GgufFile) -> ModelLayout:
    """Raises ModelFolderError naming the metadata key or tensor that does not fit."""
    config = _config(file)
    layers = [_of_all(file, layer, config) for layer in range(config["num_hidden_layers"])]
    read = {source.name for layer in layers for source in layer}
    shared = decoder_layout(file, config, _PER_LAYER, read=read).tensors
    each, stacked = list(shared), list(shared)
    for number, layer in enumerate(layers):
        place = f"model.layers.{number}.mlp.experts"
        each += _each(place, layer, config["num_local_experts"]) + _biases(place, layer)
        stacked += _stacked(place, layer) + _biases(place, layer)
    return ModelLayout(config, each, floats=stacked)


def _config(file: GgufFile) -> dict[str, Any]:
    """The gate's constants are fixed in llama.cpp, and so are ends of yarn's ramp that the model has not
    rounded."""
    scaling = rope_scaling(file, "gpt-oss", "yarn")
    if scaling is None:
        file.fail("metadata key 'gpt-oss.rope.scaling.type' must be yarn, as in every published gpt-oss")
    config = decoder_config(file, "gpt-oss", "GptOssForCausalLM", scaling=scaling | {"truncate": False})
    return config | {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "intermediate_size": file.integer("gpt-oss.expert_feed_forward_length"),
        "layer_types": layer_types(file, "gpt-oss", config["num_hidden_layers"], every=2),
        "num_experts_per_tok": file.integer("gpt-oss.expert_used_count"),
        "num_local_experts": file.integer("gpt-oss.expert_count"),
        "sliding_window": file.integer("gpt-oss.attention.sliding_window"),
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }


def _of_all(file: GgufFile, layer: int, config: dict[str, Any]) -> _OfAll:
    count, inner, hidden = (config[key] for key in ("num_local_experts", "intermediate_size", "hidden_size"))
    found = []
    for name, shape in (
        ("ffn_gate_exps.weight", (count, inner, hidden)),
        ("ffn_up_exps.weight", (count, inner, hidden)),
        ("ffn_down_exps.weight", (count, hidden, inner)),
        ("ffn_gate_exps.bias", (count, inner)),
        ("ffn_up_exps.bias", (count, inner)),
        ("ffn_down_exps.bias", (count, hidden)),
    ):
        source = file.tensors.get(f"blk.{layer}.{name}")
        if source is None:
            file.fail(f"tensor 'blk.{layer}.{name}' is missing")
        check_shape(file, TensorPlan(name, source), shape)
        found.append(source)
    return _OfAll(*found)


def _each(place: str, layer: _OfAll, experts: int) -> list[TensorPlan]:
    matrices = {"gate_proj": layer.gate, "up_proj": layer.up, "down_proj": layer.down}
    return [
        TensorPlan(f"{place}.{expert}.{name}.weight", source, expert=expert)
        for expert in range(experts)
        for name, source in matrices.items()
    ]


def _stacked(place: str, layer: _OfAll) -> list[TensorPlan]:
    return [
        TensorPlan(f"{place}.gate_up_proj", layer.gate, others=(layer.up,), inputs_first=True),
        TensorPlan(f"{place}.down_proj", layer.down, inputs_first=True),
    ]


def _biases(place: str, layer: _OfAll) -> list[TensorPlan]:
    return [
        TensorPlan(f"{place}.gate_up_proj_bias", layer.gate_bias, others=(layer.up_bias,)),
        TensorPlan(f"{place}.down_proj_bias", layer.down_bias),
    ]
