"""Whether a quantity that was looked at again and again has stopped growing. Pure."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

WARM = 0.25  # of the samples, which are not judged
SURE = 3.0  # standard errors within which a rise may be chance: connections come and go


class Judged(Struct, frozen=True):
    """``begin`` and ``end``: the fitted line where the judged part begins and ends; ``least`` and ``most`` in
    that part; ``error``: the standard error of the line's rise; ``bound``: what the line may rise by."""

    name: str
    begin: float
    end: float
    least: float
    most: float
    error: float
    bound: float

    @property
    def growth(self) -> float:
        return self.end - self.begin

    @property
    def flat(self) -> bool:
        return self.growth <= self.bound + SURE * self.error


def judge(name: str, times: Sequence[float], values: Sequence[float], bound: float) -> Judged:
    """By the straight line of least squares over what follows the warm-up. At least eight samples."""
    first = int(WARM * len(times))
    x, y = np.asarray(times[first:], float), np.asarray(values[first:], float)
    assert len(times) >= 8, f"{name}: {len(times)} samples say nothing"
    x -= x[0]
    slope, base = np.polyfit(x, y, 1)
    left = y - (base + slope * x)
    spread = np.sqrt((left @ left) / (len(x) - 2) / ((x - x.mean()) @ (x - x.mean())))
    least, most = float(y.min()), float(y.max())
    return Judged(name, float(base), float(base + slope * x[-1]), least, most, float(spread * x[-1]), bound)
