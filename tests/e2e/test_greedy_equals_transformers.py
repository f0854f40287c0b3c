"""Greedy tokens through the daemon equal those of transformers in float32 on the same folder: alone,
batched with seven others, and while the other model is busy."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest
from support.live import LiveDaemon, demo_config, demo_folder
from support.reference import PROMPTS, greedy
from support.where import Where, place

from muxd.text.tokenizer import Tokenizer

pytestmark = pytest.mark.demo

TOKENS = 64
BESIDE = 24  # tokens beside the other model, which takes most of the time
BOTH = [place(name, model) for name in ("cpu", "gpu") for model in ("smol", "gemma")]
on_both = pytest.mark.parametrize(("where", "model"), BOTH, indirect=True)
# References are slow: the stand-in computes the answers of one model once.
on_all = pytest.mark.parametrize(("where", "model"), [*BOTH, place("stand-in", "smol")], indirect=True)


@pytest.fixture(scope="module")
def daemon(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    config = demo_config("smol", "gemma", dtype="float32")
    with where.live(config, tmp_path_factory.mktemp("greedy")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prompts(model: str) -> list[list[int]]:
    tokenizer = Tokenizer.load(demo_folder(model))
    return [tokenizer.encode(text) for text in PROMPTS]


async def complete(session: aiohttp.ClientSession, model: str, prompt: list[int], tokens: int) -> list[int]:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    async with session.post("/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return list((await answer.json())["choices"][0]["token_ids"])


async def together(daemon: LiveDaemon, model: str, prompts: list[list[int]]) -> list[list[int]]:
    async with aiohttp.ClientSession(daemon.url) as session:
        return list(await asyncio.gather(*(complete(session, model, p, TOKENS) for p in prompts)))


async def one_by_one(daemon: LiveDaemon, model: str, prompts: list[list[int]]) -> list[list[int]]:
    async with aiohttp.ClientSession(daemon.url) as session:
        return [await complete(session, model, prompt, TOKENS) for prompt in prompts]


async def beside_a_busy_model(daemon: LiveDaemon, model: str, prompts: list[list[int]]) -> list[list[int]]:
    """Four endless streams of the other model start before and end after."""
    other = "gemma" if model == "smol" else "smol"
    async with aiohttp.ClientSession(daemon.url) as session:
        noise = [asyncio.create_task(complete(session, other, [7, 8, 9], 1500)) for _ in range(4)]
        try:
            found = list(await asyncio.gather(*(complete(session, model, p, BESIDE) for p in prompts)))
            assert not any(task.done() for task in noise), "the other model was not busy all the time"
        finally:
            for task in noise:
                task.cancel()
            await asyncio.gather(*noise, return_exceptions=True)
    return found


@pytest.fixture(scope="module")
def answers(daemon: LiveDaemon, model: str, prompts: list[list[int]]) -> list[list[int]]:
    return asyncio.run(one_by_one(daemon, model, prompts))


@pytest.fixture(scope="module")
def expected(model: str, prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    return [greedy(demo_folder(model), *both) for both in zip(prompts, answers, strict=True)]


@on_all
def test_alone(answers: list[list[int]], expected: list[list[int]]) -> None:
    assert answers == expected
    assert {len(answer) for answer in answers} == {TOKENS}


@on_both
def test_batched_with_seven_others(
    daemon: LiveDaemon, model: str, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert asyncio.run(together(daemon, model, prompts)) == expected


@on_both
def test_while_the_other_model_is_busy(
    daemon: LiveDaemon, model: str, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    found = asyncio.run(beside_a_busy_model(daemon, model, prompts))
    assert found == [answer[:BESIDE] for answer in expected]
