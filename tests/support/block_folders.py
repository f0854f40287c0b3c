"""A model folder whose matrices are GGUF blocks, as an import that keeps them writes it: random codes."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muxd.models import blocks
from muxd.models.safetensors_index import read_header

# The largest of code times its scale's own code.
_LEVELS = {"q4_0": 8, "q4_1": 16, "q5_0": 16, "q5_1": 32, "q8_0": 128, "q4_k": 15 * 63, "q5_k": 31 * 63,
           "q6_k": 32 * 128, "mxfp4": 12}  # fmt: skip


def random_blocks(kind: str, count: int, scale: float, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of ``count`` numbers: every code that there is, scales of both signs up to ``scale``."""
    generator = np.random.default_rng(seed)
    per, size = blocks.SIZES[kind]
    raw = generator.integers(0, 256, size=(count // per, size), dtype=np.uint8)
    if kind == "mxfp4":  # exponents of a tenth to all of the scale
        raw[:, 0] = 128 + np.floor(np.log2(scale)) - generator.integers(0, 4, size=len(raw))
        return raw.reshape(-1)
    halves = 2 if kind in ("q4_1", "q5_1", "q4_k", "q5_k") else 1
    at = size - 2 if kind == "q6_k" else 0
    drawn = (generator.uniform(-1, 1, size=(len(raw), halves)) * scale).astype(np.float16)
    raw[:, at : at + 2 * halves] = drawn.view(np.uint8)
    return raw.reshape(-1)


def make_blocks(folder: Path, kind: str) -> None:
    """Every matrix of ``folder`` becomes random blocks of ``kind``; vectors stay."""
    path = folder / "model.safetensors"
    stored, content = read_header(path), path.read_bytes()
    told, entries, data = {}, dict[str, object](), b""
    levels = _LEVELS[kind]
    for number, (name, one) in enumerate(sorted(stored.items())):
        begin, shape, dtype = len(data), list(one.shape), "F32"
        if len(shape) == 2:
            raw = random_blocks(kind, shape[0] * shape[1], 6 / levels / shape[1] ** 0.5, number)
            told[name], dtype, shape = kind, "U8", [shape[0], blocks.bytes_of(kind, shape[1])]
            data += raw.tobytes()
        else:
            data += content[one.offset : one.offset + 4 * shape[0]]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(data)]}
    header = json.dumps({"__metadata__": {blocks.KEY: json.dumps(told)}} | entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": blocks.METHOD}
    (folder / "config.json").write_text(json.dumps(config))
