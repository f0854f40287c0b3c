"""Gemma 4's config.json as transformers reads it, as published and as saved; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_models import FULL, GEMMA4_EXPERTS, SLIDING, gemma4
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from muxd.cost.shapes import of_spec
from muxd.errors import ModelFolderError
from muxd.kernels.row_layout import KvHeads
from muxd.models.cut import cut_spec
from muxd.models.rope import ProportionalScaling
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.stored_names import harmless
from muxd.models.tensors import wanted
from muxd.models.weights import plan

# The larger models' fields, smaller numbers.
PUBLISHED: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "vocab_size": 320,
    "hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_global_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "intermediate_size": 96,
    "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision",
    "sliding_window": 24, "final_logit_softcapping": 30.0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
SMALL = PUBLISHED | {
    "attention_k_eq_v": False, "num_kv_shared_layers": 5, "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320,
}  # fmt: skip


def written(folder: Path, config: dict[str, Any], **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config | changes))
    return read_spec(folder)


@pytest.mark.parametrize("config", [PUBLISHED, SMALL, {**SMALL, "num_kv_shared_layers": 0}])
def test_layers_are_what_transformers_makes_of_them(tmp_path: Path, config: dict[str, Any]) -> None:
    spec = written(tmp_path, config)
    theirs = AutoConfig.from_pretrained(tmp_path)
    last: dict[str, int] = {}
    for layer, (kind, mode) in enumerate(zip(theirs.layer_types, theirs.kv_sharing_modes, strict=True)):
        own, rows = theirs.per_layer_config[layer], spec.rows_of(layer)
        assert (rows.kv_heads, rows.head_dim) == (own.num_key_value_heads, own.head_dim)
        assert spec.windows[layer] == (24 if kind == SLIDING else None)
        assert rows.own == (mode != "reuse")
        assert spec.inner_of(layer) == 96 * (2 if mode == "reuse" and theirs.use_double_wide_mlp else 1)
        if rows.own:
            last[kind] = layer
        assert rows.first == spec.rows_of(last[kind]).first
    assert spec.keys_as_values == tuple(
        i for i, kind in enumerate(theirs.layer_types) if kind == FULL and theirs.attention_k_eq_v
    )
    assert (spec.attention_scale, spec.logit_softcap, spec.layer_inputs) == (
        1.0, 30.0, theirs.hidden_size_per_layer_input,
    )  # fmt: skip


def test_a_row_of_the_larger_ones(tmp_path: Path) -> None:
    """10 layers of 4 narrow KV heads, 2 of 2 wide ones."""
    spec = written(tmp_path, PUBLISHED)
    assert spec.blocks_per_row == 10 * 4 + 2 * 2 * 2
    assert spec.tokens_per_row(8192, 2) == 8192 // (2 * 16 * 2)
    shape = of_spec(spec)
    assert shape.on(1).blocks_per_row == spec.blocks_per_row
    assert shape.on(1).kv_bytes == 2 * 2 * (10 * 4 * 16 + 2 * 2 * 32)
    assert shape.degrees() == [1]
    with pytest.raises(ModelFolderError, match="its layers have heads of several kinds"):
        cut_spec(spec, 2)


@pytest.mark.parametrize(
    "changes", [{}, GEMMA4_EXPERTS, {"global_head_dim": 32}, {"tie_word_embeddings": False}]
)
def test_what_this_transformers_saves_is_read_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = gemma4(tmp_path, **changes)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    assert "per_layer_config" in saved
    spec = read_spec(tmp_path)
    file.write_text(json.dumps(saved | {"architectures": None}))
    assert read_spec(tmp_path) == spec
    region = plan(tmp_path, spec, "float32")
    counted = sum(int(np.prod(tensor.shape)) for tensor in region.tensors)
    twice = [tensor for tensor in wanted(spec) if len({part.stored for part in tensor.parts}) == 2]
    keys = [tensor.parts[1].shape for tensor in twice if tensor.name.endswith(".qkv")]
    scalars = spec.layers
    assert counted - sum(map(np.prod, keys)) == model.num_parameters() + scalars
    shape = of_spec(spec)
    assert 0.97 * counted < shape.parameters < counted


def test_proportional_rope_is_transformers(tmp_path: Path) -> None:
    told = {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.3, "factor": 2.0}
    plain = {"rope_type": "default", "rope_theta": 1e4}
    spec = written(tmp_path, PUBLISHED, rope_parameters={FULL: told, SLIDING: plain})
    theirs = AutoConfig.from_pretrained(tmp_path)
    wanted, _ = ROPE_INIT_FUNCTIONS["proportional"](theirs.per_layer_config[FULL], layer_type=FULL)
    found = spec.rope.inverse_frequencies(32)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
    assert int((found > 0).sum()) == 4
    assert written(tmp_path, PUBLISHED).rope.scaling == ProportionalScaling(0.25)


def test_heads_of_one_layer(tmp_path: Path) -> None:
    own = {"05": {"head_dim": 32, "num_key_value_heads": 1}, "11": {"head_dim": 32}}
    spec = written(tmp_path, PUBLISHED, per_layer_config=own)
    assert spec.layer_heads[5] == KvHeads(1, 32)
    assert spec.layer_heads[11] == KvHeads(4, 32)
    assert set(spec.layer_heads[:5]) == {KvHeads(4, 16)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all' is not served"),
        ({"attention_bias": True}, "attention_bias = true is not supported"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"global_head_dim": 48}, "heads of 16, 48 dimensions"),
        ({"global_head_dim": 64}, "heads of 16, 64 dimensions"),
        ({"num_kv_shared_layers": 12}, "num_kv_shared_layers = 12 leaves no layer"),
        ({"num_kv_shared_layers": 9}, "num_kv_shared_layers = 9 leaves no layer"),
        ({"num_global_key_value_heads": 3}, "heads 8 is not a multiple of num_key_value_heads 3"),
        ({"per_layer_config": {"12": {}}}, "per_layer_config.'12' is not a layer; there are 12"),
        ({"per_layer_config": {"3": {"skip": ["mlp"]}}}, "per_layer_config.3.'skip' of one layer is not"),
        ({"per_layer_config": {"3": {"head_dim": 0}}}, "per_layer_config.3.head_dim must be"),
        (
            {"num_kv_shared_layers": 3, "per_layer_config": {"11": {"head_dim": 32}}},
            "gives layer 11 other heads than 5",
        ),
        ({"rope_parameters": {FULL: {"rope_type": "default"}}}, "sliding_attention is missing"),
        (
            {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 319},
            "vocab_size_per_layer_input is 319; it must be at least vocab_size, 320",
        ),
        ({"enable_moe_block": True}, "num_experts is missing"),
        (
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 5, "moe_intermediate_size": 8},
            "top_k_experts is 5, of 4 experts",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelFolderError, match=told):
        written(tmp_path, PUBLISHED, **changes)


def test_what_a_layer_does_not_read_is_harmless(tmp_path: Path) -> None:
    spec = written(tmp_path, SMALL)
    name = "model.layers.{}.self_attn.{}.weight"
    assert all(harmless(name.format(7, part), spec) for part in ("k_proj", "v_proj", "k_norm", "v_norm"))
    assert not any(harmless(name.format(6, part), spec) for part in ("k_proj", "v_proj", "k_norm"))
    assert not harmless(name.format(7, "q_proj"), spec)
    assert not harmless(name.format(99, "k_proj"), spec)
