"""The last values of something that goes on, so that a reader finds what has come since it looked. Pure."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """``kept`` values at most. ``count``: how many there have ever been."""

    def __init__(self, kept: int):
        self._values: deque[T] = deque(maxlen=kept)
        self.count = 0

    def add(self, value: T) -> None:
        self._values.append(value)
        self.count += 1

    def since(self, count: int) -> list[T]:
        """Those that came after there had been ``count``, as far as they are kept, oldest first."""
        new = list(islice(reversed(self._values), max(0, self.count - count)))
        new.reverse()
        return new

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)
