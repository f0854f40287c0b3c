"""Quantised folders computed: greedy tokens of the same numbers in transformers, codes by the native step."""

import random
from pathlib import Path

import pytest
import torch
from support.direct_runner import DirectRunner
from support.logits import continuation_logits
from support.quantised_folders import FORMS, quantise
from support.tiny_models import llama
from transformers import AutoModelForCausalLM

from muxd.kernels import native as kernels
from muxd.messages import WeightsName

SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 64}  # fmt: skip
PROMPT = random.Random(0).choices(range(3, 300), k=40)


@pytest.mark.parametrize(
    ("native", "weights"),
    [
        (False, "file"),
        pytest.param(
            True, "float32", marks=pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
        ),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_greedy_tokens_are_those_of_the_same_numbers(
    tmp_path: Path, form: str, native: bool, weights: WeightsName
) -> None:
    llama(tmp_path / "m", **SHAPE)
    quantise(tmp_path / "m", tmp_path / "plain", FORMS[form])
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    direct = DirectRunner(tmp_path / "m", "float32", native=native, weights=weights)
    found = direct.generate([PROMPT], 12)[0]
    wanted = continuation_logits(reference, PROMPT, found)
    assert found == wanted.argmax(-1).tolist()
    # Of q4_1 the zero points' products are rounded to float16.
    most = 2e-2 if FORMS[form].kept == "q4_1" else 1e-4
    torch.testing.assert_close(torch.cat(direct.logits).float(), wanted, atol=most, rtol=most)


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())
@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.kept])
def test_codes_by_the_native_step(tmp_path: Path, form: str) -> None:
    """As the codes of a GGUF file: activations are rounded to int8, and nothing else."""
    llama(tmp_path / "m", **SHAPE)
    quantise(tmp_path / "m", tmp_path / "plain", FORMS[form])
    wanted = DirectRunner(tmp_path / "plain", "float32")
    found = DirectRunner(tmp_path / "m", "float32", native=True)
    for direct in (wanted, found):
        direct.prefill([(0, 0, PROMPT, True)])
    apart = (found.logits[0] - wanted.logits[0]).abs().median()
    assert float(apart) < 0.05 * float(wanted.logits[0].std())
