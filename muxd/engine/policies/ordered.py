"""The ablations of MuxServe's figure 9: batches side by side as in mux, but plainly in an order.

Neither prefers prefills, holds anything back, or moves a quota.
"""

from muxd.engine.batches import Batches
from muxd.engine.board import Board
from muxd.engine.lane import Lane
from muxd.engine.policies.base import Policy
from muxd.engine.rows import RowKeeper


class Ordered(Policy):
    """Goes through ``order`` and starts each model's next batch; prompts before steps within a model."""

    def order(self) -> list[Lane]:
        """Lanes with work, whose turn it is first."""
        raise NotImplementedError

    def lanes(self) -> list[Lane]:
        """Lanes with work, in no order that matters."""
        both = (*self.board.waiting.lanes, *self.board.decodable.lanes)
        return list({lane.spec.model: lane for lane in both}.values())

    def start(self, lane: Lane, now: float, *, prompts: bool) -> bool:
        """Start its next batch, begin a prompt only with ``prompts``. False: nothing started."""
        prefilling = self.board.prefilling > 0
        if not prefilling and self.can_prefill(lane, now):
            begun = bool(lane.waiting.head.rows)  # it must go on: its rows come back only at its end
            share = self.grant(lane, prefill=True, prefilling=prefilling)
            if share is None:
                return False
            if (prompts or begun) and self.batches.prefill(lane, share, now):
                return True
        if not self.steps(lane):
            return False
        share = self.grant(lane, prefill=False, prefilling=prefilling)
        return share is not None and self.batches.decode(lane, share, now)

    def steps(self, lane: Lane) -> bool:
        """It has a step to do and its worker is idle."""
        return bool(lane.running) and lane.free(prefill=False)

    def fits(self, lane: Lane) -> bool:
        """Its share is free."""
        return self.board.shares.free >= self.board.shares.floor(lane.spec.share)

    def serve(self, lane: Lane, now: float, *, prompts: bool) -> bool:
        """Start what it can: one batch, or one of each phase. False: it could have, and nothing started."""
        started = False
        while lane.startable and self.start(lane, now, prompts=prompts):
            started = True
        return started or not lane.startable


class RoundRobin(Ordered):
    """Models in turn; one that cannot start is passed over, for one round if it lacks nothing but share.

    For ever, a model that needs the whole device would never have a turn beside two that need half.
    """

    name = "round_robin"

    def __init__(self, board: Board, rows: RowKeeper, batches: Batches):
        super().__init__(board, rows, batches)
        self._passed: dict[str, int] = {}  # models that lacked share -> batches begun by then

    def launch(self, now: float) -> None:
        lanes = self.order()
        with_work = {lane.spec.model for lane in lanes}
        self._passed = {model: begun for model, begun in self._passed.items() if model in with_work}
        for lane in lanes:
            if not self.board.shares.any_free:
                return
            if self.serve(lane, now, prompts=True):
                self._passed.pop(lane.spec.model, None)
            elif self._lacks_share(lane, now):
                since = self._passed.setdefault(lane.spec.model, self.batches.begun)
                if self.batches.begun - since >= len(lanes):
                    return

    def _lacks_share(self, lane: Lane, now: float) -> bool:
        prompt = not self.board.prefilling and self.can_prefill(lane, now)
        return (prompt or self.steps(lane)) and not self.fits(lane)

    def order(self) -> list[Lane]:
        return sorted(self.lanes(), key=lambda lane: lane.launched)


class FirstCome(Ordered):
    """The model with the oldest unfinished request first: while its prompt waits no other model's prompt is
    begun, and no younger batch takes the share that an older one waits for."""

    name = "fcfs"

    def launch(self, now: float) -> None:
        prompts = True
        for lane in self.order():
            if not self.board.shares.any_free:
                return
            if not self.serve(lane, now, prompts=prompts) and self._could(lane):
                return
            # A prompt that finds no rows, or no turn, lets running sequences pass: they will free both.
            prompts = prompts and not lane.waiting

    def order(self) -> list[Lane]:
        return sorted(self.lanes(), key=_oldest)

    def _could(self, lane: Lane) -> bool:
        """It has a step to do and only the share was missing."""
        return self.steps(lane) and not self.fits(lane)


def _oldest(lane: Lane) -> tuple[float, int]:
    ages = [(sequence.arrived, sequence.id) for sequence in lane.running]
    if lane.waiting:
        ages.append((lane.waiting.head.arrived, lane.waiting.head.id))
    return min(ages)
