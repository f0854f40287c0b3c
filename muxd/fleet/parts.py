"""Which parts of a GPU's SMs each running batch has: the share that the scheduler booked, made a place.

Pure. The scheduler books percentages (``engine.shares``); a percentage alone would let batches lie on each
other while SMs idle.
"""

import msgspec

from muxd.device.green import place
from muxd.messages import Decode, Prefill


class Parts:
    """The places on a device of ``total`` parts; 0: it has none, and every batch may use all of it."""

    def __init__(self, total: int):
        self._total = total
        self._held: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """Mask of all parts in use."""
        mask = 0
        for held in self._held.values():
            mask |= held
        return mask

    def placed(self, model: str, command: Prefill | Decode) -> Prefill | Decode:
        """The command with its place, held until ``free``: parts nobody uses, where there are enough.

        The whole device is mask 0, which needs no green context.
        """
        if not self._total:
            return command
        self.free(model)
        count = max(1, min(self._total, command.share * self._total // 100))
        whole = (1 << self._total) - 1
        mask = place(self.taken, count, self._total) or self._least_used(count)
        self._held[model] = mask
        return msgspec.structs.replace(command, parts=0 if mask == whole else mask)

    def free(self, model: str) -> None:
        """Its batch is over, one way or the other."""
        self._held.pop(model, None)

    def _least_used(self, count: int) -> int:
        """More is booked than there is (``overbook``): side by side, where the fewest batches run."""

        def users(mask: int) -> int:
            return sum((held & mask).bit_count() for held in self._held.values())

        masks = [(1 << count) - 1 << start for start in range(self._total - count + 1)]
        return min(masks, key=users)
