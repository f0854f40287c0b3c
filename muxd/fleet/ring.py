"""What happened, in order and bounded: the newest are kept, and whoever follows gets what comes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Generic, Protocol, TypeVar

from muxd.engine.kept import Kept


class Numbered(Protocol):
    @property
    def number(self) -> int: ...


T = TypeVar("T", bound=Numbered)
U = TypeVar("U")


class Ring(Generic[T]):
    """Its things carry numbers that ascend without gaps. Used on one event loop."""

    def __init__(self, kept: int):
        self._kept: Kept[T] = Kept(kept)
        self._news = asyncio.Event()

    @property
    def last(self) -> int:
        """The number of the newest; 0 before the first."""
        return self._kept.count

    def add(self, make: Callable[[int], T]) -> None:
        """Keep what ``make`` makes of its number, and wake who follows."""
        self._kept.add(make(self._kept.count + 1))
        self._news.set()
        self._news = asyncio.Event()

    def since(self, number: int = 0) -> list[T]:
        """Those after ``number`` that are kept."""
        return self._kept.since(number)

    async def follow(self, number: int = 0) -> AsyncGenerator[T, None]:
        """The same, and then every one that comes; a reader that is too slow misses the oldest."""
        while True:
            news = self._news
            for one in self.since(number):
                number = one.number
                yield one
            await news.wait()


async def until(over: asyncio.Event, things: AsyncIterator[U]) -> AsyncIterator[U]:
    """Those that come before ``over`` is set."""
    end = asyncio.ensure_future(over.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(things))
            await asyncio.wait([coming, end], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
                return
            yield coming.result()
    finally:
        end.cancel()
