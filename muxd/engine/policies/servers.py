"""Servers beside each other that know nothing of each other: what users build without MPS."""

from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.policies.base import Policy


class Servers(Policy):
    """A slice of the pool for each model, and the driver gives the whole device to one process after another:
    here batch by batch, in turn. Each prefers its own prompts."""

    name = "servers"
    memory = "slices"

    def launch(self, now: float) -> None:
        if self.board.shares.booked:
            return
        both = (*self.board.waiting.lanes, *self.board.decodable.lanes)
        lanes = {lane.spec.model: lane for lane in both}
        for lane in sorted(lanes.values(), key=lambda lane: lane.launched):
            if self._start(lane, self.whole(lane), now):
                return

    def share_again(self, lane: Lane, flight: Flight) -> int:
        return self.whole(lane)

    def _start(self, lane: Lane, share: int, now: float) -> bool:
        if self.can_prefill(lane, now) and self.batches.prefill(lane, share, now):
            return True
        return bool(lane.running) and lane.free(prefill=False) and self.batches.decode(lane, share, now)
