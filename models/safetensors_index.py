"""Where each stored tensor lies: safetensors headers read and checked, weights untouched.

Used by ``muxd.models.weights``. The format: 8 bytes little-endian header length, a JSON header, the data
(https://huggingface.co/docs/safetensors). Nothing here unpickles.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

from muxd.errors import ModelFolderError
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models import blocks
from muxd.models.config_file import shown
from muxd.models.files import open_regular, parse_json, read_bytes, read_json, refuse_pointer
from muxd.models.schemes import Scheme
from muxd.models.stacks import CODES, EXPONENTS

_DTYPES: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_RAW = {"I8": 1, "U8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}  # bytes of each
_SHARD = re.compile(r"model-[0-9]{5}-of-([0-9]{5})\.safetensors")
_SAFE = re.compile(r"[^/\0\ud800-\udfff]{1,255}(?<!^\.)(?<!^\.\.)")  # a plain file name
# Endings of weight files that are no safetensors in Hugging Face's layout, and what to do.
_OTHERS = (
    (
        (".bin", ".pt", ".pth", ".ckpt"),
        "pickled weights are never loaded, they can run code; convert the folder to safetensors "
        "(save_pretrained does) or take a safetensors download",
    ),
    (("adapter_model.safetensors",), "a PEFT adapter; give its folder as lora in a [[model]] table"),
    (
        ("consolidated.safetensors",),
        "Mistral's own layout, which is not read; take model-*.safetensors of the same repository",
    ),
    ((".gguf",), "a GGUF file; `muxctl import FILE --name NAME` makes a model folder of it"),
    ((".npz",), "weights of MLX, which are not read; take the original folder"),
    ((".onnx", "onnx"), "ONNX, which is not read; take the original folder with safetensors"),
    ((".h5", ".msgpack"), "TensorFlow or Flax weights, which are not read; convert them to safetensors"),
    ((".safetensors",), "rename it to model.safetensors if it holds the whole model"),
)
BYTES = "bytes"
_LARGEST_HEADER = 100 << 20  # the safetensors library's own limit


class Stored(Struct, frozen=True):
    """One tensor in a file: ``offset`` bytes from the file's start.

    ``blocks``: the GGUF quantisation of its rows, by ``muxd.models.blocks``; ``shape`` counts numbers then,
    and ``dtype`` is what they are read as. Or BYTES: codes or exponents of ``muxd.models.stacks``. ``raw``:
    safetensors' name of a type that is no number of a model, part of a quantised matrix. ``parts``: what it
    is put together of, by ``scheme``; ``offset`` is from the first byte of all its rows then.
    """

    file: Path
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    blocks: str = ""
    raw: str = ""
    parts: dict[str, "Stored"] = {}
    scheme: Scheme | None = None

    def bytes_of(self, count: int) -> int:
        """Of ``count`` numbers, of blocks whole ones."""
        if self.raw:
            return count * _RAW[self.raw]
        return blocks.bytes_of(self.blocks, count) if self.blocks else count * ITEM_BYTES[self.dtype]

    def cut(self, first: int, rows: int) -> "Stored":
        """So many rows from the ``first`` on, as if they were stored alone."""
        at = self.bytes_of(first * math.prod(self.shape[1:]))
        return structs.replace(self, shape=(rows, *self.shape[1:]), offset=self.offset + at)


class _Entry(Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


Unread = Callable[[str], bool]


def index(folder: Path, unread: Unread = lambda name: False, *, raw: bool = False) -> dict[str, Stored]:
    """Every tensor of the folder but those that are ``unread``: from model.safetensors, or from all shards of
    its index, or, where that is missing, of those whose names say how many they are. With ``raw`` also what a
    quantised matrix consists of.

    Raises ModelFolderError naming the file.
    """
    sharded = folder / "model.safetensors.index.json"
    if sharded.exists():
        return _shards(folder, sharded, unread, raw)
    single = folder / "model.safetensors"
    if single.exists():
        return read_header(single, unread, raw=raw)
    numbered = [(path, match) for path in sorted(folder.iterdir()) if (match := _SHARD.fullmatch(path.name))]
    if numbered:
        return _numbered(folder, [path for path, _ in numbered], int(numbered[0][1][1]), unread, raw)
    raise ModelFolderError(
        f"{folder}: neither model.safetensors nor model.safetensors.index.json is there{_instead(folder)}"
    )


def _shards(folder: Path, path: Path, unread: Unread, raw: bool) -> dict[str, Stored]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise ModelFolderError(f"{path}: weight_map must map tensor names to file names")
    found: dict[str, Stored] = {}
    for shard in sorted(set(names.values())):
        if not _SAFE.fullmatch(shard):
            raise ModelFolderError(f"{path}: weight_map names {shown(shard)}, which is not a plain file name")
        if not (folder / shard).exists():
            raise ModelFolderError(f"{folder / shard} is missing; {path.name} lists it")
        found |= read_header(folder / shard, unread, raw=raw)
    for tensor, shard in names.items():
        if not unread(tensor) and (tensor not in found or found[tensor].file.name != shard):
            raise ModelFolderError(f"{folder / shard}: tensor {tensor} is not in it; {path.name} says it is")
    return found


def _numbered(folder: Path, paths: list[Path], count: int, unread: Unread, raw: bool) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for number in range(1, count + 1):
        path = folder / f"model-{number:05}-of-{count:05}.safetensors"
        if path not in paths:
            raise ModelFolderError(f"{path} is missing; {paths[0].name} is one of {count} shards")
        found |= read_header(path, unread, raw=raw)
    return found


def _instead(folder: Path) -> str:
    """What there is, and what to do with it."""
    names = sorted(path.name for path in folder.iterdir())
    for suffixes, advice in _OTHERS:
        if found := [name for name in names if name.endswith(suffixes)]:
            return f", only {folder / found[0]}: {advice}"
    return ""


def read_header(path: Path, unread: Unread = lambda name: False, *, raw: bool = False) -> dict[str, Stored]:
    """The tensors of one file that are not ``unread``, every extent checked against the file's length.
    ``raw``: as in ``index``."""
    length, text, size = _header(path)
    entries = parse_json(path, text, "safetensors header")
    kinds = blocks.kinds(path, entries.get("__metadata__"))
    return {
        name: _stored(path, name, entry, 8 + length, size, kinds.get(name, ""), raw)
        for name, entry in entries.items()
        if name != "__metadata__" and not unread(name)
    }


def seal(path: Path) -> str:
    """Of what the file says of the model: of safetensors where tensors lie, of JSON all of it, "" where there
    is none. Another one, and what was read of the file holds no more. Raises ModelFolderError."""
    if path.suffix == ".json":
        try:
            return hashlib.sha256(read_bytes(path, _LARGEST_HEADER)).hexdigest()
        except FileNotFoundError:
            return ""
    length, text, _ = _header(path)
    return hashlib.sha256(length.to_bytes(8, "little") + text).hexdigest()


def _header(path: Path) -> tuple[int, bytes, int]:
    """Bytes of the header, the header, bytes of the file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            refuse_pointer(path, file.peek(64))
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ModelFolderError(
                    f"{path} is truncated or no safetensors file: {size} bytes, header of {length} announced"
                )
            return length, file.read(length), size
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}") from None


