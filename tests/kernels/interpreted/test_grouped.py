"""The grouped product of a mixture of experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import check_grouped

pytest.importorskip("triton")

from muxd.kernels import grouped_kernel

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "fan", "shape"), [(1, 2, (8, 96, 64)), (3, 4, (5, 97, 72)), (40, 2, (3, 70, 130))]
)
def test_tokens_of_a_decode_step(n: int, fan: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_grouped(grouped_kernel, n, fan, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_whose_experts_begin_within_tiles(dtype: torch.dtype) -> None:
    check_grouped(grouped_kernel, 300, 3, (7, 40, 36), dtype)


def test_all_tokens_of_one_expert_and_all_experts_of_each() -> None:
    check_grouped(grouped_kernel, 33, 1, (1, 16, 16), torch.float32)
    check_grouped(grouped_kernel, 9, 6, (6, 16, 16), torch.float32)


def test_nothing_to_do() -> None:
    check_grouped(grouped_kernel, 0, 2, (4, 16, 16), torch.float32)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 20), st.integers(0, 1000), st.sampled_from(DTYPES))
def test_any(data: st.DataObject, n: int, experts: int, seed: int, dtype: torch.dtype) -> None:
    fan = data.draw(st.integers(1, experts))
    outputs, inputs = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    check_grouped(grouped_kernel, n, fan, (experts, outputs, inputs), dtype, seed)
