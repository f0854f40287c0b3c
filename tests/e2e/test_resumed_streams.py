"""A worker that is killed, or stopped for ever, under running requests: every client gets the text it would
have had, and the other model's clients notice nothing. Over HTTP, with small random models in float32."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from safetensors.numpy import load_file, save_file
from support import leaks
from support.live import LiveDaemon, live
from support.tiny import tiny_served

TOKENS = 300
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": TOKENS}
WARM = {**GREEDY, "temperature": 0.8, "seed": 11, "top_p": 0.95}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "Tell me about the sea.", **GREEDY},
    "three choices with logprobs": {"prompt": "Once", **WARM, "n": 3, "logprobs": 2},
    "penalties over what was said": {
        "prompt": "Again and again", **WARM, "repetition_penalty": 1.2, "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
    },
    "held to a form": {
        "prompt": "x", **WARM, "ignore_eos": False, "bad_words": ["ab", "x"], "logit_bias": {"70": 3},
        "structured_outputs": {"regex": "([a-z]{3} [0-9]{2},){400}"},
    },
    "bans until many tokens": {
        "prompt": "x", **WARM, "ignore_eos": False, "min_tokens": TOKENS, "stop_token_ids": [40, 41, 42, 43],
    },
}  # fmt: skip


def config(folder: Path) -> str:
    for seed, name in enumerate("ab"):
        tiny_served(folder / name, seed)
    models = "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder / name}"\ndtype = "float32"\n' for name in "ab"
    )
    return f'[pool]\nbytes = "32M"\n[scheduler]\nbatch_timeout = 1.0\n{models}'


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LiveDaemon]:
    with live(config(tmp_path), tmp_path) as daemon:
        yield daemon


class Choice:
    """What one choice of a streamed answer has said."""

    def __init__(self) -> None:
        self.text, self.finish = "", ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []


async def stream(
    session: aiohttp.ClientSession, model: str, body: dict[str, Any], begun: asyncio.Event | None = None
) -> list[Choice]:
    """All of it; ``begun`` is set with the tenth token of each choice."""
    choices = [Choice() for _ in range(body.get("n", 1))]
    asked = {"model": model, "stream": True, "return_token_ids": True, **body}
    async with session.post("/v1/completions", json=asked) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            frame = json.loads(line[6:])
            assert "error" not in frame, frame
            for one in frame["choices"]:
                choice = choices[one["index"]]
                choice.text += one["text"]
                choice.tokens += one.get("token_ids") or []
                choice.finish = one["finish_reason"] or choice.finish
                choice.logprobs += (one["logprobs"] or {}).get("token_logprobs") or []
            if begun is not None and all(len(choice.tokens) >= 10 for choice in choices):
                begun.set()
    return choices


async def everything(daemon: LiveDaemon, disturb: signal.Signals | None = None) -> dict[str, list[Choice]]:
    """All requests at once, on both models; ``disturb`` goes to a's worker when all of a's streams run."""
    async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(90)) as session:
        begun = {name: asyncio.Event() for name in REQUESTS}
        running = {name: stream(session, "a", body, begun[name]) for name, body in REQUESTS.items()}
        running["other model"] = stream(session, "b", REQUESTS["greedy"])
        tasks = {name: asyncio.create_task(one) for name, one in running.items()}
        if disturb is not None:
            for one in begun.values():
                await one.wait()
            os.kill(daemon.workers()["a"], disturb)
            for task in list(tasks.values())[: len(REQUESTS)]:
                assert not task.done(), "nothing was left to disturb"
        return {name: await task for name, task in tasks.items()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_every_answer_is_the_undisturbed_one(daemon: LiveDaemon, number: signal.Signals) -> None:
    wanted = asyncio.run(everything(daemon))
    before = daemon.workers()
    found = asyncio.run(everything(daemon, number))
    after = daemon.workers()
    assert (after["a"] != before["a"], after["b"] == before["b"]) == (True, True)
    assert leaks.gone(before["a"])
    for name, choices in wanted.items():
        for one, other in zip(choices, found[name], strict=True):
            assert (other.text, other.tokens, other.finish) == (one.text, one.tokens, one.finish), name
            assert len(one.tokens) == TOKENS
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
    assert all(choice.logprobs for choice in wanted["three choices with logprobs"])
    hung = "its worker has not answered batch" in daemon.log
    assert hung == (number is signal.SIGSTOP)
    status = daemon.status()
    assert (status.requests.failed, status.requests.running) == (0, 0)
    if hung:
        assert any(event.kind == "worker hung" for event in daemon.admin.events(model="a"))


def test_a_stop_string_that_a_death_cuts_in_two_is_found(daemon: LiveDaemon) -> None:
    async def scene() -> None:
        async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(90)) as session:
            (whole,) = await stream(session, "a", REQUESTS["greedy"])
            stop = whole.text[-60:-40]
            body = {**REQUESTS["greedy"], "stop": [f"never {i}" for i in range(63)] + [stop]}
            (wanted,) = await stream(session, "a", body)
            begun = asyncio.Event()
            running = asyncio.create_task(stream(session, "a", body, begun))
            await begun.wait()
            os.kill(daemon.workers()["a"], signal.SIGKILL)
            (found,) = await running
            assert (found.text, found.finish) == (wanted.text, "stop")

    asyncio.run(scene())


def test_requests_that_once_killed_workers_are_refused_or_served(daemon: LiveDaemon) -> None:
    """The values of research into muxd 0: each cost its model two workers."""
    refused: list[tuple[dict[str, Any], str]] = [
        ({"min_tokens": 1, "stop_token_ids": [100000]}, "stop_token_ids[0]"),
        ({"repetition_penalty": 5e-324, "min_p": 1}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
    ]
    served: list[dict[str, Any]] = [
        {"temperature": 1e-46, "min_p": 0.5},
        {"temperature": 5e-324, "top_p": 0.5},
    ]

    async def scene() -> None:
        async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(90)) as session:
            before = daemon.workers()
            plain = {"model": "a", "prompt": "x", "max_tokens": 8, "return_token_ids": True}
            for values, param in refused:
                async with session.post("/v1/completions", json={**plain, **values}) as answer:
                    assert (answer.status, (await answer.json())["error"]["param"]) == (400, param)
            texts = []
            for values in [{"temperature": 0}, *served]:
                async with session.post("/v1/completions", json={**plain, **values}) as answer:
                    assert answer.status == 200
                    texts.append((await answer.json())["choices"][0]["token_ids"])
            assert texts[0] == texts[1] == texts[2]
            assert daemon.workers() == before

    asyncio.run(scene())


def damaged(folder: Path) -> Path:
    """The embedding of one token is no number: whoever says it has no logits, and nobody else notices."""
    tiny_served(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][200] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    (folder / "generation_config.json").write_text('{"min_p": 7, "top_p": -1, "eos_token_id": [2, 5000]}')
    return folder


def test_logits_that_are_no_numbers_end_their_request_alone(tmp_path: Path) -> None:
    folder = damaged(tmp_path / "m")
    text = f'[pool]\nbytes = "8M"\n[[model]]\nname = "m"\npath = "{folder}"\ndtype = "float32"\n'

    async def scene(daemon: LiveDaemon) -> None:
        async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(90)) as session:
            begun = asyncio.Event()
            body = {"prompt": [5, 6, 7], **GREEDY, "logit_bias": None}
            beside = asyncio.create_task(stream(session, "m", body, begun))
            await begun.wait()
            plain = {"model": "m", "prompt": [5, 200, 7], "max_tokens": 8}
            for more in ({"temperature": 0}, {"top_p": 0.9}, {"min_p": 0.1, "logprobs": 3}, {"n": 2}):
                async with session.post("/v1/completions", json={**plain, **more}) as answer:
                    error = (await answer.json())["error"]
                    assert (answer.status, error["code"]) == (500, "no_finite_logits")
                    assert answer.headers["x-should-retry"] == "false"
            (alone,) = await beside
            assert len(alone.tokens) == TOKENS
            sound = {**plain, "prompt": "x", "min_tokens": 4, "temperature": 0}  # a draw may be that token
            async with session.post("/v1/completions", json=sound) as answer:
                assert answer.status == 200
            async with session.get("/health/m") as answer:
                assert answer.status == 200

    with live(text, tmp_path) as daemon:
        before = daemon.workers()
        asyncio.run(scene(daemon))
        assert daemon.workers() == before
        assert "m: the model produced no finite logits" in daemon.log
        assert "min_p 7 does not lie in the range from 0 to 1; it is ignored" in daemon.log
