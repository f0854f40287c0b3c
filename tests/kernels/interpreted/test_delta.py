"""The delta rule over the pool: every type that is projected in, and shapes as hypothesis draws them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.delta_cases import DeltaShape, check_delta_decode, check_delta_prefill

pytest.importorskip("triton")

from muxd.kernels import paged_delta_kernel

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_of_each(dtype: torch.dtype) -> None:
    check_delta_decode(paged_delta_kernel, DeltaShape(2, 2, dtype=dtype), [3, -1, 0, 900])


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks(dtype: torch.dtype) -> None:
    """Longer than the tail, as long, shorter, empty; of prompts that begin and of such that go on."""
    chunks = [(0, 20), (7, 2), (0, 1), (5, 0), (1, 3), (40, 18)]
    check_delta_prefill(paged_delta_kernel, DeltaShape(2, 2, dtype=dtype), chunks)


@pytest.mark.parametrize(
    "shape",
    [
        DeltaShape(1, 1, key_dim=128, value_dim=128, block_bytes=8192),  # as published, 16 lines a block
        DeltaShape(1, 3, key_dim=24, value_dim=20, block_bytes=4096 + 16),  # blocks end within a line
        DeltaShape(3, 1, key_dim=8, value_dim=64, block_bytes=256, per_row=1),  # one line a block
        DeltaShape(2, 1, key_dim=80, value_dim=96, kernel=2, per_row=33),
    ],
)
def test_sizes(shape: DeltaShape) -> None:
    check_delta_decode(paged_delta_kernel, shape, [0, 5])
    check_delta_prefill(paged_delta_kernel, shape, [(0, 3), (9, 5)])


def test_a_batch_of_padding_only() -> None:
    check_delta_decode(paged_delta_kernel, DeltaShape(), [-1, -1])
    check_delta_prefill(paged_delta_kernel, DeltaShape(), [(0, 0), (5, 0)])


SHAPES = st.builds(
    DeltaShape,
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    key_dim=st.integers(1, 40),
    value_dim=st.integers(1, 40),
    kernel=st.integers(2, 5),
    block_bytes=st.integers(10, 80).map(lambda n: 16 * n),
    per_row=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
)


@settings(max_examples=20)
@given(SHAPES, st.lists(st.integers(-1, 3), min_size=1, max_size=3), st.integers(0, 99))
def test_any_step(shape: DeltaShape, positions: list[int], seed: int) -> None:
    check_delta_decode(paged_delta_kernel, shape, positions, seed)


@settings(max_examples=20)
@given(
    SHAPES,
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 24)), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_any_chunks(shape: DeltaShape, chunks: list[tuple[int, int]], seed: int) -> None:
    check_delta_prefill(paged_delta_kernel, shape, chunks, seed)
