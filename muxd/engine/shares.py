"""Booking of device shares: who computes on how many percent right now.

A cap is a limit, not a reservation. What is booked never exceeds 100 % plus ``overbook`` *in total*
(the released MuxServe applied its threshold per request, and booked 190 %).
"""

from bisect import bisect_right
from collections.abc import Iterable

from muxd.cost import shares


class Shares:
    """The book of one unit's device.

    ``rungs`` are the percentages a worker can really run at, ascending, the last is 100: whole threads on a
    CPU, green-context sizes on a GPU. Under fixed MPS percentages every percent is one, and each worker
    has only its own (``most`` of ``grant``).
    """

    def __init__(self, rungs: Iterable[int], overbook: int = 0):
        self.rungs = tuple(sorted(rungs))
        if not self.rungs or self.rungs[0] <= 0:
            raise ValueError(f"rungs must be positive percentages, got {self.rungs}")
        self.limit = 100 + overbook
        self._total = 0
        self._floors: dict[int, int] = {}

    @property
    def booked(self) -> int:
        """Percent in use, of all that run."""
        return self._total

    @property
    def free(self) -> int:
        return self.limit - self._total

    @property
    def any_free(self) -> bool:
        """Whether anybody at all could start now."""
        return self.limit - self._total >= self.rungs[0]

    def floor(self, share: int) -> int:
        """The smallest rung that gives at least ``share`` (the largest if none does)."""
        if share not in self._floors:
            self._floors[share] = next((rung for rung in self.rungs if rung >= share), self.rungs[-1])
        return self._floors[share]

    def grant(
        self, share: int, contenders: Iterable[int], most: int = 100, *, given_back: int = 0
    ) -> int | None:
        """The rung to run at: at least ``share``, more if nobody with work needs it; None if not free now.

        ``most``: what the worker can use; a rung above it is never granted beyond ``share``. ``given_back``:
        percent that will be free, too.

        ``contenders`` are the shares of the other models that have work and are not running yet: what they
        need is left to them, the rest of the free share is the busy model's to use. Nothing is left to one
        that could not start beside this batch anyway. They are asked for only until nothing is left to add.
        """
        spare, need = self.free + given_back, self.floor(share)
        if spare < need:
            return None
        more = self.rungs[bisect_right(self.rungs, need) : bisect_right(self.rungs, min(spare, most))]
        if not more:
            return need
        beside = spare - need
        for other in contenders:
            if self.floor(other) <= beside:
                spare -= self.floor(other)
            if spare < more[0]:
                return need
        return more[bisect_right(more, spare) - 1]

    def most_beside(self, needs: Iterable[int]) -> int:
        """The most a batch can have that leaves the least of ``needs`` to somebody else, the smallest rung if
        there are none; all if nothing can be left."""
        least = min(map(self.floor, needs), default=self.rungs[0])
        return shares.most_beside(least, self.rungs)

    def book(self, share: int) -> None:
        """For one batch more. Raises ValueError if the total would exceed the limit."""
        if share > self.free:
            raise ValueError(f"cannot book {share} %: booked are {self._total} of {self.limit} %")
        self._total += share

    def release(self, share: int) -> None:
        """What a batch had booked. Raises ValueError for more than is booked."""
        if share > self._total:
            raise ValueError(f"cannot release {share} % of {self._total} % that are booked")
        self._total -= share
