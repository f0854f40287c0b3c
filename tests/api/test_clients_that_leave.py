"""A client that goes away, or reads slowly: its streams are closed at once, the others do not notice."""

import asyncio
import logging
from typing import Any

import pytest
from support.http_door import Connect, Door, PostRaw, Scripted

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_gone(
    door: Door,
    serving: Scripted,
    post_raw: PostRaw,
    chat_body: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    stream: bool,
    n: int,
) -> None:
    caplog.set_level(logging.INFO, "muxd.access")
    serving.play = serving.hold()
    reader, writer = await post_raw(chat_body | {"stream": stream, "n": n})
    await asyncio.wait_for(serving.submitted.wait(), 60)
    if stream:
        await asyncio.wait_for(reader.readuntil(b'"content":"hello"'), 60)
    assert serving.closed == []
    writer.transport.abort()
    await asyncio.wait_for(serving.closing.wait(), 60)
    assert serving.closed == [False] * n
    for one in serving.streams:
        one.close()
    assert len(serving.closed) == n  # each exactly once
    text = await (await door.http.get("/metrics")).text()
    assert 'muxd_http_disconnects_total{model="org/chat-model"} 1.0' in text
    assert 'muxd_http_streams{model="org/chat-model"} 1.0' not in text
    assert "status=499 outcome=cancelled" in caplog.text
    assert "unexpected" not in caplog.text


async def test_gone_after_a_polite_half_close(
    door: Door, serving: Scripted, post_raw: PostRaw, chat_body: dict[str, Any]
) -> None:
    serving.play = serving.hold()
    _, writer = await post_raw(chat_body)
    await asyncio.wait_for(serving.submitted.wait(), 60)
    writer.close()
    await asyncio.wait_for(serving.closing.wait(), 60)
    assert serving.closed == [False]


async def test_one_leaves_the_others_stay(
    door: Door, serving: Scripted, post_raw: PostRaw, chat_body: dict[str, Any]
) -> None:
    serving.play = serving.hold("one two ")
    _, writer = await post_raw(chat_body | {"stream": True})
    stream = await door.openai.chat.completions.create(**chat_body, stream=True)
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    writer.transport.abort()
    await asyncio.wait_for(serving.closing.wait(), 60)
    for token in serving.ids("three"):
        serving.streams[1].put(token)
    serving.streams[1].end("stop")
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "one two three"
    assert serving.closed == [False]


async def test_slow_reader_is_waited_for_and_stalls_nobody(
    door: Door, serving: Scripted, post_raw: PostRaw, chat_body: dict[str, Any]
) -> None:
    """A reader that never reads: what the engine has for it stays in its stream as ints, and others go on."""
    text = "quick brown fox " * 40
    written = asyncio.Event()

    async def flood(request: Request, stream: TokenStream) -> None:
        """Until the door no longer takes what is put, then a little more."""
        ids = serving.ids(text)
        untaken = 0
        while untaken < 3000:
            for token in ids:
                stream.put(token)
            await asyncio.sleep(0)
            untaken = len(stream._tokens)
        written.set()
        stream.end("length")

    serving.play = flood
    reader, _ = await post_raw(chat_body | {"stream": True})
    await asyncio.wait_for(written.wait(), 60)
    serving.play = serving.say("hello world")
    assert (await door.post(CHAT, chat_body))[0] == 200
    held = len(serving.streams[0]._tokens)
    assert held >= 3000  # not taken: the handler waits for its client
    tail = b""
    while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        tail = tail[-100:] + await reader.read(65536)
    assert serving.closed == []


async def test_bytes_that_are_not_http_are_not_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    reader, _ = await connect(b"POST / HTTP/1.1\r\nAuthorization\x01 Bearer sesame\r\n\r\n")
    assert b" 400 " in await reader.readline()
    assert "sesame" not in caplog.text
    assert "connection dropped" in caplog.text
