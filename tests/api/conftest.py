"""The real application on a loopback port, over a scripted engine: real TokenStreams, a real tokenizer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import tokenizers
from aiohttp import web
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry
from tokenizers import decoders, models, pre_tokenizers, trainers

from muxd.api.app import make_app, make_runner
from muxd.api.metrics import HttpMetrics
from muxd.engine.metrics import Metrics
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.messages import TokenLogprob
from muxd.text.template import ChatTemplate
from muxd.text.tokenizer import Tokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog", "hello world, how are you today?", "one two three"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if shout %}LOUD {% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
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
    return Tokenizer(inner, {"eos_token": "<eos>"}, frozenset({eos}))


@dataclass
class Model:
    """Implements ``ServedModel``."""

    name: str
    tokenizer: Tokenizer | None
    template: ChatTemplate | None = None
    created: int = 1700000000
    max_context: int = 512
    vocab_size: int = 0
    default_sampling: dict[str, Any] = field(default_factory=dict)
    eos: frozenset[int] = frozenset()
    state: str = "ready"
    detail: str = ""
    retry_after: float | None = None


Play = Callable[[Request, TokenStream], Any]


class Scripted:
    """Implements ``Serving``: plays ``play`` for every submitted request and counts what is closed."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.healthy = True
        self.requests: list[Request] = []
        self.streams: list[TokenStream] = []
        self.closed: list[bool] = []  # ``served`` of each close that reached the engine
        self.closing = asyncio.Event()
        self.submitted = asyncio.Event()
        self.play: Play = self.say("hello world")
        self._tasks: set[asyncio.Future[Any]] = set()
        template = ChatTemplate(TEMPLATE, tokenizer.specials, "test")
        common = {"tokenizer": tokenizer, "vocab_size": tokenizer.vocab_size, "eos": tokenizer.eos}
        chat = Model("org/chat-model", template=template, **common)
        self.by_name = {chat.name: chat, "base": Model("base", **common)}

    def models(self) -> dict[str, Model]:
        return self.by_name

    def submit(self, request: Request) -> TokenStream:
        stream = TokenStream(self._close)
        made = self.play(request, stream)
        if asyncio.iscoroutine(made):
            task = asyncio.ensure_future(made)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.requests.append(request)
        self.streams.append(stream)
        self.submitted.set()
        return stream

    def _close(self, served: bool) -> None:
        self.closed.append(served)
        self.closing.set()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special=False)

    def say(self, text: str, finish: str = "stop", each_wakeup: int = 1, logprobs: bool = False) -> Play:
        """A script that puts ``text`` token by token, ``each_wakeup`` tokens at a time, then ends."""

        async def play(request: Request, stream: TokenStream) -> None:
            for index, token in enumerate(self.ids(text)):
                if index % each_wakeup == 0:
                    await asyncio.sleep(0)
                top = [(token, -0.5), (self.ids("x")[0], -1.5)][: request.sampling.logprobs]
                stream.put(token, TokenLogprob(-0.5, top) if logprobs else None)
            stream.end(finish)

        return play

    def hold(self, text: str = "hello") -> Play:
        """A script that puts ``text`` and then never ends."""

        def play(_: Request, stream: TokenStream) -> None:
            for token in self.ids(text):
                stream.put(token)

        return play


@dataclass
class Door:
    """A running application and two clients to it."""

    url: str
    http: aiohttp.ClientSession
    openai: AsyncOpenAI

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """Status, decoded JSON, headers."""
        async with self.http.post(path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers


@pytest.fixture
async def serving(tokenizer: Tokenizer) -> Scripted:
    return Scripted(tokenizer)


@pytest.fixture
async def door(serving: Scripted) -> AsyncIterator[Door]:
    registry = CollectorRegistry()
    Metrics(registry)
    app = make_app(serving, max_body=MAX_BODY, metrics=HttpMetrics(registry))
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


Connect = Callable[[bytes], Any]


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
def post_raw(connect: Connect) -> Callable[[dict[str, Any]], Any]:
    """A chat request over a bare connection."""

    async def post(body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        data = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return await connect(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    return post
