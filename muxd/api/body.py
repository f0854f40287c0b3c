"""From the bytes of a request to a checked struct. The only reader of bodies."""

import re
from typing import Any, TypeVar

import msgspec
from aiohttp import ClientPayloadError, web

from muxd.api.context import context
from muxd.errors import BadRequest, TooLarge

T = TypeVar("T")

_AT = re.compile(r"(?P<what>.*?) - at `(?:key in )?\$\.?(?P<where>.*)`", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")


async def read_body(request: web.Request, decoder: msgspec.json.Decoder[T]) -> T:
    """Read and decode a JSON body.

    Raises HTTPUnsupportedMediaType for a wrong content type, TooLarge above ``max_body``, BadRequest naming
    the field for everything else.
    """
    kind = request.content_type
    if kind != "application/json" and not kind.endswith("+json"):
        raise web.HTTPUnsupportedMediaType(text=f"send Content-Type: application/json, not {kind}")
    return decode(await _read(request), decoder)


async def _read(request: web.Request) -> bytes:
    limit = context(request).max_body
    too_large = TooLarge(f"the request body is larger than {limit} bytes (server.max_body)")
    if (request.content_length or 0) > limit:
        raise too_large  # before a byte of it is read
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except (ClientPayloadError, web.RequestPayloadError):
        raise BadRequest("the request body could not be read: broken transfer or content encoding") from None


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Raises BadRequest whose ``param`` is the path of the wrong field, e.g. ``messages[0].content``."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        message, param = _explain(str(error))
        raise BadRequest(message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the request body is not valid JSON in UTF-8: {error}") from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None


def convert(value: Any, kind: type[T], where: str) -> T:
    """``value``, found at ``where`` in a body, as ``kind``; raises as ``decode``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, param = _explain(str(error))
        raise BadRequest(f"{where}.{message}", param=f"{where}.{param}") from None


def _explain(text: str) -> tuple[str, str | None]:
    """msgspec's sentence as (message, field): its path ``$.stop[...]`` goes first, as a field name."""
    match = _AT.fullmatch(text)
    what, where = (match["what"], match["where"]) if match else (text, "")
    if missing := _MISSING.search(what):
        field = f"{where}.{missing[1]}" if where else missing[1]
        return f"{field} is required", field
    return (f"{where}: {what}", where) if where else (what, None)
