"""How long work tells somebody how far it is.

The importer reports through this protocol and draws nothing: the command line makes a bar of it, tests
and programs pass ``Silent()``.
"""

from typing import Protocol


class Progress(Protocol):
    """Tasks come one after another: ``start``, any number of ``advance``, ``finish``."""

    def start(self, total: int, label: str) -> None:
        """A task of ``total`` bytes begins; ``label`` is for people."""

    def advance(self, amount: int) -> None:
        """``amount`` more bytes of the running task are done."""

    def finish(self) -> None:
        """The running task is complete. Not called when it fails."""

    def note(self, text: str) -> None:
        """A sentence the user must see, such as a licence notice."""


class Silent:
    """Reports to nobody."""

    def start(self, total: int, label: str) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...

    def note(self, text: str) -> None: ...
