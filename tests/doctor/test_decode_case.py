"""What the doctor times on a GPU, computed once on the CPU by the reference: its inputs are sound."""

import pytest
import torch

from muxd.doctor.compute import decode_case


def test_the_timed_step_is_attention_over_the_whole_context() -> None:
    pytest.importorskip("muxd.kernels.paged_decode")
    step = decode_case("cpu", batch=3, context=64)
    out = step(132)
    assert (out.shape, out.dtype) == ((3, 8 * 4 * 128), torch.bfloat16)
    assert out.isfinite().all()
    assert (out > 0).any()
