"""The weights region: planned from safetensors headers, filled straight from the files. No torch.

The daemon calls ``plan`` at load, allocates ``plan.bytes`` of shared memory and runs ``fill`` in a thread;
every worker of the model maps the region and finds its tensors by ``plan.tensors``.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct, structs

from muxd.device.base import Writer
from muxd.errors import ModelFolderError
from muxd.messages import ITEM_BYTES, Dtype, LoraPart, TensorEntry
from muxd.models.blocks import SIZES
from muxd.models.cut import ALONE, Piece, Rank, pieces
from muxd.models.packing import Packing, part_names
from muxd.models.quantised import together
from muxd.models.reading import CHUNK, Source, numbers, scratch, written
from muxd.models.safetensors_index import BYTES, Stored, index, seal
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.stacks import CODES, EXPONENTS
from muxd.models.stored_names import harmless, headed, reads, unbert, unwrapped
from muxd.models.tensors import DOWN_ROWS, EMBED, GATE_UP_ROWS, HEAD, LOOKED_UP, Wanted, wanted

_log = logging.getLogger("muxd.models")

ALIGNMENT = 64  # a cache line, and what oneDNN and cuBLAS like


class WeightPlan(Struct, frozen=True):
    """Layout of the region: ``tensors`` for the worker, ``sources`` for ``fill``, ``bytes`` in all. ``seals``
    of the files, which may be others by the time they are read. ``lora``: of adapters, which are behind
    everything else. ``zeros``: bytes from and to, which no tensor fills."""

    tensors: list[TensorEntry]
    bytes: int
    dtype: Dtype
    sources: list[Source]
    seals: dict[Path, str] = {}
    lora: list[LoraPart] = []
    zeros: list[tuple[int, int]] = []

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
        """Bytes of what torch multiplies with: all matrices but packed ones, and but what is only looked
        up."""
        return sum(
            math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
            for tensor in self.tensors
            if len(tensor.shape) == 2
            and not tensor.form
            and (tensor.name != "embed" or self.tied)
            and tensor.name != LOOKED_UP
        )


def plan(
    folder: Path,
    spec: ModelSpec,
    dtype: Dtype | None,
    *,
    gpu: bool = False,
    packing: Packing | None = None,
    rank: Rank = ALONE,
) -> WeightPlan:
    """Lay out every tensor of the model in ``dtype``, each aligned to 64 bytes. None: in what the folder
    holds, but on a GPU bfloat16 instead of float32. ``packing``: matrices lie as the native step reads them.
    ``rank``: only its part of them, unpacked; all ranks' regions are alike but for their numbers.

    Query, key and value rows form one tensor, gate and up rows another, all experts' of a layer a third,
    unless packed. A head that config.json says is tied to the embedding, and that is stored with other
    numbers, stays itself, as in transformers. Raises ModelFolderError naming file, tensor, and what was
    expected, or the type it cannot be computed in.
    """
    stored = _index(folder, spec)
    if spec.tied_embeddings and _own_head(stored):
        _log.warning("%s: lm_head.weight differs from the embedding that config.json ties it to", folder)
        spec = structs.replace(spec, tied_embeddings=False)
    spec = _experts_as_stored(spec, stored)
    dtype = dtype or _held(spec, stored.values(), gpu=gpu)
    if dtype == "float16" and spec.beyond_float16:
        raise ModelFolderError(
            f'{folder}: {spec.architecture} cannot be served with dtype = "float16": its activations are too '
            'large for it; set dtype = "bfloat16" or "float32" in its [[model]] table'
        )
    tensors, end = [], 0
    sources: list[Source] = []
    zeros: list[tuple[int, int]] = []
    for tensor in wanted(spec):
        start = aligned(end)
        own = tensor.dtype or dtype
        found = _sources(folder, tensor, stored, start, ITEM_BYTES[own])
        if (cut := pieces(spec, tensor, rank)) is not None:
            laid = _cut(tensor, found, cut, start, ITEM_BYTES[dtype])
            tensors.append(TensorEntry(tensor.name, dtype, laid.shape, start))
            sources, zeros, end = sources + laid.sources, zeros + laid.zeros, laid.end
            continue
        if packing is not None and tensor.packs:
            for name, source in zip(part_names(tensor.name, len(found)), found, strict=True):
                form, shape = packing.form(tensor.name, source.stored.blocks, dtype), source.shape
                tensors.append(TensorEntry(name, dtype, shape, start, form))
                sources.append(structs.replace(source, offset=start, form=form))
                end = start + packing.bytes(form, shape)
                start = aligned(end)
            continue
        tensors.append(TensorEntry(tensor.name, own, tensor.shape, start))
        sources += found
        end = start + math.prod(tensor.shape) * ITEM_BYTES[own]
    used = {part.stored for tensor in wanted(spec) for part in tensor.parts}
    halves = {name.removesuffix(CODES) + EXPONENTS for name in used if name.endswith(CODES)}
    _refuse_unknown(stored, used | halves, spec)
    read = {one.file for source in sources for one in source.files()}
    seals = {file: seal(file) for file in (folder / "config.json", *read)}
    return WeightPlan(tensors, end, dtype, sources, seals, zeros=zeros)


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
    """By the names of the model's tensors, quantised matrices put together."""
    found = _named(folder, spec, raw=spec.scheme is not None)
    return found if spec.scheme is None else together(found, spec.scheme)


