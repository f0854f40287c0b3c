"""The real application on a loopback port, over a scripted engine (`support/http_door.py`)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import tokenizers
from aiohttp import web
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from support.http_door import Connect, Door, PostRaw, Scripted
from tokenizers import decoders, models, pre_tokenizers, trainers

from muxd.api.app import make_app, make_runner
from muxd.api.guests import HttpLimits
from muxd.api.metrics import HttpMetrics
from muxd.engine.metrics import Metrics
from muxd.text.tokenizer import Tokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog", "hello world, how are you today?", "one two three"]
MAX_BODY = 256 << 10


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>", "<image>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    eos = inner.token_to_id("<eos>")
    assert eos is not None
    return Tokenizer(inner, {"eos_token": "<eos>"}, frozenset({eos}))


@pytest.fixture
async def serving(tokenizer: Tokenizer) -> Scripted:
    return Scripted(tokenizer)


@pytest.fixture
def limits() -> HttpLimits:
    """A file of tests may have its own."""
    return HttpLimits()


@pytest.fixture
async def door(serving: Scripted, limits: HttpLimits) -> AsyncIterator[Door]:
    registry = CollectorRegistry()
    Metrics(registry)
    app = make_app(serving, max_body=MAX_BODY, metrics=HttpMetrics(registry), texts=serving, limits=limits)
    runner = make_runner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with (
        aiohttp.ClientSession(url) as http,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as openai,
    ):
        yield Door(url, http, openai)
    await runner.cleanup()


@pytest.fixture
def chat_body() -> dict[str, Any]:
    return {"model": "org/chat-model", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def connect(door: Door) -> AsyncIterator[Connect]:
    """Bare connections, so that the test decides when they are read and when they are gone."""
    writers: list[asyncio.StreamWriter] = []

    async def send(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2048)
        writers.append(writer)
        writer.write(data)
        return reader, writer

    yield send
    for writer in writers:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
def post_raw(connect: Connect) -> PostRaw:
    """A chat request over a bare connection."""

    async def post(body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        data = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return await connect(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    return post
