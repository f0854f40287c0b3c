"""config.json of Qwen3-Next, Qwen3.5 and 3.6 as transformers reads it; what is refused, by its field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_models
from transformers import AutoConfig

from muxd.device.base import HostWriter
from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import ITEM_BYTES
from muxd.models import reading
from muxd.models.cut import cut_spec
from muxd.models.lora import read_lora
from muxd.models.packing import Packing
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.tensors import wanted
from muxd.models.weights import fill, plan

SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
TYPES = ["qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"]


def of_type(folder: Path, model_type: str, **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(SMALL | {"model_type": model_type} | changes))
    return read_spec(folder)


@pytest.mark.parametrize("model_type", TYPES)
def test_what_a_file_leaves_out_is_as_in_transformers(tmp_path: Path, model_type: str) -> None:
    spec, config = of_type(tmp_path, model_type), AutoConfig.from_pretrained(tmp_path)
    delta = spec.delta
    assert delta is not None
    assert [("linear" if keeps else "full") + "_attention" for keeps in delta.layers] == config.layer_types
    assert (delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim, delta.kernel) == (
        config.linear_num_key_heads, config.linear_num_value_heads, config.linear_key_head_dim,
        config.linear_value_head_dim, config.linear_conv_kernel_dim,
    )  # fmt: skip
    assert (spec.head_dim, spec.norm_eps, spec.tied_embeddings, spec.max_positions) == (
        config.head_dim, config.rms_norm_eps, config.tie_word_embeddings, config.max_position_embeddings,
    )  # fmt: skip
    assert spec.rope.turned == int(config.head_dim * config.rope_parameters["partial_rotary_factor"]) == 64
    assert spec.rope.theta == config.rope_parameters["rope_theta"]
    if spec.experts is not None:
        assert (spec.experts.count, spec.experts.chosen, spec.experts.inner, spec.experts.shared) == (
            config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size,
            config.shared_expert_intermediate_size,
        )  # fmt: skip
        assert spec.experts.normalised == getattr(config, "norm_topk_prob", True)


def test_which_layers_keep_a_state_and_have_no_rows(tmp_path: Path) -> None:
    spec = of_type(tmp_path, "qwen3_5_text", full_attention_interval=3)
    assert [spec.keeps_state(layer) for layer in range(8)] == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    assert spec.blocks_per_row == 2 * 2
    assert [spec.rows_of(layer).kv_heads for layer in range(8)] == [0, 0, 2, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("made", ["qwen3_5", "qwen3_5_that_sees", "qwen3_5_moe", "qwen3_next"])
def test_what_this_transformers_saves_is_read_back(tmp_path: Path, made: str) -> None:
    config = getattr(tiny_models, made)(tmp_path).config
    spec = read_spec(tmp_path)
    text = config.get_text_config()
    assert spec.wrapped == (made == "qwen3_5_that_sees")
    assert (spec.layers, spec.heads, spec.kv_heads, spec.tied_embeddings) == (
        text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads,
        config.tie_word_embeddings,
    )  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": None}))
    assert read_spec(tmp_path) == spec


@pytest.mark.parametrize("made", ["qwen3_5", "qwen3_next"])
def test_every_row_comes_where_it_is_computed_with(tmp_path: Path, made: str) -> None:
    """Queries apart from their gates, and what is stored by key head in the order of the projections."""
    model = getattr(tiny_models, made)(tmp_path)
    spec, stored = read_spec(tmp_path), load_file(tmp_path / "model.safetensors")
    layout = plan(tmp_path, spec, "float32")
    region = np.zeros(layout.bytes, dtype=np.uint8)
    fill(layout, HostWriter(region))
    entries = {one.name: one for one in layout.tensors}

    def found(name: str) -> torch.Tensor:
        one = entries[name]
        size = int(np.prod(one.shape)) * 4
        return torch.from_numpy(region[one.offset :][:size].view(np.float32).reshape(one.shape))

    delta, d, heads = spec.delta, spec.head_dim, spec.heads
    assert delta is not None
    (full,) = {name.split("self_attn")[0] for name in stored if "self_attn.q_proj" in name}
    both = stored[f"{full}self_attn.q_proj.weight"].view(heads, 2, d, -1)
    order = list(spec.head_order)
    assert torch.equal(found("layers.3.qkv")[: heads * d].view(heads, d, -1), both[:, 0][:, order])
    assert torch.equal(found("layers.3.o_gate").view(heads, d, -1), both[:, 1])
    x = torch.randn(1, 5, spec.hidden_size)
    layer = model.model.layers[0].linear_attn
    with torch.inference_mode():
        if made == "qwen3_next":
            q, k, v, z, b, a = layer.fix_query_key_value_ordering(layer.in_proj_qkvz(x), layer.in_proj_ba(x))
            parts = [one.reshape(5, -1) for one in (q, k, v, z)], [one.reshape(5, -1) for one in (b, a)]
        else:
            parts = (
                [layer.in_proj_qkv(x)[0], layer.in_proj_z(x)[0]],
                [layer.in_proj_b(x)[0], layer.in_proj_a(x)[0]],
            )
        for name, wanted_parts in zip(("qkvz", "ba"), parts, strict=True):
            torch.testing.assert_close(x[0] @ found(f"layers.0.{name}").T, torch.cat(wanted_parts, -1))
    assert torch.equal(found("layers.0.conv"), layer.conv1d.weight)
    assert torch.equal(found("layers.0.a_log"), layer.A_log)


def test_what_float32_is_computed_with_is_kept_so(tmp_path: Path) -> None:
    tiny_models.qwen3_5(tmp_path)
    kept = {
        one.name.rpartition(".")[2]
        for one in plan(tmp_path, read_spec(tmp_path), "bfloat16").tensors
        if one.dtype == "float32"
    }
    assert kept == {"conv", "a_log", "dt_bias", "state_norm"}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gelu": ("qwen3_5_text", {"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
    "bias": ("qwen3_5_text", {"attention_bias": True}, "attention_bias = true is not supported"),
    "no gate": ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate = false is not supported"),
    "half a state": ("qwen3_5_text", {"mamba_ssm_dtype": "bfloat16"}, 'mamba_ssm_dtype = "bfloat16" is not'),
    "slides": ("qwen3_next", {"use_sliding_window": True}, "use_sliding_window = true is not supported"),
    "kinds": (
        "qwen3_5_text",
        {"layer_types": ["sliding_attention"] * 8},
        "layer_types must list 8 times one of linear_attention, full_attention",
    ),
    "too few": ("qwen3_5_text", {"layer_types": ["full_attention"]}, "layer_types must list 8 times"),
    "no rows": (
        "qwen3_5_text",
        {"layer_types": ["linear_attention"] * 8},
        "layer_types leaves no layer that",
    ),
    "none attends": ("qwen3_next", {"full_attention_interval": 9}, "full_attention_interval leaves no layer"),
    "heads": (
        "qwen3_5_text",
        {"linear_num_value_heads": 24},
        "linear_num_value_heads is 24, no multiple of linear_num_key_heads, which is 16",
    ),
    "no tail": (
        "qwen3_5_text",
        {"linear_conv_kernel_dim": 1},
        "linear_conv_kernel_dim must be a whole number",
    ),
    "no head": ("qwen3_5_text", {"linear_value_head_dim": 0}, "linear_value_head_dim must be a whole number"),
    "weights": ("qwen3_5_moe_text", {"norm_topk_prob": False}, "norm_topk_prob = false is not supported"),
    "dense": ("qwen3_5_moe_text", {"mlp_only_layers": [1]}, "mlp_only_layers = [1] is not supported"),
    "more": (
        "qwen3_next",
        {"num_experts": 4, "num_experts_per_tok": 5},
        "num_experts_per_tok is 5, of 4 experts",
    ),
    "shared": (
        "qwen3_next",
        {"shared_expert_intermediate_size": 0},
        "shared_expert_intermediate_size must be a whole number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_file_and_field(tmp_path: Path, case: str) -> None:
    model_type, changes, reason = REFUSED[case]
    with pytest.raises(ModelFolderError) as caught:
        of_type(tmp_path, model_type, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert reason in str(caught.value)


def test_such_a_model_is_not_cut_over_devices(tmp_path: Path) -> None:
    spec = of_type(tmp_path, "qwen3_5_text")
    with pytest.raises(ModelFolderError, match=r"model\.tp: .* layers that keep a state are not cut"):
        cut_spec(spec, 2)


def test_an_adapter_of_such_a_base_is_refused_by_its_name(tmp_path: Path) -> None:
    spec = of_type(tmp_path, "qwen3_5_text")
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelFolderError, match="keep a state, which takes no adapter"):
        read_lora(tmp_path, spec)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    tiny_models.qwen3_5(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"linear_conv_kernel_dim": 3}))
    with pytest.raises(ModelFolderError, match=r"linear_attn\.conv1d\.weight has shape"):
        plan(tmp_path, read_spec(tmp_path), "float32")


def test_each_layer_has_its_own_tensors(tmp_path: Path) -> None:
    spec = of_type(tmp_path, "qwen3_next", mlp_only_layers=[1])
    names = {one.name for one in wanted(spec)}
    assert {"layers.0.qkvz", "layers.0.experts.down", "layers.0.shared_gate", "layers.3.o_gate"} <= names
    assert not {"layers.0.qkv", "layers.3.qkvz", "layers.1.shared_gate", "layers.3.conv"} & names
    assert "layers.1.gate_up" in names


@pytest.mark.parametrize("made", ["qwen3_5", "qwen3_next"])
def test_rows_that_are_picked_come_in_any_pieces(
    tmp_path: Path, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a matrix that is larger than what is converted at a time."""
    getattr(tiny_models, made)(tmp_path)
    layout = plan(tmp_path, read_spec(tmp_path), "bfloat16")
    whole, found = np.zeros(layout.bytes, dtype=np.uint8), np.full(layout.bytes, 7, dtype=np.uint8)
    fill(layout, HostWriter(whole))
    monkeypatch.setattr(reading, "CHUNK", 3 * 96)
    fill(layout, HostWriter(found))
    for one in layout.tensors:
        at = slice(one.offset, one.offset + int(np.prod(one.shape)) * ITEM_BYTES[one.dtype])
        assert np.array_equal(found[at], whole[at]), one.name


@pytest.mark.skipif(bool(native.missing()), reason=native.missing())
def test_what_is_small_and_decides_much_stays_as_it_is(tmp_path: Path) -> None:
    tiny_models.qwen3_5_moe(tmp_path)
    made = plan(tmp_path, read_spec(tmp_path), "float32", packing=Packing("int4"))
    forms = {one.name.split(".", 2)[-1]: one.form for one in made.tensors if one.name.startswith("layers.0.")}
    assert {forms[name] for name in ("ba.0", "ba.1", "router", "shared_gate")} == {"f32"}
    assert {forms[name] for name in ("qkvz.0", "qkvz.1", "out", "shared.down")} == {"q4_1"}
    assert {forms[name] for name in ("conv", "a_log", "dt_bias", "state_norm")} == {""}
