"""Stored tensors read, and converted or packed on their way into the weights region. No torch.

What is read is bounded: some rows or elements at a time, whatever a file holds.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from muxd.device.base import Writer
from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models.blocks import bytes_of, dequantised
from muxd.models.convert import convert
from muxd.models.cut import Piece
from muxd.models.joined import Joined
from muxd.models.packing import file_form
from muxd.models.safetensors_index import Stored
from muxd.models.stacks import Cut

_PACKED = 1 << 18  # elements packed at a time: what was read is in the second cache still
_STEP = 8 << 20  # bytes packed between two words of how far it is
CHUNK = 4 << 20  # elements converted at a time: bounds the scratch, and a window, to some tens of MiB


class Held:
    """Bytes of a source that do not lie in a file as they are."""

    def __init__(self, read: Callable[[int, int], NDArray[np.uint8]]):
        """``read``: (first byte, how many)."""
        self.read = read


class Source(Struct, frozen=True):
    """One stored tensor, or rows of one, and the byte of the region where its first element goes; packed with
    a ``form``. ``dtype``: of what is not packed, where that is not the plan's. ``order``: which row of each
    group of so many lies where; with a ``group`` of more rows the others of it are left out. ``cut``: out of
    a tensor of all experts; of MXFP4 with ``exponents``. ``columns``: only these of each row."""

    name: str
    stored: Stored
    offset: int
    form: str = ""
    dtype: Dtype | None = None
    order: tuple[int, ...] = ()
    cut: Cut | None = None
    exponents: Stored | None = None
    columns: Piece | None = None
    held: "Held | None" = None  # what was cut out, or is put together
    group: int = 0  # rows out of which ``order`` takes some; 0: as many as it has

    @property
    def shape(self) -> tuple[int, ...]:
        """What is written of the stored one."""
        return (self.taken(self.stored.shape[0]), *self.stored.shape[1:])

    def taken(self, count: int) -> int:
        """Of ``count`` stored rows or elements, in whole groups."""
        return count // self.group * len(self.order) if self.group else count

    def files(self) -> list[Stored]:
        """What is read of it."""
        return [*(self.stored.parts.values() or [self.stored]), *([self.exponents] if self.exponents else [])]

    def part(self, first: int, rows: int) -> "Source":
        """So many of its rows from ``first`` on."""
        if self.cut is None:
            return structs.replace(self, stored=self.stored.cut(first, rows))
        count, *columns = self.stored.shape  # its offset is that of the tensor of all experts
        stored = structs.replace(self.stored, shape=(rows, *columns))
        return structs.replace(self, stored=stored, cut=self.cut.part(first, count))

    def rows_at_once(self, elements: int, least: int = 1) -> int:
        """Of about so many ``elements``: a multiple of ``least`` and of whole groups."""
        group = self.group or len(self.order) or 1
        taken = len(self.order) or 1
        group *= math.lcm(least, taken) // taken  # so that what is taken is a multiple of ``least``, too
        row = math.prod(self.stored.shape[1:])
        return max(group, elements // row // group * group)

    def ordered(self, raw: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
        """``raw`` has so many whole rows."""
        if not self.order:
            return raw
        group = self.group or len(self.order)
        groups = raw.reshape(rows // group, group, -1)
        return groups[:, list(self.order)].reshape(-1)


def numbers(stored: Stored) -> Iterator[NDArray[np.uint8]]:
    """The elements of a stored tensor as bytes of float32, in pieces. Raises ModelFolderError."""
    source, count = _held(Source("", stored, 0)), math.prod(stored.shape)
    for first in range(0, count, CHUNK):
        size = min(CHUNK, count - first)
        piece = np.empty(size * ITEM_BYTES["float32"], dtype=np.uint8)
        _copy(source, first, piece, size, "float32")
        yield piece


def written(told: Source, writer: Writer, plan: Dtype, room: NDArray[np.uint8]) -> Iterator[int]:
    """Read and convert it into its place, piece by piece; yields the bytes of each. ``plan``: the type of
    what says no other; ``room``: by ``scratch``. Raises ModelFolderError."""
    source, dtype = _held(told), told.dtype or plan
    if source.form:
        yield from _pack(source, writer, room)
    elif source.columns is not None:
        yield from _columns(source, source.columns, writer, dtype)
    else:
        yield from _whole_rows(source, writer, dtype)


def _whole_rows(source: Source, writer: Writer, dtype: Dtype) -> Iterator[int]:
    itemsize, count = ITEM_BYTES[dtype], math.prod(source.stored.shape)
    for first, size in _pieces(source):
        at, taken = source.taken(first), source.taken(size)
        into = writer.window(source.offset + at * itemsize, taken * itemsize)
        if source.order:
            raw = np.empty(size * itemsize, dtype=np.uint8)
            _copy(source, first, raw, size, dtype)
            into[:] = source.ordered(raw, size * source.stored.shape[0] // count)
        else:
            _copy(source, first, into, size, dtype)
        yield len(into)


def _held(source: Source) -> Source:
    """With its matrix, or what that is made of, in memory, where it is one expert's of all or is put
    together."""
    stored = source.stored
    try:
        if stored.scheme is not None:
            joined = Joined(stored, partial(_whole, source))
            return structs.replace(source, held=Held(joined.bytes))
        if source.cut is None:
            return source
        found = _cut_out(source, source.cut)
    except ValueError as error:
        raise ModelFolderError(f"{stored.file}: tensor {source.name}: {error}") from None
    return structs.replace(source, held=Held(lambda at, count: found[at : at + count]))


def _whole(source: Source, stored: Stored) -> NDArray[np.uint8]:
    """All of ``stored``, which is a part of the source's matrix."""
    return _read(structs.replace(source, stored=stored), 0, stored.bytes_of(math.prod(stored.shape)))


