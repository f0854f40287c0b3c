"""How far the requests are that wait: counted once between two events, since thousands ask in one turn of the
loop, when they have all waited long enough to be told."""

from collections.abc import Mapping

from muxd.engine.lane import Lane
from muxd.engine.request import Request


class Places:
    """Of one unit's lanes."""

    def __init__(self, lanes: Mapping[str, Lane]):
        self._lanes = lanes
        self._known: dict[str, dict[str, int]] = {}  # by model, then by request id

    def changed(self) -> None:
        """An event was handled: whoever asks next has everybody counted again."""
        self._known.clear()

    def ahead(self, request: Request) -> int | None:
        """How many requests for its model go first, 0 also while its prompt is computed; None after that."""
        model = request.model
        if model not in self._known:
            lane = self._lanes.get(model)
            waiting = lane.waiting.in_order() if lane is not None else ()
            self._known[model] = {one.request.id: place for place, one in enumerate(waiting)}
        return self._known[model].get(request.id)
