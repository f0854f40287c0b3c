"""Models of random weights on one device through the daemon: greedy tokens are those of transformers, alone
and together.

Needs no model to be there: it is what a host without a network can serve, on a CPU and on a GPU.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import aiohttp
import pytest
from support.completing import complete
from support.live import LiveDaemon
from support.logits import continuation_logits
from support.tiny import byte_tokenizer
from support.tiny_models import cohere2, gemma2, gemma3, gemma4, gpt_oss, llama, mistral, phi3, qwen3_moe
from support.where import Where, on
from transformers import PreTrainedModel

pytestmark = on("cpu", "gpu")

Models = dict[str, tuple[Path, PreTrainedModel]]
TOKENS, CLOSE = 48, 1e-3
HOSTS: list[dict[str, Callable[..., PreTrainedModel]]] = [
    {"llama": llama, "gemma": gemma3, "gpt-oss": gpt_oss},
    {"mistral": mistral, "experts": qwen3_moe, "gemma4": gemma4},
    {"phi3": phi3, "gemma2": gemma2, "cohere2": cohere2},
]


@pytest.fixture(scope="module", params=HOSTS, ids="-".join)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = {}
    for name, make in request.param.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, make(folder)
        byte_tokenizer(folder)
    return made


@pytest.fixture(scope="module")
def daemon(where: Where, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    config = '[pool]\nbytes = "64M"\n' + "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n'
        for name, (folder, _) in models.items()
    )
    with where.live(config, tmp_path_factory.mktemp("random")) as daemon:
        yield daemon


def prompts(name: str) -> list[list[int]]:
    draw = random.Random(name)
    return [draw.choices(range(3, 250), k=n) for n in (1, 7, 33, 64, 65, 120, 200, 250)]


async def together(daemon: LiveDaemon, names: Iterable[str]) -> dict[str, list[list[int]]]:
    """All prompts of all these models at once."""
    asked = [(name, prompt) for name in names for prompt in prompts(name)]
    async with aiohttp.ClientSession(daemon.url) as session:
        found = await asyncio.gather(*(complete(session, *one, TOKENS) for one in asked))
    by_model: dict[str, list[list[int]]] = {name: [] for name in names}
    for (name, _), tokens in zip(asked, found, strict=True):
        by_model[name].append(tokens)
    return by_model


def check(found: dict[str, list[list[int]]], models: Models, close: float) -> None:
    """``close``: on another device sums round differently, and only between equals may the choice differ."""
    for name, answers in found.items():
        for prompt, tokens in zip(prompts(name), answers, strict=True):
            assert len(tokens) == TOKENS
            wanted = continuation_logits(models[name][1], prompt, tokens)
            chosen = wanted[range(TOKENS), tokens]
            assert bool((wanted.max(-1).values - chosen <= close).all()), f"{name}, {len(prompt)} tokens"


def test_greedy_tokens_alone_and_of_all_at_once_are_those_of_transformers(
    where: Where, daemon: LiveDaemon, models: Models
) -> None:
    """Each prompt is asked twice more when all its full rows are found in the pool."""
    close = CLOSE if where.gpu else 0.0
    for name in models:
        check(asyncio.run(together(daemon, [name])), models, close)
    for _ in range(2):
        check(asyncio.run(together(daemon, models)), models, close)
    status = daemon.status()
    assert status.requests.served == 3 * sum(len(prompts(name)) for name in models)
    assert (status.requests.running, status.requests.waiting, status.requests.failed) == (0, 0, 0)
    assert status.pool.free_blocks + status.pool.cached_blocks == status.pool.total_blocks
