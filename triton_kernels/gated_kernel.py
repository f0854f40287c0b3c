# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernel of ``gated``: act(gate) · up, elementwise over a fused gate-and-up projection.

silu(x) = x / (1 + e^-x) (Elfwing et al. 2018); gelu with the tanh approximation of Hendrycks and Gimpel 2016:
x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))). Computed in float32 and rounded once.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, Constants, ceil_div, power_of_two
from muxd.kernels.paged_tile_kernel import tanh


@triton.jit
def _gate(both, out, stride, inner, alpha, limit, KIND: tl.constexpr, SIZE: tl.constexpr):
    line, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    real = i < inner
    gate = tl.load(both + line * stride + i, mask=real, other=0.0).to(tl.float32)
    up = tl.load(both + line * stride + inner + i, mask=real, other=0.0).to(tl.float32)
    if KIND == "clamped":
        gate, up = tl.minimum(gate, limit), tl.minimum(tl.maximum(up, -limit), limit) + 1.0
        active = gate / (1.0 + tl.exp(-alpha * gate))
    elif KIND == "gelu":
        active = 0.5 * gate * (1.0 + tanh(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)))
    else:
        active = gate / (1.0 + tl.exp(-gate))
    tl.store(out + line * inner + i, (active * up).to(out.dtype.element_ty), mask=real)


def gate_calls(
    gate_up: Tensor, kind: str, alpha: float = 1.0, limit: float = 0.0
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launch that fills it, for ``gate_up`` [n, 2 · inner] of any line stride.
    ``kind``: "silu", "gelu" or, with the numbers, "clamped"."""
    n, both = gate_up.shape
    inner = both // 2
    out = torch.empty(n, inner, dtype=gate_up.dtype, device=gate_up.device)
    options = _sizes(inner, kind)
    arguments = (gate_up, out, gate_up.stride(0), inner, alpha, limit)
    return out, [Call(_gate, (n, ceil_div(inner, options["SIZE"])), arguments, options)]


@cache
def _sizes(inner: int, kind: str) -> Constants:
    size = min(2048, power_of_two(inner))
    return Constants(KIND=kind, SIZE=size, num_warps=max(1, size // 256))


def silu_gate(gate_up: Tensor) -> Tensor:
    """As ``gated.silu_gate``."""
    out, calls = gate_calls(gate_up, "silu")
    for call in calls:
        call.run()
    return out


def gelu_tanh_gate(gate_up: Tensor) -> Tensor:
    """As ``gated.gelu_tanh_gate``."""
    out, calls = gate_calls(gate_up, "gelu")
    for call in calls:
        call.run()
    return out


def clamped_gate(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """As ``gated.clamped_gate``."""
    out, calls = gate_calls(gate_up, "clamped", alpha, limit)
    for call in calls:
        call.run()
    return out
