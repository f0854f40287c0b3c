"""Who watches, and what each is told: a picture, then what changes in it, four times a second at most.

Nothing is read while nobody watches. What one has not taken yet waits in a buffer with a bound; whoever lets
it fill is cut off, and the others and the daemon never wait.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from muxd.clock import Clock
from muxd.errors import Overloaded, ShuttingDown
from muxd.watch import changes
from muxd.watch.facts import Facts
from muxd.watch.history import HISTORY_PERIOD
from muxd.watch.schemas import Change, Picture
from muxd.watch.watcher import Watcher

_log = logging.getLogger("muxd.watch")

PERIOD = 0.25  # seconds between two changes
QUIET = 5.0  # seconds without any after which the time is told
WATCHERS = 64


class Feed:
    """One per daemon, on its loop."""

    def __init__(self, facts: Facts, clock: Clock):
        self._facts, self._clock = facts, clock
        self._watchers: dict[Watcher, None] = {}
        self._picture: Picture | None = None  # as every watcher has it; None: nobody watches
        self._told = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def watch(self, cut: Callable[[], None]) -> Iterator[Watcher]:
        """From now on. Raises Overloaded where too many do, ShuttingDown at the end."""
        if self._closed:
            raise ShuttingDown("muxd is shutting down")
        if len(self._watchers) >= WATCHERS:
            raise Overloaded(f"{WATCHERS} others watch already; try again later")
        watcher = Watcher(cut)
        if self._picture is None:
            self._picture = self._facts.picture()
        watcher.put("picture", msgspec.json.encode(self._picture))
        self._watchers[watcher] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield watcher
        finally:
            watcher.close()
            self._watchers.pop(watcher, None)
            if not self._watchers:
                self._rest()

    async def count(self, counts: Mapping[str, int]) -> None:
        """Until cancelled: the history goes on, whether or not anybody watches."""
        while True:
            await asyncio.sleep(HISTORY_PERIOD)
            self._facts.history.sample(self._clock.now(), counts)

    def look(self) -> None:
        """Tell what has changed."""
        if self._picture is None:
            return
        change = self._facts.change(self._picture)
        self._picture = changes.apply(self._picture, change)
        if changes.empty(change) and change.time - self._told < QUIET:
            return
        self._told = change.time
        self._tell(change)

    def close(self) -> None:
        """Everybody hears the end."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()
        self._rest()

    def _tell(self, change: Change) -> None:
        body = msgspec.json.encode(change)
        for watcher in self._watchers:
            watcher.put("change", body)

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(PERIOD)
                self.look()
        except Exception:  # who watches may come again; nothing else depends on it
            _log.exception("a defect of the feed")
            for watcher in self._watchers:
                watcher.close()
            self._picture = self._task = None

    def _rest(self) -> None:
        self._picture = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
