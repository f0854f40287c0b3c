"""The worth of a set of models on a mesh, with the best shares found for it. What searches look up."""

from collections.abc import Iterator
from itertools import product
from math import prod

from muxd.placement.appraiser import Appraiser

_REMEMBERED = 200_000  # sets; then it begins anew
_VECTORS = 2000

Worth = tuple[float, tuple[int, ...]]  # value, decode shares


class Sets:
    """Remembers every set it was asked for.

    ``tuned``: shares are improved one or two rungs at a time; else the best of a few simple vectors.
    """

    def __init__(self, appraiser: Appraiser, tuned: bool = True):
        self.appraiser = appraiser
        self.tuned = tuned
        self._known: dict[tuple[int, tuple[int, ...]], Worth | None] = {}

    def worth(self, gpus: int, models: tuple[int, ...]) -> Worth | None:
        """None when they do not fit. ``models`` ascending; none are worth 0."""
        if not models:
            return 0.0, ()
        key = (gpus, models)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = self._compute(gpus, models)
        return self._known[key]

    def _compute(self, gpus: int, models: tuple[int, ...]) -> Worth | None:
        start = self._start(gpus, models)
        if start is None:
            return None
        value, start = self._best_simple(gpus, models, start)
        return self._climb(gpus, models, value, start) if self.tuned else (value, start)

    def _best_simple(self, gpus: int, models: tuple[int, ...], start: tuple[int, ...]) -> Worth:
        """The candidates, equal parts, everything for all (they take turns), or the middle of both."""
        rungs = [self.appraiser.rungs(model, gpus) for model in models]
        found = [(self.appraiser.value(gpus, models, start), start)]
        for percent in (100 // len(models), (100 + 100 // len(models)) // 2, 100):
            tried = tuple(next((rung for rung in known if rung >= percent), known[-1]) for known in rungs)
            if tried != start and self.appraiser.fits(gpus, models, tried):
                found.append((self.appraiser.value(gpus, models, tried), tried))
        return max(found, key=lambda worth: worth[0])

    def _start(self, gpus: int, models: tuple[int, ...]) -> tuple[int, ...] | None:
        """The candidates; the largest one rung lower until they fit."""
        found = [self.appraiser.candidate(model, gpus) for model in models]
        if any(share is None for share in found):
            return None
        shares = [share for share in found if share is not None]
        rungs = [self.appraiser.rungs(model, gpus) for model in models]
        while not self.appraiser.fits(gpus, models, shares):
            lower = [i for i, share in enumerate(shares) if share > rungs[i][0]]
            if not lower or not self.tuned:
                return None
            i = max(lower, key=lambda i: shares[i])
            shares[i] = max(rung for rung in rungs[i] if rung < shares[i])
        return tuple(shares)

    def _climb(self, gpus: int, models: tuple[int, ...], value: float, shares: tuple[int, ...]) -> Worth:
        """Single rungs up or down while that gains, and one up against another down where up alone is too
        much."""
        rungs = [self.appraiser.rungs(model, gpus) for model in models]
        better = True
        while better:
            better = False
            for tried in self._neighbours(gpus, models, shares, rungs):
                found = self.appraiser.value(gpus, models, tried)
                if found > value * (1 + 1e-6):
                    value, shares, better = found, tried, True
                    break
        return value, shares

    def _neighbours(
        self, gpus: int, models: tuple[int, ...], shares: tuple[int, ...], rungs: list[tuple[int, ...]]
    ) -> Iterator[tuple[int, ...]]:
        """Those that fit."""
        places = [known.index(share) for known, share in zip(rungs, shares, strict=True)]
        many = range(len(shares))
        for i in many:
            up = _moved(rungs, places, (i, 1))
            if up is not None and self.appraiser.fits(gpus, models, up):
                yield up
            elif up is not None:
                pairs = (_moved(rungs, places, (i, 1), (j, -1)) for j in many if j != i)
                yield from (p for p in pairs if p is not None and self.appraiser.fits(gpus, models, p))
            down = _moved(rungs, places, (i, -1))
            if down is not None:
                yield down

    def exact(self, gpus: int, models: tuple[int, ...]) -> Worth | None:
        """The best over every vector of shares; of more than 2,000 vectors, the best that climbing finds."""
        if not models:
            return 0.0, ()
        if any(self.appraiser.candidate(model, gpus) is None for model in models):
            return None
        rungs = [self.appraiser.rungs(model, gpus) for model in models]
        if prod(map(len, rungs)) > _VECTORS:
            return Sets(self.appraiser)._compute(gpus, models)
        found = (
            (self.appraiser.value(gpus, models, shares), shares)
            for shares in product(*rungs)
            if self.appraiser.fits(gpus, models, shares)
        )
        return max(found, default=None)


def _moved(
    rungs: list[tuple[int, ...]], places: list[int], *steps: tuple[int, int]
) -> tuple[int, ...] | None:
    """The shares with some a rung up or down; None past the ends."""
    at = list(places)
    for i, step in steps:
        at[i] += step
        if not 0 <= at[i] < len(rungs[i]):
            return None
    return tuple(known[place] for known, place in zip(rungs, at, strict=True))