def _named(folder: Path, spec: ModelSpec, *, raw: bool) -> dict[str, Stored]:
    if spec.wrapped:
        return _text_part(folder, spec, raw=raw)
    if spec.encoder:  # some save what is no number of the model, in types of its own
        found = index(folder, lambda name: harmless(unbert(name), spec), raw=raw)
        return {unbert(name): stored for name, stored in found.items()}
    # What transformers saves of the text part alone may keep the names of the whole.
    known = unwrapped if spec.delta is not None else headed
    return {known(name): stored for name, stored in index(folder, raw=raw).items()}


def _experts_as_stored(spec: ModelSpec, stored: dict[str, Stored]) -> ModelSpec:
    """Experts that are read one by one may lie in one tensor [experts, rows, columns], which is then all
    their rows in ``stored``."""
    if spec.experts is None or spec.experts.stored != "each":
        return spec
    found = {name: one for name, one in stored.items() if name.endswith((GATE_UP_ROWS, DOWN_ROWS))}
    for name, one in found.items():
        if len(one.shape) == 3:
            count, rows, columns = one.shape
            stored[name] = structs.replace(one, shape=(count * rows, columns))
    return structs.replace(spec, experts=structs.replace(spec.experts, stored="rows")) if found else spec


def _text_part(folder: Path, spec: ModelSpec, *, raw: bool) -> dict[str, Stored]:
    """By the names that a model which only reads would have, without what sees."""
    left_out = []

    def unread(name: str) -> bool:
        if reads(name, spec):
            return False
        left_out.append(name)
        return True

    found: dict[str, Stored] = {}
    for name, stored in index(folder, unread, raw=raw).items():
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


def layout(spec: ModelSpec, dtype: Dtype, packing: Packing | None = None) -> WeightPlan:
    """The same region for a model that has no files: ``fill`` would leave it as it is. For measurements."""
    tensors, end = [], 0
    for tensor in wanted(spec):
        parts, form, own = [(tensor.name, tensor.shape)], "", tensor.dtype or dtype
        if packing is not None and tensor.packs:
            names = part_names(tensor.name, len(tensor.parts))
            parts = [(name, part.shape) for name, part in zip(names, tensor.parts, strict=True)]
            form = packing.form(tensor.name, "", dtype)
        for name, shape in parts:
            start = aligned(end)
            tensors.append(TensorEntry(name, own, shape, start, form))
            nbytes = packing.bytes(form, shape) if packing and form else math.prod(shape) * ITEM_BYTES[own]
            end = start + nbytes
    return WeightPlan(tensors, end, dtype, [])


def _sources(
    folder: Path, tensor: Wanted, stored: dict[str, Stored], offset: int, itemsize: int
) -> list[Source]:
    found = []
    for part in tensor.parts:
        name, cut = part.stored, part.cut
        one = _found(folder, stored, name, part.whole)
        if cut is None:
            rows = one.cut(part.first, part.read)
            found.append(Source(name, rows, offset, order=part.order, group=part.group, dtype=tensor.dtype))
        else:
            halves = None
            if cut.layout == "mxfp4":
                halves = _found(folder, stored, name.removesuffix(CODES) + EXPONENTS, part.whole[:-1])
            rows = structs.replace(one, shape=part.shape, blocks="mxfp4" if halves else one.blocks)
            found.append(Source(name, rows, offset, cut=cut, exponents=halves))
        offset += math.prod(part.shape) * itemsize
    return found


