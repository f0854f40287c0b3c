"""Which text process takes a job. Pure.

A model goes to the process that has its tokenizer as long as that is free. Large bodies, and models whose
last job had to be killed, never have all processes: somebody else's small prompt finds one.
"""

from collections import Counter
from collections.abc import Collection
from zlib import crc32

LARGE = 64 << 10  # bytes
SUSPECT_FOR = 60.0  # seconds that a model is watched after a job of it was killed


class Turns:
    """Of ``processes`` text processes, numbered from 0."""

    def __init__(self, processes: int):
        self._most = max(1, processes - 1)
        self._large = 0
        self._running: Counter[str] = Counter()
        self._suspects: dict[str, float] = {}

    def place(self, model: str, size: int, free: Collection[int], now: float) -> int | None:
        """One of the ``free`` processes, or None: not yet."""
        if not free or (size > LARGE and self._large >= self._most):
            return None
        if self._suspects.get(model, 0.0) > now and self._running[model]:
            return None
        return max(free, key=lambda number: crc32(f"{number}/{model}".encode()))

    def begin(self, model: str, size: int) -> None:
        self._running[model] += 1
        self._large += size > LARGE

    def end(self, model: str, size: int) -> None:
        self._running[model] -= 1
        self._running += Counter()  # drops zeros
        self._large -= size > LARGE

    def suspect(self, model: str, now: float) -> None:
        """A job of this model had to be killed."""
        self._suspects = {name: until for name, until in self._suspects.items() if until > now}
        self._suspects[model] = now + SUSPECT_FOR
