"""Calls of tools in the text of an answer, cut off from what is meant for the reader. Pure."""

import secrets
from collections.abc import Callable, Collection

from msgspec import Struct

from muxd.text.call_readers import DONE, WRONG, CallReader, CallSink
from muxd.text.sayings import Arguments, Call, Content, Saying
from muxd.text.seeker import Seeker


class Dialect(Struct, frozen=True):
    """How a family of models writes calls.

    ``begins``: markers before one; none: a call is all that the answer begins with. ``ends``: what may stand
    behind one. ``leads``: of an answer that is a call, what may stand before it. ``quotes``: other markers.
    ``bare``: an answer may begin with a call that has no marker, as small models of the family write it.
    """

    name: str
    reader: Callable[[CallSink], CallReader]
    begins: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()
    quotes: tuple[str, ...] = ()
    bare: bool = False
    short_ids: bool = False  # nine letters, or its template refuses the conversation

    @property
    def markers(self) -> tuple[str, ...]:
        """Those that may be special tokens, which are left out of a text elsewhere."""
        return (*self.begins, *self.ends, *self.leads, *self.quotes)


class CallCutter:
    """Of one answer. White space between calls is neither's.

    ``known``: the names of the tools there are. Where no marker says that something is a call, another name
    makes it content. Of more than ``most`` calls the others are not told.
    """

    def __init__(self, dialect: Dialect, known: Collection[str], *, most: int | None = None):
        self._dialect, self._known, self._most = dialect, known, most
        self._seeker = Seeker(dialect.begins)
        self._reader: CallReader | None = None
        self._looking = dialect.bare or not dialect.begins  # a call may begin here without a marker
        self._unmarked = not dialect.begins  # the last one that began has none
        self._raw: list[str] = []  # what is being read, until it is known to be a call
        self._begun = self._argued = False  # a call by this reader, and its arguments
        self._space = ""
        self._count = 0
        self._told: list[Saying] = []

    def push(self, text: str) -> list[Saying]:
        while text:
            if self._reader is not None:
                text = self._read(text, self._reader)
            elif self._looking:
                text = self._look(text)
            else:
                before, marker, text = self._seeker.push(text)
                self._content(before)
                if marker:
                    self._unmarked = False
                    self._start([marker])
        told, self._told = self._told, []
        return told

    def finish(self) -> list[Saying]:
        """What was held back."""
        if not self._begun and not (self._looking and self._count):
            self._content("".join(self._raw) + self._seeker.flush())
        if self._space and not self._count:
            self._told.append(Content(self._space))
        told, self._told = self._told, []
        return told

    @property
    def called(self) -> bool:
        return self._count > 0

    # ---- CallSink -----------------------------------------------------------------------------------

    def begin(self, name: str) -> bool:
        if self._unmarked and name not in self._known:
            return False
        self._raw, self._space, self._begun, self._argued = [], "", True, False
        self._count += 1
        if self._tells:
            self._told.append(Call(self._count - 1, _new_id(self._dialect.short_ids), name))
        return True

    def arguments(self, text: str) -> None:
        self._argued = True
        last = self._told[-1] if self._told else None
        if isinstance(last, Arguments) and self._tells:
            last.text += text
        elif self._tells:
            self._told.append(Arguments(self._count - 1, text))

    @property
    def _tells(self) -> bool:
        return self._most is None or self._count <= self._most

    # ---- inside -------------------------------------------------------------------------------------

    def _start(self, raw: list[str]) -> None:
        self._reader, self._raw, self._begun = self._dialect.reader(self), raw, False

    def _read(self, text: str, reader: CallReader) -> str:
        for at, character in enumerate(text):
            read = reader.feed(character)
            if read is WRONG:
                self._wrong()
                return text[at:]
            if not self._begun:
                self._raw.append(character)
            if read is DONE:
                self._reader, self._looking, self._raw, self._begun = None, True, [], False
                return text[at + 1 :]
        return ""

    def _wrong(self) -> None:
        """What was read is no call, or one that is broken off."""
        if self._begun and not self._argued:
            self.arguments("{}")
        self._content("".join(self._raw))
        self._looking, self._reader, self._raw, self._begun = self._begun, None, [], False

    def _look(self, text: str) -> str:
        """At the start of an answer, or behind a call: whether there is another."""
        self._raw.append(text)
        whole = "".join(self._raw)
        shown, leads = whole.lstrip(), self._dialect.leads
        if self._count:
            shown, leads = self._behind(shown), self._ends
        if not shown or any(one.startswith(shown) for one in leads):
            self._raw = [shown] if self._count else [whole]
            return ""
        if not self._count:
            lead = next((one for one in leads if shown.startswith(one)), "")  # the longest are first
            shown = shown.removeprefix(lead).lstrip()
            if not shown or (self._dialect.bare and _may_become_call(shown)):
                return ""
            if self._dialect.bare and not _is_call(shown):
                self._looking, self._raw = False, []
                return whole
            self._unmarked = True
        self._looking, self._raw = False, []
        if shown[0] == "{" or (shown[0] == "[" and not self._count):
            self._start([] if self._count else [whole[: len(whole) - len(shown)]])
            return shown
        return shown if self._count else whole

    def _behind(self, text: str) -> str:
        """Without what ends a call."""
        while end := next((one for one in self._ends if text.startswith(one)), ""):
            text = text.removeprefix(end).lstrip()
        return text

    @property
    def _ends(self) -> tuple[str, ...]:
        """Behind a call without a marker its fence, too."""
        fence = self._dialect.leads if self._dialect.bare and self._unmarked else ()
        return (*self._dialect.ends, *fence)

    def _content(self, text: str) -> None:
        """White space waits: before a call it is left out."""
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._told.append(Content(shown))


# How the object of a call begins: other objects are not held back until they end.
_HEADS = tuple(f'{{"{key}"' for key in ("name", "arguments", "parameters", "function", "type"))


def _is_call(text: str) -> bool:
    return "".join(text.split()).startswith(_HEADS)


def _may_become_call(text: str) -> bool:
    dense = "".join(text.split())
    return any(head.startswith(dense) and head != dense for head in _HEADS)


def _new_id(short: bool) -> str:
    if short:
        return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(9))
    return f"call_{secrets.token_hex(12)}"
