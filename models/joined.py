"""A quantised matrix put together from its tensors, rows at a time: as GGUF's blocks or as floats. No torch.

Codes stay the codes they are. Scales of blocks are rounded to float16, as which they are nearly always
stored, and of q4_1 zero point times scale, too. What is held meanwhile is one matrix's codes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muxd.models.convert import floats_of
from muxd.models.quantised import GROUP, matrix_shape
from muxd.models.safetensors_index import Stored

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Read = Callable[[Stored], Bytes]  # all of a stored tensor

_HALF = 65504.0  # the largest float16
_NATURAL = [0, 4, 1, 5, 2, 6, 3, 7]  # where an int32 of AWQ has each of its eight rows


class Joined:
    """Rows of one matrix, made when they are asked for."""

    def __init__(self, stored: Stored, read: Read):
        """Reads all tensors of ``stored``. Raises ValueError where they are not as config.json says."""
        scheme = stored.scheme
        assert scheme is not None
        self._stored, self._scheme = stored, scheme
        self.columns = stored.shape[1]
        parts, codes = stored.parts, stored.parts["codes"]
        self._codes = read(codes).view("<i4" if scheme.layout != "plain" else "u1").reshape(codes.shape)
        self._scales = self._floats(parts["scales"], read)
        self._middle = 1 << (scheme.bits - 1)
        self._zeros = self._zero_points(parts, read)
        self._group_of = self._groups(parts, read)
        most = float(np.abs(self._scales).max()) * (1 if self._zeros is None else float(self._zeros.max()))
        if stored.blocks and not most <= _HALF:
            raise ValueError("its scales are not finite, or beyond float16")

    def bytes(self, at: int, count: int) -> Bytes:
        """``count`` bytes from byte ``at`` of the rows of ``stored`` on."""
        row, at = self._stored.bytes_of(self.columns), self._stored.offset + at
        first, stop = at // row, -(-(at + count) // row)
        made = self._blocks(first, stop) if self._stored.blocks else self._numbers(first, stop)
        return made.reshape(-1)[at - first * row :][:count]

    # ---- what is read once ------------------------------------------------------------------------

    def _floats(self, stored: Stored, read: Read) -> Floats:
        """Scales [rows, groups], of blocks [blocks down, blocks along]."""
        values = floats_of(read(stored), stored.dtype).reshape(stored.shape or (1,))
        if self._scheme.layout in ("gptq", "awq"):
            return values.T
        if self._scheme.block is not None or self._scheme.group:
            return values
        return values.reshape(-1, 1)  # one a row, or one

    def _zero_points(self, parts: dict[str, Stored], read: Read) -> Floats | None:
        """[rows, groups]; None: all are the middle."""
        if "zeros" not in parts:
            return None
        stored = parts["zeros"]
        packed = read(stored).view("<i4").reshape(stored.shape)
        lines = packed.T if self._scheme.layout == "packed" else packed
        codes = _unpacked(lines, self._scheme.bits)
        if self._scheme.layout == "awq":
            codes = _natural(codes)
        if self._scheme.less_one:
            codes = (codes + np.uint8(1)) & np.uint8((1 << self._scheme.bits) - 1)
        rows, _ = matrix_shape(parts["codes"].shape, self._scheme)
        values = codes.T[:rows].astype(np.float32)
        if not self._scheme.symmetric:
            return values
        if np.any(values != self._middle):
            raise ValueError("its zero points are not the middle, though config.json calls it symmetric")
        return None

    def _groups(self, parts: dict[str, Stored], read: Read) -> NDArray[np.int64]:
        """Of each column."""
        usual = np.arange(self.columns) // (self._scheme.group or self.columns)
        if "groups" not in parts:
            return usual
        told = read(parts["groups"]).view("<i4").astype(np.int64)
        if not self._scheme.scattered:
            if np.array_equal(told, usual):
                return usual
            raise ValueError("its columns are not in the order of their groups, though config.json says so")
        if told.min() < 0 or told.max() >= self._scales.shape[1]:
            raise ValueError(
                f"its columns are in groups {told.min()} to {told.max()}, which are not all there"
            )
        return told

    # ---- rows -------------------------------------------------------------------------------------

    def _of_rows(self, first: int, stop: int) -> Bytes:
        """Codes [rows, columns]: of ``bits`` bits, from 0 on; plain bytes as they are."""
        scheme, each = self._scheme, 32 // self._scheme.bits
        match scheme.layout:
            case "plain":
                return self._codes[first:stop].view(np.uint8)
            case "packed":
                return _unpacked(self._codes[first:stop], scheme.bits)
            case "gptq":
                return _unpacked(self._codes[:, first:stop].T, scheme.bits)
            case "awq":
                begin = first // each
                lines = _natural(_unpacked(self._codes[:, begin : -(-stop // each)], scheme.bits))
                return lines.T[first - begin * each :][: stop - first]

    def _per_row(self, values: Floats, first: int, stop: int) -> Floats:
        return values if values.shape[0] == 1 else values[first:stop]

    def _numbers(self, first: int, stop: int) -> Bytes:
        """As float32."""
        codes = self._of_rows(first, stop)
        if self._scheme.floats:
            values = _E4M3[codes]
        elif self._scheme.layout == "plain":
            values = codes.view(np.int8).astype(np.float32)
        elif self._zeros is None:
            values = codes.astype(np.float32) - self._middle
        else:
            values = codes.astype(np.float32) - self._per_row(self._zeros, first, stop)[:, self._group_of]
        if self._scheme.block is not None:
            down, along = self._scheme.block
            rows = self._scales[np.arange(first, stop) // down]
            scales = np.repeat(rows, along, axis=1)[:, : self.columns]
        else:
            scales = self._per_row(self._scales, first, stop)[:, self._group_of]
        return np.ascontiguousarray(values * scales, dtype="<f4").view(np.uint8)

    def _blocks(self, first: int, stop: int) -> Bytes:
        """As GGUF has them: a scale, of q4_1 what is added, then the codes."""
        codes, kind = self._of_rows(first, stop), self._stored.blocks
        count = self.columns // GROUP
        group = self._group_of[::GROUP]  # of each block
        scales = np.broadcast_to(self._per_row(self._scales, first, stop)[:, group], (stop - first, count))
        heads = [scales]
        if self._zeros is not None:
            heads.append(-self._per_row(self._zeros, first, stop)[:, group] * scales)
        head = np.stack(heads, -1).astype("<f2").view(np.uint8)
        blocks = codes.reshape(stop - first, count, GROUP)
        if kind == "q8_0":
            told = blocks if self._scheme.layout == "plain" else blocks ^ 0x80  # from 0 on; now signed
        else:
            told = blocks[..., : GROUP // 2] | blocks[..., GROUP // 2 :] << 4
        return np.concatenate((head, told), -1)


def _unpacked(packed: NDArray[Any], bits: int) -> Bytes:
    """Codes of each int32 of a line, the lowest bits first: [lines, 32 / bits times as many]."""
    raw = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 8:
        return raw
    return np.stack((raw & 15, raw >> 4), -1).reshape(len(raw), -1)


def _natural(codes: Bytes) -> Bytes:
    """Each eight of a line in their order; AWQ keeps 0 2 4 6 1 3 5 7."""
    return codes.reshape(len(codes), -1, 8)[..., _NATURAL].reshape(len(codes), -1)


def _e4m3() -> Floats:
    """All 256 (OCP 8-bit floating point 1.0, section 5): a sign, four bits with bias 7, three bits."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, (code & 7) / 8
    values = np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7.0))
    values[code & 127 == 127] = np.nan
    return np.where(code & 128, -values, values).astype(np.float32)


_E4M3 = _e4m3()
