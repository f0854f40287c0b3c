"""What a policy is: asked after every event, it starts batches. Pure."""

from collections.abc import Iterator
from math import inf
from typing import ClassVar, Literal

from muxd.engine.batches import Batches
from muxd.engine.board import Board
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.rows import RowKeeper

# quotas: entitlements that move to where the work is. shared: first come first served above the guarantees.
# slices: every model its own fixed part.
Memory = Literal["quotas", "shared", "slices"]


class Policy:
    """Holds no state of sequences; what it remembers (turns, whom it holds back) may be lost at a change."""

    name: ClassVar[str]
    memory: ClassVar[Memory] = "shared"
    held: str | None = None  # the model whose prefill waits for share

    def __init__(self, board: Board, rows: RowKeeper, batches: Batches):
        self.board = board
        self.rows = rows
        self.batches = batches

    def launch(self, now: float) -> None:
        """Start what should run now."""
        raise NotImplementedError

    def deadline(self, now: float) -> float | None:
        """When ``launch`` should be called again although nothing else happens."""
        return None

    # ---- what is foreseen -------------------------------------------------------------------------

    def quiet_until(self, now: float) -> float:
        """Until then ``launch`` has nothing to do while no model has anything to start."""
        due = self.deadline(now)
        return inf if due is None else due

    def share_again(self, lane: Lane, flight: Flight) -> int | None:
        """What the lane's next step will have, should the one in flight be done when no other model has
        anything to start. None: nobody knows."""
        return self.board.shares.grant(lane.spec.share, (), lane.spec.cap, given_back=flight.share)

    # ---- what policies share ----------------------------------------------------------------------

    def whole(self, lane: Lane) -> int:
        """Of the device, as much as its worker can use."""
        return min(self.board.shares.rungs[-1], lane.spec.cap)

    def can_prefill(self, lane: Lane, now: float) -> bool:
        """Its worker is idle, its first prompt has or finds rows, its own streams are not overdue."""
        patience = self.board.settings.drain_timeout
        return (
            lane.free(prefill=True)
            and bool(lane.waiting)
            and not lane.overdue(now, patience)
            and self.rows.admissible(lane)
        )

    def grant(self, lane: Lane, *, prefill: bool, prefilling: bool, least: int = 0) -> int | None:
        """At least the model's share, more if nobody else could start a batch beside it; None: not free.

        ``prefill``: what it is for; ``prefilling``: no other prefill can start beside it; ``least``: another
        share than the model's.
        """
        contenders = self._contenders(lane, prefill=prefill, prefilling=prefilling)
        return self.board.shares.grant(least or lane.spec.share, contenders, lane.spec.cap)

    def _contenders(self, lane: Lane, *, prefill: bool, prefilling: bool) -> Iterator[int]:
        """Shares of the batches that could start beside this one: other models', a split lane's other phase.

        A model that has only prompts cannot while a prefill runs, nor one whose next prompt finds no rows.
        """
        for other in self.board.decodable.lanes:
            if other is not lane or (prefill and lane.spec.split):
                yield other.spec.share
        if not prefilling:
            for other in self.board.waiting.lanes:
                if other is lane and (prefill or not lane.spec.split):
                    continue
                counted = other.running and not other.spec.split  # with its step, above
                if not counted and other.free(prefill=True) and self.rows.admissible(other):
                    yield other.spec.share
