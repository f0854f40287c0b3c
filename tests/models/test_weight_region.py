"""The weights region holds what the files hold, converted exactly; broken folders are refused by name."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.block_folders import make_blocks
from support.tiny_models import gemma3, llama, phi3, qwen2

from muxd.device.base import HostWriter
from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import Dtype, WeightsName
from muxd.models import reading
from muxd.models.packing import Packing
from muxd.models.safetensors_index import read_header
from muxd.models.spec import read_spec
from muxd.models.weights import fill, filling, plan
from muxd.worker.mapped import DTYPES, MappedWeights

compiled = pytest.mark.skipif(bool(native.missing()), reason=native.missing())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder, tie_word_embeddings=False)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def loaded(folder: Path, dtype: Dtype) -> MappedWeights:
    layout = plan(folder, read_spec(folder), dtype)
    region = np.zeros(layout.bytes, dtype=np.uint8)
    fill(layout, HostWriter(region))
    return MappedWeights(layout.tensors, torch.from_numpy(region))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("stored", list(DTYPES))
@pytest.mark.parametrize("wanted", list(DTYPES))
def test_every_conversion_is_torchs(folder: Path, stored: Dtype, wanted: Dtype) -> None:
    tensors = {k: v.to(DTYPES[stored]) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    weights = loaded(folder, wanted)
    assert torch.equal(weights.tensor("embed"), tensors["model.embed_tokens.weight"].to(DTYPES[wanted]))
    attention = [tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(weights.tensor("layers.1.qkv"), torch.cat(attention).to(DTYPES[wanted]))
    mlp = [tensors[f"model.layers.2.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(weights.tensor("layers.2.gate_up"), torch.cat(mlp).to(DTYPES[wanted]))
    assert torch.equal(weights.tensor("head"), tensors["lm_head.weight"].to(DTYPES[wanted]))


def test_bfloat16_rounding_at_every_edge(folder: Path) -> None:
    """Ties both ways, the carry into infinity, subnormals, NaN payloads, minus zero."""
    patterns = [
        0x3F808000,
        0x3F818000,
        0x3F808001,
        0x7F7FFFFF,
        0x00000001,
        0x80000000,
        0x7FFFFFFF,
        0x7F800001,
    ]
    edges = torch.from_numpy(np.array(patterns * 12, dtype=np.uint32).view(np.float32))
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": edges.clone()}))
    found = loaded(folder, "bfloat16").tensor("norm")
    wanted = edges.bfloat16()
    assert torch.equal(found.isnan(), wanted.isnan())
    numbers = ~wanted.isnan()
    assert torch.equal(found.view(torch.int16)[numbers], wanted.view(torch.int16)[numbers])


def test_layout_is_aligned_dense_and_complete(original: Path) -> None:
    layout = plan(original, read_spec(original), "bfloat16")
    end = 0
    for entry in layout.tensors:
        assert entry.offset % 64 == 0
        assert 0 <= entry.offset - end < 64
        end = entry.offset + 2 * int(np.prod(entry.shape))
    assert layout.bytes == end
    stored = sum(t.numel() for t in load_file(original / "model.safetensors").values())
    assert sum(int(np.prod(entry.shape)) for entry in layout.tensors) == stored


def test_biases_are_stacked_as_their_matrices_are(tmp_path: Path) -> None:
    qwen2(tmp_path)
    tensors, weights = load_file(tmp_path / "model.safetensors"), loaded(tmp_path, "bfloat16")
    stacked = torch.cat([tensors[f"model.layers.3.self_attn.{part}_proj.bias"] for part in "qkv"])
    assert torch.equal(weights.tensor("layers.3.qkv.bias"), stacked.bfloat16())
    x = torch.randn(5, 112).bfloat16()
    exact = x.double() @ weights.tensor("layers.3.qkv").double().T + stacked.bfloat16().double()
    found = weights.linear("layers.3.qkv", bias=True)(x)
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=compiled)])
def test_what_is_fused_is_cut_and_heads_lie_as_their_pairs_turn(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read at a time; a half of three quarters of 16 rows, then one that does not turn."""
    phi3(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.1.self_attn.qkv_proj.weight"]
    order = torch.tensor([*range(6), 12, 13, *range(6, 12), 14, 15])
    q, k, v = stored.split([96, 32, 32])
    wanted = [part.unflatten(0, (-1, 16))[:, order].flatten(0, 1) for part in (q, k)] + [v]
    monkeypatch.setattr(reading, "CHUNK", 200)
    layout = plan(tmp_path, read_spec(tmp_path), "float32", packing=Packing("file") if packed else None)
    region = np.zeros(layout.bytes, dtype=np.uint8)
    fill(layout, HostWriter(region))
    if packed:
        entries = {entry.name: entry for entry in layout.tensors}
        places = [entries[f"layers.1.qkv.{i}"] for i in range(3)]
        found = [native.library().unpack(region[entry.offset :], "f32", *entry.shape) for entry in places]
    else:
        found = (
            MappedWeights(layout.tensors, torch.from_numpy(region)).tensor("layers.1.qkv").split([96, 32, 32])
        )
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(torch.as_tensor(ours), theirs)


def test_pieces_are_all_bytes(original: Path) -> None:
    layout = plan(original, read_spec(original), "float32")
    seen = list(filling(layout, HostWriter(np.zeros(layout.bytes + 100, dtype=np.uint8))))
    assert sum(seen) == sum(4 * int(np.prod(entry.shape)) for entry in layout.tensors)


def test_shards_give_the_same_region(folder: Path) -> None:
    before = loaded(folder, "bfloat16")
    shard(folder)
    assert torch.equal(loaded(folder, "bfloat16")._region, before._region)


def test_harmless_extras_are_left_out(tmp_path: Path) -> None:
    gemma3(tmp_path)
    before = loaded(tmp_path, "float32")._region

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(tmp_path, add)
    assert torch.equal(loaded(tmp_path, "float32")._region, before)


def test_a_stored_head_that_is_not_the_embedding_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does, whatever tie_word_embeddings says: merged adapters leave such folders."""
    llama(tmp_path)
    assert plan(tmp_path, read_spec(tmp_path), "float32").tied
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    put("lm_head.weight", embedding.bfloat16())(tmp_path)
    assert not plan(tmp_path, read_spec(tmp_path), "float32").tied, "rounded numbers are others"
    put("lm_head.weight", embedding.clone())(tmp_path)
    assert plan(tmp_path, read_spec(tmp_path), "float32").tied
    assert not caplog.text.count("differs") > 1
    embedding[330, 95] += 1e-3
    put("lm_head.weight", embedding)(tmp_path)
    assert not plan(tmp_path, read_spec(tmp_path), "float32").tied, "the last number counts"
    assert "lm_head.weight differs from the embedding" in caplog.text
    assert torch.equal(loaded(tmp_path, "float32").tensor("head"), embedding)


def test_shards_without_an_index_are_read_by_their_names(folder: Path) -> None:
    before = loaded(folder, "bfloat16")
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "a.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelFolderError, match=r"model-00002-of-00002\.safetensors is missing; .* one of 2"):
        plan(folder, read_spec(folder), "bfloat16")
    (folder / "b.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    assert torch.equal(loaded(folder, "bfloat16")._region, before._region)


@pytest.mark.parametrize("older", [True, False], ids=["language_model.model", "model.language_model"])
def test_what_reads_in_a_model_that_sees(
    tmp_path: Path, older: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The region is that of the text model alone; what sees is left out whatever its types."""
    caplog.set_level("INFO")
    llama_like = tmp_path / "text"
    gemma3(llama_like, tie_word_embeddings=False)
    before = loaded(llama_like, "float32")._region
    inner, head = ("language_model.model.", "language_model.") if older else ("model.language_model.", "")
    outer = "" if older else "model."
    tensors = {
        (inner + name.removeprefix("model.") if name.startswith("model.") else head + name): tensor
        for name, tensor in load_file(llama_like / "model.safetensors").items()
    }
    tensors[f"{outer}vision_tower.vision_model.embeddings.position_ids"] = torch.arange(9)
    tensors[f"{outer}multi_modal_projector.mm_input_projection_weight"] = torch.ones(3, 4)
    save_file(tensors, llama_like / "model.safetensors")
    config = json.loads((llama_like / "config.json").read_text())
    wrapped = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config,
        "vision_config": {"model_type": "siglip_vision_model"}, "tie_word_embeddings": False,
    }  # fmt: skip
    (llama_like / "config.json").write_text(json.dumps(wrapped))
    assert torch.equal(loaded(llama_like, "float32")._region, before)
    assert "2 tensors of what sees are left out" in caplog.text
    put(f"{outer}audio_tower.weight", torch.ones(2))(llama_like)
    with pytest.raises(ModelFolderError, match=r"audio_tower\.weight is not part of Gemma3ForCausalLM"):
        plan(llama_like, read_spec(llama_like), "float32")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(name))


