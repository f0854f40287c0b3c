"""One expert's matrix out of tensors that hold those of all experts. As gpt-oss stores them gate and up take
turns in their rows, and numbers are floats with the inputs first, or MXFP4; as Gemma 4 does, "straight", all
of gate comes before all of up, as floats with the outputs first.

MXFP4 (OCP Microscaling Formats 1.0): 32 numbers of four bits share an exponent. Here codes and exponents are
two tensors; a GGUF's block of the same numbers (``muxd.models.blocks``) has the exponent before its codes,
and numbers i and i + 16 in a byte where these files have 2 i and 2 i + 1. No number changes.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Layout = Literal["turned", "mxfp4", "vector", "straight"]
Read = Callable[[int, int], Bytes]  # (first byte, how many) of a stored tensor

GROUP = 32  # numbers that share an exponent
NAN = 255  # the exponent that is none
CODES, EXPONENTS = "_blocks", "_scales"  # ends of names


class Cut(Struct, frozen=True):
    """Rows ``first``, ``first + step`` ... of expert ``expert``'s matrix or vector; straight: the ``first``
    of ``step`` matrices one after another. ``rows``: how many those are where only some of them are wanted;
    0: all are."""

    layout: Layout
    expert: int
    experts: int
    first: int = 0
    step: int = 1
    rows: int = 0

    def part(self, first: int, rows: int) -> "Cut":
        """Of its ``rows`` those from ``first`` on; the shape that is asked for says how many."""
        return structs.replace(self, first=self.first + first * self.step, rows=self.rows or rows)

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The stored tensor's shape, where that of what is cut out is [rows, columns] or [rows]."""
        rows, columns = self._stored(shape), shape[-1]
        if self.layout == "vector":
            return self.experts, rows
        if self.layout == "turned":
            return self.experts, columns, rows
        if self.layout == "straight":
            return self.experts, rows, columns
        return self.experts, rows, columns // GROUP, GROUP // 2

    def _stored(self, shape: tuple[int, ...]) -> int:
        """Rows of the stored matrix of each expert."""
        return (self.rows or shape[0]) * self.step

    def floats(self, shape: tuple[int, ...], item: int, read: Read) -> Bytes:
        """Row-major, ``item`` bytes a number."""
        if self.layout == "straight":
            size = shape[0] * shape[1] * item
            return read((self.expert * self.step + self.first) * size, size)
        rows, kind = self._stored(shape), f"u{item}"
        size = rows * (shape[1] if self.layout == "turned" else 1) * item
        raw = read(self.expert * size, size).view(kind)
        found = raw.reshape(-1, rows).T if self.layout == "turned" else raw
        return np.ascontiguousarray(found[self.first :: self.step][: shape[0]]).view(np.uint8).reshape(-1)

    def blocks(self, shape: tuple[int, ...], codes: Read, exponents: Read) -> Bytes:
        """GGUF's, row by row. Raises ValueError where an exponent is none."""
        rows, groups = self._stored(shape), shape[1] // GROUP
        size, place = rows * groups, self.expert * rows * groups
        found = exponents(place, size).reshape(rows, groups)[self.first :: self.step][: shape[0]]
        if np.any(found == NAN):
            raise ValueError("it holds numbers that are not finite")
        packed = codes(place * GROUP // 2, size * GROUP // 2)
        pairs = packed.reshape(rows, groups, GROUP // 2)[self.first :: self.step][: shape[0]]
        out = np.empty((*found.shape, 1 + GROUP // 2), dtype=np.uint8)
        numbers = np.stack((pairs & 15, pairs >> 4), -1).reshape(*found.shape, GROUP)
        out[..., 0], out[..., 1:] = found, numbers[..., : GROUP // 2] | numbers[..., GROUP // 2 :] << 4
        return out.reshape(-1)
