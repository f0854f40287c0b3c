"""Two models of random weights on one device through the daemon: greedy tokens are those of transformers.

Needs no model to be there: it is what a host without a network can serve, on a CPU and on a GPU.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.live import LiveDaemon, live
from support.tiny import byte_tokenizer
from support.tiny_models import continuation_logits, gemma3, llama
from transformers import PreTrainedModel

TOKENS, CLOSE = 48, 1e-3
MAKE: dict[str, Callable[..., PreTrainedModel]] = {"llama": llama, "gemma": gemma3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    made = {}
    for name, make in MAKE.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, make(folder)
        byte_tokenizer(folder)
    return made


@pytest.fixture(scope="module")
def daemon(
    models: dict[str, tuple[Path, PreTrainedModel]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveDaemon]:
    config = '[pool]\nbytes = "64M"\n' + "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n'
        for name, (folder, _) in models.items()
    )
    with live(config, tmp_path_factory.mktemp("random")) as daemon:
        yield daemon


def prompts(name: str) -> list[list[int]]:
    draw = random.Random(name)
    return [draw.choices(range(3, 250), k=n) for n in (1, 7, 33, 64, 65, 120, 200, 250)]


async def complete(session: aiohttp.ClientSession, model: str, prompt: list[int]) -> list[int]:
    body = {
        "model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    async with session.post("/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return list((await answer.json())["choices"][0]["token_ids"])


async def everything(daemon: LiveDaemon) -> dict[str, list[list[int]]]:
    """All prompts of both models at once."""
    asked = [(name, prompt) for name in MAKE for prompt in prompts(name)]
    async with aiohttp.ClientSession(daemon.url) as session:
        found = await asyncio.gather(*(complete(session, *one) for one in asked))
    by_model: dict[str, list[list[int]]] = {name: [] for name in MAKE}
    for (name, _), tokens in zip(asked, found, strict=True):
        by_model[name].append(tokens)
    return by_model


def test_greedy_tokens_of_both_at_once_are_those_of_transformers(daemon: LiveDaemon, models: Any) -> None:
    """Twice: the second time every prompt's full rows are found in the pool."""
    for _ in range(2):
        found = asyncio.run(everything(daemon))
        for name, (_folder, reference) in models.items():
            for prompt, tokens in zip(prompts(name), found[name], strict=True):
                assert len(tokens) == TOKENS
                wanted = continuation_logits(reference, prompt, tokens)
                chosen = wanted[range(TOKENS), tokens]
                # On another device sums round differently: only between equals may the choice differ.
                assert bool((wanted.max(-1).values - chosen < CLOSE).all()), f"{name}, {len(prompt)} tokens"
    status = daemon.status()
    assert status.requests.served == 4 * len(prompts("llama"))
    assert (status.requests.running, status.requests.waiting, status.requests.failed) == (0, 0, 0)
    assert status.pool.free_blocks + status.pool.cached_blocks == status.pool.total_blocks
