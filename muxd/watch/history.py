"""Ten minutes of each model's tokens, counted every few seconds whether or not anybody watches. Pure."""

from collections.abc import Mapping

from muxd.engine.kept import Kept
from muxd.watch.changes import POINTS

HISTORY_PERIOD = 5.0  # seconds


class History:
    """Of counts that only grow. O(models) every five seconds."""

    def __init__(self, now: float, counts: Mapping[str, int]):
        self._last, self._before = (now, dict(counts)), (now, dict(counts))
        self.rates: Kept[dict[str, float]] = Kept(POINTS)  # tokens a second of models that had any

    def sample(self, now: float, counts: Mapping[str, int]) -> None:
        """A period is over."""
        then, had = self._last
        if now <= then:
            return
        grown = {name: count - had.get(name, 0) for name, count in counts.items()}
        self.rates.add({name: round(n / (now - then), 2) for name, n in grown.items() if n})
        self._before, self._last = self._last, (now, dict(counts))

    def rate(self, model: str, count: int, now: float) -> float:
        """Tokens a second over the last period or two."""
        then, had = self._before
        return round((count - had.get(model, 0)) / (now - then), 1) if now > then else 0.0
