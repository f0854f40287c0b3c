"""One core, several faces: what reading an answer (``muxd.api.generate``) asks of the API that it is for.

A face is made for one request and knows its words only: no stream, no engine. ``chat.py`` and its neighbours
each make one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from muxd.api.logprobs import PromptScored, Scored
from muxd.text.sayings import Arguments, Call, Content, Saying, Thought


class Tally(Struct, frozen=True):
    """What one request came to. Tokens: every prompt once, ``cached`` of them found computed, all choices
    together, ``thinking`` of theirs being reasoning. Seconds: until the first token, and from there to the
    end."""

    prompt: int
    cached: int
    completion: int
    thinking: int = 0
    waited: float = 0.0
    spoke: float = 0.0


class Called(Struct):
    """A call of a tool as a whole."""

    id: str
    name: str
    arguments: str


class Whole(Struct):
    """One finished choice."""

    index: int
    sayings: list[Saying]
    scored: list[Scored]
    token_ids: list[int]
    finish: str
    stopped_by: str | None  # the stop string
    prompt: list[PromptScored]  # where any of it is shown


def called(sayings: Sequence[Saying]) -> list[Called]:
    """The calls that the sayings add up to."""
    begun = [saying for saying in sayings if isinstance(saying, Call)]
    parts: list[list[str]] = [[] for _ in begun]
    for saying in sayings:
        if isinstance(saying, Arguments):
            parts[saying.index].append(saying.text)
    return [Called(call.id, call.name, "".join(text)) for call, text in zip(begun, parts, strict=True)]


def joined(sayings: Sequence[Saying], kind: type[Content] | type[Thought]) -> str:
    return "".join(saying.text for saying in sayings if isinstance(saying, kind))


class Frames(Protocol):
    """How one choice is streamed. Each call returns what is to be sent, possibly nothing."""

    def opening(self, cached: int, prompt: Sequence[PromptScored]) -> bytes:
        """Before anything else; ``cached`` tokens of its prompt were found computed. ``prompt``: its scores,
        where they were asked for."""

    def piece(self, sayings: Sequence[Saying], scored: Sequence[Scored], token_ids: Sequence[int]) -> bytes:
        """What one wake-up adds."""

    def ending(self, finish: str, stopped_by: str | None) -> bytes:
        """Why it ended; nothing of this choice comes after."""


class Face(Protocol):
    """The answer to one request in the words of one API."""

    @property
    def content_type(self) -> str:
        """Of a stream."""

    @property
    def comments(self) -> bool:
        """Lines that begin with a colon may be sent between frames: they are server-sent events."""

    def whole(self, choices: Sequence[Whole], tally: Tally) -> Any:
        """The answer that is not streamed, to be written as JSON."""

    def frames(self, index: int) -> Frames: ...

    def closing(self, tally: Tally) -> bytes:
        """After the last choice has ended."""

    def failure(self, error: dict[str, Any]) -> bytes:
        """The end of a stream that cannot go on; ``error`` is as the face's error bodies are."""
