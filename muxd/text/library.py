"""The tokenizers and templates that a text process holds: read when they are first asked for, a few at a
time."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from muxd.errors import ModelFolderError
from muxd.models.stamps import stamp as stamp_of
from muxd.text.template import ChatTemplate
from muxd.text.tokenizer import Tokenizer
from muxd.text.work import Source, Stage, View

HELD = 4  # tokenizers in one process; one of 256,000 entries takes some 100 MB


@dataclass(frozen=True)
class TextModel:
    """One model, ready to turn text into ids. ``template`` is None where it has none."""

    view: View
    tokenizer: Tokenizer
    template: ChatTemplate | None

    @property
    def name(self) -> str:
        return self.view.source.model


class Shelf(Protocol):
    """Where models are found by their views."""

    def open(self, view: View) -> TextModel: ...


class Library:
    """Of one process. The least recently used models go when there is one tokenizer too many; models whose
    files say the same have one."""

    def __init__(self, held: int = HELD):
        self._held = held
        self._known: OrderedDict[Source, tuple[Tokenizer, ChatTemplate | None]] = OrderedDict()

    def open(self, view: View) -> TextModel:
        """Raises as ``read`` does."""
        return TextModel(view, *self.read(view.source))

    def read(
        self, source: Source, at: Callable[[Stage], None] = lambda stage: None
    ) -> tuple[Tokenizer, ChatTemplate | None]:
        """``at`` hears when it comes to the template, which may take for ever to compile.

        Raises ModelFolderError or ConfigError, naming the file, where it cannot be used or has changed."""
        if source in self._known:
            self._known.move_to_end(source)
            return self._known[source]
        folder = Path(source.folder)
        if source.stamp != stamp(folder):
            raise ModelFolderError(
                f"{folder / 'tokenizer.json'} is not the file that {source.model} was loaded with: "
                f"`muxctl unload {source.model}` and `muxctl load {source.model}`"
            )
        tokenizer = Tokenizer.load(folder)
        self._make_room(tokenizer)
        override = Path(source.template) if source.template else None
        at("template")
        template = ChatTemplate.load(folder, tokenizer.specials, override)
        self._known[source] = tokenizer, template
        return self._known[source]

    def forget(self, source: Source) -> None:
        """Its model serves no more."""
        self._known.pop(source, None)

    def _make_room(self, tokenizer: Tokenizer) -> None:
        while len({id(one) for one, _ in self._known.values()} | {id(tokenizer)}) > self._held:
            self._known.popitem(last=False)


def stamp(folder: Path) -> str:
    """Tells one tokenizer.json from another; "" where there is none."""
    return stamp_of(folder / "tokenizer.json")
