"""Server-sent events: byte templates for the frames of one answer, and the response they go to.

All that is constant in a frame is encoded once per choice; a token costs the encoding of its text and one
join. Used by ``muxd.api.generate`` only.
"""

from typing import Any

import msgspec
from aiohttp import web

from muxd.api.shapes import Answer, Usage

DONE = b"data: [DONE]\n\n"
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold tokens back
}
_encode = msgspec.json.Encoder().encode


class Frames:
    """The frames of one choice. With ``include_usage`` every chunk but the last carries ``usage: null``."""

    def __init__(self, answer: Answer, index: int, *, include_usage: bool):
        self._chat = answer.kind == "chat"
        self._head = envelope(answer) + b'"choices":[{"index":%d,' % index
        self._tail = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._before = self._head + (b'"delta":{"content":' if self._chat else b'"text":')
        after = b"}" if self._chat else b""
        self._plain = after + b',"logprobs":null,"finish_reason":null' + self._tail
        self._scored = after + b',"logprobs":'

    def opening(self) -> bytes:
        """The role chunk of a chat; a completion has none."""
        if not self._chat:
            return b""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        return self._head + delta + self._tail

    def piece(self, text: str, logprobs: dict[str, Any] | None, token_ids: list[int] | None = None) -> bytes:
        """More text, with its tokens' scores and ids where asked for."""
        if logprobs is None and token_ids is None:
            return b"".join((self._before, _encode(text), self._plain))
        scores = self._scored + _encode(logprobs) + b',"finish_reason":null'
        ids = b"" if token_ids is None else b',"token_ids":' + _encode(token_ids)
        return b"".join((self._before, _encode(text), scores, ids, self._tail))

    def ending(self, finish: str) -> bytes:
        """Why the choice ended; no text."""
        empty = b'"delta":{}' if self._chat else b'"text":""'
        return b"".join(
            (self._head, empty, b',"logprobs":null,"finish_reason":', _encode(finish), self._tail)
        )


def envelope(answer: Answer) -> bytes:
    """``data: {"id": ..., "model": ...,``: the start of every chunk."""
    name = "chat.completion.chunk" if answer.kind == "chat" else "text_completion"
    fields = {"id": answer.id, "object": name, "created": answer.created, "model": answer.model}
    return b"data: " + _encode(fields)[:-1] + b","


def usage_frame(answer: Answer, usage: Usage) -> bytes:
    """The extra chunk of ``include_usage``: no choices."""
    return envelope(answer) + b'"choices":[],"usage":' + _encode(usage) + b"}\n\n"


class EventStream:
    """The response. Its headers go out with the first frame: what fails before gets a true status.

    A slow reader is waited for (aiohttp drains above 64 KiB), so its frames do not pile up; its tokens wait
    in their ``TokenStream`` as ints. A reader that went away raises ConnectionError.
    """

    def __init__(self, request: web.Request):
        self._request = request
        self.response: web.StreamResponse | None = None

    async def send(self, data: bytes) -> None:
        """Frames, in one write."""
        response = self.response
        if response is None:
            # Nothing between here and the first write yields to the loop, so the choices of one answer,
            # which share this stream, cannot start it twice.
            response = self.response = web.StreamResponse(headers=_HEADERS)
            await response.prepare(self._request)
        await response.write(data)
