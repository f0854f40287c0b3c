"""The weights region: planned from safetensors headers, filled straight from the files. No torch.

The daemon calls ``plan`` at load, allocates ``plan.bytes`` of shared memory and runs ``fill`` in a thread;
every worker of the model maps the region and finds its tensors by ``plan.tensors``.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from muxd.device.base import Writer
from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import ITEM_BYTES, Dtype, LoraPart, TensorEntry
from muxd.models.blocks import bytes_of, dequantised
from muxd.models.convert import convert
from muxd.models.packing import Packing, file_form, part_names
from muxd.models.safetensors_index import Stored, index, seal
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.tensors import EMBED, HEAD, SIGHT, Wanted, harmless, headed, unbert, unwrapped, wanted

_log = logging.getLogger("muxd.models")

ALIGNMENT = 64  # a cache line, and what oneDNN and cuBLAS like
_PACKED = 1 << 18  # elements packed at a time: what was read is in the second cache still
_PIECE = 8 << 20  # bytes packed between two words of how far it is
_CHUNK = 4 << 20  # elements converted at a time: bounds the scratch, and a window, to some tens of MiB


class Source(Struct, frozen=True):
    """One stored tensor and the byte of the region where its first element goes; packed with a ``form``.
    ``dtype``: of what is not packed, where that is not the plan's."""

    name: str
    stored: Stored
    offset: int
    form: str = ""
    dtype: Dtype | None = None


