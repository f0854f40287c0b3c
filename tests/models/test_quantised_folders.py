"""Folders quantised by GPTQ, AWQ, compressed-tensors and as FP8: the numbers that their makers meant."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.quantised_folders import FORMS, quantise
from support.tiny_models import llama, phi3, qwen3_5, qwen3_moe, qwen3_next

from muxd.device.base import HostWriter
from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.models import reading
from muxd.models.cut import ALONE, Rank
from muxd.models.packing import Packing
from muxd.models.spec import read_spec
from muxd.models.weights import WeightPlan, fill, plan

SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 64}  # fmt: skip


def region(folder: Path, *, packing: Packing | None = None, rank: Rank = ALONE) -> tuple[WeightPlan, Any]:
    made = plan(folder, read_spec(folder), "float32", packing=packing, rank=rank)
    room = np.zeros(made.bytes, dtype=np.uint8)
    fill(made, HostWriter(room))
    return made, room


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """Quantised by the form that the test names, and the same numbers as they are."""
    llama(tmp_path / "m", **SHAPE)
    quantise(tmp_path / "m", tmp_path / "plain", FORMS[request.param])
    return tmp_path / "m", tmp_path / "plain"


@pytest.mark.parametrize("pair", FORMS, indirect=True)
def test_the_numbers_that_were_meant(pair: tuple[Path, Path], request: pytest.FixtureRequest) -> None:
    form = FORMS[request.node.callspec.params["pair"]]
    folder, plain = pair
    (found, numbers), (wanted, meant) = region(folder), region(plain)
    assert [one.name for one in found.tensors] == [one.name for one in wanted.tensors]
    got, asked = numbers.view(np.float32), meant.view(np.float32)
    if form.kept == "q4_1":  # zero point times scale is rounded to float16
        assert np.abs(got - asked).max() <= 2.0**-10 * np.abs(asked).max()
    else:
        np.testing.assert_array_equal(got, asked)


@pytest.mark.skipif(bool(native.missing()), reason=native.missing())
@pytest.mark.parametrize("pair", FORMS, indirect=True)
def test_codes_stay_codes_for_the_native_step(
    pair: tuple[Path, Path], request: pytest.FixtureRequest
) -> None:
    form = FORMS[request.node.callspec.params["pair"]]
    made, _ = region(pair[0], packing=Packing("file"))
    forms = {one.form for one in made.tensors if ".o" in one.name or "down" in one.name}
    assert forms == {form.kept or "f32"}


@pytest.mark.parametrize("form", ["gptq", "gptq act-order", "awq", "float8 of rows"])
def test_matrices_that_are_cut_and_experts(tmp_path: Path, form: str) -> None:
    """Fused projections in one quantised matrix, queries beside their gates, and each expert's."""
    for make in (phi3, qwen3_moe, qwen3_5, qwen3_next):
        folder, plain = tmp_path / make.__name__, tmp_path / f"{make.__name__}-plain"
        make(folder, hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
        quantise(folder, plain, FORMS[form])
        found, wanted = (region(one)[1].view(np.float32) for one in (folder, plain))
        assert np.abs(found - wanted).max() <= 2.0**-10 * np.abs(wanted).max()


@pytest.mark.parametrize("pair", FORMS, indirect=True)
def test_pieces_that_end_within_rows(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a matrix that is larger than what is converted at a time."""
    _, whole = region(pair[0])
    monkeypatch.setattr(reading, "CHUNK", 3 * 256)
    _, found = region(pair[0])
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("form", ["gptq", "gptq act-order", "awq", "float8 of blocks"])
def test_each_rank_reads_its_part(tmp_path: Path, form: str) -> None:
    llama(tmp_path / "m", **SHAPE | {"intermediate_size": 512})
    quantise(tmp_path / "m", tmp_path / "plain", FORMS[form])
    for number in range(2):
        found, wanted = (
            region(tmp_path / one, rank=Rank(number, 2))[1].view(np.float32) for one in ("m", "plain")
        )
        assert np.abs(found - wanted).max() <= 2.0**-10 * np.abs(wanted).max()


def test_an_older_file_beside_config_json(tmp_path: Path) -> None:
    llama(tmp_path / "m", **SHAPE)
    quantise(tmp_path / "m", tmp_path / "plain", FORMS["gptq"])
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    old = config.pop("quantization_config")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128} | old))
    found, wanted = (region(tmp_path / one)[1] for one in ("m", "plain"))
    np.testing.assert_array_equal(found, wanted)


NAME = "model.layers.1.mlp.down_proj"


def _without(end: str) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{NAME}.{end}"]

    return change


def _replaced(end: str, by: torch.Tensor) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{NAME}.{end}"] = by

    return change


@pytest.mark.parametrize(
    ("form", "change", "told"),
    [
        ("gptq", _without("scales"), "has no scales"),
        ("awq", _without("qzeros"), "has no zeros"),
        ("gptq", _replaced("scales", torch.ones(2, 256)), r"has scales of float32 \[2, 256\], .*\[3, 256\]"),
        ("gptq", _replaced("qweight", torch.ones(48, 256)), "g_idx has dtype I32, and config.json"),
        ("gptq", _replaced("qzeros", torch.zeros(3, 32, dtype=torch.int32)), "calls it symmetric"),
        ("gptq", _replaced("g_idx", torch.zeros(384, dtype=torch.int32)), "order of their groups"),
        ("gptq act-order", _replaced("g_idx", torch.full((384,), 7, dtype=torch.int32)), "groups 7 to 7"),
        ("gptq", _replaced("bias", torch.ones(256)), "tensor .*bias is not part of"),
        ("gptq", _replaced("scales", torch.full((3, 256), 1e5)), "not finite, or beyond float16"),
        ("awq", _replaced("scales", torch.full((3, 256), 1e4)), "not finite, or beyond float16"),
        ("packed", _replaced("weight_scale", torch.full((256, 3), torch.nan)), "not finite, or beyond"),
        ("int8", _replaced("weight_scale", torch.ones(3)), r"has scales of float32 \[3\]"),
        ("int8", _replaced("weight_scale_inv", torch.ones(256, 1)), "say the same of one matrix"),
        ("int8", _replaced("weight_offset", torch.ones(3, dtype=torch.int8)), "dtype I8, and config.json"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, form: str, change: Any, told: str) -> None:
    llama(tmp_path / "m", **SHAPE)
    quantise(tmp_path / "m", tmp_path / "plain", FORMS[form])
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=told) as caught:
        region(tmp_path / "m")
    assert str(path) in caught.value.message


GROUP = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 128}}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quant_method": "gptq", "bits": 3}, "quantization_config.bits must be 4 or 8, not 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format must be"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"x": {}}}, "dynamic quantises matrices in several"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size must be a whole number"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, 'version must be "gemm", not "gemv"'),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point = false"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "weight_block_size must be two whole"),
        ({"quant_method": "compressed-tensors", "format": "dense"}, "config_groups must be one group"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4", "config_groups": {"a": GROUP}},
            "format must be one of pack-quantized",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": GROUP, "b": GROUP}},
            "must be one group",
        ),
    ],
)
def test_settings_that_are_not_read(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(ModelFolderError, match="quantization_config") as caught:
        read_spec(tmp_path)
    assert told in caught.value.message
