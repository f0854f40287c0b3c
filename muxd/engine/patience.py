"""When a batch has taken too long: its worker hangs, or is as good as hung. Pure.

A batch may take ``batch_timeout``, or ``batch_timeout_factor`` times what it is expected to cost, whichever
is more. What a worker does for the first time may compile, and before anything is known of a model's speed
nothing can be expected: both get several times as long.
"""

from math import inf

from muxd.engine.actions import Overdue
from muxd.engine.board import Board
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane

_FIRST = 6  # timeouts for a worker's first batch of a phase
_UNKNOWN = 30  # and where none of the model was ever done
# Seconds from the question to the end: an answer may be here, unread, when the daemon itself was stopped.
_GRACE = 1.0


class Patience:
    """Owned by the scheduler."""

    def __init__(self, board: Board):
        self._board = board

    def begin(self, lane: Lane, flight: Flight) -> None:
        """A batch begins now: when is it late?"""
        self.expect(lane, flight, lane.expected_seconds(flight))

    def expect(self, lane: Lane, flight: Flight, expected: float) -> None:
        """The same for one that was expected to take so many seconds when it began."""
        timeout = self._board.settings.batch_timeout
        if not timeout:
            return
        times = 1 if flight.prefill in lane.proven else _FIRST if expected else _UNKNOWN
        allowed = max(times * timeout, self._board.settings.batch_timeout_factor * expected)
        flight.due = flight.began + allowed

    def look(self, now: float) -> None:
        """Ask for those that are late, give up those that were asked for."""
        for flight in list(self._board.flying.values()):
            if flight.due > now:
                continue
            lane = self._board.lanes[flight.model]
            last, flight.asked = flight.asked, True
            flight.due = inf if last else now + min(_GRACE, self._board.settings.batch_timeout)
            if last:
                lane.ready = False  # until it is lost, which is what happens next
                self._board.refresh(lane)
            self._board.actions.append(Overdue(flight.model, flight.batch, now - flight.began, last))

    def deadline(self) -> float:
        """When ``look`` is due."""
        return min((flight.due for flight in self._board.flying.values()), default=inf)
