"""Makes Triton's interpreter compute in bfloat16 and round to float8 as the device does.

Triton 3.6 to 3.9 keep bfloat16 as numpy uint16 there and compute on the bits as if they were integers (issues
4972, 11584 of triton-lang/triton), and cut instead of rounding to float8. Every operation the kernels use is
widened to float32, done, and rounded back to nearest even by torch.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_TORCH = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn}
_BITS = {tl.bfloat16: (torch.int16, np.uint16), tl.float8e4nv: (torch.uint8, np.uint8)}


def widen(bits: NDArray[Any], dtype: Any) -> NDArray[np.float32]:
    """Bits of a Triton type -> float32."""
    raw = torch.from_numpy(np.array(bits)).view(_BITS[dtype][0])
    return raw.view(_TORCH[dtype]).float().numpy()


def narrow(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Floats -> bits of a Triton type, to nearest even; NaN stays NaN."""
    rounded = torch.from_numpy(np.array(values, dtype=np.float32)).to(_TORCH[dtype])
    return rounded.view(_BITS[dtype][0]).numpy().view(_BITS[dtype][1])


def _is(handle: Any) -> bool:
    return handle is not None and handle.dtype.scalar in _TORCH


def _wide(handle: Any) -> Any:
    return TensorHandle(widen(handle.data, handle.dtype.scalar), tl.float32) if _is(handle) else handle


def install() -> None:
    """Patch the interpreter of this process, once."""
    if getattr(InterpreterBuilder, "muxd_floats", False):
        return
    InterpreterBuilder.muxd_floats = True
    dot, binary, unary, cast = (
        getattr(InterpreterBuilder, name) for name in ("create_dot", "binary_op", "unary_op", "cast_impl")
    )
    to_float = InterpreterBuilder.create_fp_to_fp

    def create_dot(self: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
        return dot(self, _wide(a), _wide(b), c, *rest)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if not (_is(left) and _is(right)):
            return binary(self, left, right, op)
        dtype = left.dtype.scalar
        found = op(_wide(left).data, _wide(right).data)
        if found.dtype == np.bool_:
            return TensorHandle(found, tl.int1)
        return TensorHandle(narrow(found, dtype), dtype)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        if not _is(arg):
            return unary(self, arg, op)
        return TensorHandle(narrow(op(_wide(arg).data), arg.dtype.scalar), arg.dtype.scalar)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        source, target = _wide(source), target.scalar
        if target in _TORCH:
            return TensorHandle(narrow(source.data, target), target)
        return source if target == source.dtype.scalar else cast(self, source, target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if _is(source) or target.scalar in _TORCH:
            return cast_impl(self, source, target)
        return to_float(self, source, target, rounding)

    InterpreterBuilder.create_dot, InterpreterBuilder.binary_op = create_dot, binary_op
    InterpreterBuilder.unary_op, InterpreterBuilder.cast_impl = unary_op, cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
