"""What every part of the scheduler works on: lanes, their turns, shares, the actions so far. Pure.

Owned by ``Scheduler``; the row keeper, the batches and the policies hold it, nobody else does. It decides
nothing: it only keeps the indexes by which a decision finds the lanes that have something to do.
"""

from collections.abc import Iterable, Iterator

from muxd.cost.shares import equal_part
from muxd.engine.actions import Action
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane, LaneSpec
from muxd.engine.parts import Parts
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.turns import Turns
from muxd.pool.ledger import Ledger


class Board:
    """``actions`` is what the running ``Scheduler.handle`` will return."""

    def __init__(
        self, specs: Iterable[LaneSpec], ledger: Ledger, shares: Shares, settings: Settings, parts: int = 0
    ):
        """``parts``: of the device that a batch's share is made of, 0: it has none."""
        self.ledger = ledger
        self.shares = shares
        self.settings = settings
        self.parts = Parts(parts)
        self.actions: list[Action] = []
        self.flying: dict[int, Flight] = {}  # by number: what computes now
        self.prefilling = 0  # prefill batches in flight
        self.prefilled = 0  # number of the last one launched
        self.prefills = 0  # how many were launched
        self.lanes: dict[str, Lane] = {}
        self.decodable = Turns()  # lanes with running sequences and a worker free to step them
        self.waiting = Turns()  # lanes with prompts to compute
        self.stepping = Turns()  # lanes with a decode step in flight and none behind it
        for spec in specs:
            self.open(spec)

    def open(self, spec: LaneSpec) -> Lane:
        """A new lane, its worker not ready yet."""
        lane = self.lanes[spec.model] = Lane(spec)
        self.even_out()
        self.refresh(lane)
        return lane

    def close(self, model: str) -> None:
        lane = self.lanes.pop(model)
        self.decodable.drop(lane)
        self.waiting.drop(lane)
        self.stepping.drop(lane)
        self.even_out()

    def even_out(self) -> None:
        """Models without a share of their own have equal ones; one that has failed or sleeps leaves them its
        part."""
        living = [lane for lane in self.lanes.values() if lane.failed is None and not lane.asleep]
        part = equal_part(len(living), self.shares.rungs)
        for lane in self.lanes.values():
            if lane.equal:
                lane.take_share(part)

    def refresh(self, lane: Lane) -> None:
        """Whoever changed a lane's queue, sequences, flight or worker says so here."""
        self.decodable.put(lane, bool(lane.running) and lane.free(prefill=False))
        self.waiting.put(lane, lane.prompts)
        self.stepping.put(lane, lane.step is not None and lane.ahead is None)
        if not lane.waiting:
            lane.blocked = ""

    def masks(self) -> Iterator[int]:
        """Where batches run that workers have, begun or not."""
        for flight in self.flying.values():
            yield flight.mask
            ahead = self.lanes[flight.model].ahead
            if not flight.prefill and ahead is not None:
                yield ahead.mask

    @property
    def empty(self) -> bool:
        """No sequence is anywhere."""
        return not any(lane.waiting or lane.running for lane in self.lanes.values())
