"""What a format costs in quality: beside transformers' own probabilities, and formats in their order."""

import math
from pathlib import Path

import pytest
import torch
from support.block_folders import make_blocks
from support.tiny import byte_tokenizer
from support.tiny_models import llama
from transformers import AutoModelForCausalLM

from muxd.cost.probe import Compare, Compared, Counted
from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.text.tokenizer import Tokenizer
from muxd.worker.quality import compare

TEXT = "Weigh the flour twice. Then, and only then, add 700 ml of water!\n" * 3
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 64}  # fmt: skip

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    llama(folder, **SHAPE)
    return byte_tokenizer(folder)


def compared(folder: Path) -> list[Compared]:
    """Every token was told of on the way."""
    answers = list(compare(Compare(str(folder), 1, TEXT)))
    came = [one for one in answers if isinstance(one, Counted)]
    assert sum(one.tokens for one in came) == came[0].of == len(Tokenizer.load(folder).encode(TEXT))
    return [one for one in answers if isinstance(one, Compared)]


def test_formats_beside_transformers(folder: Path) -> None:
    found = compared(folder)
    assert [(one.weights, one.forms) for one in found] == [
        ("float32", ["float32"]), ("file", ["f32"]), ("int8", ["q8_0"]), ("int4", ["q4_1", "q8_0"]),
    ]  # fmt: skip
    ids = torch.tensor([Tokenizer.load(folder).encode(TEXT)])
    with torch.inference_mode():
        loss = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids, labels=ids).loss
    floats, own, int8, int4 = found
    assert floats.tokens == ids.shape[1] - 1
    assert floats.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-4)
    assert (floats.divergence, floats.same) == (0, 1)
    assert abs(own.divergence) < 1e-5
    assert 1e-5 < int8.divergence < int8.worst < 0.02
    assert int8.divergence < int4.divergence < 1
    assert int8.nbytes < 0.5 * floats.nbytes
    assert int4.nbytes < int8.nbytes


def test_blocks_are_compared_with_the_numbers_that_they_stand_for(folder: Path, tmp_path: Path) -> None:
    llama(tmp_path / "m", **SHAPE)
    byte_tokenizer(make := tmp_path / "m")
    make_blocks(make, "q4_k")
    floats, file = compared(make)
    assert "q4_k" in file.forms
    assert 0 < file.divergence < 0.02, "what rounding activations costs, and no more"
    assert abs(file.perplexity / floats.perplexity - 1) < 0.02


def test_who_has_no_probabilities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        list(compare(Compare(str(tmp_path), 1, TEXT)))
