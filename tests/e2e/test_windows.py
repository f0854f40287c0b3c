"""Long requests of models with windows in a pool too small for their whole rows: nobody is preempted."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
from support.completing import complete
from support.live import LiveDaemon
from support.logits import greedy_choices
from support.tiny import byte_tokenizer
from support.tiny_models import gemma3, gpt_oss
from support.where import Where, on

pytestmark = on("cpu", "stand-in")

STREAMS, TOKENS = 3, 260
Models = dict[str, tuple[Path, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Eight tokens a row and four blocks of gemma, three of them windowed; sixteen, and two of four of
    gpt-oss."""
    made: Models = {}
    for name, make, changes in (("gemma", gemma3, {"head_dim": 64}), ("gpt-oss", gpt_oss, {})):
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, make(folder, **changes)
        byte_tokenizer(folder)
    return made


@pytest.fixture
def daemon(where: Where, models: Models, tmp_path: Path) -> Iterator[LiveDaemon]:
    """Whole rows of three requests of each would be 420 and 216 blocks; what they need is 135 and 126."""
    pool = f'[pool]\nbytes = "{450 * 4096}"\nblock_bytes = 4096\n[scheduler]\nprefill_tokens = 32\n'
    config = pool + "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n'
        for name, (folder, _) in models.items()
    )
    with where.live(config, tmp_path) as daemon:
        yield daemon


def prompts(name: str) -> list[list[int]]:
    draw = random.Random(name)
    return [draw.choices(range(3, 250), k=20) for _ in range(STREAMS)]


async def together(daemon: LiveDaemon, names: list[str]) -> list[list[int]]:
    async with aiohttp.ClientSession(daemon.url) as session:
        asked = [complete(session, name, prompt, TOKENS) for name in names for prompt in prompts(name)]
        return list(await asyncio.gather(*asked))


def test_long_streams_share_what_their_windows_have_passed(daemon: LiveDaemon, models: Models) -> None:
    names = list(models)
    answers = asyncio.run(together(daemon, names))
    prompt_of = [(name, prompt) for name in names for prompt in prompts(name)]
    for (name, prompt), tokens in zip(prompt_of, answers, strict=True):
        assert len(tokens) == TOKENS
        assert tokens == greedy_choices(models[name][1], prompt, tokens)
    metrics = httpx.get(f"{daemon.url}/metrics", timeout=60).text
    lost = [line for line in metrics.splitlines() if line.startswith("muxd_preemptions_total")]
    assert lost
    assert all(float(line.rpartition(" ")[2]) == 0 for line in lost), lost
    books = daemon.admin.audit()
    assert not books.fault
    assert books.held_blocks == 0
    again = asyncio.run(follow_up(daemon, models, answers[0]))
    assert again == greedy_choices(models[names[0]][1], prompts(names[0])[0] + answers[0] + [7, 8, 9], again)


async def follow_up(daemon: LiveDaemon, models: Models, answer: list[int]) -> list[int]:
    """The next turn begins with all of the first: its rows are found."""
    name = next(iter(models))
    async with aiohttp.ClientSession(daemon.url) as session:
        return await complete(session, name, [*prompts(name)[0], *answer, 7, 8, 9], 30)
