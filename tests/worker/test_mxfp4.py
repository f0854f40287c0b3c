"""gpt-oss as it is published: experts in MXFP4, kept so by the native step, read as floats by torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.direct_runner import DirectRunner
from support.logits import continuation_logits
from support.mxfp4_folders import make_mxfp4
from support.tiny_models import gpt_oss, words

from muxd.errors import ModelFolderError
from muxd.kernels import native as kernels
from muxd.models.spec import read_spec
from muxd.models.weights import plan

EVERY = {"num_local_experts": 3, "num_experts_per_tok": 3}  # a choice would differ where scores are alike


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("mxfp4")
    model = gpt_oss(folder, **EVERY)
    make_mxfp4(folder, model)
    return folder, model


def played(direct: DirectRunner) -> tuple[list[list[int]], list[torch.Tensor]]:
    prompts = [words(n) for n in (1, 9, 70)]
    found = direct.generate(prompts, 8)
    return found, [torch.stack([logits[i].float() for logits in direct.logits]) for i in range(3)]


def test_its_numbers_are_those_of_the_file(made: tuple[Path, Any], native: bool) -> None:
    """In float32 by every way; the region of the native step holds floats then, too."""
    folder, reference = made
    ways: list[dict[str, Any]] = [{"native": True, "weights": "float32"}] if native else [{"native": False}]
    for options in [*ways, *([] if native else [{"paged": True}])]:
        found, logits = played(DirectRunner(folder, "float32", block_bytes=4096, **options))
        for prompt, tokens, own in zip((words(n) for n in (1, 9, 70)), found, logits, strict=True):
            wanted = continuation_logits(reference, prompt, tokens)
            assert tokens == wanted.argmax(-1).tolist()
            torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4)


def test_blocks_stay_blocks(made: tuple[Path, Any], native: bool) -> None:
    if not native:
        pytest.skip("torch computes with floats")
    folder, _ = made
    kept = DirectRunner(folder, "float32", native=True)
    spec = kept.spec
    assert spec.experts is not None
    experts = 3 * spec.layers * spec.experts.count * spec.experts.inner * spec.hidden_size
    floats = DirectRunner(folder, "float32", native=True, weights="float32")
    assert kept.weights_bytes < floats.weights_bytes - 3.4 * experts, "4.25 bits a number"
    found, wanted = (torch.cat(played(direct)[1])[:8] for direct in (kept, floats))
    far = (wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
    assert float(far.median()) < 0.02


def test_what_is_broken_is_told_by_file_and_tensor(made: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = made
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    lacking = {key: one for key, one in tensors.items() if key != f"{name}_scales"}
    save_file(lacking, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"tensor {name}_scales is missing"):
        plan(tmp_path, read_spec(tmp_path), "float32")
    tensors[f"{name}_scales"][1, 2, 0] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"tensor {name}_blocks: it holds numbers that"):
        DirectRunner(tmp_path, "float32", native=False)
    tensors[f"{name}_scales"] = tensors[f"{name}_scales"].float()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"tensor {name}_scales has shape"):
        plan(tmp_path, read_spec(tmp_path), "float32")


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
def test_experts_made_int8_leave_the_routers_as_they_are(tmp_path: Path) -> None:
    gpt_oss(tmp_path, **EVERY)
    exact = DirectRunner(tmp_path, "float32", native=True)
    made = DirectRunner(tmp_path, "float32", native=True, weights="int8")
    wanted, found = (torch.cat(played(direct)[1])[:8] for direct in (exact, made))
    far = (wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
    assert float(far.median()) < 0.01