def _found(folder: Path, stored: dict[str, Stored], name: str, shape: tuple[int, ...]) -> Stored:
    if name not in stored:
        raise ModelFolderError(f"{folder}: tensor {name} is missing from the safetensors files")
    one = stored[name]
    if one.shape != shape or (one.blocks == BYTES) != name.endswith((CODES, EXPONENTS)):
        raise ModelFolderError(
            f"{one.file}: tensor {name} has shape {list(one.shape)}, config.json asks for {list(shape)}"
        )
    return one


class _Laid(NamedTuple):
    """One rank's part of a tensor in the region."""

    shape: tuple[int, ...]
    sources: list[Source]
    zeros: list[tuple[int, int]]
    end: int


def _cut(tensor: Wanted, found: list[Source], cut: list[Piece], start: int, itemsize: int) -> _Laid:
    """``found``: the whole tensor's. Raises ModelFolderError for blocks that a cut would divide."""
    sources, zeros, at, rows = list[Source](), list[tuple[int, int]](), start, 0
    inputs = tensor.parts[0].shape[1:]
    for source, piece in zip(found, cut, strict=True):
        stored = source.stored
        if piece.axis == 0:
            row = math.prod(inputs) * itemsize
            if piece.length:
                sources.append(structs.replace(source.part(piece.first, piece.length), offset=at))
            rows, end = rows + piece.size, at + piece.size * row
            if piece.length < piece.size:
                zeros.append((at + piece.length * row, end))
        else:
            _check_blocks(source, piece)
            inputs, rows = (piece.size,), rows + stored.shape[0]
            end = at + stored.shape[0] * piece.size * itemsize
            sources.append(structs.replace(source, offset=at, columns=piece))
        at = end
    shape = (tensor.stack, rows // tensor.stack, *inputs) if tensor.stack else (rows, *inputs)
    return _Laid(shape, sources, zeros, at)


def _check_blocks(source: Source, piece: Piece) -> None:
    stored = source.stored
    per = SIZES[stored.blocks][0] if stored.blocks else 1
    if piece.first % per or piece.length % per:
        raise ModelFolderError(
            f"model.tp: {stored.file}: tensor {source.name} has blocks of {per} numbers, and a rank would "
            f"begin or end inside one ({piece.length} of {stored.shape[1]} in a row); choose another tp, or "
            "import the file with --weights bfloat16"
        )


def _refuse_unknown(stored: dict[str, Stored], used: set[str], spec: ModelSpec) -> None:
    """A tensor nobody reads (a bias, an adapter) would make the model silently compute something else."""
    for name in sorted(stored.keys() - used):
        if not harmless(name, spec) and not _zero_bias(name, stored):
            raise ModelFolderError(
                f"{stored[name].file}: tensor {name} is not part of {spec.architecture} as config.json "
                "describes it"
            )


def _zero_bias(name: str, stored: dict[str, Stored]) -> bool:
    """What AutoGPTQ gives every quantised matrix that has none."""
    matrix = stored.get(f"{name.removesuffix('.bias')}.weight")
    if not name.endswith(".bias") or matrix is None or matrix.scheme is None:
        return False
    return not any(piece.any() for piece in numbers(stored[name]))


def fill(plan: WeightPlan, writer: Writer) -> None:
    """Read and convert every tensor into the region of ``writer`` (at least ``plan.bytes`` bytes). Raises
    ModelFolderError."""
    for _ in filling(plan, writer):
        pass


def filling(plan: WeightPlan, writer: Writer) -> Iterator[int]:
    """As ``fill``, in steps of some milliseconds; yields how many bytes of the region each has filled."""
    for file, sealed in plan.seals.items():
        if seal(file) != sealed:
            raise ModelFolderError(
                f"{file} is another file than when the model's folder was read, and says something else of "
                "the model: `muxctl unload` the model and `muxctl load` it"
            )
    for first, stop in plan.zeros:
        for at in range(first, stop, CHUNK):
            writer.window(at, min(CHUNK, stop - at))[:] = 0
    room = scratch(plan.sources)
    for source in sorted(plan.sources, key=lambda s: (s.stored.file, s.stored.offset)):
        yield from written(source, writer, plan.dtype, room)
