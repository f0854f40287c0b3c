"""Shapes: the catalogue against the formula, shards, and shapes read from folders."""

import json
from pathlib import Path

import msgspec
import pytest
from support.tiny import tiny_llama

from muxd.cost.analytic import Roofline
from muxd.cost.peaks import CAPTURED
from muxd.cost.shapes import CATALOGUE, ModelShape, known, of_spec, read_shape
from muxd.errors import ConfigError, ModelFolderError
from muxd.kernels.row_layout import KvHeads
from muxd.models.spec import read_spec
from muxd.placement.problem import ModelLoad
from muxd.pool.windowed import Windowed


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameters_follow_from_the_shape(name: str) -> None:
    """Norms and the biases of Qwen2 are the rest."""
    m = CATALOGUE[name]
    dense = m.layers - (m.experts.layers if m.experts else 0)
    attention, mlp = 2 * m.hidden * (m.heads + m.kv_heads) * m.head_dim, 3 * m.hidden * m.intermediate
    counted = m.layers * attention + dense * mlp + m.vocab * m.hidden * (1 if m.tied else 2)
    counted += m.expert_parameters
    assert 0.999 * m.parameters < counted <= m.parameters
    assert m.body_parameters == m.parameters - (1 if m.tied else 2) * m.vocab * m.hidden


def test_shards() -> None:
    large = known("llama-3-70b")
    assert large.degrees() == [1, 2, 4, 8]
    assert [large.kv_heads_on(gpus) for gpus in (1, 2, 8)] == [8, 4, 1]
    assert large.kv_bytes() == 2 * 80 * 8 * 128 * 2
    once_more = 7 * large.vocab * large.hidden  # the embedding is on every device
    assert large.weight_bytes(8) * 8 == pytest.approx(2 * (large.parameters + once_more), abs=8)
    small = known("qwen2.5-0.5b")
    assert small.degrees() == [1, 2], "14 heads"
    assert small.on(2).kv_heads == 1
    few = ModelShape(2, 64, 8, 2, 8, 64, 100, 1000)
    assert few.degrees() == [1, 2, 4, 8]
    assert few.kv_heads_on(8) == 1, "every head is on four devices"


def test_layers_with_windows_need_their_last_tokens() -> None:
    gemma, llama = known("gemma-3-270m"), known("llama-3-8b")
    assert gemma.kept_bytes(300) == 300 * gemma.kv_bytes()
    assert gemma.kept_bytes(8192) * 18 == (3 * 8192 + 15 * 512) * gemma.kv_bytes()
    assert llama.kept_bytes(8192, 2) == 8192 * llama.kv_bytes(2)
    load = ModelLoad("g", "g", gemma, 1.0, 100, 8000)
    assert load.sequence(1) == gemma.kept_bytes(8100)
    assert msgspec.structs.replace(load, prompt=8000, output=100).sequence(1) == 8000 * gemma.kv_bytes()


def test_what_layers_read_of_each_other_is_needed_for_the_longest_window(tmp_path: Path) -> None:
    """Of rows that are laid out by layer: heads of two sizes, one without any, one that reads the first."""
    tiny_llama(tmp_path, layers=5)
    heads = (KvHeads(2, 16), KvHeads(1, 32), KvHeads(0, 16), KvHeads(2, 16, of=0), KvHeads(1, 16))
    windows = (8, 9, None, 12, 7)
    spec = msgspec.structs.replace(read_spec(tmp_path), layer_heads=heads, windows=windows)
    assert spec.layer_blocks == (2, 2, 0, 0, 1)
    assert spec.kept_windows == (12, 9, None, 12, 7)
    shape = of_spec(spec).on(1)
    assert Windowed.of(shape.windows, shape.layer_blocks) == Windowed(12, (0, 1, 2, 3, 4))
    endless = msgspec.structs.replace(spec, windows=(8, 9, None, None, 7))
    assert endless.kept_windows == (None, 9, None, None, 7)
    shape = of_spec(endless).on(1)
    assert Windowed.of(shape.windows, shape.layer_blocks) == Windowed(9, (2, 3, 4))
    assert of_spec(endless).kept_bytes(10) * 5 == of_spec(endless).kv_bytes() * (2 * 10 + 2 * 9 + 7)


