"""Whose turn it is: lanes in the order of their last turn, longest ago first. Pure.

Only lanes with something to do are in the order, so a decision looks at those and never at the others; a lane
that was passed over keeps its place, one that comes back finds its old one.
"""

from bisect import bisect_left
from itertools import count

from muxd.engine.lane import Lane


class Turns:
    """Two lists side by side, kept in order: a change costs one bisection."""

    def __init__(self) -> None:
        self._numbers = count()
        self._turn: dict[str, int] = {}  # also of lanes that are not in the order
        self._turns: list[int] = []
        self._lanes: list[Lane] = []

    @property
    def lanes(self) -> list[Lane]:
        """A copy: who is put in or out meanwhile changes nothing."""
        return self._lanes[:]

    def __len__(self) -> int:
        return len(self._lanes)

    def put(self, lane: Lane, present: bool) -> None:
        """In or out of the order; nothing happens if it is already there."""
        model = lane.spec.model
        turn = self._turn.get(model)
        if turn is None:
            turn = self._turn[model] = next(self._numbers)
        place = bisect_left(self._turns, turn)
        found = place < len(self._turns) and self._turns[place] == turn
        if present and not found:
            self._turns.insert(place, turn)
            self._lanes.insert(place, lane)
        elif found and not present:
            del self._turns[place], self._lanes[place]

    def to_back(self, lane: Lane) -> None:
        """It had its turn: everybody else comes first now."""
        before = len(self._lanes)
        self.put(lane, False)
        present = len(self._lanes) < before
        self._turn[lane.spec.model] = next(self._numbers)
        if present:
            self.put(lane, True)

    def drop(self, lane: Lane) -> None:
        """The lane is gone for good."""
        self.put(lane, False)
        del self._turn[lane.spec.model]
