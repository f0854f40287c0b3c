"""What the ingress says itself, in muxd's shapes: refusals, and the end of a stream whose host is lost."""

import msgspec

from muxd.api import errors
from muxd.api.chunks import DONE
from muxd.api.ollama.answer import OllamaAnswer
from muxd.errors import MuxdError

Headers = list[tuple[str, str]]


def refusal(
    error: BaseException, path: str, request_id: str, *, anthropic: bool
) -> tuple[int, Headers, bytes]:
    """Status, headers and body. ``anthropic``: the client asks as Anthropic's do, whatever the path."""
    shown = "/v1/messages" if anthropic and path.rstrip("/").endswith("/models") else path
    said = errors.reply(error, shown, request_id)
    body = said.body if isinstance(said.body, bytes) else b""
    return said.status, [(name, value) for name, value in said.headers.items()], body


def broken_off(error: MuxdError, path: str, content_type: str, request_id: str) -> bytes:
    """The last frame of a stream that cannot go on."""
    said = msgspec.json.encode(errors.told(error, path, request_id))
    if content_type.startswith(OllamaAnswer.content_type):
        return said + b"\n"
    plain = path.rstrip("/")
    if plain.endswith("/messages"):
        return b"event: error\ndata: " + said + b"\n\n"
    if plain.endswith("/responses"):
        fields = {"type": "error", "code": error.code, "message": error.message, "param": None}
        return b"event: error\ndata: " + msgspec.json.encode(fields) + b"\n\n"
    return b"data: " + said + b"\n\n" + DONE
