"""Prefill with places looked up ahead, and the chain of small kernels."""

import pytest
import torch
from support.kernel_cases import Shape, check_prefill

pytest.importorskip("triton")

from unmeasured_variants import dependent_launch, prefill_ahead

from muxd.kernels import paged_prefill_kernel


@pytest.mark.parametrize(
    "shape",
    [
        Shape(128, 1, 4, torch.bfloat16),
        Shape(80, 1, 3, window=65, softcap=30.0),
        Shape(64, 2, 4, torch.bfloat16, kv_dtype=torch.float8_e4m3fn),
    ],
)
def test_prefill_ahead(shape: Shape) -> None:
    check_prefill(prefill_ahead, shape, [(0, 70), (7, 0), (130, 1)])


def test_its_kernel_is_the_one_that_serves_with_one_function_exchanged() -> None:
    own, served = prefill_ahead._prefill.fn, paged_prefill_kernel._prefill.fn
    assert own.__code__ is served.__code__
    assert own.__globals__["_stretch"] is prefill_ahead._stretch
    assert served.__globals__["_stretch"] is not prefill_ahead._stretch


def test_a_chain_of_small_kernels() -> None:
    x, weight = torch.randn(50), torch.randn(50)
    wanted = (0.5 * (0.5 * x + weight)) + weight
    dependent_launch.chain(x, weight, 2, early=False)
    torch.testing.assert_close(x, wanted)
