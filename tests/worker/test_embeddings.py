"""Vectors of texts are transformers', on every step, alone and beside others, whole and in chunks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.direct_runner import GREEDY, DirectRunner, int32
from support.tiny_models import bert, gemma3, qwen3, words
from transformers import PreTrainedModel

from muxd.messages import BatchDone, Chunk, Pooling, Prefill
from muxd.models.bert import Texts

MAKE = {"bert": bert, "qwen3": qwen3, "gemma3": gemma3}
TEXTS = [words(n, seed=n) for n in (1, 7, 40, 120)]
CASES = [("bert", "mean"), ("bert", "cls"), ("qwen3", "last"), ("qwen3", "mean"), ("gemma3", "mean")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    found = {}
    for name, make in MAKE.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder, make(folder)
    return found


@torch.inference_mode()
def wanted(model: PreTrainedModel, tokens: list[int], pooling: Pooling) -> NDArray[np.float32]:
    base = getattr(model, "model", model)
    states = base(torch.tensor([tokens])).last_hidden_state[0].float()
    pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
    found: NDArray[np.float32] = pooled.numpy()
    return found


def prefill(
    direct: DirectRunner, chunks: list[tuple[int, int, list[int], int]], pooling: Pooling
) -> BatchDone:
    """Of (sequence, start, tokens, length of its text)."""
    made, fresh = [], []
    for seq, start, tokens, length in chunks:
        grown = direct._grow(seq, start + len(tokens))
        fresh += grown
        last = start + len(tokens) == length
        made.append(Chunk(seq, start, int32(tokens), int32(grown), last, GREEDY, length, pooling=pooling))
    return direct.runner.prefill(Prefill(next(direct._batch), 100, direct._new(fresh), made, []))


def vectors(done: BatchDone) -> dict[int, NDArray[np.float32]]:
    assert done.tokens == []
    return {chunk: np.frombuffer(data, "<f4") for chunk, data in done.vectors}


@pytest.mark.parametrize("step", ["host", "paged"])
@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_they_are_transformers(
    made: dict[str, tuple[Path, PreTrainedModel]], name: str, pooling: Pooling, step: str, few_graphs: None
) -> None:
    folder, reference = made[name]
    direct = DirectRunner(folder, paged=step == "paged", capture=False, native=False)
    direct.runner.warm_up()
    found = vectors(prefill(direct, [(i, 0, text, len(text)) for i, text in enumerate(TEXTS)], pooling))
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(found[i], wanted(reference, text, pooling), atol=1e-4, rtol=1e-3)
    alone = vectors(prefill(direct, [(9, 0, TEXTS[2], 40)], pooling))[0]
    np.testing.assert_allclose(alone, found[2], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("step", ["host", "paged"])
@pytest.mark.parametrize(("name", "pooling"), [case for case in CASES if case[0] != "bert"])
def test_a_decoders_text_may_be_cut_and_lie_beside_answers(
    made: dict[str, tuple[Path, PreTrainedModel]], name: str, pooling: Pooling, step: str, few_graphs: None
) -> None:
    folder, reference = made[name]
    direct, text = DirectRunner(folder, paged=step == "paged", capture=False, native=False), TEXTS[3]
    answer = direct.prefill([(50, 0, words(9), True)]).tokens
    assert prefill(direct, [(0, 0, text[:50], 120)], pooling).vectors == []
    beside = direct.decode([50])
    found = vectors(prefill(direct, [(0, 50, text[50:], 120), (1, 0, TEXTS[1], 7)], pooling))
    for chunk, tokens in ((0, text), (1, TEXTS[1])):
        np.testing.assert_allclose(found[chunk], wanted(reference, tokens, pooling), atol=1e-4, rtol=1e-3)
    again = DirectRunner(folder, paged=step == "paged", capture=False, native=False)
    assert [*again.prefill([(50, 0, words(9), True)]).tokens, *again.decode([50])] == answer + beside


def test_a_decoder_that_was_saved_without_its_head(tmp_path: Path) -> None:
    """As Qwen3-Embedding's files are."""
    model = qwen3(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3Model"]
    for architecture in ("Qwen3Model", "Qwen3ForCausalLM"):
        (tmp_path / "bare" / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        direct = DirectRunner(tmp_path / "bare", capture=False, native=False)
        direct.runner.warm_up()
        found = vectors(prefill(direct, [(0, 0, TEXTS[2], 40)], "last"))[0]
        np.testing.assert_allclose(found, wanted(model, TEXTS[2], "last"), atol=1e-4, rtol=1e-3)


def test_an_encoder_sees_the_same_under_a_mask() -> None:
    """As on a device that is not waited for."""
    positions = torch.cat([torch.arange(n) for n in (1, 7, 30)])
    q, k, v = (torch.randn(2, 38, 8) for _ in range(3))
    texts = Texts(positions)
    apart = texts.attend(q, k, v, 0.3)
    begins = (positions == 0).cumsum(0)
    texts.lengths, texts.same = None, begins[:, None] == begins[None]
    torch.testing.assert_close(texts.attend(q, k, v, 0.3), apart)
