"""What people give as a path though muxd cannot serve it: one sentence says what it is and what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny import CONFIG, tiny_llama

from muxd.errors import ModelFolderError
from muxd.models.spec import read_spec
from muxd.models.weights import plan


def refusal(folder: Path) -> str:
    with pytest.raises(ModelFolderError) as caught:
        plan(folder, read_spec(folder), "bfloat16")
    return caught.value.message


QUANTISED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}},
    "hqq": {"compression_config": {"quant_method": "hqq"}},
    "MLX": {"quantization": {"group_size": 64, "bits": 4}},
    "modelopt": {"text_config": {"quantization_config": {"quant_method": "modelopt"}}},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_folder_is_called_by_its_method(tmp_path: Path, method: str) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | QUANTISED[method]))
    found = refusal(tmp_path)
    assert (
        f"config.json: {next(iter(QUANTISED[method])).replace('text_config', 'quantization_config')}" in found
    )
    assert f"is quantised with {method}, which muxd does not read; read are gptq, awq, fp8, " in found
    assert "use the folder with bfloat16" in found


def test_an_older_file_of_a_quantisation_counts(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert "hf_quant_config.json: the model is quantised with NVFP4" in refusal(tmp_path)


def test_a_null_quantisation_is_none(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": None}))
    assert read_spec(tmp_path).layers == 2


def _holding(*names: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for name in names:
            (root / "m" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "m" / name).write_text("{}")
        return root / "m"

    return make


def _weights(*names: str) -> Callable[[Path], Path]:
    """A folder with config.json whose only weights have these names."""

    def make(root: Path) -> Path:
        tiny_llama(root / "m")
        (root / "m" / "model.safetensors").unlink()
        return _holding(*names)(root)

    return make


def _file(name: str) -> Callable[[Path], Path]:
    return lambda root: _holding(name)(root) / name


def _nothing(name: str) -> Callable[[Path], Path]:
    return lambda root: root / name


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "hub name": (_nothing("Qwen/Qwen3-0.6B"), "`hf download Qwen/Qwen3-0.6B --local-dir FOLDER` fetches it"),
    "address": (_nothing("https:/huggingface.co/a/b"), "is not a folder; muxd does not download"),
    "misspelt": (_nothing("modle"), "is not a folder; a model's path is a folder with config.json"),
    "gguf file": (_file("x.gguf"), "is a GGUF file: `muxctl import FILE --name NAME` makes"),
    "weights file": (_file("model.safetensors"), "is a file: give the folder that holds it with config.json"),
    "adapter": (_holding("adapter_config.json", "adapter_model.safetensors"), "is a PEFT (LoRA) adapter"),
    "adapter beside config": (
        _weights("adapter_model.safetensors"),
        "a PEFT adapter; give its folder as lora",
    ),
    "mistral": (_holding("params.json", "consolidated.safetensors"), "a layout of its maker's own"),
    "mistral beside config": (_weights("consolidated.safetensors"), "Mistral's own layout"),
    "ggufs": (_holding("x-Q4_K_M.gguf"), "holds GGUF files: `muxctl import"),
    "ggufs beside config": (_weights("x-Q4_K_M.gguf"), "a GGUF file; `muxctl import"),
    "cache": (_holding("snapshots/0f/x", "refs/main"), "path is the folder below snapshots"),
    "onnx": (_holding("onnx/model.onnx"), "holds ONNX files"),
    "onnx beside config": (_weights("onnx/model.onnx"), "ONNX, which is not read"),
    "pickled": (_weights("pytorch_model.bin"), "pickled weights are never loaded"),
    "mlx": (_weights("weights.npz"), "weights of MLX"),
    "flax": (_weights("flax_model.msgpack"), "TensorFlow or Flax weights"),
    "other name": (_weights("my.safetensors"), "rename it to model.safetensors"),
    "empty": (_holding("README.md"), "config.json is missing"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_sentence_says_what_it_is(tmp_path: Path, kind: str) -> None:
    make, reason = KINDS[kind]
    found = refusal(make(tmp_path))
    assert reason in found
    assert str(tmp_path) in found
    assert "\n" not in found


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, name: str) -> None:
    tiny_llama(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    assert f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`" in refusal(tmp_path)


def test_weights_that_are_no_regular_file_are_not_waited_for(tmp_path: Path) -> None:
    import os

    tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    assert "model.safetensors cannot be read: it is a pipe or a device" in refusal(tmp_path)
