"""What clients ask of an answer's form, in all the fields in which they ask it, as one ``Constraint``. Pure.

Checked in a text process, by compiling it within bounds: a worker, and everybody beside, meets none that is
too much or means nothing.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from muxd.api.prompts import At
from muxd.api.schemas import Held
from muxd.errors import BadRequest
from muxd.messages import Constraint, ConstraintKind
from muxd.text.constraint import problem
from muxd.text.library import TextModel
from muxd.text.pieces import Kind

MAX_CHOICES = 4096
_Found = tuple[str, ConstraintKind, Any]  # the field, and what it holds
_STRUCTURED: dict[str, ConstraintKind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
}
# vLLM's, that change nothing here: any blanks are allowed, in bounds, and no library is fallen back from.
_NOTHING = ("disable_any_whitespace", "disable_fallback", "backend", "_backend")


def constraint_of(body: Held, model: TextModel, at: At) -> Constraint | None:
    """Raises BadRequest naming the field for what is none, two of them, one that no answer can be held to, or
    a model whose tokens are no pieces of a text."""
    found = [*_response_format(body.response_format), *_structured(body.structured_outputs), *_guided(body)]
    if not found:
        return None
    param, kind, value = found[0]
    if len(found) > 1:
        other = found[1][0]
        raise BadRequest(f"{other}: {param} is given, too, and an answer is held to one thing", param=other)
    if model.tokenizer.pieces.kind in (Kind.SPACED, Kind.WORDS):
        raise BadRequest(
            f"{param}: the tokens of {model.name!r} are words with spaces between them, so that its answers "
            "cannot be held to a form; leave it out",
            param=param,
        )
    constraint = Constraint(kind, _text(param, kind, value))
    at("constraint")
    if wrong := problem(constraint):
        raise BadRequest(f"{param} {wrong}", param=param)
    return constraint


def banned_words(body: Held, model: TextModel) -> list[tuple[int, ...]]:
    """``bad_words`` in tokens: as a text would begin with them, and as they stand after a space."""
    found = []
    for word in body.bad_words or ():
        for text in (word, f" {word.lstrip()}"):
            tokens = tuple(model.tokenizer.encode(text, add_special=False))
            if tokens and tokens not in found:
                found.append(tokens)
    return found


def _response_format(given: Any) -> Iterator[_Found]:
    """OpenAI's; ``{"type": "json_object", "schema": ...}`` is llama.cpp's way to give a schema."""
    if given is None:
        return
    kind = given.get("type") if isinstance(given, dict) else None
    match kind:
        case "text":
            return
        case "json_object" if given.get("schema") is None:
            yield "response_format", "json_object", True
        case "json_object":
            yield "response_format.schema", "json_schema", given["schema"]
        case "json_schema":
            where, inner = "response_format.json_schema", given.get("json_schema")
            if not isinstance(inner, dict) or inner.get("schema") is None:
                raise BadRequest(f'{where} must be an object with "schema"', param=where)
            yield f"{where}.schema", "json_schema", inner["schema"]
        case _:
            raise BadRequest(
                'response_format must be {"type": "text"}, {"type": "json_object"} or '
                '{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}',
                param="response_format",
            )


def _structured(given: Any) -> Iterator[_Found]:
    """vLLM's."""
    if not given:
        return
    if not isinstance(given, dict):
        raise BadRequest(
            f"structured_outputs must be an object with one of {', '.join(_STRUCTURED)}",
            param="structured_outputs",
        )
    for name, value in given.items():
        where = f"structured_outputs.{name}"
        if name in _STRUCTURED:
            if value is not None and value is not False:
                yield where, _STRUCTURED[name], value
        elif value and name not in _NOTHING:
            served = ", ".join(_STRUCTURED)
            raise BadRequest(
                f"{where} is not supported by this server; it takes one of {served}", param=where
            )


def _guided(body: Held) -> Iterator[_Found]:
    """vLLM's, as they were called before."""
    for name in ("json", "regex", "choice", "grammar"):
        if (value := getattr(body, f"guided_{name}")) is not None:
            yield f"guided_{name}", _STRUCTURED[name], value


def _text(param: str, kind: ConstraintKind, value: Any) -> str:
    match kind:
        case "json_object":
            return ""
        case "json_schema":
            return _schema(param, value)
        case "choice":
            if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
                raise BadRequest(f"{param} must be a list of texts, one at least", param=param)
            if len(value) > MAX_CHOICES:
                raise BadRequest(f"{param}: {len(value)} texts are more than {MAX_CHOICES}", param=param)
            return msgspec.json.encode(value).decode()
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{param} must be a text that is not empty", param=param)
    return value


def _schema(param: str, value: Any) -> str:
    """A JSON schema, given as such or as its text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequest(f"{param} is a text that is not JSON: {error}", param=param) from None
    if not isinstance(value, dict):
        raise BadRequest(f"{param} must be a JSON schema: an object", param=param)
    return msgspec.json.encode(value).decode()