def test_keys_and_values_of_a_byte() -> None:
    own = known("llama-3-8b")
    kept = msgspec.structs.replace(own, kv_dtype="fp8")
    assert [kept.kv_bytes(gpus) for gpus in (1, 8)] == [own.kv_bytes(gpus) // 2 for gpus in (1, 8)]
    assert kept.kv_bytes(1, "float32") == kept.kv_bytes(1, "float16") == own.kv_bytes(1, "float32") // 4
    assert kept.weight_bytes() == own.weight_bytes()
    assert (kept.on(2).kv_dtype, own.on(2).kv_dtype) == ("fp8", "auto")
    costs = Roofline("h200", {"own": own, "kept": kept}, CAPTURED)
    steps = {name: costs.decode(name, 1, 100, 64, 4000).seconds for name in ("own", "kept")}
    weights = costs.decode("own", 1, 100, 64, 0).seconds
    assert steps["kept"] - weights == pytest.approx((steps["own"] - weights) / 2, rel=0.01)
    assert costs.prefill("kept", 1, 100, 1, 512) == costs.prefill("own", 1, 100, 1, 512)


def test_a_folder_is_read_without_weights(tmp_path: Path) -> None:
    found = read_shape(tiny_llama(tmp_path))
    assert (found.layers, found.hidden, found.heads, found.kv_heads, found.head_dim) == (2, 64, 4, 2, 16)
    assert found.parameters == 320 * 64 + 2 * (2 * 64 * 6 * 16 + 3 * 64 * 96)
    assert found.tied


def test_a_folders_shape_is_the_catalogues(tmp_path: Path) -> None:
    """Sizes of Qwen3 0.6B: heads wider than the model."""
    config = {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "num_hidden_layers": 28, "head_dim": 128,
        "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072, "vocab_size": 151_936,
        "tie_word_embeddings": True, "max_position_embeddings": 40_960,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = known("qwen3-0.6b")
    found = read_shape(tmp_path)
    assert 0.999 * wanted.parameters < found.parameters < wanted.parameters
    assert msgspec.structs.replace(found, parameters=wanted.parameters) == wanted


def test_shapes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a folder"):
        read_shape(tmp_path / "none")


def test_unknown_models_are_refused_with_the_catalogue() -> None:
    with pytest.raises(ConfigError, match=r"no model 'gpt-2'.*llama-7b.*model's folder"):
        known("gpt-2")


def test_layers_that_keep_a_state_cost_the_same_however_long_a_sequence_is(tmp_path: Path) -> None:
    """Qwen3.5 9B's proportions: K and V of a quarter of the layers, a state like those of 1,500 tokens."""
    config = {
        "model_type": "qwen3_5_text", "vocab_size": 248_320, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 12_288,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_shape(tmp_path)
    assert found.kv_bytes() == 2 * 8 * 4 * 256 * 2
    assert found.state_bytes == 24 * (32 * 128 * 128 + 3 * 8192) * 4
    assert found.degrees() == [1]
    assert (found.on(1).delta, found.on(1).blocks_per_row) == (found.delta, 8 * 4)
    matrices = 8 * 4096 * 256 * (3 * 16 + 2 * 4) + 24 * (4096 * (8192 + 2 * 4096 + 64) + 4 * 8192)
    assert found.parameters == matrices + 32 * 3 * 4096 * 12_288 + 2 * 248_320 * 4096
    costs = Roofline("h200", {"m": found}, CAPTURED)
    short, long = (costs.decode("m", 1, 100, 64, context).seconds for context in (100, 200))
    per_token = (long - short) / 6400
    dense = msgspec.structs.replace(found, delta=None)
    without = Roofline("h200", {"m": dense}, CAPTURED).decode("m", 1, 100, 64, 100).seconds
    assert short - without == pytest.approx(
        64 * per_token * 2 * found.state_bytes / found.kv_bytes(), rel=0.01
    )
