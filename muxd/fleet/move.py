"""One model moves to another device while it serves: nothing is dropped, every request ends once.

Where memory permits two copies, the second one is loaded while the first serves; then new requests, and
those that wait for their first token, go to the new place, and the old one drains. Where it does not,
requests wait at the new place while the old one drains (it is parked), and the weights are loaded when it has
left. A new place that cannot be had leaves the model where it was.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence

from muxd.errors import ModelNotReady, ModelUnloaded, MuxdError, OutOfMemory, ShuttingDown
from muxd.fleet.catalog import Entry
from muxd.fleet.change import Change, first
from muxd.fleet.loans import Loans, Room
from muxd.fleet.site import Site
from muxd.fleet.supervisor import Progress

_log = logging.getLogger("muxd.fleet")


class Move:
    """``run`` once, or ``park`` and ``arrive``. ``entries`` shows the model where new requests go."""

    def __init__(
        self,
        entries: MutableMapping[str, Entry],
        entry: Entry,
        source: Site,
        target: Site,
        change: Change,
        progress: Progress,
        lenders: Sequence[Loans],
        moved: Callable[[int], None],
    ):
        """``lenders``: whose loans may be in the way at the target. ``moved``: called at the end, with the
        bytes that the old place has free."""
        self._entries, self._name = entries, entry.name
        self._source, self._target = source, target
        self._change, self._progress, self._moved = change, progress, moved
        self._lenders, self._room, self._freed = lenders, Room(change.hurry), 0

    async def run(self) -> None:
        """Raises MuxdError where the model could not be brought to its new place; it is where it was then,
        or, should that fail too, "failed" with the reason. Raises ShuttingDown in the midst of the end."""
        await self._in_room(self._two_copies)

    async def arrive(self) -> None:
        """Load what is parked. Raises as ``run``."""
        await self._in_room(self._load_parked)

    async def _in_room(self, work: Callable[[], Awaitable[None]]) -> None:
        """With what is lent taken back as far as the weights need it; what is left over is lent again."""
        opened = self._entries[self._name].opened
        assert opened is not None
        try:
            await self._room.make(opened.plan.bytes, self._lenders)
            await work()
        except BaseException:
            self._room.settle(0)
            raise
        self._room.settle(opened.plan.bytes)
        self._moved(self._freed)

    async def _two_copies(self) -> None:
        old = self._entries[self._name]
        new = self._twin(old, self._target)
        self._target.enter(new)
        try:
            old.note = f"moving to {self._target.name}"
            await self._target.bring_up(new, self._progress, self._change.hurry)
        except BaseException as error:
            await self._target.leave(new, self._gone())
            if not (isinstance(error, OutOfMemory) and error.shared):
                raise
        else:
            await self._switch_and_drain(old, new)
            return
        finally:
            old.note = ""
        _log.info("%s: no memory for two copies; its requests wait while it moves", self._name)
        await self.park()
        await self._load_parked()

    async def _switch_and_drain(self, old: Entry, new: Entry) -> None:
        self._switch(self._source, self._target, new)
        new.note = f"leaving {self._source.name}"
        try:
            await self._drain(old)
            self._freed = await self._source.leave(old, self._gone())
        finally:
            new.note = ""

    async def park(self) -> None:
        """Requests wait at the new place while the old one drains; what the model held there is free then.

        To be followed by ``arrive``. Raises MuxdError where the new place takes no model more, changing
        nothing, and ShuttingDown in the midst of the end.
        """
        old = self._entries[self._name]
        new = self._twin(old, self._target)
        self._target.enter(new)
        await self._switch_and_drain(old, new)
        new.note = f"waits for memory of {self._target.name}"
        if self._change.hurry.is_set():
            raise ShuttingDown(f"muxd stopped while {self._name} was being moved")

    async def _load_parked(self) -> None:
        new = self._entries[self._name]
        new.note = ""
        try:
            await self._target.bring_up(new, self._progress, self._change.hurry, keep_queue=True)
        except MuxdError as error:
            if self._change.hurry.is_set():
                raise
            await self._back(new, error)
            raise

    async def _back(self, new: Entry, why: MuxdError) -> None:
        """To the old place, with the requests that have waited. Where that fails as well, they and the model
        do; raises ModelNotReady with both reasons then."""
        old = self._twin(new, self._source)
        try:
            self._source.enter(old)
            self._switch(self._target, self._source, old)
            await self._target.leave(new, self._gone())
            await self._source.bring_up(old, self._progress, self._change.hurry, keep_queue=True)
        except MuxdError as error:
            failed = error if self._change.hurry.is_set() else no_way_back(why, self._source.name, error)
            await self._fail(new, old, failed)
            raise failed from None

    async def _fail(self, new: Entry, old: Entry, error: MuxdError) -> None:
        """Served nowhere: its requests, wherever they wait, hear the reason that the catalog shows."""
        told = ModelNotReady(f"{self._name} could not be moved: {error.message}", retry_after=60.0)
        self._entries[self._name] = old
        await self._target.leave(new, told)
        await self._source.leave(old, told)
        old.error = error.message

    def _twin(self, entry: Entry, site: Site) -> Entry:
        twin = entry.twin(site.name)
        twin.renew(self._target.clock.now())
        return twin

    def _switch(self, source: Site, target: Site, new: Entry) -> None:
        """From now on requests go to the target; in one step, so that nobody comes between."""
        self._entries[self._name] = new
        source.unit.refuse(self._name, self._gone())
        count = source.unit.hand_over(self._name, target.unit)
        _log.info("%s: requests go to %s, %d that waited among them", self._name, target.name, count)

    async def _drain(self, old: Entry) -> None:
        assert old.lane is not None
        self._change.tell("draining", 0, old.lane.admitted + old.lane.queued)
        await first(self._source.unit.emptied(self._name), self._change.hurry)
        self._change.tell("stopping")

    def _gone(self) -> MuxdError:
        """For whoever is still at the old place; only the end of muxd leaves somebody there."""
        if self._change.hurry.is_set():
            return ShuttingDown("muxd is shutting down; the answer was cut short")
        return ModelUnloaded(f"{self._name} is at another device now; try again", param="model")


def no_way_back(why: MuxdError, site: str, error: MuxdError) -> ModelNotReady:
    """Of a parked model that could not be loaded at its new place, nor at ``site``, which it had left."""
    return ModelNotReady(f"{why.message}; nor could it go back to {site}: {error.message}")
