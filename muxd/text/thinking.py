"""Reasoning at the beginning of an answer, cut off from what is meant for the reader. Pure."""

from typing import Literal

from msgspec import Struct

from muxd.text.sayings import Content, Saying, Thought
from muxd.text.seeker import Seeker

ThinkingName = Literal["think", "mistral", "gemma"]


class Thinking(Struct, frozen=True):
    """Between which markers a family of models reasons."""

    begin: str
    end: str


THINKING: dict[str, Thinking] = {
    "think": Thinking("<think>", "</think>"),  # DeepSeek R1, Qwen 3 and most others
    "mistral": Thinking("[THINK]", "[/THINK]"),
    "gemma": Thinking("<|channel>thought", "<channel|>"),
}


def thinking_of(template: str) -> str:
    """The name of the markers that a chat template knows, "" for none."""
    return next((name for name, one in THINKING.items() if one.end in template), "")


def inside(name: str, prompt: str) -> bool:
    """The prompt has begun to reason for the model: its answer goes on with it."""
    return bool(name) and prompt.rstrip().endswith(THINKING[name].begin)


class ThoughtCutter:
    """Of one answer. White space around the reasoning is neither's.

    Only what an answer begins with is reasoning: a marker further on may be spoken about.
    """

    def __init__(self, thinking: Thinking, *, inside: bool = False):
        self._begin = thinking.begin
        self._seeker = Seeker([thinking.end])
        self._state: Literal["start", "inside", "after", "content"] = "inside" if inside else "start"
        self._held = ""  # the start of the answer; white space that may be the end of the reasoning
        self._said = False  # some of the reasoning

    def push(self, text: str) -> list[Saying]:
        sayings: list[Saying] = []
        if self._state == "start":
            text = self._start(text)
        if self._state == "inside":
            text = self._inside(text, sayings)
        if self._state == "after":
            text = text.lstrip()
            if text:
                self._state = "content"
        if self._state == "content" and text:
            sayings.append(Content(text))
        return sayings

    def finish(self) -> list[Saying]:
        """What was held back."""
        if self._state == "start" and self._held:
            return [Content(self._held)]
        sayings: list[Saying] = []
        if self._state == "inside":
            self._think(self._seeker.flush(), sayings)
        return sayings

    @property
    def thinking(self) -> bool:
        return self._state == "inside"

    def _start(self, text: str) -> str:
        """Until it is known how the answer begins; what it begins with then."""
        self._held += text
        shown = self._held.lstrip()
        if shown.startswith(self._begin):
            self._state, self._held = "inside", ""
            return shown.removeprefix(self._begin)
        if self._begin.startswith(shown):
            return ""
        self._state, whole, self._held = "content", self._held, ""
        return whole

    def _inside(self, text: str, sayings: list[Saying]) -> str:
        before, marker, rest = self._seeker.push(text)
        self._think(before, sayings)
        if marker:
            self._state, self._held = "after", ""
        return rest

    def _think(self, text: str, sayings: list[Saying]) -> None:
        text = self._held + text
        if not self._said:
            text = text.lstrip()
        shown = text.rstrip()
        self._held = text[len(shown) :]
        if shown:
            self._said = True
            sayings.append(Thought(shown))
