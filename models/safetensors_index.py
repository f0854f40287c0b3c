"""Where each stored tensor lies: safetensors headers read and checked, weights untouched.

Used by ``muxd.models.weights``. The format: 8 bytes little-endian header length, a JSON header, the data
(https://huggingface.co/docs/safetensors). Nothing here unpickles.
"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from muxd.errors import ModelFolderError
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models.config_file import read_json

_DTYPES: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_LARGEST_HEADER = 100 << 20  # the safetensors library's own limit


class Stored(Struct, frozen=True):
    """One tensor in a file: ``offset`` bytes from the file's start."""

    file: Path
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int


class _Entry(Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def index(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, from ``model.safetensors`` or from all shards of its index.

    Raises ModelFolderError naming the file.
    """
    sharded = folder / "model.safetensors.index.json"
    if sharded.is_file():
        return _shards(folder, sharded)
    single = folder / "model.safetensors"
    if single.is_file():
        return read_header(single)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        raise ModelFolderError(
            f"{folder / pickles[0]}: pickled weights are never loaded, they can run code; "
            "convert the folder to safetensors (save_pretrained does) or take a safetensors download"
        )
    raise ModelFolderError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")


def _shards(folder: Path, path: Path) -> dict[str, Stored]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise ModelFolderError(f"{path}: weight_map must map tensor names to file names")
    found: dict[str, Stored] = {}
    for shard in sorted(set(names.values())):
        if Path(shard).name != shard:
            raise ModelFolderError(f"{path}: weight_map names {shard!r}, which is not a plain file name")
        if not (folder / shard).is_file():
            raise ModelFolderError(f"{folder / shard} is missing; {path.name} lists it")
        found |= read_header(folder / shard)
    for tensor, shard in names.items():
        if tensor not in found or found[tensor].file.name != shard:
            raise ModelFolderError(f"{folder / shard}: tensor {tensor} is not in it; {path.name} says it is")
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file, every extent checked against the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ModelFolderError(
                f"{path} is truncated or no safetensors file: {size} bytes, header of {length} announced"
            )
        text = file.read(length)
    try:
        raw = json.loads(text)
        entries = {name: entry for name, entry in raw.items() if name != "__metadata__"}
    except (ValueError, AttributeError):
        raise ModelFolderError(f"{path}: the safetensors header is not a JSON object") from None
    return {name: _stored(path, name, entry, 8 + length, size) for name, entry in entries.items()}


def _stored(path: Path, name: str, raw: Any, base: int, size: int) -> Stored:
    try:
        entry = msgspec.convert(raw, _Entry)
    except msgspec.ValidationError as error:
        raise ModelFolderError(f"{path}: header entry of tensor {name}: {error}") from None
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise ModelFolderError(
            f"{path}: tensor {name} has dtype {entry.dtype}; served are {', '.join(_DTYPES)}"
        )
    begin, end = entry.data_offsets
    if not 0 <= begin <= end or end - begin != math.prod(entry.shape) * ITEM_BYTES[dtype]:
        raise ModelFolderError(f"{path}: tensor {name}: data offsets {begin}..{end} do not fit its shape")
    if base + end > size:
        raise ModelFolderError(f"{path} is truncated: tensor {name} ends at byte {base + end} of {size}")
    return Stored(path, dtype, tuple(entry.shape), base + begin)
