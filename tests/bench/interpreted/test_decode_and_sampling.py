"""Decode attention cut and merged in other ways, and the shortlist by torch, against the same references."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import Shape, check_decode, check_sample

pytest.importorskip("triton")

from unmeasured_variants import decode_merge, decode_splits, sampling_topk

from muxd.kernels import paged_decode_kernel, sampling_kernel
from muxd.kernels.paged_decode import DecodePlan

FLOAT8 = torch.float8_e4m3fn
SHAPES = [
    Shape(128, 2, 4, torch.bfloat16),
    Shape(64, 2, 7, window=65, softcap=30.0),
    Shape(96, 1, 4, torch.bfloat16, kv_dtype=FLOAT8),
    Shape(160, 2, 2, torch.float16, wide=True),
]


def split_by(splits: int) -> Any:
    """The kernel as ``check_decode`` takes one."""

    def decode_attention(*tensors: Any, **options: Any) -> torch.Tensor:
        *others, plan = tensors
        assert isinstance(plan, DecodePlan)
        return decode_splits.decode_attention(*others, splits=splits, **options)

    return SimpleNamespace(decode_attention=decode_attention, plan_decode=paged_decode_kernel.plan_decode)


MERGED = SimpleNamespace(
    decode_attention=decode_merge.decode_attention, plan_decode=paged_decode_kernel.plan_decode
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("splits", [1, 3])
def test_as_many_programs_for_every_sequence(shape: Shape, splits: int) -> None:
    check_decode(split_by(splits), shape, [300, 0, 33], programs=4)


@pytest.mark.parametrize("shape", SHAPES)
def test_items_that_are_merged_by_a_launch(shape: Shape) -> None:
    check_decode(MERGED, shape, [600, 0, 33], programs=8)  # type: ignore[arg-type]


@settings(max_examples=5, derandomize=True)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=3), st.integers(1, 60))
def test_however_it_is_cut(lengths: list[int], programs: int) -> None:
    check_decode(MERGED, Shape(64, 2, 2), lengths, programs)  # type: ignore[arg-type]


def test_the_shortlist_by_torch() -> None:
    order = torch.stack([torch.randperm(3000, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    params = [
        {"temperature": 0.8, "top_k": 5, "seed": 1},
        {"temperature": 0.7, "top_p": 0.8, "seed": 2, "slot": 1, "frequency": 0.3},
        {"temperature": 1.5, "min_p": 0.2, "seed": 3},
    ]
    counted = SimpleNamespace(sample=sampling_topk.sample, count_tokens=sampling_kernel.count_tokens)
    check_sample(counted, (order / 3000 * 2 - 1) * 6, params, shortlist=1024)  # type: ignore[arg-type]
