"""Whatever is in the files of a model folder or in a GGUF file, only muxd's own errors come out of them.

Some hundred damaged files by default; MUXD_FUZZ=100000 says how many (`make fuzz`), MUXD_FUZZ_SEED where to
begin.
"""

import gc
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
from support.mutation import damaged_bytes, damaged_json
from support.tiny import CONFIG, tiny_served

from muxd.config import ModelConfig
from muxd.errors import MuxdError
from muxd.fleet.catalog import Opened
from muxd.importer.convert import import_gguf
from muxd.importer.progress import Silent

EXAMPLES = int(os.environ.get("MUXD_FUZZ", "300"))
FIRST = int(os.environ.get("MUXD_FUZZ_SEED", "0"))

GENERATION = {"eos_token_id": [2, 7], "temperature": 0.6, "top_k": 20, "min_p": 0.1}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NAMED = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "{{ tools }}"}]
ROPES: list[dict[str, Any]] = [
    {},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    {
        "rope_scaling": {
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    {"quantization_config": None, "sliding_window": 12},
    {
        "rope_scaling": {
            "type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "attention_factor": 1.0,
        }
    },
]  # fmt: skip


def _header(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header of the right length."""
    length = int.from_bytes(content[:8], "little")
    header = damaged_json(draw, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _start(draw: random.Random, content: bytes) -> bytes:
    """Bytes of the header alone: what lies behind are numbers."""
    return damaged_bytes(draw, content[:1200]) + content[1200:]


FILES: dict[str, list[Callable[[random.Random, bytes], bytes]]] = {
    "config.json": [damaged_json, damaged_json, damaged_bytes],
    "generation_config.json": [damaged_json, damaged_bytes],
    "tokenizer.json": [damaged_json, damaged_json, damaged_bytes],
    "tokenizer_config.json": [damaged_json, damaged_bytes],
    "special_tokens_map.json": [damaged_json, damaged_bytes],
    "chat_template.jinja": [damaged_bytes],
    "model.safetensors": [_header, _start],
    "model.safetensors.index.json": [damaged_json, damaged_bytes],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tiny_served(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": NAMED}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text('{"unk_token": "<unk>", "eos_token": "</s>"}')
    return folder


def _index(folder: Path) -> None:
    """The same weights as one shard with an index."""
    header = (folder / "model.safetensors").read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    index = {"weight_map": {name: "model.safetensors" for name in names if name != "__metadata__"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _use(folder: Path) -> None:
    """What the daemon and its workers do with a folder before a request can fail alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = Opened(ModelConfig("m", str(folder)))
        for rope in (opened.spec.rope, opened.spec.local_rope):
            assert np.isfinite(rope.inverse_frequencies(opened.spec.head_dim)).all()
        assert opened.spec.tokens_per_row(1 << 20, 4) > 0
    assert all(0 <= token < opened.spec.vocab_size for token in opened.eos)


def _refusal(seed: int, what: str, work: Callable[[], None]) -> str:
    """Why ``work`` refused, empty if it did not."""
    try:
        work()
    except MuxdError as error:
        assert error.message  # noqa: PT017
        return error.message
    except BaseException as error:  # the tokenizers library has one that is no Exception
        pytest.fail(f"MUXD_FUZZ_SEED={seed} MUXD_FUZZ=1, {what}: {type(error).__name__}: {error}")
    return ""


def test_only_our_own_errors_come_out_of_a_damaged_folder(folder: Path, no_descriptor_leak: None) -> None:
    kept = 0
    for seed in range(FIRST, FIRST + EXAMPLES):
        draw = random.Random(seed)
        (folder / "config.json").write_text(json.dumps(CONFIG | draw.choice(ROPES)))
        name = draw.choice(list(FILES))
        path = folder / name
        if name == "model.safetensors.index.json":
            _index(folder)
        if name == "chat_template.jinja":
            path.write_text(TEMPLATE)
        before = path.read_bytes()
        try:
            path.write_bytes(draw.choice(FILES[name])(draw, before))
            kept += not _refusal(seed, name, lambda: _use(folder))
        finally:
            path.write_bytes(before)
            for extra in ("model.safetensors.index.json", "chat_template.jinja"):
                (folder / extra).unlink(missing_ok=True)
    assert EXAMPLES < 100 or EXAMPLES / 20 < kept < EXAMPLES * 0.95, "some damage does no harm, most does"


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    """A one-layer Llama with a tokenizer of bytes."""
    from tokenizers import pre_tokenizers

    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 8), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 8), (writer.add_head_count, 2), (writer.add_head_count_kv, 1),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_freq_base, 1e4),
        (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "llama-bpe"),
        (writer.add_token_list, tokens), (writer.add_token_types, [3, 3] + [1] * (len(tokens) - 2)),
        (writer.add_token_merges, ["t h"]), (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 1),
    ):  # fmt: skip
        cast(Any, add)(value)
    layer = {
        "attn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8),
        "ffn_norm": (8,), "ffn_gate": (8, 8), "ffn_up": (8, 8), "ffn_down": (8, 8),
    }  # fmt: skip
    shapes = {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (len(tokens), 8), "output_norm.weight": (8,), "rope_freqs.weight": (2,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.full(shape, 0.5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_only_our_own_errors_come_out_of_a_damaged_gguf_file(
    small_gguf: Path, no_descriptor_leak: None
) -> None:
    before, out = small_gguf.read_bytes(), small_gguf.parent / "out"
    head = before.index(b"token_embd.weight") + 400
    kept = 0
    for seed in range(FIRST, FIRST + EXAMPLES // 2):
        draw = random.Random(seed)
        small_gguf.write_bytes(damaged_bytes(draw, before[:head]) + before[head:])
        reason = _refusal(seed, "GGUF", lambda: import_gguf(small_gguf, out / "m", progress=Silent()))
        if not reason:
            shutil.rmtree(out / "m")
            kept += 1
        else:
            assert str(small_gguf) in reason or str(out) in reason
        assert not list(out.iterdir()), f"MUXD_FUZZ_SEED={seed} left something behind"
    assert kept or EXAMPLES < 100
    gc.collect()  # a mapping of the library's that a traceback held
