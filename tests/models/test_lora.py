"""What an adapter's folder may say, and how each refusal names the file and what is wrong in it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.adapters import EVERYWHERE, adapter
from support.mutation import damaged_bytes, damaged_json
from support.tiny_models import bert, gemma3, llama
from transformers import PreTrainedModel

from muxd.errors import ModelFolderError
from muxd.models import lora
from muxd.models.lora import CONFIG, WEIGHTS, read_lora
from muxd.models.spec import ModelSpec, read_spec

Tensors = dict[str, torch.Tensor]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("base")
    model = llama(folder, num_hidden_layers=2)
    return read_spec(folder), model


@pytest.fixture
def folder(base: tuple[ModelSpec, PreTrainedModel], tmp_path: Path) -> Path:
    adapter(tmp_path, base[1], seed=1)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def refusal(folder: Path, spec: ModelSpec) -> str:
    with pytest.raises(ModelFolderError) as refused:
        read_lora(folder, spec)
    return refused.value.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"r": 0}, "r must be a whole number"),
        ({"r": 100_000}, "r must be at most"),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"use_rslora": 1}, "use_rslora"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": [*EVERYWHERE, "lm_head"]}, "target_modules names lm_head"),
        ({"target_modules": [*EVERYWHERE, "fc1"]}, "target_modules names 'fc1'"),
        ({"target_modules": ["q_proj"]}, "leave out"),
        ({"layers_to_transform": [0]}, "leave out"),
        ({"layers_to_transform": "0"}, "layers_to_transform"),
        ({"rank_pattern": {"q_proj": 5}}, "has shape"),
        ({"rank_pattern": {"fc1": 5}}, "rank_pattern names 'fc1'"),
        ({"alpha_pattern": {"fc1": 5}}, "alpha_pattern names 'fc1'"),
        ({"alpha_pattern": {"(a+)+": 5}}, "alpha_pattern has the pattern"),
        ({"alpha_pattern": {"(q|q)(_|_)(p|p)roj": 5}}, "alpha_pattern has the pattern"),
        ({"alpha_pattern": {"q_proj)": 5}}, "alpha_pattern has the pattern"),
        ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern.q_proj"),
        ({"alpha_pattern": []}, "alpha_pattern"),
    ],
)
def test_settings_that_are_not_computed_are_refused_by_name(
    base: tuple[ModelSpec, PreTrainedModel], folder: Path, fields: dict[str, Any], words: str
) -> None:
    change(folder, **fields)
    said = refusal(folder, base[0])
    assert str(folder) in said
    assert words in said


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), "lora_B of model.layers.0.self_attn.q_proj is missing"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 95)}), "has shape [4, 95]"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(5, 96)}), "it is [4, 96]"),
        (lambda t: t[f"{Q}.lora_A.weight"].fill_(torch.inf), "not finite"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.zeros(384)}), "DoRA"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 96)}), "heads"),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4)}),
            "embed",
        ),
        (lambda t: t.update({f"{Q}.bias": torch.zeros(384)}), "adapts nothing"),
        (lambda t: t.update({Q.replace("0", "2") + ".lora_A.weight": torch.zeros(4, 96)}), "adapts nothing"),
        (lambda t: t.update({f"{Q}.lora_A.default.weight": torch.zeros(4, 96)}), "is there twice"),
        (lambda t: t.clear(), "no tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    base: tuple[ModelSpec, PreTrainedModel], folder: Path, edit: Callable[[Tensors], Any], words: str
) -> None:
    rewrite(folder, edit)
    said = refusal(folder, base[0])
    assert str(folder) in said
    assert words in said


def test_a_file_that_is_not_there_is_named(base: tuple[ModelSpec, PreTrainedModel], folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is never loaded" in refusal(folder, base[0])
    (folder / CONFIG).unlink()
    assert f"{CONFIG} is missing" in refusal(folder, base[0])
    assert "is not a folder" in refusal(folder / "elsewhere", base[0])


def test_an_encoder_takes_none(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    encoder = tmp_path_factory.mktemp("encoder")
    bert(encoder)
    assert "encoder" in refusal(folder, read_spec(encoder))


@pytest.mark.parametrize(
    "targets",
    ["all-linear", r"model\.layers\.\d+\.(self_attn|mlp)\..*", list(EVERYWHERE), ["self_attn.q_proj"]],
)
def test_targets_in_every_form(base: tuple[ModelSpec, PreTrainedModel], tmp_path: Path, targets: Any) -> None:
    few = targets == ["self_attn.q_proj"]
    adapter(tmp_path, base[1], seed=1, targets=("q_proj",) if few else EVERYWHERE)
    change(tmp_path, target_modules=targets)
    found = read_lora(tmp_path, base[0])
    assert len(found.parts) == (2 if few else 14)


def test_scales_follow_the_first_pattern_that_matches(
    base: tuple[ModelSpec, PreTrainedModel], tmp_path: Path
) -> None:
    adapter(tmp_path, base[1], seed=1, rank=4, targets=("q_proj", "v_proj"))
    change(tmp_path, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 2, "^model.layers.[01].*": 3})
    assert "alpha_pattern has the pattern" in refusal(tmp_path, base[0])
    change(
        tmp_path, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 2, r"^model.layers.\d.self_attn.q_proj": 3}
    )
    assert [part.scale for part in read_lora(tmp_path, base[0]).parts] == [0.5, 2.0, 0.75, 2.0]
    change(tmp_path, use_rslora=True)
    assert [part.scale for part in read_lora(tmp_path, base[0]).parts] == [1.0, 4.0, 1.5, 4.0]


def test_the_text_part_of_a_model_that_also_sees(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    model = gemma3(tmp_path / "base")
    adapter(tmp_path, model, seed=1, targets=("q_proj",))

    def outside(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace("model.model.layers", "model.model.language_model.layers")] = tensors.pop(
                name
            )

    rewrite(tmp_path, outside)
    assert len(read_lora(tmp_path, read_spec(tmp_path / "base")).parts) == model.config.num_hidden_layers


@given(st.text(alphabet="ab.|()[]\\d^$+*?{}q_", min_size=1, max_size=24))
def test_a_pattern_that_is_run_ends_soon(pattern: str) -> None:
    """What repeats, or has many alternatives, is never run: strangers write it."""
    if lora._runs_soon(pattern):
        assert not set("+*?{") & set(pattern)
        assert pattern.count("(") <= 2
        lora._matches(pattern, "model.layers.0.self_attn.q_proj")


def test_damage_is_refused_or_read_and_nothing_else(
    base: tuple[ModelSpec, PreTrainedModel], tmp_path: Path
) -> None:
    adapter(tmp_path, base[1], seed=1, ranks={"v_proj": 2}, layers=[0, 1], alpha_pattern={"q_proj": 3})
    files = {name: (tmp_path / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    outcomes = set()
    for seed in range(150):
        draw = random.Random(seed)
        name = draw.choice((CONFIG, WEIGHTS))
        damage = damaged_json if name == CONFIG and draw.random() < 0.8 else damaged_bytes
        for other, content in files.items():
            (tmp_path / other).write_bytes(damage(draw, content) if other == name else content)
        try:
            read_lora(tmp_path, base[0])
            outcomes.add("read")
        except ModelFolderError as error:
            assert str(tmp_path) in error.message  # noqa: PT017 - either is right
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
