"""A measured grid with holes and wrong cells, made monotone and whole, and remembering what was measured.

Noise only ever adds time, so a cell above one that should cost more is lowered to it (``table.monotone``).
Holes are filled by lines through what is known, kept between everything that must cost less and everything
that must cost more: the result is monotone again. Pure.
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from muxd.cost.estimate import Estimate, Source
from muxd.cost.profile import Grid
from muxd.cost.table import Surface, monotone
from muxd.errors import ConfigError

Cube = NDArray[np.float64]  # [shares, rows, contexts], seconds; nan: not measured
_SOURCES: tuple[Source, ...] = ("measured", "interpolated", "extrapolated")  # ascending in doubt


class Cells:
    """One phase of one model on one number of devices.

    ``axes``: shares, rows (batch or tokens) and contexts (context or length), each ascending. Raises
    ConfigError, beginning with ``where``, when nothing was measured.
    """

    def __init__(self, axes: tuple[list[int], list[int], list[int]], raw: Cube, where: str):
        if np.isnan(raw).all():
            raise ConfigError(f"{where}: not one cell is measured")
        self.shares, self.rows, self.contexts = axes
        self.raw = raw
        self.seconds, doubt = completed(raw, axes[1], axes[2])
        self._doubt: list[list[list[int]]] = doubt.tolist()
        self._surface = Surface(Grid(*axes, self.seconds.tolist()))

    @classmethod
    def of(cls, grid: Grid, where: str) -> "Cells":
        return cls((grid.shares, grid.rows, grid.contexts), np.array(grid.seconds, dtype=np.float64), where)

    def estimate(self, rows: float, context: float, share: int) -> Estimate:
        """Below the smallest measured share as if the work were pure arithmetic: proportionally longer."""
        seconds = self._surface.seconds(rows, context, share) * max(1.0, self.shares[0] / share)
        return Estimate(seconds, self.source(rows, context, share))

    def source(self, rows: float, context: float, share: int) -> Source:
        places = [_places(axis, value) for axis, value in self._sides(rows, context, share)]
        if not all(places):
            return "extrapolated"
        worst = max(self._doubt[i][j][k] for i in places[0] for j in places[1] for k in places[2])
        exact = all(len(place) == 1 for place in places)
        return _SOURCES[worst if exact else max(1, worst)]

    def _sides(self, rows: float, context: float, share: int) -> list[tuple[list[int], float]]:
        return [(self.shares, share), (self.rows, rows), (self.contexts, context)]

    def wrong(self, factor: float) -> list[tuple[int, int, int]]:
        """Where the raw cell was more than ``factor`` times what is used: share, row, context."""
        with np.errstate(invalid="ignore"):
            found = np.argwhere(self.raw > factor * self.seconds)
        return [(self.shares[i], self.rows[j], self.contexts[k]) for i, j, k in found.tolist()]


def completed(raw: Cube, rows: list[int], contexts: list[int]) -> tuple[Cube, NDArray[np.int64]]:
    """Monotone cells without holes, and how much each is to be doubted (index into ``_SOURCES``)."""
    known = ~np.isnan(raw)
    cells = np.where(known, monotone(np.where(known, raw, np.inf)), np.nan)
    doubt = np.where(known, np.where(cells == raw, 0, 1), 2)
    for i, j, k in _order(~known):
        inside = [
            _between(cells[i, :, k], known[i, :, k], rows, j),
            _between(cells[i, j, :], known[i, j, :], contexts, k),
        ]
        found = [guess for guess in inside if guess is not None]
        if found:
            doubt[i, j, k] = 1
        else:
            found = [_beyond(cells[i, :, k], rows, j), _beyond(cells[i, j, :], contexts, k)]
        cells[i, j, k] = _bounded(cells, i, j, k, max(found))
    return cells, doubt


def _order(holes: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Largest share first, then from little work to much: every line is drawn through what is there."""
    return sorted(((i, j, k) for i, j, k in np.argwhere(holes).tolist()), key=lambda at: (-at[0], at[1:]))


def _between(line: Cube, known: NDArray[np.bool_], axis: list[int], at: int) -> float | None:
    """On the line from the last measured cell before to the first after; None without both."""
    before, after = np.flatnonzero(known[:at]), np.flatnonzero(known[at + 1 :]) + at + 1
    if not before.size or not after.size:
        return None
    ends = [before[-1], after[0]]
    return float(np.interp(axis[at], [axis[e] for e in ends], line[ends]))


def _beyond(line: Cube, axis: list[int], at: int) -> float:
    """On the line through the last two cells before; 0, that is no opinion, without them."""
    before = np.flatnonzero(~np.isnan(line[:at]))
    if before.size < 2:
        return 0.0
    a, b = before[-2:]
    slope = (line[b] - line[a]) / (axis[b] - axis[a])
    return float(line[b] + slope * (axis[at] - axis[b]))


def _bounded(cells: Cube, i: int, j: int, k: int, guess: float) -> float:
    """``guess`` between all cells that must cost less (less work, more share) and all that must cost more."""
    less, more = cells[i:, : j + 1, : k + 1], cells[: i + 1, j:, k:]
    least = np.nanmax(less) if not np.isnan(less).all() else -np.inf
    most = np.nanmin(more) if not np.isnan(more).all() else np.inf
    value = min(max(guess, least), most)
    if value > 0:
        return float(value)
    return float(most if most < np.inf else np.nanmax(cells))  # no opinion, and nothing that costs less


def _places(axis: list[int], value: float) -> list[int]:
    """The one or two points an interpolation at ``value`` uses; none outside the axis."""
    if not axis[0] <= value <= axis[-1]:
        return []
    at = bisect_left(axis, value)
    return [at] if axis[at] == value else [at - 1, at]
