"""One record of a batch, from the decision to its end. Whoever wants to know of a batch reads it here."""

from math import inf

from msgspec import Struct

from muxd.engine.sequence import Sequence
from muxd.messages import Decode, Prefill


class Flight(Struct):
    """A batch of one model: made by ``batches.py``, begun when its worker can compute it, then done or lost.

    Times are seconds of the scheduler's clock. ``sequences`` are those of the command, in its order.
    """

    model: str
    batch: int
    prefill: bool
    sequences: list[Sequence]
    chunk: list[int]  # tokens computed per sequence
    share: int  # percent of the device, booked while it is computed
    began: float
    command: Prefill | Decode  # as its worker is told
    worker: str = ""  # which computes it
    mask: int = 0  # the device's parts it runs on; 0: the device has none
    due: float = inf  # when it has taken too long
    asked: bool = False  # it has, and was asked for
    ended: float | None = None
    seconds: float = 0.0  # on the device, as the worker measured
    lost: bool = False  # with its worker

    @property
    def tokens(self) -> int:
        """Computed in all."""
        return sum(self.chunk)