def _stored(path: Path, name: str, told: Any, base: int, size: int, kind: str, raw: bool) -> Stored:
    try:
        entry = msgspec.convert(told, _Entry)
    except msgspec.ValidationError as error:
        raise ModelFolderError(f"{path}: header entry of tensor {name}: {error}") from None
    if entry.dtype == "U8" and name.endswith((CODES, EXPONENTS)):
        kind = kind or BYTES
    code = entry.dtype if raw and not kind and entry.dtype in _RAW else ""
    dtype = "bfloat16" if code or (kind and entry.dtype == "U8") else _DTYPES.get(entry.dtype)
    if dtype is None:
        raise ModelFolderError(
            f"{path}: tensor {name} has dtype {shown(entry.dtype)}; served are {', '.join(_DTYPES)}, and "
            "quantised weights where config.json says how (quantization_config)"
        )
    begin, end = entry.data_offsets
    item = _RAW[code] if code else 1 if kind else ITEM_BYTES[dtype]
    if not 0 <= begin <= end or end - begin != math.prod(entry.shape) * item:
        raise ModelFolderError(f"{path}: tensor {name}: data offsets {begin}..{end} do not fit its shape")
    if base + end > size:
        raise ModelFolderError(f"{path} is truncated: tensor {name} ends at byte {base + end} of {size}")
    shape = tuple(entry.shape)
    if kind and kind != BYTES:
        shape = blocks.numbers(path, name, kind, shape)
    return Stored(path, dtype, shape, base + begin, kind, code)
