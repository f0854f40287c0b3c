"""CPU microseconds per streamed token of the HTTP front end, beside a bare loop that writes the same bytes.

    python benchmarks/http_front.py

Server and client are processes of their own; counted is the server's CPU time (user and system) over real
TCP loopback. The engine is scripted: every ``STEP`` seconds one token for every stream, as a decode batch
gives them. The bare server writes a ready frame per token straight to its transport, under the same pacing.
"""

import asyncio
import multiprocessing
import resource
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast

import tokenizers
import uvloop
from aiohttp import web
from msgspec import json
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from tokenizers import decoders, models, pre_tokenizers, trainers

from muxd.admin.schemas import AdminService
from muxd.api.app import make_app, make_runner
from muxd.api.chunks import DONE, Chunks
from muxd.api.metrics import HttpMetrics
from muxd.api.prepare import prepare
from muxd.api.shapes import Answer
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.fleet.gate import Taking
from muxd.messages import Pooling
from muxd.text.library import TextModel
from muxd.text.pieces import Pieces
from muxd.text.sayings import Content
from muxd.text.tokenizer import Tokenizer
from muxd.text.work import Prepare, Result, Source, View, Work

STEP = 0.003  # seconds between tokens of a stream
TOKENS = 400  # per stream
REPEATS = 5
WORDS = "the quick brown fox jumps over the lazy dog and runs away from here "


def make_tokenizer() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return Tokenizer(inner, {}, frozenset())


class Paced:
    """Calls every registered writer once a step; both servers use it, so its cost is in both numbers."""

    def __init__(self) -> None:
        self.writers: list[Iterator[bool | None]] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(STEP)
            self.writers = [writer for writer in self.writers if next(writer, None) is None]


@dataclass
class Model:
    """Implements ``muxd.api.serving.ServedModel``."""

    tokenizer: Tokenizer
    name: str = "m"
    base: str = ""
    created: int = 0
    max_context: int = 1 << 20
    max_queue: int = 1 << 20
    aliases: Sequence[str] = ()
    chat: bool = False
    thinks: bool = False
    family: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    dtype: str = "float32"
    default_sampling: Mapping[str, Any] = field(default_factory=dict)
    eos: frozenset[int] = frozenset()
    generates: bool = True
    pooling: Pooling = ""
    state: str = "ready"
    detail: str = ""
    retry_after: float | None = None

    @property
    def pieces(self) -> Pieces:
        return self.tokenizer.pieces

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def view(self) -> View:
        return View(Source(self.name, ""), self.max_context, self.vocab_size)


class ScriptedServing:
    """Implements ``muxd.api.serving.Serving``: ``TOKENS`` tokens of WORDS, one a step."""

    taking: Taking = "ok"

    def __init__(self, paced: Paced):
        self.tokenizer = tokenizer = make_tokenizer()
        words = tokenizer.encode(WORDS)
        self._script = (words * (TOKENS // len(words) + 1))[:TOKENS]
        self._paced = paced
        self._models = {"m": Model(tokenizer)}

    def models(self) -> Mapping[str, Model]:
        return self._models

    def submit(self, request: Request) -> TokenStream:
        stream = TokenStream(lambda served: None)
        self._paced.writers.append(self._play(stream))
        return stream

    def check_room(self, request: Request) -> None:
        pass

    def ahead(self, request: Request) -> int | None:
        return None

    @property
    def operator(self) -> AdminService:
        raise AssertionError("nobody operates this")

    def _play(self, stream: TokenStream) -> Iterator[bool | None]:
        for token in self._script:
            stream.put(token)
            yield None
        stream.end("length")
        yield True


class TextsHere:
    """What a text process does, done here: one short prompt a request."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def open(self, view: View) -> TextModel:
        return TextModel(view, self._tokenizer, None)

    async def run(
        self, work: Work, model: str, size: int, *, key: str | None = "", weight: float = 1.0
    ) -> Result:
        assert isinstance(work, Prepare)
        return prepare(work, self, lambda stage: None)


@asynccontextmanager
async def front(paced: Paced) -> AsyncIterator[int]:
    serving = ScriptedServing(paced)
    texts = TextsHere(serving.tokenizer)
    app = make_app(
        serving,
        max_body=1 << 20,
        metrics=HttpMetrics(CollectorRegistry()),
        texts=texts,
    )
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


class Bare(asyncio.Protocol):
    """Answers any request with a head, TOKENS frames and the end."""

    def __init__(self, paced: Paced):
        self._paced = paced

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        self._paced.writers.append(self._play(self._transport))

    def _play(self, transport: asyncio.WriteTransport) -> Iterator[bool | None]:
        answer = Answer("text", "cmpl-" + "0" * 24, 1700000000, "m")
        frame = Chunks(answer, make_tokenizer().pieces).frames(0).piece([Content(" brown")], [], [])
        chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
        transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(TOKENS):
            transport.write(chunk)
            yield None
        transport.write(DONE)
        yield True


@asynccontextmanager
async def bare(paced: Paced) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(lambda: Bare(paced), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def serve(kind: str, pipe: Connection) -> None:
    """Tell the port, then the CPU seconds used so far whenever asked, until told to stop."""
    paced = Paced()
    pacing = asyncio.ensure_future(paced.run())
    async with {"front": front, "bare": bare}[kind](paced) as port:
        pipe.send(port)
        while await asyncio.to_thread(pipe.recv):
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(used.ru_utime + used.ru_stime)
    pacing.cancel()


def server_process(kind: str, pipe: Connection) -> None:
    uvloop.run(serve(kind, pipe))


async def read_one(port: int) -> None:
    """One streamed completion, read to its last event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.encode({"model": "m", "prompt": "the", "max_tokens": TOKENS, "stream": True})
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    tail = b""
    while DONE not in tail:
        data = await reader.read(1 << 16)
        assert data, "the server hung up"
        tail = tail[-64:] + data
    writer.close()
    await writer.wait_closed()


async def read_all(port: int, streams: int) -> None:
    await asyncio.gather(*(read_one(port) for _ in range(streams)))


def measure(kind: str, streams: int) -> float:
    """Server CPU microseconds per token, best of REPEATS (a shared machine only ever adds)."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=server_process, args=(kind, theirs), daemon=True)
    process.start()
    port = ours.recv()
    uvloop.run(read_all(port, streams))  # warm
    costs = []
    for _ in range(REPEATS):
        before = ask(ours)
        uvloop.run(read_all(port, streams))
        costs.append((ask(ours) - before) / (streams * TOKENS) * 1e6)
    ours.send(False)
    process.join()
    return min(costs)


def ask(pipe: Connection) -> float:
    pipe.send(True)
    return float(pipe.recv())


def main() -> None:
    table = Table(
        "streams", "bare loop, µs/token", "front end, µs/token", "difference", "tokens/s of one core"
    )
    for streams in (1, 32):
        least, ours = measure("bare", streams), measure("front", streams)
        row = (streams, f"{least:.1f}", f"{ours:.1f}", f"{ours - least:.1f}", f"{1e6 / ours:,.0f}")
        table.add_row(*map(str, row))
    Console().print(table)


if __name__ == "__main__":
    main()
