# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernel of ``rms_norm``: one program normalises one line, held in registers, with its residual."""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, Constants, power_of_two


@triton.jit
def _rms_norm(
    x, weight, before, after, out, x_stride, eps,
    N: tl.constexpr, N_PAD: tl.constexpr, OFFSET: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    line, i = tl.program_id(0).to(tl.int64), tl.arange(0, N_PAD)
    real = i < N
    full = tl.load(x + line * x_stride + i, mask=real, other=0.0).to(tl.float32)
    if BEFORE:
        stream = before + line * N + i
        full += tl.load(stream, mask=real, other=0.0).to(tl.float32)
        rounded = full.to(before.dtype.element_ty)
        tl.store(stream, rounded, mask=real)
        full = rounded.to(tl.float32)
    w = tl.load(weight + i, mask=real, other=0.0).to(tl.float32)
    if OFFSET:
        w += 1.0
    result = full * tl.rsqrt(tl.sum(full * full, 0) / N + eps) * w
    if AFTER:
        result += tl.load(after + line * N + i, mask=real, other=0.0).to(tl.float32)
    tl.store(out + line * N + i, result.to(out.dtype.element_ty), mask=real)


def rms_norm_calls(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launch that fills it; arguments as of ``rms_norm.rms_norm``.

    ``x`` may have any line stride; ``before`` and ``after`` are contiguous.
    """
    n, size = x.shape
    out = torch.empty(n, size, dtype=x.dtype, device=x.device)
    sizes = _sizes(size, offset, before is not None, after is not None)
    tensors = (x, weight, x if before is None else before, x if after is None else after, out)
    return out, [Call(_rms_norm, (n,), (*tensors, x.stride(0), eps), sizes)]


@cache
def _sizes(size: int, offset: bool, before: bool, after: bool) -> Constants:
    padded = power_of_two(size)
    warps = min(16, max(1, padded // 512))
    constants = {"N": size, "N_PAD": padded, "OFFSET": offset, "BEFORE": before, "AFTER": after}
    return Constants(**constants, num_warps=warps)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """As ``rms_norm.rms_norm``."""
    out, calls = rms_norm_calls(x, weight, eps, offset=offset, before=before, after=after)
    for call in calls:
        call.run()
    return out
