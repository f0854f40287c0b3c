"""The chain of small kernels."""

import pytest
import torch

pytest.importorskip("triton")

from unmeasured_variants import dependent_launch


def test_a_chain_of_small_kernels() -> None:
    x, weight = torch.randn(50), torch.randn(50)
    wanted = (0.5 * (0.5 * x + weight)) + weight
    dependent_launch.chain(x, weight, 2, early=False)
    torch.testing.assert_close(x, wanted)
