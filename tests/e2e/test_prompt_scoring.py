"""What prompts say of themselves, over HTTP: echoed with log-probabilities, as vLLM's prompt_logprobs, with
``max_tokens: 0``; each number is transformers'."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from support.live import LiveDaemon, demo_config, demo_folder, live
from support.logits import reference_logits
from support.tiny import byte_tokenizer
from support.tiny_models import llama, words
from support.where import EVERYWHERE, Where, on
from transformers import AutoModelForCausalLM, PreTrainedModel

pytestmark = on(*EVERYWHERE)
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("scored")
    model = llama(folder)
    return byte_tokenizer(folder), model


@pytest.fixture(scope="module", params=["no", "yes"])
def daemon(
    request: pytest.FixtureRequest,
    where: Where,
    reference: tuple[Path, PreTrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveDaemon]:
    """Prompts are cut into several chunks; both phases in one process, or each in its own."""
    text = (
        '[pool]\nbytes = "32M"\n[scheduler]\nprefill_tokens = 64\n'
        f'split_phases = "{request.param}"\n'
        f'[[model]]\nname = "a"\npath = "{reference[0]}"\ndtype = "float32"\n'
    )
    with where.live(text, tmp_path_factory.mktemp("scoring")) as daemon:
        yield daemon


def post(daemon: LiveDaemon, body: dict[str, Any], path: str = COMPLETIONS) -> dict[str, Any]:
    answer = httpx.post(f"{daemon.url}{path}", json={"model": "a", "temperature": 0, **body}, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wanted(model: PreTrainedModel, tokens: list[int]) -> list[float]:
    """Of each token but the first."""
    logprobs = torch.log_softmax(reference_logits(model, tokens), -1)
    return [float(logprobs[at, token]) for at, token in enumerate(tokens[1:])]


def test_an_echo_has_the_prompts_numbers_before_the_answers(
    daemon: LiveDaemon, reference: tuple[Path, PreTrainedModel]
) -> None:
    prompt = words(150)
    for again in range(2):  # the second time its rows are known, and its numbers are not
        body = {"prompt": prompt, "max_tokens": 3, "echo": True, "logprobs": 2, "return_token_ids": True}
        (choice,) = post(daemon, body | {"ignore_eos": True})["choices"]
        logprobs, every = choice["logprobs"], [*prompt, *choice["token_ids"]]
        assert [len(values) for values in logprobs.values()] == [153] * 4, again
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == pytest.approx(wanted(reference[1], every), abs=1e-4)
        assert all(1 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])
        plain = post(daemon, {"prompt": prompt, "max_tokens": 3, "ignore_eos": True})  # fills the cache
        assert choice["text"].endswith(plain["choices"][0]["text"])


def test_only_the_prompt_and_several_of_them(
    daemon: LiveDaemon, reference: tuple[Path, PreTrainedModel]
) -> None:
    prompts = [words(5), words(100), words(1)]
    found = post(daemon, {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 1, "n": 2})
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    assert found["usage"]["completion_tokens"] == 0
    for choice in found["choices"]:
        prompt = prompts[choice["index"] // 2]
        assert choice["finish_reason"] == "length"
        scores = choice["logprobs"]["token_logprobs"]
        assert scores[1:] == pytest.approx(wanted(reference[1], prompt), abs=1e-4)
        assert len(scores) == len(prompt)
    nothing = post(daemon, {"prompt": "hello", "max_tokens": 0})["choices"][0]
    assert (nothing["text"], nothing["logprobs"]) == ("", None)


def test_streamed(daemon: LiveDaemon) -> None:
    body = {"prompt": "one two", "max_tokens": 4, "echo": True, "logprobs": 1, "ignore_eos": True}
    whole = post(daemon, body)["choices"][0]
    texts, scores = [], []
    asked = {"model": "a", "temperature": 0, "stream": True, **body}
    with httpx.stream("POST", f"{daemon.url}{COMPLETIONS}", json=asked, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                texts.append(choice["text"])
                scores += (choice["logprobs"] or {}).get("token_logprobs", [])
    assert ("".join(texts), scores) == (whole["text"], whole["logprobs"]["token_logprobs"])


def test_vllms_shape(daemon: LiveDaemon, reference: tuple[Path, PreTrainedModel]) -> None:
    prompt = words(70)
    (choice,) = post(daemon, {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": 3})["choices"]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert choice["logprobs"] is None
    logprobs = torch.log_softmax(reference_logits(reference[1], prompt), -1)
    for at, (token, entry) in enumerate(zip(prompt[1:], rest, strict=True)):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(float(logprobs[at, token]), abs=1e-4)
        assert own["rank"] == int((logprobs[at] > logprobs[at, token]).sum()) + 1
        assert sorted(one["rank"] for one in entry.values())[:3] == [1, 2, 3]
    (plain,) = post(daemon, {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": 0})["choices"]
    assert [len(entry) for entry in plain["prompt_logprobs"][1:]] == [1] * 69


def test_unlimited_is_all_that_fits(daemon: LiveDaemon) -> None:
    found = post(daemon, {"prompt": words(100), "max_tokens": -1, "ignore_eos": True})
    assert found["usage"]["total_tokens"] == 512
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_demo_models(where: Where, name: str, tmp_path: Path) -> None:
    if where.gpu or not (demo_folder(name) / "config.json").is_file():
        pytest.skip("needs a CPU and the demo models: run `make demo`")
    model = AutoModelForCausalLM.from_pretrained(demo_folder(name), dtype=torch.float32).eval()
    text = "The quick brown fox jumps over the lazy dog. Die Würde des Menschen ist unantastbar. " * 6
    with live(demo_config(name, dtype="float32"), tmp_path) as daemon:
        tokens = httpx.post(f"{daemon.url}/tokenize", json={"prompt": text}, timeout=60).json()["tokens"]
        body = {"model": name, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
        (choice,) = post(daemon, body)["choices"]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted(model, tokens), abs=2e-3)
