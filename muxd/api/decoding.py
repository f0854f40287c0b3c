"""From bytes to a checked struct, with errors that name the field. Knows nothing of HTTP."""

import re
import zlib
from typing import Any, TypeVar

import msgspec

from muxd.api.wording import in_words
from muxd.errors import BadRequest, TooLarge

T = TypeVar("T")

_AT = re.compile(r"(?P<what>.*?) - at `(?:key in )?\$\.?(?P<where>.*)`", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
_BODY = "the request body "
_MOST_MEMBERS = 64  # each costs a copy of what comes after it
_BOM = b"\xef\xbb\xbf"
_GZIP, _DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS


def too_large(most: int) -> TooLarge:
    return TooLarge(f"the request body is larger than {most} bytes (server.max_body)")


def too_deep() -> BadRequest:
    return BadRequest("the request body is nested too deeply")


def unpack(data: bytes, coding: str, most: int) -> bytes:
    """``data`` as it was before ``coding`` ("", "gzip", "deflate"). Raises TooLarge, and BadRequest where it
    is broken."""
    if not coding or not data:
        return data
    out, left = b"", data
    for _ in range(_MOST_MEMBERS):
        unpacker = zlib.decompressobj(_GZIP if coding == "gzip" else _DEFLATE)
        try:
            out += unpacker.decompress(left, most - len(out) + 1)
        except zlib.error:
            raise BadRequest("the request body could not be read: broken content encoding") from None
        if len(out) > most:
            raise too_large(most)
        if not unpacker.eof:
            raise BadRequest("the request body could not be read: its content encoding ends too early")
        left = unpacker.unused_data if coding == "gzip" else b""  # a gzip file may be several
        if not left:
            return out
    raise BadRequest(f"the request body could not be read: more than {_MOST_MEMBERS} gzip members")


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Raises BadRequest whose ``param`` is the path of the wrong field, e.g. ``messages[0].content``."""
    try:
        return decoder.decode(data.removeprefix(_BOM))
    except msgspec.ValidationError as error:
        message, param, code = _explain(str(error), getattr(decoder, "type", None))
        raise BadRequest(message, param=param, code=code) from None
    except UnicodeDecodeError:
        raise BadRequest("the request body is not valid JSON: it is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the request body is not valid JSON in UTF-8: {error}") from None
    except RecursionError:
        raise too_deep() from None


def convert(value: Any, kind: type[T], where: str = "") -> T:
    """``value``, found at ``where`` in a body, as ``kind``; raises as ``decode``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, param, code = _explain(str(error), kind)
        if where:
            message = f"{where}.{message}" if param else f"{where} {message.removeprefix(_BODY)}"
            param = f"{where}.{param}" if param else where
        raise BadRequest(message, param=param, code=code) from None


def _explain(text: str, body: type | None) -> tuple[str, str | None, str | None]:
    """msgspec's sentence as (message, field, code): its path ``$.stop[...]`` goes first, as a field name."""
    match = _AT.fullmatch(text)
    what, where = (match["what"], match["where"].removesuffix("[...]")) if match else (text, "")
    if missing := _MISSING.search(what):
        field = f"{where}.{missing[1]}" if where else missing[1]
        return f"{field} is required", field, "missing_required_parameter"
    words, code = in_words(what, where, body)
    return (f"{where} {words}", where, code) if where else (f"{_BODY}{words}", None, code)
