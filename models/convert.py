"""Element types by numpy alone: bfloat16 has no numpy type, so it travels as the upper half of float32.

Used by ``muxd.models.weights``; every conversion rounds to nearest, ties to even.
"""

import numpy as np
from numpy.typing import NDArray

from muxd.messages import Dtype

Bytes = NDArray[np.uint8]


def convert(raw: Bytes, stored: Dtype, wanted: Dtype) -> Bytes:
    """The elements in ``raw`` (bytes of type ``stored``) as bytes of type ``wanted``.

    Raises OverflowError when a finite value leaves float16's range.
    """
    return raw if stored == wanted else _from_float32(floats_of(raw, stored), wanted)


def floats_of(raw: Bytes, stored: Dtype) -> NDArray[np.float32]:
    """The elements in ``raw`` (bytes of type ``stored``)."""
    if stored == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.float16 if stored == "float16" else np.float32).astype(np.float32, copy=False)


def _from_float32(values: NDArray[np.float32], wanted: Dtype) -> Bytes:
    if wanted == "float32":
        return values.view(np.uint8)
    if wanted == "bfloat16":
        return _round_to_bfloat16(values).view(np.uint8)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.any(np.isinf(half) & np.isfinite(values)):
        raise OverflowError('values leave the range of float16; set dtype, or weights, to "bfloat16"')
    return half.view(np.uint8)


def _round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Adding 0x7FFF plus the lowest kept bit carries exactly when the dropped half rounds up."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN must stay one: the carry could turn it into infinity
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
