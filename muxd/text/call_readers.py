"""Calls of tools as model families write them, read character by character. Pure.

A reader tells its ``CallSink`` the name of a call as soon as it is known, and its arguments as they come, as
JSON. What is no call says so by ``WRONG`` before any name was told.
"""

import json
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol


class Read(Enum):
    MORE = "more"
    DONE = "done"
    WRONG = "wrong"  # the character is not taken


MORE, DONE, WRONG = Read.MORE, Read.DONE, Read.WRONG


class CallSink(Protocol):
    def begin(self, name: str) -> bool:
        """A call; False: it is none."""

    def arguments(self, text: str) -> None: ...


class CallReader(Protocol):
    def feed(self, character: str) -> Read: ...


class JsonCall:
    """``{"name": ..., "arguments": {...}}`` in any order, with ``parameters`` for ``arguments``, and both of
    them as the object ``function``. What stands in the arguments is not looked into."""

    def __init__(self, sink: CallSink):
        self._sink = sink
        self._state: Callable[[str], Read] = self._start
        self._text: list[str] = []  # of the key or value that is being read
        self._key = ""
        self._quoted = self._escaped = self._streams = False
        self._depth = 0
        self._named = self._argued = False
        self._early: str | None = None  # arguments that came before the name

    def feed(self, character: str) -> Read:
        return self._state(character)

    def _start(self, character: str) -> Read:
        if character.isspace():
            return MORE
        self._state = self._before_key
        return MORE if character == "{" else WRONG

    def _before_key(self, character: str) -> Read:
        if character.isspace() or character == ",":
            return MORE
        if character == "}":
            return self._end()
        self._text, self._state = [character], self._in_key
        return MORE if character == '"' else WRONG

    def _in_key(self, character: str) -> Read:
        self._text.append(character)
        if self._string_ends(character):
            key = _loaded("".join(self._text))
            self._key, self._state = key if isinstance(key, str) else "", self._before_value
        return MORE

    def _before_value(self, character: str) -> Read:
        if character.isspace() or character == ":":
            return MORE
        if character in ",}]":
            return WRONG
        self._text, self._depth, self._quoted = [], 0, False
        self._state = self._in_value
        self._streams = character == "{" and self._takes_arguments and self._named
        self._argued = self._argued or self._streams
        return self._in_value(character)

    def _in_value(self, character: str) -> Read:
        scalar = not self._quoted and self._depth == 0
        if scalar and self._text and (character in ",}" or character.isspace()):
            ended = self._value()
            return self._before_key(character) if ended is MORE else ended
        if self._streams:
            self._sink.arguments(character)
        self._text.append(character)
        if self._quoted:
            if self._string_ends(character):
                self._quoted = False
                return self._value() if self._depth == 0 else MORE
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._value() if self._depth == 0 else MORE
        return MORE

    def _string_ends(self, character: str) -> bool:
        if self._escaped:
            self._escaped = False
            return False
        self._escaped = character == "\\"
        return character == '"'

    @property
    def _takes_arguments(self) -> bool:
        return self._key in ("arguments", "parameters") and not self._argued and self._early is None

    def _value(self) -> Read:
        """The value of ``_key`` is complete."""
        self._state = self._before_key
        if self._streams:
            self._streams = False
            return MORE
        text = "".join(self._text)
        value = _loaded(text)
        if self._key in ("name", "function") and isinstance(value, str) and not self._named:
            return self._name(value)
        if self._key == "function" and isinstance(value, dict) and not self._named:
            given = value.get("arguments", value.get("parameters"))
            self._early = as_arguments(given, json.dumps(given, ensure_ascii=False))
            name = value.get("name")
            return self._name(name) if isinstance(name, str) else WRONG
        if self._takes_arguments:
            self._early = as_arguments(value, text)
            self._tell_early()
        return MORE

    def _name(self, name: str) -> Read:
        if not name or not self._sink.begin(name):
            return WRONG
        self._named = True
        self._tell_early()
        return MORE

    def _tell_early(self) -> None:
        if self._named and self._early is not None and not self._argued:
            self._argued = True
            self._sink.arguments(self._early)

    def _end(self) -> Read:
        if not self._named:
            return WRONG
        if not self._argued:
            self._sink.arguments("{}")
        return DONE


