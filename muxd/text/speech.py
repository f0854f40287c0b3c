"""The text of one answer to what it says: reasoning, content, calls of tools. Pure."""

from collections.abc import Collection

from msgspec import Struct

from muxd.text.calls import CallCutter
from muxd.text.dialects import DIALECTS
from muxd.text.sayings import Content, Saying
from muxd.text.thinking import THINKING, ThoughtCutter


class Manner(Struct, frozen=True):
    """How the answers to one request are to be read.

    ``thinking``, ``dialect``: names, "" for none. ``inside``: the prompt ends within the reasoning.
    """

    thinking: str = ""
    inside: bool = False
    dialect: str = ""
    tools: tuple[str, ...] = ()  # names of those there are
    parallel: bool = True  # several calls in one answer

    @property
    def markers(self) -> tuple[str, ...]:
        """What has to be seen in the text even where the tokenizer has it as a special token."""
        thoughts = THINKING.get(self.thinking)
        calls = DIALECTS.get(self.dialect)
        return (*((thoughts.begin, thoughts.end) if thoughts else ()), *(calls.markers if calls else ()))


class Speech:
    """One answer. The result does not depend on how its text was cut into pieces."""

    def __init__(self, manner: Manner):
        self._thoughts = (
            ThoughtCutter(THINKING[manner.thinking], inside=manner.inside) if manner.thinking else None
        )
        most = None if manner.parallel else 1
        self._calls = (
            CallCutter(DIALECTS[manner.dialect], manner.tools, most=most) if manner.dialect else None
        )

    def push(self, text: str) -> list[Saying]:
        return self._cut([Content(text)] if self._thoughts is None else self._thoughts.push(text))

    def finish(self) -> list[Saying]:
        """What was held back; after this, push must not be called."""
        said = self._cut(self._thoughts.finish()) if self._thoughts is not None else []
        return said if self._calls is None else [*said, *self._calls.finish()]

    @property
    def called(self) -> bool:
        """It has called a tool."""
        return self._calls is not None and self._calls.called

    @property
    def thinking(self) -> bool:
        """It is within its reasoning."""
        return self._thoughts is not None and self._thoughts.thinking

    def _cut(self, sayings: Collection[Saying]) -> list[Saying]:
        if self._calls is None:
            return list(sayings)
        told: list[Saying] = []
        for saying in sayings:
            told += self._calls.push(saying.text) if isinstance(saying, Content) else [saying]
        return told
