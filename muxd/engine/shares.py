"""Booking of device shares: who computes on how many percent right now.

A cap is a limit, not a reservation. What is booked never exceeds 100 % plus ``overbook`` *in total*
(the released MuxServe applied its threshold per request, and booked 190 %).
"""

from collections.abc import Iterable


class Shares:
    """The book of one unit's device.

    ``rungs`` are the percentages a worker can really run at, ascending, the last is 100: whole threads on a
    CPU, green-context sizes on a GPU. A worker under a fixed MPS percentage has that single rung.
    """

    def __init__(self, rungs: Iterable[int], overbook: int = 0):
        self.rungs = tuple(sorted(rungs))
        if not self.rungs or self.rungs[0] <= 0:
            raise ValueError(f"rungs must be positive percentages, got {self.rungs}")
        self.limit = 100 + overbook
        self._booked: dict[str, int] = {}

    @property
    def free(self) -> int:
        return self.limit - sum(self._booked.values())

    def floor(self, share: int) -> int:
        """The smallest rung that gives at least ``share`` (the largest if none does)."""
        return next((rung for rung in self.rungs if rung >= share), self.rungs[-1])

    def grant(self, share: int, contenders: Iterable[int]) -> int | None:
        """The rung to run at: at least ``share``, more if nobody with work needs it; None if not free now.

        ``contenders`` are the shares of the other models that have work and are not running yet: what they
        need is left to them, the rest of the free share is the busy model's to use.
        """
        free, need = self.free, self.floor(share)
        if free < need:
            return None
        spare = free - sum(self.floor(other) for other in contenders)
        return max((rung for rung in self.rungs if need <= rung <= spare), default=need)

    def book(self, who: str, share: int) -> None:
        """Raises ValueError if ``who`` already runs or the total would exceed the limit."""
        if who in self._booked or share > self.free:
            raise ValueError(f"cannot book {share} % for {who}: booked {self._booked}, limit {self.limit} %")
        self._booked[who] = share

    def release(self, who: str) -> None:
        self._booked.pop(who, None)
