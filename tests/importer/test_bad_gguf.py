"""A file that cannot be imported gets its name and the reason, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_mixtures import YARN
from support.gguf_relatives import add_yarn

from muxd.errors import ConfigError, ModelFolderError
from muxd.importer.convert import import_gguf
from muxd.importer.progress import Silent
from muxd.importer.source import GgufFile


def refused(path: Path) -> str:
    """The error's text; asserts that it names the file and that no folder exists afterwards."""
    with pytest.raises(ModelFolderError) as caught:
        import_gguf(path, path.parent / "out" / "model", progress=Silent())
    assert str(path) in caught.value.message
    assert list((path.parent / "out").iterdir()) == []
    return caught.value.message


@pytest.mark.parametrize(
    "content", [b"", b"GG", b"PK\x03\x04" + b"\0" * 100, b"GGUF", b"GGUF\x63\0\0\0" + b"\0" * 16]
)
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert "GGUF" in refused(tmp_path / "x.gguf") or "version" in refused(tmp_path / "x.gguf")


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "x.gguf")
    assert "; muxd does not download" in refused(tmp_path / "https:/hub/Qwen3-0.6B-GGUF/x.gguf")
    with pytest.raises(ModelFolderError, match="`hf download Qwen/Qwen3-GGUF --local-dir FOLDER` fetches it"):
        GgufFile(tmp_path / "Qwen/Qwen3-GGUF")
    (tmp_path / "folder").mkdir()
    assert "it is a folder, not a regular file" in refused(tmp_path / "folder")


def test_a_truncated_file_at_any_length(write_tiny: Any) -> None:
    path = write_tiny("llama").path
    whole = path.read_bytes()
    for keep in [5, 23, 30, 100, 1000, len(whole) // 10, len(whole) // 2, len(whole) - 40]:
        path.write_bytes(whole[:keep])
        assert "truncated" in refused(path)


@pytest.fixture
def tiny_gguf(write_tiny: Any) -> Path:
    return write_tiny("llama").path  # type: ignore[no-any-return]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(at=st.integers(0, 3000), value=st.binary(min_size=1, max_size=8))
def test_damaged_metadata_never_escape_as_another_error(tiny_gguf: Path, at: int, value: bytes) -> None:
    """Either it still is a model, or it is refused in time; never an IndexError, a hang or a half folder."""
    damaged = tiny_gguf.with_name("damaged.gguf")
    content = bytearray(tiny_gguf.read_bytes())
    content[at : at + len(value)] = value
    damaged.write_bytes(content)
    out = damaged.parent / "out"
    try:
        import_gguf(damaged, out / "model", progress=Silent())
    except ModelFolderError:
        assert list(out.iterdir()) == []
    else:
        (out / "model").rename(damaged.parent / f"kept-{len(list(damaged.parent.iterdir()))}")


def _value(key: str, value: object) -> Any:
    return lambda writer: writer.kv_data[0].__getitem__(key).__setattr__("value", value)


def _without(key: str) -> Any:
    return lambda writer: writer.kv_data[0].pop(key)


def _rename(old: str, new: str) -> Any:
    return lambda writer: writer.tensors[0].__setitem__(new, writer.tensors[0].pop(old))


def _no_end(writer: gguf.GGUFWriter) -> None:
    _without("tokenizer.ggml.eos_token_id")(writer)
    writer.kv_data[0]["tokenizer.ggml.tokens"].value[0] = "<|other|>"  # was <|endoftext|>


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (
            _value("general.architecture", "mamba"),
            "architecture 'mamba' is not supported; known are cohere2, exaone4, gemma2, gemma3, glm4, "
            "gpt-oss, granite, llama, olmo2, phi3, qwen2, qwen3, qwen3moe, smollm3",
        ),
        (_without("llama.embedding_length"), "'llama.embedding_length' is missing"),
        (_no_end, "'tokenizer.ggml.eos_token_id' is missing"),
        (_value("tokenizer.ggml.eos_token_id", 99999), "outside the vocabulary of 384"),
        (_value("tokenizer.ggml.model", "rwkv"), "tokenizer 'rwkv' is not supported"),
        (_value("tokenizer.ggml.pre", "deepseek"), "pre 'deepseek' is not supported"),
        (_value("tokenizer.ggml.merges", ["abc"]), "'abc' is not two pieces"),
        (_value("tokenizer.ggml.merges", ["日 本"]), "do not fit"),
        (_value("llama.attention.head_count", 0), "must be above 0"),
        (_value("llama.attention.head_count", 8), "'blk.0.attn_k.weight' has shape"),
        (_value("llama.block_count", 3), "tensor 'blk.2.attn_norm.weight' is missing"),
        (_value("llama.block_count", 1), "tensor 'blk.1.attn_k.weight' is not known"),
        (_rename("output_norm.weight", "rope_freqs.weight"), "'rope_freqs.weight' must be 8 float32 numbers"),
        (_value("llama.block_count", 4_000_000_000), "'llama.block_count' is 4000000000, expected 0 to 4096"),
        (lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts, but it is not named"),
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "'longrope' is not"),
    ],
)
def test_what_is_missing_or_unknown_is_named(write_tiny: Any, alter: Any, reason: str) -> None:
    assert reason in refused(write_tiny("llama", alter=alter).path)


