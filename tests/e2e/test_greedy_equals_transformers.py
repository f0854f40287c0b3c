"""Greedy tokens through the daemon equal those of transformers in float32 on the same folder: alone,
batched with seven others, and while the other model is busy."""

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest
from support.completing import complete
from support.live import LiveDaemon, demo_config, demo_folder
from support.reference import PROMPTS, greedy
from support.where import Where, on

from muxd.text.tokenizer import Tokenizer

pytestmark = pytest.mark.demo

TOKENS = 16
LONG = 96
on_both = on("cpu", "gpu")
of_both = pytest.mark.parametrize("model", ["smol", "gemma"])


@pytest.fixture(scope="module")
def daemon(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    config = demo_config("smol", "gemma", dtype="float32")
    with where.live(config, tmp_path_factory.mktemp("greedy")) as daemon:
        yield daemon


class Judged:
    """One model's answers alone, and what transformers answers."""

    def __init__(self, daemon: LiveDaemon, model: str, tokens: int = TOKENS):
        tokenizer = Tokenizer.load(demo_folder(model))
        self.prompts = [tokenizer.encode(text) for text in PROMPTS]
        self.answers = asyncio.run(one_by_one(daemon, model, self.prompts, tokens))
        both = zip(self.prompts, self.answers, strict=True)
        self.expected = [greedy(demo_folder(model), *one) for one in both]


@pytest.fixture(scope="module")
def judged(daemon: LiveDaemon) -> dict[str, Judged]:
    """Filled by ``judge``: one with a parameter would be set up as often as that changes."""
    return {}


@pytest.fixture
def judge(daemon: LiveDaemon, judged: dict[str, Judged], model: str) -> Judged:
    if model not in judged:
        judged[model] = Judged(daemon, model)
    return judged[model]


async def together(daemon: LiveDaemon, model: str, prompts: list[list[int]]) -> list[list[int]]:
    async with aiohttp.ClientSession(daemon.url) as session:
        return list(await asyncio.gather(*(complete(session, model, p, TOKENS) for p in prompts)))


async def one_by_one(
    daemon: LiveDaemon, model: str, prompts: list[list[int]], tokens: int
) -> list[list[int]]:
    async with aiohttp.ClientSession(daemon.url) as session:
        return [await complete(session, model, prompt, tokens) for prompt in prompts]


async def beside_a_busy_model(daemon: LiveDaemon, model: str, prompts: list[list[int]]) -> list[list[int]]:
    """Four endless streams of the other model start before and end after."""
    other = "gemma" if model == "smol" else "smol"
    async with aiohttp.ClientSession(daemon.url) as session:
        noise = [asyncio.create_task(complete(session, other, [7, 8, 9], 1500)) for _ in range(4)]
        try:
            found = list(await asyncio.gather(*(complete(session, model, p, TOKENS) for p in prompts)))
            assert not any(task.done() for task in noise), "the other model was not busy all the time"
        finally:
            for task in noise:
                task.cancel()
            await asyncio.gather(*noise, return_exceptions=True)
    return found


@on_both
@of_both
def test_alone(judge: Judged) -> None:
    assert judge.answers == judge.expected
    assert {len(answer) for answer in judge.answers} == {TOKENS}


@pytest.mark.slow
@on_both
@of_both
def test_alone_for_long(daemon: LiveDaemon, model: str) -> None:
    judged = Judged(daemon, model, LONG)
    assert judged.answers == judged.expected
    assert {len(answer) for answer in judged.answers} == {LONG}


@on("stand-in")  # references are slow: one model's answers once
@pytest.mark.parametrize("model", ["smol"])
def test_alone_on_a_stand_in(judge: Judged) -> None:
    assert judge.answers == judge.expected


@on_both
@of_both
def test_batched_with_seven_others(daemon: LiveDaemon, model: str, judge: Judged) -> None:
    assert asyncio.run(together(daemon, model, judge.prompts)) == judge.expected


@on_both
@of_both
def test_while_the_other_model_is_busy(daemon: LiveDaemon, model: str, judge: Judged) -> None:
    found = asyncio.run(beside_a_busy_model(daemon, model, judge.prompts))
    assert found == judge.expected
