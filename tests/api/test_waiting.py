"""What a stream says that has nothing to say yet."""

from typing import Any

import pytest
from support.http_door import Door, Scripted

from muxd.api.guests import HttpLimits
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import QueueFull

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


@pytest.fixture
def limits() -> HttpLimits:
    return HttpLimits(first_sign=0.05, next_sign=0.05)


@pytest.fixture
def held(serving: Scripted) -> list[tuple[Request, TokenStream]]:
    """Requests that wait until the test plays them."""
    found: list[tuple[Request, TokenStream]] = []
    serving.play = lambda request, stream: found.append((request, stream))
    return found


async def test_its_place_and_then_the_answer(
    door: Door, serving: Scripted, chat_body: dict[str, Any], held: list[tuple[Request, TokenStream]]
) -> None:
    serving.places = [3, 1, 0, None]
    async with door.http.post(CHAT, json=chat_body | {"stream": True}) as answer:
        assert answer.status == 200
        signs = [await answer.content.readuntil(b"\n\n") for _ in range(5)]
        _, stream = held[0]
        for token in serving.ids("hello"):
            stream.put(token)
        stream.end("stop")
        rest = await answer.text()
    shown = [sign.decode().strip() for sign in signs]
    assert shown == [": waiting, 3 ahead", ": waiting, 1 ahead", ": waiting, next", ": working", ": working"]
    assert '"content":"hello"' in rest.replace(": working\n\n", "")
    assert rest.endswith("data: [DONE]\n\n")


async def test_clients_skip_the_signs(
    door: Door, serving: Scripted, chat_body: dict[str, Any], held: list[tuple[Request, TokenStream]]
) -> None:
    stream = await door.openai.chat.completions.create(**chat_body, stream=True)
    for token in serving.ids("hello"):
        held[0][1].put(token)
    held[0][1].end("stop")
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert said == "hello"


async def test_lines_without_comments(
    door: Door, chat_body: dict[str, Any], held: list[tuple[Request, TokenStream]]
) -> None:
    async with door.http.post("/api/chat", json=chat_body) as answer:
        assert answer.status == 200
        held[0][1].end("stop")
        (line,) = [line async for line in answer.content]
    assert b'"done":true' in line


async def test_the_place_that_a_refused_one_would_have_got(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    def play(_: Request, __: TokenStream) -> None:
        raise QueueFull("256 wait", position=257)

    serving.play = play
    status, _, headers = await door.post(CHAT, chat_body | {"stream": True})
    assert (status, headers["x-queue-position"]) == (429, "257")


async def test_in_front_of_a_full_queue_no_text_is_read(door: Door, serving: Scripted) -> None:
    """Who floods a model pays with nobody else's processor; what needs no worker is answered all the same."""
    serving.full = QueueFull("256 wait", position=257)
    said = [{"role": "user", "content": "hello"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "hello"},
        "/v1/chat/completions": {"messages": said},
        "/v1/messages": {"messages": said, "max_tokens": 5},
        "/api/chat": {"messages": said},
        "/v1/embeddings": {"input": "hello"},
    }
    for path, body in bodies.items():
        status, _, headers = await door.post(path, {"model": "org/chat-model", **body})
        assert (status, headers["x-queue-position"]) == (429, "257"), path
        assert int(headers["retry-after"]) >= 1
    assert serving.texts == []
    status, _, _ = await door.post("/tokenize", {"model": "org/chat-model", "prompt": "hello"})
    assert status == 200
