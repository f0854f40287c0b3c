"""An imported folder is the model the GGUF was made from: transformers judges."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.gguf_writers import WRITERS
from transformers import AutoConfig, AutoModelForCausalLM

from muxd.importer.convert import PLANNERS, import_gguf
from muxd.importer.known import KNOWN, gguf_name
from muxd.importer.progress import Silent
from muxd.importer.source import GgufFile
from muxd.models.families.table import FAMILIES
from muxd.models.spec import read_spec
from muxd.models.weights import plan

PROMPT = torch.tensor([[5, 9, 300, 41, 7, 7, 12, 99, 100, 3, 250, 17]])  # longer than gemma's tiny window


class Counted(Silent):
    """Remembers what was announced and what was done."""

    def __init__(self) -> None:
        self.total = self.done = self.finished = 0

    def start(self, total: int, label: str) -> None:
        self.total += total

    def advance(self, amount: int) -> None:
        self.done += amount

    def finish(self) -> None:
        self.finished += 1


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize("quantisation", ["F32", "BF16"])
def test_weights_that_fit_bfloat16_come_back_exactly(
    write_tiny: Any, architecture: str, quantisation: str
) -> None:
    tiny = write_tiny(architecture, quantisation)
    folder = tiny.path.parent / "model"
    import_gguf(tiny.path, folder, progress=Silent())
    spec = read_spec(folder)
    assert spec.architecture == type(tiny.model).__name__
    plan(folder, spec, "bfloat16")  # muxd takes it, with every tensor
    ours = load(folder)
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(ours(PROMPT).logits, tiny.model(PROMPT).logits)


@pytest.mark.parametrize("quantisation", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_weights_are_the_files_own_values_rounded_once(write_tiny: Any, quantisation: str) -> None:
    tiny = write_tiny("gemma3", quantisation)
    import_gguf(tiny.path, tiny.path.parent / "model", progress=Silent())
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny.path).tensors}["blk.3.ffn_gate.weight"]
    exact = torch.from_numpy(gguf.quants.dequantize(np.array(source.data), source.tensor_type))
    with safe_open(tiny.path.parent / "model" / "model.safetensors", "pt") as file:
        written = file.get_tensor("model.layers.3.mlp.gate_proj.weight")
    assert torch.equal(written, exact.to(torch.bfloat16))


def test_the_configs_say_what_the_file_says(write_tiny: Any) -> None:
    for architecture in WRITERS:
        tiny = write_tiny(architecture)
        folder = tiny.path.parent / architecture
        import_gguf(tiny.path, folder, progress=Silent())
        ours, truth = AutoConfig.from_pretrained(folder).to_dict(), tiny.model.config.to_dict()
        own = {"architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path"}
        own.add("initializer_range")  # of training; no GGUF has it
        assert {key: ours[key] for key in truth if key not in own} == {
            key: truth[key] for key in truth if key not in own
        }


def test_end_tokens_and_template_are_kept(write_tiny: Any) -> None:
    tiny = write_tiny("llama")
    folder = tiny.path.parent / "model"
    import_gguf(tiny.path, folder, progress=Silent(), extras={"LICENSE": b"free"})
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]  # <|im_end|> as the file says, <|endoftext|> in any case
    assert "<|im_end|>" in (folder / "chat_template.jinja").read_text()
    assert (folder / "LICENSE").read_bytes() == b"free"


def test_progress_adds_up_to_the_bytes_written(write_tiny: Any) -> None:
    tiny, progress = write_tiny("llama"), Counted()
    folder = tiny.path.parent / "model"
    import_gguf(tiny.path, folder, progress=progress)
    assert progress.done == progress.total > 0
    assert progress.finished == 1
    assert 0 < (folder / "model.safetensors").stat().st_size - progress.total < 10_000


def test_rows_are_converted_in_bounded_pieces(write_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for five rows at a time the result is the same, permuted q and k included."""
    tiny = write_tiny("llama")
    monkeypatch.setattr("muxd.importer.weights._SLAB_VALUES", 5 * 64)
    import_gguf(tiny.path, tiny.path.parent / "model", progress=Silent())
    ours = load(tiny.path.parent / "model").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in tiny.model.state_dict().items())


def test_the_list_of_what_can_be_imported_is_what_can(write_tiny: Any) -> None:
    assert KNOWN.keys() == PLANNERS.keys()
    assert {name for held in KNOWN.values() for name in held} <= FAMILIES.keys()
    for architecture in WRITERS:
        tiny = write_tiny(architecture)
        name = GgufFile(tiny.path).text("general.architecture")
        assert name == gguf_name(type(tiny.model).__name__)
    assert gguf_name("OlmoeForCausalLM") == ""
