"""Drawn configurations of the families compute what transformers computes, in float32: unequal prompts,
chunks, shared prefixes and 32 steps, by the native step, by torch, and with K and V where they lie.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.direct_runner import DirectRunner
from support.drawn_models import DRAWN, Config
from support.ledger_runner import LedgerRunner
from support.logits import continuation_logits, reference_logits, undecided

from muxd.kernels import native as kernels
from muxd.models.spec import read_spec
from muxd.worker import cuda_step

STEPS, CLOSE = 32, 1e-4
MANY = int(os.environ.get("MUXD_DRAWN", "20"))  # configurations of a family in the long form
WAYS: dict[str, dict[str, Any]] = {
    "native": {"native": True},
    "torch": {"native": False},
    "paged": {"paged": True, "native": False},
}
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module", autouse=True)
def without_graphs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_step, "buckets_for", lambda most: (1,))
        yield


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Of numbers as large as a model gives them."""
    far = float((found.float() - wanted).abs().max())
    assert far <= CLOSE * max(1.0, float(wanted.abs().max())), far


def check(folder: Path, reference: Any, config: Config, seed: int) -> None:
    draw = random.Random(seed)

    def words(length: int) -> list[int]:
        return draw.choices(range(config["vocab_size"]), k=length)

    prompts = [words(n) for n in (1, draw.randint(2, 20), draw.randint(20, 70))]
    cut, chunk = words(45), draw.choice([1, 7, 20])
    prefix, rests = words(40), [words(9), words(draw.randint(1, 25))]
    block_bytes = 8 * read_spec(folder).row_layout.head_dim * draw.choice([1, 3, 16])  # float32's K and V
    for way, options in WAYS.items():
        if way == "native" and kernels.missing():
            continue
        direct = DirectRunner(folder, block_bytes=block_bytes, rows=800, **options)
        for i, tokens in enumerate(direct.generate(prompts, STEPS)):
            if undecided(reference, prompts[i] + tokens):
                continue
            wanted = continuation_logits(reference, prompts[i], tokens)
            close(torch.stack([logits[i] for logits in direct.logits]), wanted)
        direct.prefill([(7, 0, prompts[1], True)])
        for start in range(0, len(cut), chunk):
            direct.decode([7])
            direct.prefill([(8, start, cut[start : start + chunk], start + chunk >= len(cut))])
        if not undecided(reference, cut):
            close(direct.logits[-1][0], reference_logits(reference, cut)[-1])
        if direct.spec.delta is None:  # no row of tokens says what a state was behind them
            shared(folder, reference, prefix, rests, block_bytes, options)


def shared(
    folder: Path,
    reference: Any,
    prefix: list[int],
    rests: list[list[int]],
    block_bytes: int,
    options: dict[str, Any],
) -> None:
    host = LedgerRunner({"m": folder}, 8000, block_bytes, **options)
    host.start("m", prefix + rests[0])
    found = host.start("m", prefix + rests[1], chunk=11)
    assert found.shared == len(prefix) // host.row_tokens["m"]
    for _ in range(3):
        host.step(found)
    if not undecided(reference, prefix + rests[1] + found.answer):
        close(torch.stack(found.logits), continuation_logits(reference, prefix + rests[1], found.answer))


@pytest.mark.parametrize("family", DRAWN)
@settings(
    max_examples=2, phases=[Phase.generate], database=None, derandomize=True, suppress_health_check=CHECKS
)
@given(data=st.data())
def test_some(family: str, data: st.DataObject, tmp_path: Path) -> None:
    _drawn(family, data, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", DRAWN)
@settings(max_examples=MANY, suppress_health_check=CHECKS)
@given(data=st.data())
def test_many(family: str, data: st.DataObject, tmp_path: Path) -> None:
    _drawn(family, data, tmp_path)


def _drawn(family: str, data: st.DataObject, folder: Path) -> None:
    make, configs = DRAWN[family]
    config = data.draw(configs())
    reference = make(folder, **config)
    check(folder, reference, config, data.draw(st.integers(0, 999)))