def put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({name: tensor}))


def qwen_without_bias(folder: Path) -> None:
    qwen2(folder)
    drop("model.layers.1.self_attn.k_proj.bias")(folder)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def header(text: bytes, length: int | None = None) -> Callable[[Path], None]:
    data = struct.pack("<Q", len(text) if length is None else length) + text

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)

    return write


def shard_lost(folder: Path) -> None:
    shard(folder)
    (folder / "b.safetensors").unlink()


def index_says(**weight_map: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


NORM = "model.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "tensor missing": (drop("lm_head.weight"), "", "tensor lm_head.weight is missing"),
    "shape": (put(NORM, torch.ones(95)), "model.safetensors", "has shape [95], config.json asks for [96]"),
    "dtype": (put(NORM, torch.ones(96, dtype=torch.int8)), "model.safetensors", "dtype 'I8'; served are"),
    "extra": (put("model.layers.0.self_attn.q_proj.bias", torch.ones(4)), "model.safetensors", "q_proj.bias"),
    "no bias": (qwen_without_bias, "", "tensor model.layers.1.self_attn.k_proj.bias is missing"),
    "pickle": (pickled, "pytorch_model.bin", "never loaded"),
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), "", "neither model.safetensors nor"),
    "cut": (cut, "model.safetensors", "is truncated"),
    "short": (header(b"", 0), "model.safetensors", "the safetensors header"),
    "empty": (empty, "model.safetensors", "truncated"),
    "announces": (header(b"{}", 10**12), "model.safetensors", "header of 1000000000000 announced"),
    "not JSON": (header(b"garbage!"), "model.safetensors", "the safetensors header"),
    "list": (header(b"[1, 2]"), "model.safetensors", "the safetensors header"),
    "entry": (header(b'{"a": {"dtype": "F32"}}'), "model.safetensors", "header entry of tensor a"),
    "offsets": (
        header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'),
        "model.safetensors",
        "data offsets 0..4 do not fit its shape",
    ),
    "shard": (shard_lost, "b.safetensors", "is missing; model.safetensors.index.json lists it"),
    "path": (index_says(a="../x.safetensors"), "model.safetensors.index.json", "not a plain file name"),
    "map": (index_says(a=5), "model.safetensors.index.json", "weight_map must map"),
    "lies": (index_says(a="model.safetensors"), "model.safetensors", "tensor a is not in it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused_by_file_and_reason(folder: Path, case: str) -> None:
    damage, file, reason = BROKEN[case]
    damage(folder)
    with pytest.raises(ModelFolderError) as caught:
        plan(folder, read_spec(folder), "bfloat16")
    assert str(folder / file) in str(caught.value)
    assert reason in str(caught.value)


def test_gemma_3_is_refused_in_float16_by_name(tmp_path: Path) -> None:
    """Its activations overflow there, and every answer would be nonsense."""
    gemma3(tmp_path)
    spec = read_spec(tmp_path)
    with pytest.raises(ModelFolderError, match='Gemma3ForCausalLM cannot be served with dtype = "float16"'):
        plan(tmp_path, spec, "float16")
    assert plan(tmp_path, spec, "bfloat16").bytes


def test_values_beyond_float16_are_refused_not_made_infinite(folder: Path) -> None:
    put(NORM, torch.full((96,), 1e6))(folder)
    layout = plan(folder, read_spec(folder), "float16")
    with pytest.raises(ModelFolderError, match=r"model\.norm\.weight: values leave the range of float16"):
        fill(layout, HostWriter(np.zeros(layout.bytes, dtype=np.uint8)))


def packs(folder: Path, weights: WeightsName, dtype: Dtype) -> None:
    layout = plan(folder, read_spec(folder), dtype, packing=Packing(weights))
    fill(layout, HostWriter(np.zeros(layout.bytes, dtype=np.uint8)))


@compiled
@pytest.mark.parametrize(("weights", "dtype"), [("file", "float16"), ("float16", "float32")])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_packed_values_beyond_float16_are_refused_alike(
    folder: Path, weights: WeightsName, dtype: Dtype, stored: torch.dtype
) -> None:
    packs(folder, weights, dtype)
    put("lm_head.weight", torch.full((331, 96), 1e5, dtype=stored))(folder)
    with pytest.raises(ModelFolderError, match=r"lm_head\.weight: values leave the range of float16"):
        packs(folder, weights, dtype)


@compiled
def test_blocks_beyond_float16_are_refused_alike(folder: Path) -> None:
    make_blocks(folder, "q8_0")
    packs(folder, "float16", "float32")
    path = folder / "model.safetensors"
    content, at = bytearray(path.read_bytes()), read_header(path)["lm_head.weight"].offset
    content[at : at + 2] = np.float16(65504).tobytes()  # the scale of a block
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"lm_head\.weight: values leave the range of float16"):
        packs(folder, "float16", "float32")


def test_a_file_that_shrinks_after_planning_is_noticed(folder: Path) -> None:
    layout = plan(folder, read_spec(folder), "float32")
    cut(folder)
    with pytest.raises(ModelFolderError, match="ended early"):
        fill(layout, HostWriter(np.zeros(layout.bytes, dtype=np.uint8)))
