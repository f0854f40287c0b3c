"""Clients of a daemon under churn: each request is remembered with what its client saw, token by token."""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

Outcome = Literal["served", "refused", "cancelled", "failed"]


@dataclass
class Asked:
    """One HTTP request and what came of it. ``answers[i]`` are the token ids of choice i."""

    id: str  # x-request-id
    model: str
    prompt: list[int]
    index: int  # of the prompt
    tokens: int
    n: int = 1
    stop: str | None = None
    stream: bool = True
    cut: float | None = None  # leave after that many chunks (stream), or seconds
    outcome: Outcome | None = None
    status: int = 0
    code: str | None = None
    answers: list[list[int]] = field(default_factory=list)
    finishes: list[str | None] = field(default_factory=list)
    text: str = ""

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": self.stream,
            "n": self.n,
        }
        return body if self.stop is None else body | {"stop": self.stop}


async def ask(session: aiohttp.ClientSession, one: Asked) -> Asked:
    """Send it, read it, fill in the rest. Raises only where neither an answer nor an error object came."""
    one.answers, one.finishes = [[] for _ in range(one.n)], [None] * one.n
    try:
        async with asyncio.timeout(None if one.stream else one.cut):
            async with session.post(
                "/v1/completions", json=one.body, headers={"x-request-id": one.id}
            ) as answer:
                one.status = answer.status
                if answer.status != 200:
                    _refused(one, await answer.json())
                elif one.stream:
                    await _read(one, answer)
                else:
                    _whole(one, await answer.json())
    except TimeoutError:
        one.outcome = "cancelled"
    return one


def _refused(one: Asked, body: dict[str, Any]) -> None:
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    one.code = body["error"]["code"]
    one.outcome = "refused" if one.status < 500 or one.status == 503 else "failed"


def _whole(one: Asked, body: dict[str, Any]) -> None:
    for choice in body["choices"]:
        one.answers[choice["index"]] = choice["token_ids"]
        one.finishes[choice["index"]] = choice["finish_reason"]
    one.text = body["choices"][0]["text"]
    one.outcome = "served"


async def _read(one: Asked, answer: aiohttp.ClientResponse) -> None:
    chunks = 0
    async for line in answer.content:
        data = line.removeprefix(b"data: ").strip()
        if not data or data.startswith(b":"):  # a comment: it waits
            continue
        if data == b"[DONE]":
            one.outcome = one.outcome or "served"
            continue
        assert one.outcome is None, "something after the error"
        _take(one, json.loads(data))
        chunks += 1
        if one.cut is not None and chunks >= one.cut and one.outcome is None:
            one.outcome = "cancelled"
            answer.close()
            return
    assert one.outcome is not None, "the stream ended without [DONE]"


def _take(one: Asked, event: dict[str, Any]) -> None:
    if "error" in event:
        one.code, one.outcome = event["error"]["code"], "failed"
        return
    for choice in event["choices"]:
        assert one.finishes[choice["index"]] is None, "something after the finish"
        one.answers[choice["index"]] += choice.get("token_ids") or []
        one.finishes[choice["index"]] = choice["finish_reason"]
        if choice["index"] == 0:
            one.text += choice["text"]


@contextlib.asynccontextmanager
async def clients(url: str) -> Any:
    """Connections as many as are wanted, none kept: a cut one is really cut."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        yield session


def letters(folder: Path) -> dict[int, str]:
    """Tokens that are one printable ASCII character."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return {id: text for text, id in vocab.items() if len(text) == 1 and "!" <= text <= "~"}