@pytest.mark.parametrize(
    ("architecture", "alter", "reason"),
    [
        (
            "qwen2",
            _rename("blk.1.attn_k.bias", "blk.1.attn_output.bias"),
            "'blk.1.attn_output.bias' is not known",
        ),
        ("qwen2", _value("qwen2.attention.head_count_kv", 4), "'blk.0.attn_k.weight' has shape"),
        (
            "qwen2",
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            "'qwen2.rope.scaling.factor' is missing",
        ),
        ("qwen3", _value("qwen3.attention.key_length", 16), "'blk.0.attn_q.weight' has shape"),
        (
            "qwen3moe",
            _value("qwen3moe.expert_count", 5),
            "'blk.0.ffn_gate_exps.weight' has shape [6, 32, 64]",
        ),
        ("qwen3moe", _rename("blk.0.ffn_up_exps.weight", "blk.0.ffn_up.weight"), "'blk.0.ffn_up.weight'"),
        ("mixtral", _without("llama.expert_used_count"), "'llama.expert_used_count' is missing"),
        (
            "qwen3",
            _rename("blk.0.attn_q_norm.weight", "blk.0.attn_q.bias"),
            "'blk.0.attn_q.bias' is not known",
        ),
    ],
)
def test_qwen_that_is_not_as_published(write_tiny: Any, architecture: str, alter: Any, reason: str) -> None:
    assert reason in refused(write_tiny(architecture, alter=alter).path)


def _add(key: str, value: object, kind: gguf.GGUFValueType = gguf.GGUFValueType.UINT32) -> Any:
    return lambda writer: writer.add_key_value(key, value, kind)


def _tensor(name: str, shape: tuple[int, ...]) -> Any:
    return lambda writer: writer.add_tensor(name, np.ones(shape, dtype=np.float32))


