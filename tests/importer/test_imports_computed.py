"""What is imported is computed: greedy tokens are those of the model that the file was made from, by every
step, with the file's blocks kept. Quantisations hold the numbers of these files exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.direct_runner import DirectRunner
from support.gguf_writers import EXACT
from support.logits import continuation_logits, undecided
from transformers import AutoModelForCausalLM

from muxd.importer.convert import import_gguf
from muxd.importer.progress import Silent
from muxd.kernels import native as kernels
from muxd.messages import WeightsName
from muxd.models.safetensors_index import index

PROMPTS = [[5, 9, 300, 41, 7, 7, 12, 99, 100, 3, 250, 17, 350, 4], [260, 33, 34]]
STEPS = [
    pytest.param(False, "file", id="torch"),
    pytest.param(
        True,
        "float32",
        id="native",
        marks=pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing()),
    ),
]
KINDS = [(name, "Q8_0") for name in EXACT] + [("phi3 long", "F16"), ("gpt-oss", "F16")]
KINDS += [("phi3", "Q4_0"), ("phi3", "Q4_K"), ("glm4", "Q4_K"), ("gpt-oss", "Q4_0"), ("gpt-oss", "MXFP4")]


def imported(path: Path) -> Path:
    folder = path.parent / "model"
    import_gguf(path, folder, progress=Silent(), weights="file")
    return folder


@pytest.mark.parametrize(("native", "weights"), STEPS)
@pytest.mark.parametrize(("architecture", "kind"), KINDS)
def test_greedy_tokens_are_those_of_the_model(
    write_tiny: Any, architecture: str, kind: str, native: bool, weights: WeightsName
) -> None:
    tiny = write_tiny(architecture, kind)
    folder = imported(tiny.path)
    kept = {one.blocks for one in index(folder).values()} - {""}
    assert kept == {"F16": set(), "MXFP4": {"mxfp4", "q8_0"}}.get(kind, {kind.lower()})
    direct = DirectRunner(folder, "float32", native=native, weights=weights)
    found = direct.generate(PROMPTS, 10)
    for row, (prompt, tokens) in enumerate(zip(PROMPTS, found, strict=True)):
        assert not undecided(tiny.model, prompt + tokens)
        wanted = continuation_logits(tiny.model, prompt, tokens)
        assert tokens == wanted.argmax(-1).tolist()
        own = torch.stack([logits[row].float() for logits in direct.logits])
        torch.testing.assert_close(own, wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
@pytest.mark.parametrize(("architecture", "kind"), [("phi3", "Q8_0"), ("glm4", "Q4_K"), ("gpt-oss", "MXFP4")])
def test_blocks_by_the_native_step(write_tiny: Any, architecture: str, kind: str) -> None:
    """Activations are rounded to int8, and nothing else."""
    tiny = write_tiny(architecture, kind)
    direct = DirectRunner(imported(tiny.path), "float32", native=True)
    direct.prefill([(0, 0, PROMPTS[0], True)])
    wanted = continuation_logits(tiny.model, PROMPTS[0], [0])[0]
    assert float((direct.logits[0][0] - wanted).abs().median()) < 0.1 * float(wanted.std())


def test_gpt_oss_without_blocks_is_as_transformers_has_it(write_tiny: Any) -> None:
    """Of a file of MXFP4 as well: experts in one tensor, to the bit."""
    tiny = write_tiny("gpt-oss", "MXFP4")
    folder = tiny.path.parent / "model"
    import_gguf(tiny.path, folder, progress=Silent(), weights="bfloat16")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(ours[name], tensor), name
