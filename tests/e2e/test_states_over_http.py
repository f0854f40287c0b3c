"""A model whose layers keep a state, beside one without, through the daemon: greedy tokens are those of
transformers, alone and together, in a pool that is short, and when its worker is killed in the middle of the
answers."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx2 as httpx
import pytest
from support.completing import complete
from support.live import LiveDaemon, live
from support.logits import greedy_choices
from support.tiny import byte_tokenizer
from support.tiny_models import llama, qwen3_5
from transformers import PreTrainedModel

TOKENS = 40
Models = dict[str, PreTrainedModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    made = {"qwen": qwen3_5(folder / "qwen"), "llama": llama(folder / "llama")}
    for name in made:
        byte_tokenizer(folder / name)
    return made


@pytest.fixture
def daemon(folder: Path, models: Models, tmp_path: Path) -> Iterator[LiveDaemon]:
    """Some eight sequences with their states find room at once."""
    config = '[pool]\nbytes = "3M"\n' + "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder / name}"\ndtype = "float32"\n' for name in models
    )
    with live(config, tmp_path) as daemon:
        yield daemon


def prompts(name: str) -> list[list[int]]:
    draw = random.Random(name)
    return [draw.choices(range(3, 250), k=n) for n in (1, 7, 64, 65, 120, 200, 30, 31, 32, 33)]


async def together(daemon: LiveDaemon, names: list[str], *, kill: str = "") -> dict[str, list[list[int]]]:
    """All prompts of all these models at once; the worker of ``kill`` dies meanwhile."""
    asked = [(name, prompt) for name in names for prompt in prompts(name)]
    async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(120)) as session:
        tasks = [asyncio.create_task(complete(session, *one, TOKENS)) for one in asked]
        if kill:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            os.kill(daemon.workers()[kill], signal.SIGKILL)
        found = await asyncio.gather(*tasks)
    by_model: dict[str, list[list[int]]] = {name: [] for name in names}
    for (name, _), tokens in zip(asked, found, strict=True):
        by_model[name].append(tokens)
    return by_model


def check(found: dict[str, list[list[int]]], models: Models) -> None:
    for name, answers in found.items():
        for prompt, tokens in zip(prompts(name), answers, strict=True):
            assert len(tokens) == TOKENS
            assert tokens == greedy_choices(models[name], prompt, tokens), f"{name}, {len(prompt)} tokens"


def test_greedy_tokens_alone_and_beside_another_model(daemon: LiveDaemon, models: Models) -> None:
    check(asyncio.run(together(daemon, ["qwen"])), models)
    check(asyncio.run(together(daemon, list(models))), models)
    status = daemon.status()
    assert (status.requests.running, status.requests.waiting, status.requests.failed) == (0, 0, 0)
    assert status.pool.free_blocks + status.pool.cached_blocks == status.pool.total_blocks


def test_a_conversation_goes_on_behind_a_copy_of_its_state(
    folder: Path, models: Models, tmp_path: Path
) -> None:
    """In a pool with room for copies; a turn's answer is computed again, what was before it is not."""
    model = f'[[model]]\nname = "qwen"\npath = "{folder / "qwen"}"\ndtype = "float32"\n'
    with live(f'[pool]\nbytes = "16M"\n{model}', tmp_path) as daemon:
        prompt, before = prompts("qwen")[4], 0
        for _ in range(3):
            body = {"model": "qwen", "prompt": prompt, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
            answer = httpx.post(f"{daemon.url}/v1/completions", json=body | {"return_token_ids": True}).json()
            tokens = answer["choices"][0]["token_ids"]
            assert tokens == greedy_choices(models["qwen"], prompt, tokens)
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached == (before // 16 * 16)
            before = len(prompt) - 1
            prompt = prompt + tokens + [9, 8, 7]


def test_an_answer_whose_worker_is_killed_goes_on_with_its_state_computed_again(
    daemon: LiveDaemon, models: Models
) -> None:
    before = daemon.workers()
    check(asyncio.run(together(daemon, list(models), kill="qwen")), models)
    after = daemon.workers()
    assert after["qwen"] != before["qwen"]
    assert after["llama"] == before["llama"]


def test_the_longest_request_is_what_its_state_leaves_of_the_pool(
    folder: Path, models: Models, tmp_path: Path
) -> None:
    """The model's own 512 tokens in a large pool, fewer in one that its state nearly fills."""
    told = []
    for size in ("8M", "384K"):
        model = f'[[model]]\nname = "qwen"\npath = "{folder / "qwen"}"\ndtype = "float32"\n'
        config = f'[pool]\nbytes = "{size}"\n{model}'
        (tmp_path / size).mkdir()
        with live(config, tmp_path / size) as daemon:
            told.append(httpx.get(f"{daemon.url}/v1/models").json()["data"][0]["max_model_len"])
            tokens = asyncio.run(_one(daemon, told[-1]))
            assert tokens == greedy_choices(models["qwen"], [5, 6, 7], tokens)
            (row,) = daemon.admin.models()
            assert (row.state_rows, row.row_bytes) == (8, 2 * 8192)
    assert told == [512, (24 - 8) * 16]


async def _one(daemon: LiveDaemon, most: int) -> list[int]:
    async with aiohttp.ClientSession(daemon.url) as session:
        return await complete(session, "qwen", [5, 6, 7], min(TOKENS, most - 3))
