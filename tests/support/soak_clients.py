"""Clients of a soak, one of each sort that a daemon meets, and how each saw its request end."""

import asyncio
import json
import re
import socket
from contextlib import suppress
from typing import Any, Literal

import aiohttp
from msgspec import Struct

Ending = Literal["served", "refused", "failed", "left", "cut off"]
FORM = "[a-f]{4,12}"
SLEEPY = 8.0  # seconds for which a slow reader does not read: more than the daemon's patience
# How the daemon may log what its client saw: who leaves, or does not read, may be too late for it.
LOGGED: dict[Ending, set[str | None]] = {
    "served": {"served"},
    "refused": {"refused"},
    "failed": {"failed"},
    "left": {"cancelled", "served", "refused", None},
    "cut off": {"cancelled", "served"},
}


class Sent(Struct):
    """One request. ``leave``: after so many frames of a stream, or seconds without one."""

    id: str
    path: str
    body: dict[str, Any]
    leave: float | None = None
    ending: Ending | None = None
    status: int = 0
    code: str = ""
    text: str = ""
    finish: str = ""

    @property
    def kind(self) -> str:
        kind = self.path.removeprefix("/v1/") + (", stream" if self.body.get("stream") else "")
        kind += ", constrained" if "structured_outputs" in self.body else ""
        return kind + (", leaves" if self.leave is not None else "")

    def end(self, ending: Ending) -> None:
        """Raises AssertionError for a request that has ended before."""
        assert self.ending is None, f"{self.id} ended as {self.ending}, then as {ending}"
        self.ending = ending


async def send(session: aiohttp.ClientSession, one: Sent) -> None:
    """And read the answer, which must be whole, until it is over or its client leaves."""
    patience = None if one.body.get("stream") else one.leave
    try:
        async with asyncio.timeout(patience), session.post(
            one.path, json=one.body, headers={"x-request-id": one.id}
        ) as answer:  # fmt: skip
            one.status = answer.status
            if answer.status != 200:
                one.code = (await answer.json())["error"]["code"]
                one.end("refused" if answer.status < 500 or answer.status == 503 else "failed")
            elif one.body.get("stream"):
                await _read(one, answer)
            else:
                _whole(one, await answer.json())
    except TimeoutError:
        assert patience is not None, f"{one.id} got no answer"
        one.end("left")


def _whole(one: Sent, body: dict[str, Any]) -> None:
    if "choices" in body:
        choice = body["choices"][0]
        one.text = choice["text"] if "text" in choice else choice["message"]["content"]
        one.finish = choice["finish_reason"]
    else:
        assert body["data"][0]["embedding"], body
    one.end("served")


async def _read(one: Sent, answer: aiohttp.ClientResponse) -> None:
    frames = 0
    async for line in answer.content:
        data = line.removeprefix(b"data: ").strip()
        if not data or data.startswith(b":"):
            continue
        if data == b"[DONE]":
            one.end("served")
            continue
        assert one.ending is None, "something after the end"
        frame = json.loads(data)
        if "error" in frame:
            one.code = frame["error"]["code"]
            one.end("failed")
            continue
        for choice in frame["choices"]:
            one.text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            one.finish = choice["finish_reason"] or one.finish
        frames += 1
        if one.leave is not None and frames >= one.leave:
            one.end("left")
            answer.close()
            return
    assert one.ending is not None, f"{one.id}: the stream ended without [DONE]"


async def dawdle(url: str, one: Sent) -> None:
    """A stream that is asked for and not read for a while; then whatever there is of it."""
    host, _, port = url.removeprefix("http://").partition(":")
    body = json.dumps(one.body).encode()
    head = f"POST {one.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" \
        f"x-request-id: {one.id}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"  # fmt: skip
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(small, (host, int(port)))
        await loop.sock_sendall(small, head.encode() + body)
        await asyncio.sleep(SLEEPY)  # it is this client that has the time
        got = b""
        with suppress(ConnectionError):
            while more := await loop.sock_recv(small, 1 << 16):
                got = (got + more)[-4096:]
    one.status = 200
    one.end("served" if b"[DONE]" in got else "cut off")


def check(one: Sent) -> None:
    """What was served is what was asked for."""
    assert one.ending != "failed", one
    if one.ending == "served" and "structured_outputs" in one.body and one.finish == "stop":
        assert re.fullmatch(FORM, one.text), one
