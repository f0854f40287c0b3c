"""Temporal multiplexing: one batch at a time on the whole device, from one shared pool (MuxServe §5.1)."""

from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.policies.base import Policy


class Temporal(Policy):
    """The prompt that arrived first is prefilled; without any, the models' decode steps take turns.

    A stream that has waited ``drain_timeout`` while prompts went first gets one step between two prefills.
    """

    name = "temporal"
    _prefilled_last = False

    def launch(self, now: float) -> None:
        if self.board.shares.booked:
            return
        prompt = None if self._overdue(now) else self._oldest_prompt(now)
        if prompt is not None and self.batches.prefill(prompt, self.whole(prompt), now):
            self._prefilled_last = True
            return
        for lane in self.board.decodable.lanes:
            if lane.running and lane.free(prefill=False) and self.batches.decode(lane, self.whole(lane), now):
                self._prefilled_last = False
                return

    def share_again(self, lane: Lane, flight: Flight) -> int:
        return self.whole(lane)

    def _oldest_prompt(self, now: float) -> Lane | None:
        ready = [lane for lane in self.board.waiting.lanes if self.can_prefill(lane, now)]
        return min(ready, key=lambda lane: lane.waiting.head.arrived, default=None)

    def _overdue(self, now: float) -> bool:
        patience = self.board.settings.drain_timeout
        return self._prefilled_last and any(
            now - lane.decode_ended >= patience for lane in self.board.decodable.lanes
        )