class JsonCalls:
    """One such object, or a list of them."""

    def __init__(self, sink: CallSink):
        self._sink = sink
        self._call: JsonCall | None = None
        self._listed = False

    def feed(self, character: str) -> Read:
        if self._call is not None:
            read = self._call.feed(character)
            if read is DONE:
                self._call = None
                return MORE if self._listed else DONE
            return read
        if character.isspace() or (self._listed and character == ","):
            return MORE
        if character == "[" and not self._listed:
            self._listed = True
            return MORE
        if character == "]" and self._listed:
            return DONE
        if character != "{":
            return WRONG
        self._call = JsonCall(self._sink)
        return self._call.feed(character)


class MistralCalls:
    """What comes after ``[TOOL_CALLS]``: a list of objects, or from version 11 on ``name[ARGS]{...}``,
    perhaps with ``[CALL_ID]...`` between."""

    def __init__(self, sink: CallSink):
        self._sink = sink
        self._inner: CallReader | None = None
        self._name = ""

    def feed(self, character: str) -> Read:
        if self._inner is not None:
            return self._inner.feed(character)
        if not self._name.strip() and character in "[{":
            self._inner = JsonCalls(self._sink)
            return self._inner.feed(character)
        if character == "{":
            name = self._name.partition("[")[0].strip()
            if not name or not self._sink.begin(name):
                return WRONG
            self._inner = JsonValue(self._sink)
            return self._inner.feed(character)
        self._name += character
        return MORE if len(self._name) < 512 else WRONG


class JsonValue:
    """The object of a call's arguments, as it is."""

    def __init__(self, sink: CallSink):
        self._sink = sink
        self._depth = 0
        self._quoted = self._escaped = False

    def feed(self, character: str) -> Read:
        self._sink.arguments(character)
        if self._quoted:
            if self._escaped:
                self._escaped = False
            else:
                self._escaped, self._quoted = character == "\\", character != '"'
            return MORE
        self._quoted = character == '"'
        self._depth += (character in "{[") - (character in "}]")
        if self._depth:
            return MORE
        return DONE


class GemmaCall:
    """``call:name{key:value,...}``, in which texts stand between two quote marks of the family's own. Words
    before a colon are keys; what is no JSON is a text."""

    def __init__(self, sink: CallSink, quote: str):
        self._sink, self._quote = sink, quote
        self._head = ""
        self._open: list[str] = []  # brackets
        self._word = ""
        self._mark = ""  # of the quote mark
        self._in: str = ""  # the mark that ends the text that is being read
        self._escaped = False

    def feed(self, character: str) -> Read:
        if not self._open:
            return self._in_head(character)
        if self._in == '"':
            return self._in_json_text(character)
        if (self._mark + character) == self._quote:
            self._mark = ""
            self._in = "" if self._in else self._quote
            self._sink.arguments('"')
            return MORE
        if self._quote.startswith(self._mark + character):
            self._mark += character
            return MORE
        held, self._mark = self._mark, ""
        for one in held:
            if (read := self._literal(one)) is not MORE:
                return read
        if held and self._quote.startswith(character):
            self._mark = character
            return MORE
        return self._literal(character)

    def _in_head(self, character: str) -> Read:
        if character != "{":
            self._head += character
            return MORE if len(self._head) < 512 else WRONG
        name = self._head.strip().removeprefix("call:").strip()
        if not name or not self._sink.begin(name):
            return WRONG
        self._open = ["{"]
        self._sink.arguments("{")
        return MORE

    def _literal(self, character: str) -> Read:
        if self._in:
            self._sink.arguments(json.dumps(character, ensure_ascii=False)[1:-1])
            return MORE
        if character == '"' and not self._word:
            self._in = '"'
            self._sink.arguments('"')
        elif character in "{[":
            self._open.append(character)
            self._sink.arguments(character)
        elif character in "}],:":
            self._end_word(key=character == ":")
            self._sink.arguments(character)
            if character in "}]":
                self._open.pop()
            if not self._open:
                return DONE
        elif self._word or not character.isspace():
            self._word += character
        return MORE

    def _in_json_text(self, character: str) -> Read:
        self._sink.arguments(character)
        if self._escaped:
            self._escaped = False
        else:
            self._escaped = character == "\\"
            self._in = "" if character == '"' else '"'
        return MORE

    def _end_word(self, *, key: bool) -> None:
        word, self._word = self._word.strip(), ""
        if word:
            plain = not key and _loaded(word) is not _NOTHING
            self._sink.arguments(word if plain else json.dumps(word, ensure_ascii=False))


_NOTHING = object()


def _loaded(text: str) -> Any:
    """What the JSON text says; ``_NOTHING`` where it says nothing."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return _NOTHING


def as_arguments(value: Any, text: str) -> str:
    """The JSON text of a call's arguments. Some models write it as a text in the text."""
    if value is None or value == "":
        return "{}"
    return value if isinstance(value, str) else text
