"""Who waits until something of a unit rests: a model's last request, its last batch, lent memory."""

import asyncio
from collections.abc import Callable, Mapping

from muxd.engine.lane import Lane
from muxd.pool.ledger import Ledger


class Rests:
    """Owned by the unit, which says ``note`` after every event. Each event is set once and forgotten."""

    def __init__(self, lanes: Mapping[str, Lane], ledger: Ledger):
        self._lanes, self._ledger = lanes, ledger
        self._emptied: dict[str, asyncio.Event] = {}
        self._quieted: dict[str, asyncio.Event] = {}
        self._vacated: list[asyncio.Event] = []

    def emptied(self, model: str) -> asyncio.Event:
        """No request of ``model`` is left and its last batch is done."""
        return self._waited(self._emptied.setdefault(model, asyncio.Event()))

    def quieted(self, model: str) -> asyncio.Event:
        """Nothing of ``model`` runs; requests may wait."""
        return self._waited(self._quieted.setdefault(model, asyncio.Event()))

    def vacated(self) -> asyncio.Event:
        """No sequence holds a recalled head block and no batch writes there."""
        self._vacated.append(event := asyncio.Event())
        return self._waited(event)

    def note(self) -> None:
        _settle(self._emptied, self._lanes, lambda lane: lane.empty)
        _settle(self._quieted, self._lanes, lambda lane: lane.quiet)
        if self._vacated and not self._ledger.leaving_blocks:
            for event in self._vacated:
                event.set()
            self._vacated.clear()

    def _waited(self, event: asyncio.Event) -> asyncio.Event:
        self.note()
        return event


def _settle(
    waits: dict[str, asyncio.Event], lanes: Mapping[str, Lane], rests: Callable[[Lane], bool]
) -> None:
    for model in list(waits):
        lane = lanes.get(model)
        if lane is None or rests(lane):
            waits.pop(model).set()
