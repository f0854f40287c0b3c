"""Spatial partitioning: every model on its own fixed share and its own slice of the pool (MuxServe §5.1)."""

from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.policies.base import Policy


class Spatial(Policy):
    """What users build from separate servers: nobody takes from anybody, nobody lends.

    Shares that add up to more than 100 are scaled down together; a model whose phases run side by side
    counts twice. On a CPU a model always has one thread at
    least; where that makes more threads than cores, the operating system divides them.
    """

    name = "spatial"
    memory = "slices"

    def launch(self, now: float) -> None:
        for lane in self.board.waiting.lanes:
            if self.can_prefill(lane, now):
                self.batches.prefill(lane, self._share(lane), now)
        for lane in self.board.decodable.lanes:
            if lane.running and lane.free(prefill=False):
                self.batches.decode(lane, self._share(lane), now)

    def share_again(self, lane: Lane, flight: Flight) -> int:
        return self._share(lane)

    def _share(self, lane: Lane) -> int:
        lanes = self.board.lanes.values()
        total = max(100, sum(lane.spec.share * (1 + lane.spec.split) for lane in lanes))
        return max(1, lane.spec.share * 100 // total)
