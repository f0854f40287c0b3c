"""A route as those see it that cannot import the table of them: it imports them."""

import re
from typing import Protocol

from msgspec import Struct


class Described(Protocol):
    """See ``muxd.api.routes.Route``."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def answers(self) -> tuple[str, ...]: ...

    @property
    def body(self) -> type[Struct] | None: ...


def plain(path: str) -> str:
    """Without what its parts have to look like: ``/health/{id:.+}`` is ``/health/{id}``."""
    return re.sub(r":[^}]*}", "}", path)
