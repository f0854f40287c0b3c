"""Which parts of a GPU each batch of a unit runs on. Pure.

A GPU of four parts books shares in quarters; this turns a share into places that other batches leave free.
What nobody else holds is what ``Shares`` has booked for nobody, so with ``overbook = 0`` no two batches lie
on each other while SMs idle.
"""

from collections.abc import Iterable

from muxd.device.green import place


class Parts:
    """The places on a device of ``total`` parts; 0: it has none, and every batch may use all of it."""

    def __init__(self, total: int):
        self.total = total
        self.whole = (1 << total) - 1
        self._lately: dict[tuple[str, bool], list[int]] = {}  # by model and whether it prefills, last first

    def choose(self, model: str, share: int, held: Iterable[int], *, prefill: bool, front: int = 0) -> int:
        """Mask of the parts for a batch of ``share`` percent beside those that are ``held``.

        ``front``: where the step runs that this one is sent behind; it comes after it, so it has the same
        place. Else a model goes where it was lately: its worker has graphs and memory for few places.
        """
        if not self.total:
            return 0
        count = max(1, min(self.total, share * self.total // 100))
        lately = self._lately.setdefault((model, prefill), [])
        masks, taken = list(held), 0
        for mask in masks:
            taken |= mask
        chosen = front if front.bit_count() == count else _known(lately, count, taken)
        chosen = chosen or place(taken, count, self.total) or self._least_used(count, masks)
        lately[:] = [chosen, *(one for one in lately if one != chosen)]
        return chosen

    def told(self, mask: int) -> int:
        """As a command has it: the whole device is 0, which needs no green context."""
        return 0 if mask == self.whole else mask

    def forget(self, model: str) -> None:
        """Its workers are new."""
        for prefills in (False, True):
            self._lately.pop((model, prefills), None)

    def _least_used(self, count: int, held: list[int]) -> int:
        """More is booked than there is (``overbook``): side by side, where the fewest batches run."""
        masks = [(1 << count) - 1 << start for start in range(self.total - count + 1)]
        return min(masks, key=lambda mask: sum((one & mask).bit_count() for one in held))


def _known(lately: list[int], count: int, taken: int) -> int:
    """The last of these places that is free and as large as asked; 0: none is."""
    return next((mask for mask in lately if mask.bit_count() == count and not mask & taken), 0)
