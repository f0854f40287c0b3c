"""One who watches, and what waits for it. Light: muxctl's end of the door loads it, too."""

import asyncio
from collections import deque
from collections.abc import Callable

BUFFER = 1 << 20  # bytes that may wait for one of them

Name = str  # of a frame: "picture" or "change"


class Watcher:
    """One who watches. ``cut`` is called when it does not keep up; it gets nothing more then."""

    def __init__(self, cut: Callable[[], None]):
        self._cut = cut
        self._frames: deque[tuple[Name, bytes]] = deque()
        self._waiting = 0  # bytes
        self._news = asyncio.Event()
        self.closed = False

    def put(self, name: Name, body: bytes) -> None:
        """JSON of a ``Picture`` or a ``Change``."""
        if self.closed:
            return
        if self._frames and self._waiting + len(body) > BUFFER:
            self.close()
            self._frames.clear()
            self._cut()
            return
        self._frames.append((name, body))
        self._waiting += len(body)
        self._news.set()

    def close(self) -> None:
        """What is in the buffer is still to be had."""
        self.closed = True
        self._news.set()

    def __aiter__(self) -> "Watcher":
        return self

    async def __anext__(self) -> tuple[Name, bytes]:
        while not self._frames:
            if self.closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        name, body = self._frames.popleft()
        self._waiting -= len(body)
        return name, body
