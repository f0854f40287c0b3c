"""Decode attention cut into items: any lengths, windows and heads, however many programs are to be filled."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import Shape, check_decode

from muxd.kernels.row_layout import uniform

pytest.importorskip("triton")

from unmeasured_variants import decode_items

FLOAT8 = torch.float8_e4m3fn


def cut_for(programs: int) -> Any:
    """The kernel as ``check_decode`` takes one."""

    def decode_attention(*tensors: Any, splits: int, **options: Any) -> torch.Tensor:
        return decode_items.decode_attention(*tensors, programs=programs, **options)

    return SimpleNamespace(decode_attention=decode_attention)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(128, 2, 4, torch.bfloat16),
        Shape(64, 2, 7, window=65, softcap=30.0),
        Shape(96, 1, 4, torch.bfloat16, kv_dtype=FLOAT8),
    ],
)
def test_one_long_context_among_short_ones_and_padding(shape: Shape) -> None:
    check_decode(cut_for(4), shape, [300, 0, 33], splits=0)


def test_a_batch_of_padding_only_is_zero() -> None:
    check_decode(cut_for(8), Shape(64, 2, 2), [0, 0, 0], splits=0)


@settings(max_examples=5, derandomize=True)
@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=3),
    st.integers(1, 60),
    st.sampled_from([None, 1, 16, 300]),
    st.sampled_from([1, 2]),
)
def test_however_it_is_cut(lengths: list[int], programs: int, window: int | None, kv_heads: int) -> None:
    check_decode(cut_for(programs), Shape(64, kv_heads, 2, window=window), lengths, splits=0)


@settings(max_examples=15, derandomize=True)
@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=40), st.integers(1, 900), st.sampled_from([None, 700])
)
def test_the_grid_holds_every_item(lengths: list[int], programs: int, window: int | None) -> None:
    """The items of a plan are as many as its tiles need, and no more than programs were launched for."""
    shape = Shape(16, 3, 1, torch.float16)
    layers = uniform(2, 3, 16).layers
    blocks = torch.empty(1, 4096, dtype=shape.dtype)
    pool: Any = SimpleNamespace(layer=layers.__getitem__, blocks=blocks, tokens=128)
    pool.table, pool.block_elements = torch.zeros(1, 6, dtype=torch.int32), 4096
    q, known = torch.empty(len(lengths), 3, 16, dtype=shape.dtype), torch.tensor(lengths, dtype=torch.int32)
    rows = torch.zeros(len(lengths), 1, dtype=torch.int32)
    _, (plan, item, _) = decode_items.decode_calls(
        q, pool, 0, rows, known, scale=1.0, window=window, programs=programs
    )
    plan.run()
    *ends, each = plan.arguments[1].tolist()
    tile = plan.options["TILE"]
    tiles = [-(-n // tile) - (max(n - window, 0) // tile if window else 0) for n in lengths]
    assert each >= 1
    assert [b - a for a, b in pairwise(ends)] == [-(-n // each) for n in tiles]
    assert ends[-1] <= item.grid[0]
