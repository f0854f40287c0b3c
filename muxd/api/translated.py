"""What the body of another API comes to: a request as the core has it, and what its answer has to repeat."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from muxd.api.decoding import convert
from muxd.api.schemas import ChatRequest, CompletionRequest
from muxd.errors import BadRequest


class Translated(Struct):
    """``told``: for the face that answers. ``params``: the core's fields by what the client calls them.
    ``ignored``: what was asked for and is left out."""

    body: ChatRequest | CompletionRequest
    told: dict[str, Any] = {}
    params: dict[str, str] = {}
    ignored: list[str] = []


def translate(
    fields: Mapping[str, Any],
    kind: type[ChatRequest] | type[CompletionRequest],
    params: dict[str, str],
    told: dict[str, Any] | None = None,
) -> Translated:
    """Without those that are None. Raises BadRequest naming the client's field."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        body: ChatRequest | CompletionRequest = convert(given, kind)
    except BadRequest as error:
        raise rename(error, params) from None
    return Translated(body, told or {}, params)


def rename(error: BadRequest, params: Mapping[str, str]) -> BadRequest:
    """The same refusal, of the field that the client knows."""
    field = error.param or ""
    owners = (name for name in params if field == name or field.startswith((f"{name}[", f"{name}.")))
    name = next(owners, None)
    if name is None:
        return error
    known, rest = params[name], error.message.removeprefix(name)
    message = known + rest if rest != error.message else rest
    return type(error)(message, param=known + field.removeprefix(name), code=error.code)


def refuse(where: str, sentence: str) -> BadRequest:
    """About one field of a body."""
    return BadRequest(f"{where}: {sentence}", param=where)
