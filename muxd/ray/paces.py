"""How long a request waits for its answer to begin, by what hosts have shown. Pure; times are passed in.

What is measured is seconds until an answer begins per sequence that was at the host, so a host's wait is
predicted by how many are there now. Latency times what is outstanding is how Finagle's and Linkerd's
balancers rank (peak EWMA).
"""

from muxd.engine.ewma import Average

_MEMORY = 30.0  # seconds
_UNKNOWN = 0.05  # seconds: before anything was measured the host with the fewest sequences is next


class Paces:
    """Of hosts and models."""

    def __init__(self) -> None:
        self._averages: dict[tuple[str, str], tuple[Average, float]] = {}

    def began(self, host: str, model: str, seconds: float, load: int, now: float) -> None:
        """An answer began ``seconds`` after it was asked for, when ``load`` sequences were at the host."""
        average, last = self._averages.get((host, model), (Average(_MEMORY), now))
        average.add(seconds / (load + 1), now - last)
        self._averages[host, model] = average, now

    def wait(self, host: str, model: str, load: int) -> float:
        """Seconds until an answer would begin."""
        return self._pace(host, model) * (load + 1)

    def forget(self, host: str) -> None:
        self._averages = {key: one for key, one in self._averages.items() if key[0] != host}

    def _pace(self, host: str, model: str) -> float:
        """A host of which nothing is known yet is taken for the quickest of the others, so that it is
        tried."""
        if own := self._averages.get((host, model)):
            return own[0].value
        others = [one.value for (_, name), (one, _) in self._averages.items() if name == model]
        return min(others, default=_UNKNOWN)
