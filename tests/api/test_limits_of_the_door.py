"""What clients may take of the door: time, connections, memory; and what they hear when they took too
much."""

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from support.http_door import Connect, Door, PostRaw, Scripted

from muxd.api.arriving import Arriving
from muxd.api.guests import HttpLimits
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import Overloaded
from muxd.text.work import Result, Work

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
HEAD = (
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n"
)


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> HttpLimits:
    """Of seconds few where they are to be used up, and as many as a busy machine needs where they are not."""
    seconds = getattr(request, "param", 60.0)
    return HttpLimits(
        connections=8, header_timeout=seconds, body_timeout=seconds, idle_timeout=1.0, write_timeout=seconds,
        body_memory=300_000,
    )  # fmt: skip


used_up = pytest.mark.parametrize("limits", [0.3], indirect=True)


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str | None]]:
    """Status and error object of one answer with a length."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
    while " 100 " in head.split("\r\n")[0]:
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
    length = next(int(line.split(":")[1]) for line in head.lower().split("\r\n") if "content-length" in line)
    return int(head.split()[1]), json.loads(await reader.readexactly(length)).get("error", {})


async def closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 60) == b""


@used_up
@pytest.mark.parametrize(
    "sent", [b"POST / HTTP/1.1\r\nHost: x", b"G", b"POST / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n"]
)
async def test_headers_that_never_end(connect: Connect, sent: bytes) -> None:
    reader, _ = await connect(sent)
    status, error = await answer_of(reader)
    assert (status, error["code"]) == (408, "request_timeout")
    await closed(reader)


@used_up
async def test_a_connection_that_never_says_anything_is_closed(connect: Connect) -> None:
    reader, _ = await connect(b"")
    await closed(reader)


@used_up
async def test_a_body_that_never_ends(connect: Connect) -> None:
    reader, _ = await connect(HEAD.format(1000).encode() + b'{"model":')
    status, error = await answer_of(reader)
    assert (status, error["code"]) == (408, "request_timeout")
    await closed(reader)


@used_up
async def test_unfinished_bodies_share_a_memory_and_small_ones_find_room(
    connect: Connect, door: Door, chat_body: dict[str, Any]
) -> None:
    large = [await connect(HEAD.format(200_000).encode() + b" " * 150_000) for _ in range(3)]
    answers = [await answer_of(reader) for reader, _ in large]
    assert sorted(status for status, _ in answers) == [408, 503, 503]
    assert {error["code"] for status, error in answers if status == 503} == {"overloaded"}
    assert (await door.post(CHAT, chat_body))[0] == 200


def test_memory_of_bodies_is_counted_exactly() -> None:
    arriving = Arriving(1 << 20)
    arriving.take(700_000, 0)
    with pytest.raises(Overloaded):
        arriving.take(90_000, 0)
    arriving.take(60_000, 0)  # small
    arriving.give_back(700_000)
    arriving.take(700_000, 0)


async def test_an_idle_connection_makes_room_for_the_next(
    connect: Connect, door: Door, chat_body: dict[str, Any]
) -> None:
    """The one that has been idle longest."""
    idle = [await connect(b"") for _ in range(8)]
    assert (await door.post(CHAT, chat_body))[0] == 200
    await closed(idle[0][0])
    assert not idle[-1][0].at_eof()


async def test_where_all_are_busy_one_more_is_refused(
    serving: Scripted, connect: Connect, post_raw: PostRaw, chat_body: dict[str, Any]
) -> None:
    serving.play = serving.hold()
    for _ in range(8):
        await post_raw(chat_body | {"stream": True})
    while len(serving.requests) < 8:
        serving.submitted.clear()
        await asyncio.wait_for(serving.submitted.wait(), 60)
    reader, _ = await connect(b"")
    status, error = await answer_of(reader)
    assert (status, error["code"]) == (503, "overloaded")
    await closed(reader)
    assert serving.closed == []


@used_up
async def test_a_client_that_does_not_read_is_cut_off(
    door: Door, serving: Scripted, post_raw: PostRaw, chat_body: dict[str, Any]
) -> None:
    async def flood(request: Request, stream: TokenStream) -> None:
        while not serving.closing.is_set():
            for token in serving.ids("quick brown fox "):
                stream.put(token)
            if len(stream._tokens) > 1000:
                await asyncio.sleep(0)

    serving.play = flood
    _, writer = await post_raw(chat_body | {"stream": True})
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # uvloop's are no asyncio.Transport
    await asyncio.wait_for(serving.closing.wait(), 60)
    assert serving.closed == [False]


async def test_a_half_closed_client_gets_its_answer(
    serving: Scripted, connect: Connect, chat_body: dict[str, Any]
) -> None:
    go = asyncio.Event()

    async def play(request: Request, stream: TokenStream) -> None:
        await go.wait()
        for token in serving.ids("hello world"):
            stream.put(token)
        stream.end("stop")

    serving.play = play
    body = json.dumps({"model": "base", "prompt": "x"}).encode()
    reader, writer = await connect(HEAD.format(len(body)).encode() + body)
    writer.write_eof()
    await asyncio.wait_for(serving.submitted.wait(), 60)
    go.set()
    status, error = await answer_of(reader)
    assert (status, error) == (200, {})
    await closed(reader)


async def test_a_half_closed_client_of_ollamas_stream_reads_lines_of_json(
    serving: Scripted, connect: Connect
) -> None:
    go = asyncio.Event()

    async def play(request: Request, stream: TokenStream) -> None:
        stream.put(serving.ids("hello")[0])
        await go.wait()
        stream.end("stop")

    serving.play = play
    body = json.dumps({"model": "base", "prompt": "x"}).encode()
    head = HEAD.replace("/v1/completions", "/api/generate").format(len(body))
    reader, writer = await connect(head.encode() + body)
    await asyncio.wait_for(reader.readuntil(b"}\n\r\n"), 60)
    writer.write_eof()
    assert await asyncio.wait_for(reader.readexactly(6), 60) == b"1\r\n \r\n"
    go.set()
    rest = await asyncio.wait_for(reader.read(), 60)
    parts = [part for part in rest.split(b"\r\n") if part.lstrip().startswith(b"{")]
    (last,) = [json.loads(line) for line in b"".join(parts).splitlines()]
    assert last["done"]


async def test_a_body_that_is_cut_off_by_a_half_close_is_no_request(
    serving: Scripted, connect: Connect
) -> None:
    reader, writer = await connect(HEAD.format(1000).encode() + b"{")
    writer.write_eof()
    await closed(reader)
    assert serving.requests == []


async def test_what_is_no_http_hears_so_in_an_error_object(connect: Connect) -> None:
    reader, _ = await connect(b"POST / HTTP/1.1\r\nAuthorization\x01 Bearer sesame\r\n\r\n")
    status, error = await answer_of(reader)
    assert status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert "sesame" not in json.dumps(error)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
async def test_encodings_nobody_unpacks_here(door: Door, chat_body: dict[str, Any], coding: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    async with door.http.post(CHAT, data=json.dumps(chat_body).encode(), headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_packed_bodies(
    door: Door, serving: Scripted, chat_body: dict[str, Any], coding: str, pack: Callable[[bytes], bytes]
) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    body = pack(json.dumps(chat_body).encode())
    async with door.http.post(CHAT, data=body, headers=headers) as answer:
        assert answer.status == 200
    assert serving.texts[0][1] == len(body)
    async with door.http.post(CHAT, data=body[:-3], headers=headers) as answer:
        assert answer.status == 400
    async with door.http.post(CHAT, data=pack(b" " * 10_000_000), headers=headers) as answer:
        assert answer.status == 413


async def test_a_panic_of_a_library_is_an_answer_and_one_line(
    door: Door,
    serving: Scripted,
    chat_body: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Panic(BaseException):
        """As pyo3's."""

    async def run(work: Work, model: str, size: int, *, key: str | None, weight: float) -> Result:
        raise Panic

    monkeypatch.setattr(serving, "run", run)
    status, answer, _ = await door.post(CHAT, chat_body)
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert [record.message.count("\n") for record in caplog.records if "Panic" in record.message] == [0]


async def test_a_name_nobody_knows_is_not_echoed_whole(door: Door) -> None:
    status, answer, _ = await door.post(CHAT, {"model": "x" * 50_000, "messages": []})
    assert status == 404
    assert len(answer["error"]["message"]) < 400


@pytest.mark.parametrize("first", [True, False])
async def test_a_line_that_is_too_long(connect: Connect, first: bool) -> None:
    """As a cookie or a token may be, up to 32 KiB."""
    for size, status in ((20_000, b" 200 "), (40_000, b" 431 ")):
        line = f"?a={'x' * size}" if first else f" HTTP/1.1\r\nCookie: {'x' * size}"
        rest = " HTTP/1.1" if first else ""
        reader, _ = await connect(f"GET /health{line}{rest}\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert status in head
        assert b"Server: muxd/" in head
    assert b"more than 32768 bytes" in await reader.read()
