"""What msgspec says of a value that does not fit, in the words of somebody who knows no msgspec. Pure."""

import re
from typing import Any

import msgspec

_KINDS = {
    "array": "a list",
    "object": "an object",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
_COMPARED = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}
_TYPES = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<got>[^`]+)`")
_LENGTH = re.compile(r"Expected `(?P<kind>\w+)` of length (?P<how>[<>]=?) (?P<count>\d+)")
_RANGE = re.compile(r"Expected `\w+` (?P<how>[<>]=?) (?P<number>\S+)")
_ENUM = re.compile(r"Invalid enum value (?P<value>.*)", re.DOTALL)


def in_words(what: str, where: str, body: type | None) -> tuple[str, str | None]:
    """The end of a sentence about the field ``where`` of ``body``, and OpenAI's code for it."""
    if match := _TYPES.fullmatch(what):
        wanted = [_KINDS.get(kind, kind) for kind in match["wanted"].split(" | ") if kind != "null"]
        return f"must be {_listed(wanted)}, not {_KINDS.get(match['got'], match['got'])}", "invalid_type"
    if match := _LENGTH.fullmatch(what):
        if match["how"] == ">=" and match["count"] == "1":
            return "must not be empty", "invalid_value"
        unit = "items" if match["kind"] == "array" else "characters"
        return f"must have {_COMPARED[match['how']]} {match['count']} {unit}", "invalid_value"
    if match := _RANGE.fullmatch(what):
        return f"must be {_COMPARED[match['how']]} {match['number']}", "invalid_value"
    if match := _ENUM.fullmatch(what):
        known = _choices(body, where)
        more = (
            f" must be {_listed([repr(one) for one in known])}, not" if known else " is no value it can have:"
        )
        return f"{more.lstrip()} {match['value'][:60]}", "unsupported_value"
    return what.replace("`", "'"), None


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _choices(body: type | None, where: str) -> list[Any]:
    """The values that the field ``where`` (``messages[0].role``) may have."""
    if body is None:
        return []
    kind: Any = msgspec.inspect.type_info(body)
    for part in re.findall(r"\w+|\[[^\]]*\]", where):
        found = None
        for one in _members(kind):
            if part.startswith("["):
                found = found or getattr(one, "item_type", None)
            else:
                fields = {field.encode_name: field.type for field in getattr(one, "fields", ())}
                found = found or fields.get(part)
        kind = found
    return [value for one in _members(kind) for value in getattr(one, "values", ())]


def _members(kind: Any) -> list[Any]:
    return list(getattr(kind, "types", (kind,)))
