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
        self._held: dict[tuple[str, int], int] = {}  # by model and batch
        self._stepped: dict[str, int] = {}  # model -> its last decode step
        self._lately: dict[tuple[str, bool], list[int]] = {}  # by model and whether it prefills, last first

    @property
    def taken(self) -> int:
        """Mask of all parts in use."""
        mask = 0
        for held in self._held.values():
            mask |= held
        return mask

    def placed(self, model: str, command: Prefill | Decode) -> Prefill | Decode:
        """The command with its place, held until ``done`` or ``free``: parts nobody uses, where that can be.

        A step that is sent while the one in front still runs comes after it, so it has the same place. Else
        a model goes where it was lately: its worker has graphs and memory for few places. The whole device is
        mask 0, which needs no green context.
        """
        if not self._total:
            return command
        count = max(1, min(self._total, command.share * self._total // 100))
        whole = (1 << self._total) - 1
        lately = self._lately.setdefault((model, isinstance(command, Prefill)), [])
        mask = self._in_front(model, command, count) or self._known(lately, count)
        mask = mask or place(self.taken, count, self._total) or self._least_used(count)
        lately[:] = [mask, *(one for one in lately if one != mask)]
        self._held[model, command.batch] = mask
        return msgspec.structs.replace(command, parts=0 if mask == whole else mask)

    def done(self, model: str, batch: int) -> None:
        """The batch is over."""
        self._held.pop((model, batch), None)

    def free(self, model: str) -> None:
        """All its batches are over: its workers are new."""
        for key in [key for key in self._held if key[0] == model]:
            del self._held[key]
        for prefills in (False, True):
            self._lately.pop((model, prefills), None)

    def _in_front(self, model: str, command: Prefill | Decode, count: int) -> int:
        """Where the step runs that this one was sent behind; 0: there is none, or of another size."""
        if isinstance(command, Prefill):
            return 0
        mask = self._held.get((model, self._stepped.get(model, 0)), 0)
        self._stepped[model] = command.batch
        return mask if mask.bit_count() == count else 0

    def _known(self, lately: list[int], count: int) -> int:
        """The last of these places that is free and as large as asked; 0: none is."""
        taken = self.taken
        return next((mask for mask in lately if mask.bit_count() == count and not mask & taken), 0)

    def _least_used(self, count: int) -> int:
        """More is booked than there is (``overbook``): side by side, where the fewest batches run."""

        def users(mask: int) -> int:
            return sum((held & mask).bit_count() for held in self._held.values())

        masks = [(1 << count) - 1 << start for start in range(self._total - count + 1)]
        return min(masks, key=users)