def _cut_out(source: Source, cut: Cut) -> NDArray[np.uint8]:
    stored, exponents = source.stored, source.exponents
    if exponents is None:
        return cut.floats(stored.shape, ITEM_BYTES[stored.dtype], partial(_read, source))
    other = structs.replace(source, stored=exponents)
    return cut.blocks(stored.shape, partial(_read, source), partial(_read, other))


def _pieces(source: Source) -> Iterator[tuple[int, int]]:
    """(first element, how many) of what is converted at a time."""
    shape = source.stored.shape
    step = source.rows_at_once(CHUNK) * math.prod(shape[1:]) if source.order else CHUNK
    for first in range(0, math.prod(shape), step):
        yield first, min(step, math.prod(shape) - first)


def _columns(source: Source, columns: Piece, writer: Writer, dtype: Dtype) -> Iterator[int]:
    """Of each row only these, and zeros behind them; some rows at a time; yields the bytes of each."""
    rows, itemsize = source.stored.shape[0], ITEM_BYTES[dtype]
    step = max(1, CHUNK // columns.size)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        row = columns.size * itemsize
        into = writer.window(source.offset + first * row, count * row).reshape(count, row)
        raw = _read_columns(source, range(first, first + count), columns)
        stored = source.stored
        if stored.blocks and raw.size:
            raw = dequantised(raw, stored.blocks).view(np.uint8)
        held: Dtype = "float32" if stored.blocks else stored.dtype
        numbers = raw if held == dtype else _converted(source, raw.reshape(-1), held, dtype)
        into[:, : columns.length * itemsize] = numbers.reshape(count, columns.length * itemsize)
        into[:, columns.length * itemsize :] = 0
        yield into.size


def _read_columns(source: Source, rows: range, columns: Piece) -> NDArray[np.uint8]:
    """Bytes [rows, of the columns] of a stored matrix; what lies between them is not read."""
    stored = source.stored
    raw = np.empty((len(rows), stored.bytes_of(columns.length)), dtype=np.uint8)
    begin, stride = stored.bytes_of(columns.first), stored.bytes_of(stored.shape[1])
    if source.held is not None:
        lines = source.held.read(rows.start * stride, len(rows) * stride).reshape(len(rows), stride)
        return np.ascontiguousarray(lines[:, begin : begin + raw.shape[1]])
    begin += stored.offset
    try:
        with stored.file.open("rb", buffering=0) as file:
            for row, into in zip(rows, raw, strict=True):
                file.seek(begin + row * stride)
                _read_fully(file.readinto, into.data)
    except (OSError, EOFError) as error:
        raise _unreadable(source, error) from None
    return raw


def _copy(source: Source, first: int, into: NDArray[np.uint8], size: int, dtype: Dtype) -> None:
    """``size`` elements from the ``first`` on, both whole blocks; read in place when no conversion is
    needed."""
    stored = source.stored
    if stored.blocks:
        raw = _read(source, bytes_of(stored.blocks, first), bytes_of(stored.blocks, size))
        into[:] = _converted(source, dequantised(raw, stored.blocks).view(np.uint8), "float32", dtype)
    elif stored.dtype == dtype:
        _read(source, first * ITEM_BYTES[dtype], into=into)
    else:
        itemsize = ITEM_BYTES[stored.dtype]
        raw = _read(source, first * itemsize, size * itemsize)
        into[:] = _converted(source, raw, stored.dtype, dtype)


def _converted(source: Source, raw: NDArray[np.uint8], stored: Dtype, dtype: Dtype) -> NDArray[np.uint8]:
    try:
        return convert(raw, stored, dtype)
    except OverflowError as error:
        raise ModelFolderError(f"{source.stored.file}: tensor {source.name}: {error}") from None


def _read(
    source: Source, at: int, nbytes: int = 0, into: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Bytes of a stored tensor from its byte ``at`` on."""
    raw = np.empty(nbytes, dtype=np.uint8) if into is None else into
    if source.held is not None:
        raw[:] = source.held.read(at, len(raw))
        return raw
    try:
        with source.stored.file.open("rb", buffering=0) as file:
            file.seek(source.stored.offset + at)
            _read_fully(file.readinto, raw.data)
    except (OSError, EOFError) as error:
        raise _unreadable(source, error) from None
    return raw


def _unreadable(source: Source, error: OSError | EOFError) -> ModelFolderError:
    return ModelFolderError(f"{source.stored.file}: tensor {source.name}: {error}")


def scratch(sources: Iterable[Source]) -> NDArray[np.uint8]:
    """Room for what is packed of any of them. One for all: a page that a process has not touched yet costs as
    much as a copy."""
    packed = (source for source in sources if source.form)
    return np.empty(max(map(_pack_bytes, packed), default=0), dtype=np.uint8)


def _pack(source: Source, writer: Writer, room: NDArray[np.uint8]) -> Iterator[int]:
    """A matrix for the native step, some rows at a time; yields the bytes of each. ``room``: by
    ``scratch``."""
    packed, (rows, columns) = native.library(), source.stored.shape
    kind, step = _kind(source), _pack_rows(source)
    size, block = packed.row_bytes(kind, columns), packed.block_bytes(source.form, columns)
    done = 0
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = room[: count * size]
        if kind == "f16":
            _copy(source, first * columns, raw, count * columns, "float16")
        else:
            _read(source, first * size, into=raw)
        at, taken = source.taken(first), source.taken(count)
        window = writer.window(source.offset + at // 16 * block, -(-taken // 16) * block)
        packed.pack(window, source.form, columns, source.ordered(raw, count), kind)
        done += len(window)
        if done >= _STEP:
            yield done
            done = 0
    yield done


def _kind(source: Source) -> str:
    """What is packed. Halves have a range, which only ``convert`` looks at; any other format takes what the
    file holds."""
    return "f16" if source.form == "f16" else file_form(source.stored)


def _pack_rows(source: Source) -> int:
    return source.rows_at_once(_PACKED, 16)


def _pack_bytes(source: Source) -> int:
    rows, columns = source.stored.shape
    return min(_pack_rows(source), rows) * native.library().row_bytes(_kind(source), columns)


def _read_fully(readinto: Callable[[memoryview], int | None], view: memoryview) -> None:
    while len(view):
        count = readinto(view)
        if not count:
            raise EOFError("the file ended early; it changed since it was checked")
        view = view[count:]
