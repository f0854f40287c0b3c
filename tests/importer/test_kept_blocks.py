"""An import that keeps the file's blocks serves the same numbers as one that does not."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray
from support.block_folders import random_blocks

from muxd.device.base import HostWriter
from muxd.errors import ModelFolderError
from muxd.importer.convert import Weights, import_gguf
from muxd.importer.progress import Silent
from muxd.kernels import native
from muxd.models import blocks
from muxd.models.packing import Packing
from muxd.models.safetensors_index import index
from muxd.models.spec import read_spec
from muxd.models.weights import WeightPlan, fill, plan


def region(folder: Path, packing: Packing | None = None) -> tuple[WeightPlan, NDArray[np.uint8]]:
    layout = plan(folder, read_spec(folder), "bfloat16", packing=packing)
    filled = np.zeros(layout.bytes, dtype=np.uint8)
    fill(layout, HostWriter(filled))
    return layout, filled


def imported(source: Path, weights: Weights) -> Path:
    folder = source.parent / weights
    import_gguf(source, folder, progress=Silent(), weights=weights)
    return folder


# Rows reordered, norms, w - 1, a tensor of all experts, fused matrices.
@pytest.mark.parametrize("architecture", [
    "llama", "qwen3", "gemma3", "qwen3moe", "mixtral", "phi3", "glm4", "cohere2", "gpt-oss",
])  # fmt: skip
@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_1", "Q5_0"])
def test_kept_blocks_are_read_as_what_they_stand_for(
    write_tiny: Any, architecture: str, quantisation: str
) -> None:
    source = write_tiny(architecture, quantisation).path
    kept, plain = imported(source, "file"), imported(source, "bfloat16")
    assert {one.blocks for one in index(kept).values()} == {"", quantisation.lower()}
    assert np.array_equal(region(kept)[1], region(plain)[1])
    assert (kept / "model.safetensors").stat().st_size < 0.7 * (plain / "model.safetensors").stat().st_size


@pytest.mark.skipif(bool(native.missing()), reason=native.missing())
def test_the_region_is_as_small_as_the_file(write_tiny: Any) -> None:
    source = write_tiny("llama", "Q4_1").path
    kept = imported(source, "file")
    packed, _ = region(kept, Packing("file"))
    assert packed.packed
    assert not packed.copied
    assert {entry.form for entry in packed.tensors} == {"", "q4_1"}
    plain, _ = region(kept)
    assert packed.bytes < 0.5 * plain.bytes
    assert plain.copied


def test_a_file_of_floats_has_nothing_to_keep(write_tiny: Any) -> None:
    folder = imported(write_tiny("llama", "F16").path, "file")
    assert all(not one.blocks for one in index(folder).values())
    assert "quantization_config" not in (folder / "config.json").read_text()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ((b'muxd.blocks":"{', b'muxd.blocks":"['), "must map tensors to one of q4_0, q4_1"),
        ((b': \\"q8_0', b': \\"q9_0'), "must map tensors to one of q4_0, q4_1"),
        ((b': \\"q8_0', b': \\"q6_k'), "of q6_k blocks has shape"),
    ],
)
def test_a_damaged_header_is_refused(write_tiny: Any, damage: tuple[bytes, bytes], reason: str) -> None:
    file = imported(write_tiny("llama", "Q8_0").path, "file") / "model.safetensors"
    content = file.read_bytes()
    assert damage[0] in content
    file.write_bytes(content.replace(*damage, 1))
    with pytest.raises(ModelFolderError, match=reason):
        index(file.parent)


def test_blocks_that_are_not_finite_are_refused_as_numbers_are(write_tiny: Any, tmp_path: Path) -> None:
    source: Path = write_tiny("llama", "Q8_0").path
    tensor = next(one for one in GGUFReader(source).tensors if one.name == "blk.1.ffn_down.weight")
    content = bytearray(source.read_bytes())
    at = tensor.data_offset + 34 * 5
    content[at : at + 2] = np.float16(np.inf).tobytes()
    source.write_bytes(content)
    for weights in get_args(Weights):
        with pytest.raises(ModelFolderError, match=r"ffn_down\.weight' holds values that are not finite"):
            import_gguf(source, tmp_path / weights / "model", progress=Silent(), weights=weights)
        assert list((tmp_path / weights).iterdir()) == []


def test_an_exponent_that_is_none_is_refused(write_tiny: Any, tmp_path: Path) -> None:
    source: Path = write_tiny("gpt-oss", "MXFP4").path
    tensor = next(one for one in GGUFReader(source).tensors if one.name == "blk.1.ffn_down_exps.weight")
    content = bytearray(source.read_bytes())
    content[tensor.data_offset + 17 * 5] = 255
    source.write_bytes(content)
    for weights in get_args(Weights):
        with pytest.raises(
            ModelFolderError, match=r"ffn_down_exps\.weight' holds values that are not finite"
        ):
            import_gguf(source, tmp_path / weights / "model", progress=Silent(), weights=weights)


@pytest.mark.parametrize("kind", blocks.SIZES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_every_half_of_a_block_is_looked_at(kind: str) -> None:
    """Any pair of bytes that can make a number infinite does so by itself."""
    per, size = blocks.SIZES[kind]
    whole = random_blocks(kind, 4 * per, 1 / 64)
    assert blocks.finite(whole, kind)
    for at in range(0, size, 2):
        for value in (np.inf, -np.inf, np.nan):
            raw = whole.copy()
            raw[2 * size + at : 2 * size + at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
            assert blocks.finite(raw, kind) == bool(np.isfinite(blocks.dequantised(raw, kind)).all())
