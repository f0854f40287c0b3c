"""Packed matrices hold what files hold, to the bit: as compiled for this CPU, and for the least that is
served."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from support.block_folders import random_blocks

from muxd.kernels import native
from muxd.messages import Dtype
from muxd.models import blocks
from muxd.models.convert import convert

FLOATS: dict[str, Dtype] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
LEAST = "x86-64-v3"

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing())


@pytest.fixture(scope="module", params=["native", LEAST])
def library(request: pytest.FixtureRequest) -> native.Library:
    return native.library(request.param)


def random_rows(kind: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """As a file has them."""
    if kind in FLOATS:
        drawn = np.random.default_rng(seed).normal(size=rows * columns).astype(np.float32)
        return convert(drawn.view(np.uint8), "float32", FLOATS[kind])
    return random_blocks(kind, rows * columns, 1 / 64, seed)


@pytest.mark.parametrize("kind", blocks.SIZES)
def test_both_tables_of_block_sizes_agree(library: native.Library, kind: str) -> None:
    for columns in (256, 768):
        assert library.row_bytes(kind, columns) == blocks.bytes_of(kind, columns)


def numbers(kind: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    if kind in FLOATS:
        return convert(raw, FLOATS[kind], "float32").view(np.float32)
    size = blocks.SIZES[kind][1]
    return dequantize(raw.reshape(-1, size), GGMLQuantizationType[kind.upper()]).reshape(-1)


def packed(
    library: native.Library, form: str, rows: int, columns: int, raw: NDArray[np.uint8], kind: str
) -> NDArray[np.uint8]:
    into = np.full(library.matrix_bytes(form, rows, columns), 0xFF, dtype=np.uint8)
    library.pack(into, form, columns, raw, kind)
    return into


@pytest.mark.parametrize("kind", native.FORMATS)
def test_what_a_file_holds_comes_back_to_the_bit(library: native.Library, kind: str) -> None:
    rows, columns = 37, 512
    raw = random_rows(kind, rows, columns)
    found = library.unpack(packed(library, kind, rows, columns, raw, kind), kind, rows, columns)
    wanted = numbers(kind, raw).reshape(rows, columns)
    # numpy multiplies scales of K blocks in another order: one rounding of float32 apart at most.
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-7)
    if not kind.endswith("_k"):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", blocks.SIZES)
def test_blocks_become_floats(library: native.Library, kind: str) -> None:
    raw = random_rows(kind, 20, 256)
    found = library.unpack(packed(library, "f32", 20, 256, raw, kind), "f32", 20, 256)
    np.testing.assert_allclose(found.reshape(-1), numbers(kind, raw), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("columns", [1, 31, 33, 200])
@pytest.mark.parametrize("kind", FLOATS)
def test_floats_of_any_width(library: native.Library, kind: str, columns: int) -> None:
    raw = random_rows(kind, 5, columns)
    found = library.unpack(packed(library, kind, 5, columns, raw, kind), kind, 5, columns)
    np.testing.assert_array_equal(found.reshape(-1), numbers(kind, raw))


def test_int8_is_what_the_gguf_library_makes(library: native.Library) -> None:
    raw = random_rows("f32", 16, 256)
    found = library.unpack(packed(library, "q8_0", 16, 256, raw, "f32"), "q8_0", 16, 256)
    kind = GGMLQuantizationType.Q8_0
    reference = dequantize(quantize(raw.view(np.float32).reshape(16, 256), kind), kind)
    # A scale is rounded to a half before codes are chosen here, after it there.
    assert (
        np.abs(found - raw.view(np.float32).reshape(16, 256)).max()
        <= 1.01 * np.abs(reference - raw.view(np.float32).reshape(16, 256)).max()
    )


def test_int4_is_closer_than_the_plain_range(library: native.Library) -> None:
    raw = random_rows("f32", 64, 256)
    wanted = raw.view(np.float32).reshape(64, 256)
    found = library.unpack(packed(library, "q4_1", 64, 256, raw, "f32"), "q4_1", 64, 256)
    kind = GGMLQuantizationType.Q4_1
    plain = dequantize(quantize(wanted, kind), kind)
    assert np.square(found - wanted).sum() < 0.95 * np.square(plain - wanted).sum()
