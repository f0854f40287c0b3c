"""What everybody who keeps a book of a unit's life is told, and that is all."""

from collections.abc import Sequence
from typing import Protocol

from muxd.engine.actions import Action, Event


class Telemetry(Protocol):
    """Hears of every event a scheduler has handled, with what it has answered, in order."""

    def observe(self, event: Event, actions: Sequence[Action], now: float) -> None: ...
