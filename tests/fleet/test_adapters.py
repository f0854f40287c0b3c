"""Adapters of a base: which can be served, what each has of its own, and what is the base's."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.adapters import adapter
from support.tiny import byte_tokenizer
from support.tiny_models import llama

from muxd.config import ModelConfig, SamplingConfig
from muxd.engine.request import Request
from muxd.errors import ModelFolderError
from muxd.fleet import loras
from muxd.fleet.adapters import Adapter, served
from muxd.fleet.catalog import Entry
from muxd.messages import Sampling
from muxd.models.lora import read_lora


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    base = llama(root / "base", num_hidden_layers=1)
    byte_tokenizer(root / "base")
    for seed, name in enumerate(("good", "other")):
        adapter(root / name, base, seed=seed)
    return root


def config(root: Path, name: str, folder: str = "good", **own: object) -> ModelConfig:
    return ModelConfig(name, base="base", lora=str(root / folder), **own)  # type: ignore[arg-type]


def opened(root: Path, *adapters: ModelConfig, gpu: bool = False) -> Entry:
    entry = Entry(ModelConfig("base", str(root / "base"), dtype="float32"), adapters)
    entry.open(gpu=gpu)
    assert not entry.error
    return entry


def one(entry: Entry, name: str) -> Adapter:
    found = served({"base": entry})[name]
    assert isinstance(found, Adapter)
    return found


def ask(name: str) -> Request:
    return Request("r", name, [5], 1, Sampling(), frozenset())


def test_on_a_gpu_each_is_refused_and_the_base_is_not(root: Path) -> None:
    entry = opened(root, config(root, "x"), gpu=True)
    assert entry.opened is not None
    assert entry.opened.plan.lora == []
    assert "on the CPU only" in one(entry, "x").detail
    assert one(entry, "x").state == "failed"
    with pytest.raises(ModelFolderError, match=r"'x' cannot be served: .*CPU only"):
        one(entry, "x").request(ask("x"))


def test_a_defect_costs_its_own_adapter_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(folder: Path, spec: object) -> object:
        if folder.name == "other":
            raise IndexError("no such thing")
        return read_lora(folder, spec)  # type: ignore[arg-type]

    monkeypatch.setattr(loras, "read_lora", defect)
    entry = opened(root, config(root, "y", "other"), config(root, "z", "missing"), config(root, "x"))
    assert "IndexError" in one(entry, "y").detail
    assert "is not a folder" in one(entry, "z").detail
    assert one(entry, "x").error == ""
    request = one(entry, "x").request(ask("x"))
    assert (request.model, request.name, request.adapter) == ("base", "x", 3), "by its place in the file"


def test_what_is_its_own_and_what_is_its_bases(root: Path) -> None:
    sampling = SamplingConfig(temperature=0.3)
    entry = opened(root, config(root, "x", system_prompt="Arr.", sampling=sampling, reasoning="think"))
    x = one(entry, "x")
    assert (x.view.source.model, x.view.system_prompt, entry.view.system_prompt) == ("x", "Arr.", "")
    assert x.view.source.folder == entry.view.source.folder
    assert (x.default_sampling["temperature"], "temperature" in entry.default_sampling) == (0.3, False)
    assert (x.state, x.eos, x.max_context) == (entry.state, entry.eos, entry.max_context)
    assert 0 < x.weight_bytes < entry.weight_bytes
    entry.changing = "asleep"
    assert x.state == "asleep"


def test_weights_are_behind_the_bases_and_count_with_them(root: Path) -> None:
    alone, both = opened(root), opened(root, config(root, "x"), config(root, "y", "other"))
    assert alone.opened is not None
    assert both.opened is not None
    assert both.opened.plan.tensors == alone.opened.plan.tensors
    assert both.weight_bytes - alone.weight_bytes >= 2 * one(both, "x").weight_bytes
    assert {part.adapter for part in both.opened.plan.lora} == {1, 2}
    assert all(part.a.offset >= alone.opened.plan.bytes for part in both.opened.plan.lora)


def test_a_folder_that_was_mended_is_read_when_its_base_is(root: Path) -> None:
    file = root / "other" / "adapter_config.json"
    said = file.read_text()
    file.write_text(json.dumps(json.loads(said) | {"use_dora": True}))
    entry = opened(root, config(root, "x", "other"))
    assert "use_dora" in one(entry, "x").detail
    file.write_text(said)
    save_file(
        load_file(root / "other" / "adapter_model.safetensors"), file.with_name("adapter_model.safetensors")
    )
    entry.open()
    assert one(entry, "x").detail == ""
