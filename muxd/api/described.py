"""A route as those see it that cannot import the table of them: it imports them."""

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
    def body(self) -> type[Struct] | None: ...