@pytest.mark.parametrize(
    ("architecture", "alter", "reason"),
    [
        ("gpt-oss", _value("gpt-oss.rope.scaling.type", "none"), "rope.scaling.type' must be yarn"),
        ("gpt-oss", _value("gpt-oss.rope.scaling.type", "longrope"), "rope scaling 'longrope'"),
        (
            "gpt-oss",
            lambda writer: writer.add_rope_scaling_yarn_ext_factor(0.5),
            "'gpt-oss.rope.scaling.yarn_ext_factor' is not supported",
        ),
        ("gpt-oss", _without("gpt-oss.attention.sliding_window"), "sliding_window' is missing"),
        ("gpt-oss", _value("gpt-oss.expert_count", 5), "'blk.0.ffn_gate_exps.weight' has shape [6, 32, 64]"),
        ("gpt-oss", _rename("blk.1.ffn_up_exps.bias", "x"), "'blk.1.ffn_up_exps.bias' is missing"),
        ("gpt-oss", _rename("blk.1.attn_sinks.weight", "x"), "tensor 'x' is not known"),
        (
            "gpt-oss",
            _rename("blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_up_exps.weight"),
            "'blk.0.ffn_gate_exps.weight' is missing",
        ),
        (
            "gpt-oss",
            lambda writer: writer.add_sliding_window_pattern([True]),
            "sliding_window_pattern' has 1 entries for 4 layers",
        ),
        ("phi3 long", _rename("rope_factors_long.weight", "x"), "is there alone"),
        ("phi3 long", _value("phi3.rope.dimension_count", 14), "must be 7 float32 numbers"),
        (
            "phi3",
            lambda writer: add_yarn(writer, YARN),
            "'phi3.rope.scaling.type': Phi has factors for its rope",
        ),
        ("phi3", _value("phi3.rope.dimension_count", 15), "is 15, expected an even number up to 16"),
        ("phi3", _value("phi3.attention.head_count_kv", 1), "'blk.0.attn_qkv.weight' has shape [128, 64]"),
        ("phi3", _value("phi3.feed_forward_length", 64), "'blk.0.ffn_up.weight' has shape [192, 64]"),
        ("phi3", _rename("blk.0.attn_qkv.weight", "blk.0.attn_q.weight"), "attn_q.weight' is not known"),
        (
            "glm4",
            lambda writer: writer.add_rope_dimension_sections([8, 12, 12, 0]),
            "'glm4.rope.dimension_sections': a rope in sections",
        ),
        ("glm4", _add("glm4.nextn_predict_layers", 1), "'glm4.nextn_predict_layers': layers that predict"),
        ("glm4", _rename("blk.1.attn_k.bias", "blk.1.attn_output.bias"), "'blk.1.attn_output.bias' is not"),
        ("cohere2", _without("cohere2.logit_scale"), "'cohere2.logit_scale' is missing"),
        ("cohere2", _without("cohere2.attention.layer_norm_epsilon"), "layer_norm_epsilon' is missing"),
        ("cohere2", _value("cohere2.rope.dimension_count", 8), "rope over a part of the head"),
        ("cohere2", _add("cohere2.attention.sliding_window_pattern", 0), "pattern' must be above 0"),
        ("cohere2", _tensor("blk.0.attn_q.bias", (64,)), "'blk.0.attn_q.bias' is not known"),
        (
            "exaone4",
            _value("exaone4.attention.sliding_window_pattern", [True] * 3),
            "has 3 entries for 4 layers",
        ),
        ("olmo3", _value("olmo2.rope.scaling.type", "linear"), "rope scaling 'linear'"),
    ],
)
def test_relatives_that_are_not_as_published(
    write_tiny: Any, architecture: str, alter: Any, reason: str
) -> None:
    assert reason in refused(write_tiny(architecture, alter=alter).path)


def test_a_quantisation_that_cannot_be_undone(write_tiny: Any) -> None:
    tiny = write_tiny("llama", "Q8_0")
    content = tiny.path.read_bytes()
    name = b"blk.0.attn_v.weight"
    at = content.index(name) + len(name) + 4 + 16  # n_dims, two sizes, then the type
    for kind, reason in (
        (99, "number 99, which is not known"),
        (int(gguf.GGMLQuantizationType.I8), "I8, which cannot"),
    ):
        tiny.path.write_bytes(content[:at] + kind.to_bytes(4, "little") + content[at + 4 :])
        assert reason in refused(tiny.path)


def test_an_existing_folder_is_left_alone(write_tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"model already exists; remove it or choose another name"):
        import_gguf(write_tiny("llama").path, tmp_path / "model", progress=Silent())
    assert list((tmp_path / "model").iterdir()) == []


_FULL_DISK = """
import resource, sys
from pathlib import Path
from muxd.errors import ModelFolderError
from muxd.importer.convert import import_gguf
from muxd.importer.progress import Silent
from muxd.importer.source import GgufFile
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    import_gguf(Path(sys.argv[1]), Path(sys.argv[2]), progress=Silent())
except ModelFolderError as error:
    print(error.message)
"""


def test_a_write_that_fails_halfway_leaves_nothing(write_tiny: Any) -> None:
    """The kernel refuses the file's growth, as a full disk does."""
    tiny = write_tiny("llama")
    out = tiny.path.parent / "out"
    command = [sys.executable, "-c", _FULL_DISK, str(tiny.path), str(out / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{out / 'model'}: cannot be written: File too large" in done.stdout
    assert list(out.iterdir()) == []
