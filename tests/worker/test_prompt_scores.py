"""Log-probabilities of prompts are transformers', on every step, however the prompt is cut into chunks."""

from pathlib import Path

import pytest
import torch
from support.direct_runner import GREEDY, DirectRunner
from support.logits import reference_logits
from support.tiny_models import gemma3, llama, words
from transformers import PreTrainedModel

from muxd.messages import PromptScores, Sampling
from muxd.worker import scoring

PROMPT = words(150)
ASKED = Sampling(temperature=0.0, prompt_logprobs=3)


@pytest.fixture(scope="module", params=[llama, gemma3])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("model")
    return folder, request.param(folder)


@pytest.fixture(params=["native", "host", "paged"])
def direct(
    request: pytest.FixtureRequest, model: tuple[Path, PreTrainedModel], few_graphs: None
) -> DirectRunner:
    return DirectRunner(
        model[0], paged=request.param == "paged", capture=False, native=request.param == "native"
    )


def check(found: list[PromptScores], reference: PreTrainedModel, prompt: list[int], count: int) -> None:
    """All of the prompt but its first token, once each."""
    logprobs = torch.log_softmax(reference_logits(reference, prompt), -1)
    places = [at for one in found for at in range(one.first, one.first + len(one.scores))]
    assert places == list(range(1, len(prompt)))
    scores = [score for one in found for score in one.scores]
    ranks = [rank for one in found for rank in one.ranks]
    for at, score, rank in zip(places, scores, ranks, strict=True):
        wanted = logprobs[at - 1]
        assert score.logprob == pytest.approx(float(wanted[prompt[at]]), abs=1e-4)
        assert [value for _, value in score.top] == pytest.approx(
            wanted.topk(count).values.tolist(), abs=1e-4
        )
        assert rank == int((wanted > wanted[prompt[at]]).sum()) + 1


@pytest.mark.parametrize("cuts", [(150,), (64, 150), (1, 2, 33, 149, 150)])
@pytest.mark.parametrize("at_once", [1 << 25, 4 * 331 * 7])
def test_they_are_transformers(
    direct: DirectRunner,
    model: tuple[Path, PreTrainedModel],
    cuts: tuple[int, ...],
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct.runner._step.scorer, "_step", at_once // (4 * 331))
    found, start = [], 0
    for stop in cuts:
        done = direct.prefill([(0, start, PROMPT[start:stop], stop == 150)], ASKED, prompt_tokens=150)
        found += done.prompt_scores
        start = stop
    assert len(done.tokens) == 1
    check(found, model[1], PROMPT, 3)


def test_beside_others_and_with_what_was_generated(
    direct: DirectRunner, model: tuple[Path, PreTrainedModel]
) -> None:
    """Of a sequence that is computed again only the prompt is scored; others' tokens stay what they are."""
    alone = direct.prefill([(0, 0, PROMPT[:40], True)], GREEDY).tokens
    several = [(0, 0, PROMPT[:40], True), (1, 0, PROMPT[40:61], True), (2, 0, PROMPT[61:62], True)]
    done = direct.prefill(several, ASKED, prompt_tokens=15)
    assert done.tokens[:1] == alone
    by_chunk = {chunk: [one for one in done.prompt_scores if one.chunk == chunk] for chunk in range(3)}
    check(by_chunk[0], model[1], PROMPT[:15], 3)
    check(by_chunk[1], model[1], PROMPT[40:55], 3)
    assert by_chunk[2] == []


def test_a_vocabulary_of_logits_for_each_token_is_never_there_at_once() -> None:
    scorer = scoring.Scorer(lambda states: states, vocab=262_144)
    assert 4 * 262_144 * scorer._step <= 32 << 20