class WeightPlan(Struct, frozen=True):
    """Layout of the region: ``tensors`` for the worker, ``sources`` for ``fill``, ``bytes`` in all. ``seals``
    of the files, which may be others by the time they are read. ``lora``: of adapters, which are behind
    everything else."""

    tensors: list[TensorEntry]
    bytes: int
    dtype: Dtype
    sources: list[Source]
    seals: dict[Path, str] = {}
    lora: list[LoraPart] = []

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, which config.json may say and the files disprove."""
        return all(tensor.name != "head" for tensor in self.tensors)

    @property
    def packed(self) -> bool:
        """Whether matrices lie as the native step reads them."""
        return any(tensor.form for tensor in self.tensors)

    @property
    def copied(self) -> int:
        """Bytes of what torch multiplies with: all matrices but packed ones, and but an embedding that is
        only looked up."""
        return sum(
            math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
            for tensor in self.tensors
            if len(tensor.shape) == 2 and not tensor.form and (tensor.name != "embed" or self.tied)
        )


def plan(
    folder: Path, spec: ModelSpec, dtype: Dtype | None, *, gpu: bool = False, packing: Packing | None = None
) -> WeightPlan:
    """Lay out every tensor of the model in ``dtype``, each aligned to 64 bytes. None: in what the folder
    holds, but on a GPU bfloat16 instead of float32. ``packing``: matrices lie as the native step reads them.

    Query, key and value rows form one tensor, gate and up rows another, unless packed. A head that
    config.json says is tied to the embedding, and that is stored with other numbers, stays itself, as in
    transformers. Raises ModelFolderError naming file, tensor, and what was expected, or the type it cannot be
    computed in.
    """
    stored = _index(folder, spec)
    if spec.tied_embeddings and _own_head(stored):
        _log.warning("%s: lm_head.weight differs from the embedding that config.json ties it to", folder)
        spec = structs.replace(spec, tied_embeddings=False)
    dtype = dtype or _held(spec, stored.values(), gpu=gpu)
    if dtype == "float16" and spec.beyond_float16:
        raise ModelFolderError(
            f'{folder}: {spec.architecture} cannot be served with dtype = "float16": its activations are too '
            'large for it; set dtype = "bfloat16" or "float32" in its [[model]] table'
        )
    tensors, sources, end = [], [], 0
    for tensor in wanted(spec):
        start = aligned(end)
        found = _sources(folder, tensor, stored, start, ITEM_BYTES[dtype])
        if packing is not None and len(tensor.shape) == 2:
            for name, source in zip(part_names(tensor.name, len(found)), found, strict=True):
                form, shape = packing.form(tensor.name, source.stored.blocks, dtype), source.stored.shape
                tensors.append(TensorEntry(name, dtype, shape, start, form))
                sources.append(structs.replace(source, offset=start, form=form))
                end = start + packing.bytes(form, shape)
                start = aligned(end)
            continue
        tensors.append(TensorEntry(tensor.name, dtype, tensor.shape, start))
        sources += found
        end = start + math.prod(tensor.shape) * ITEM_BYTES[dtype]
    _refuse_unknown(stored, {source.name for source in sources}, spec)
    seals = {file: seal(file) for file in {source.stored.file for source in sources}}
    return WeightPlan(tensors, end, dtype, sources, seals)


def aligned(end: int) -> int:
    """Where the next tensor of a region may begin."""
    return -(-end // ALIGNMENT) * ALIGNMENT


def stored_dtype(folder: Path, *, gpu: bool) -> Dtype:
    """What ``plan`` takes where nobody says; also without weights. Raises ModelFolderError."""
    spec, stored = read_spec(folder), dict[str, Stored]()
    if spec.dtype is None:
        with suppress(ModelFolderError):
            stored = _index(folder, spec)
    return _held(spec, stored.values(), gpu=gpu)


def _held(spec: ModelSpec, stored: Iterable[Stored], *, gpu: bool) -> Dtype:
    """By config.json, else of most numbers in the files."""
    sizes: Counter[Dtype] = Counter()
    for tensor in stored:
        sizes[tensor.dtype] += math.prod(tensor.shape)
    most: Dtype = sizes.most_common(1)[0][0] if sizes else "bfloat16"
    found = spec.dtype or most
    return "bfloat16" if gpu and found == "float32" else found


def _index(folder: Path, spec: ModelSpec) -> dict[str, Stored]:
    if spec.wrapped:
        return _text_part(folder)
    if spec.encoder:  # some save what is no number of the model, in types of its own
        found = index(folder, lambda name: harmless(unbert(name), spec))
        return {unbert(name): stored for name, stored in found.items()}
    return {headed(name): stored for name, stored in index(folder).items()}


def _text_part(folder: Path) -> dict[str, Stored]:
    """By the names that a model which only reads would have, without what sees."""
    left_out = []

    def unread(name: str) -> bool:
        sees = name.startswith(SIGHT)
        if sees:
            left_out.append(name)
        return sees

    found: dict[str, Stored] = {}
    for name, stored in index(folder, unread).items():
        plain = unwrapped(name)
        if plain in found:
            raise ModelFolderError(f"{stored.file}: tensor {plain} is there twice, once as {name}")
        found[plain] = stored
    count = len(set(left_out))
    _log.info("%s: text only; %d tensors of what sees are left out, such as %s", folder, count, left_out[:1])
    return found


def _own_head(stored: dict[str, Stored]) -> bool:
    """Whether a head is stored that is not the embedding."""
    head, embed = stored.get(HEAD), stored.get(EMBED)
    if head is None or embed is None:
        return False
    if head.shape != embed.shape:
        return True
    return any(
        not np.array_equal(one, other) for one, other in zip(numbers(head), numbers(embed), strict=True)
    )


def numbers(stored: Stored) -> Iterator[NDArray[np.uint8]]:
    """The elements of a stored tensor as bytes of float32, in pieces. Raises ModelFolderError."""
    source, count = Source("", stored, 0), math.prod(stored.shape)
    for first in range(0, count, _CHUNK):
        size = min(_CHUNK, count - first)
        piece = np.empty(size * ITEM_BYTES["float32"], dtype=np.uint8)
        _copy(source, first, piece, size, "float32")
        yield piece


def layout(spec: ModelSpec, dtype: Dtype, packing: Packing | None = None) -> WeightPlan:
    """The same region for a model that has no files: ``fill`` would leave it as it is. For measurements."""
    tensors, end = [], 0
    for tensor in wanted(spec):
        parts, form = [(tensor.name, tensor.shape)], ""
        if packing is not None and len(tensor.shape) == 2:
            names = part_names(tensor.name, len(tensor.parts))
            parts = [(name, shape) for name, (_, shape) in zip(names, tensor.parts, strict=True)]
            form = packing.form(tensor.name, "", dtype)
        for name, shape in parts:
            start = aligned(end)
            tensors.append(TensorEntry(name, dtype, shape, start, form))
            nbytes = packing.bytes(form, shape) if packing and form else math.prod(shape) * ITEM_BYTES[dtype]
            end = start + nbytes
    return WeightPlan(tensors, end, dtype, [])


def _sources(
    folder: Path, tensor: Wanted, stored: dict[str, Stored], offset: int, itemsize: int
) -> list[Source]:
    found = []
    for name, shape in tensor.parts:
        if name not in stored:
            raise ModelFolderError(f"{folder}: tensor {name} is missing from the safetensors files")
        if stored[name].shape != shape:
            raise ModelFolderError(
                f"{stored[name].file}: tensor {name} has shape {list(stored[name].shape)}, "
                f"config.json asks for {list(shape)}"
            )
        found.append(Source(name, stored[name], offset))
        offset += int(np.prod(shape)) * itemsize
    return found


def _refuse_unknown(stored: dict[str, Stored], used: set[str], spec: ModelSpec) -> None:
    """A tensor nobody reads (a bias, an adapter) would make the model silently compute something else."""
    for name in sorted(stored.keys() - used):
        if not harmless(name, spec):
            raise ModelFolderError(
                f"{stored[name].file}: tensor {name} is not part of {spec.architecture} as config.json "
                "describes it"
            )


def fill(plan: WeightPlan, writer: Writer) -> None:
    """Read and convert every tensor into the region of ``writer`` (at least ``plan.bytes`` bytes). Raises
    ModelFolderError."""
    for _ in pieces(plan, writer):
        pass


def pieces(plan: WeightPlan, writer: Writer) -> Iterator[int]:
    """As ``fill``, in pieces of some milliseconds; yields how many bytes of the region each has filled."""
    for file, sealed in plan.seals.items():
        if seal(file) != sealed:
            raise ModelFolderError(
                f"{file} is another file than when the model's folder was read: its tensors lie elsewhere; "
                "`muxctl unload` the model and `muxctl load` it"
            )
    packed = [source for source in plan.sources if source.form]
    # One for all: a page that a process has not touched yet costs as much as a copy.
    scratch = np.empty(max(map(_pack_bytes, packed), default=0), dtype=np.uint8)
    for source in sorted(plan.sources, key=lambda s: (s.stored.file, s.stored.offset)):
        if source.form:
            yield from _pack(source, writer, scratch)
            continue
        dtype = source.dtype or plan.dtype
        itemsize, count = ITEM_BYTES[dtype], int(np.prod(source.stored.shape))
        for first in range(0, count, _CHUNK):
            size = min(_CHUNK, count - first)
            into = writer.window(source.offset + first * itemsize, size * itemsize)
            _copy(source, first, into, size, dtype)
            yield size * itemsize


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
    try:
        with source.stored.file.open("rb", buffering=0) as file:
            file.seek(source.stored.offset + at)
            _read_fully(file.readinto, raw.data)
    except (OSError, EOFError) as error:
        raise ModelFolderError(f"{source.stored.file}: tensor {source.name}: {error}") from None
    return raw


def _pack(source: Source, writer: Writer, scratch: NDArray[np.uint8]) -> Iterator[int]:
    """A matrix for the native step, some rows at a time; yields the bytes of each. ``scratch``: at least
    ``_pack_bytes``."""
    packed, (rows, columns) = native.library(), source.stored.shape
    kind, step = _kind(source), _pack_rows(source)
    size, block = packed.row_bytes(kind, columns), packed.block_bytes(source.form, columns)
    done = 0
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = scratch[: count * size]
        if kind == "f16":
            _copy(source, first * columns, raw, count * columns, "float16")
        else:
            _read(source, first * size, into=raw)
        window = writer.window(source.offset + first // 16 * block, -(-count // 16) * block)
        packed.pack(window, source.form, columns, raw, kind)
        done += len(window)
        if done >= _PIECE:
            yield done
            done = 0
    yield done


def _kind(source: Source) -> str:
    """What is packed. Halves have a range, which only ``convert`` looks at; any other format takes what the
    file holds."""
    return "f16" if source.form == "f16" else file_form(source.stored)


def _pack_rows(source: Source) -> int:
    return max(16, _PACKED // source.stored.shape[1] // 16 * 16)


def _pack_bytes(source: Source) -> int:
    rows, columns = source.stored.shape
    return min(_pack_rows(source), rows) * native.library().row_bytes(_kind(source), columns)


def _read_fully(readinto: Callable[[memoryview], int | None], view: memoryview) -> None:
    while len(view):
        count = readinto(view)
        if not count:
            raise EOFError("the file ended early; it changed since it was checked")
        view = view[count:]
