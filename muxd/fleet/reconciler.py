"""Brings every model where it shall be. A load, an unload, a move, a new plan and the daemon's start are
edits of one target (model -> device); ``placement/residency.py`` says the next steps, this loop performs them
on ``fleet/copies.py`` and tells what came of each.

What one step leaves is lent to the pool when all is done, not before: it may be what the next one needs.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from muxd.engine.trace import Happening
from muxd.errors import ModelNotReady, MuxdError, OutOfMemory, ShuttingDown
from muxd.fleet.copies import Copies, unloaded
from muxd.fleet.operation import Kind, Operation
from muxd.fleet.steps import Stage
from muxd.fleet.supervisor import Progress
from muxd.placement.residency import UNLIMITED, Leave, Load, NoRoom, Residency, Step

_log = logging.getLogger("muxd.fleet")

Fits = Callable[[str, Set[str]], bool]
Mark = Callable[[Happening, str, str], None]  # what, model, detail: for the record

_LAST: dict[Kind, Stage] = {
    "loaded": "ready", "unloaded": "unloaded", "moved": "moved", "asleep": "asleep", "woken": "ready",
}  # fmt: skip


def untold(site: str, models: Set[str]) -> bool:
    """Nobody has reckoned: the memory itself will say."""
    return True


class _Way:
    """One model's, from an edit of the target until it has settled."""

    def __init__(self, operation: Operation, target: str | None, began: float, progress: Progress | None):
        self.operation, self.target, self.began, self.progress = operation, target, began, progress
        self.told = False  # of the way, to the record
        self.home = ""  # where it was parked
        self.errors: list[MuxdError] = []  # of its loads, in order
        self.abort = asyncio.Event()  # of its load
        self.over = asyncio.Event()

    def joins(self, before: "_Way") -> None:
        """What is under way already belongs to whoever has asked last."""
        before.operation = self.operation
        self.abort, self.over = before.abort, before.over


@dataclass(kw_only=True)
class Reconciler:
    """``mark`` tells the record of a model."""

    copies: Copies
    mark: Mark
    residency: Residency[str] = field(default_factory=Residency)
    _ways: dict[str, _Way] = field(default_factory=dict)
    _free: Counter[str] = field(default_factory=Counter)  # bytes that steps have left, by site
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # ---- what is asked ----------------------------------------------------------------------------

    async def reach(
        self,
        targets: Mapping[str, str | None],
        operation: Operation,
        *,
        costs: Mapping[str, float] | None = None,
        fits: Fits = untold,
        progress: Progress | None = None,
    ) -> None:
        """Until each of the models is at its site (None: at none), or has failed. ``costs`` and ``fits`` as
        for ``Residency``. ``progress`` of loads, all at a time then; else the operation is told, of one
        after the other.

        Raises the MuxdError of the first that failed; what the others have reached stays.
        """
        if self.copies.closing.is_set():
            raise ShuttingDown("muxd is shutting down")
        now = self.copies.clock.now()
        ways = {name: _Way(operation, site, now, progress) for name, site in targets.items()}
        for name in ways.keys() & self._ways.keys():
            ways[name].joins(self._ways[name])
        self._ways |= ways
        self.residency.fits, self.residency.parallel = fits, UNLIMITED if progress else 1
        self._do(self.residency.aim(targets, costs))
        for way in ways.values():
            await way.over.wait()
        if operation.errors:
            raise operation.errors[0]

    async def forget(self, name: str) -> None:
        """What is left of a model that serves no more, as one that rests; it is to be loaded anew."""
        entry = self.copies.entries[name]
        if entry.device:
            await self.copies.sites[entry.device].leave(entry, unloaded(name))
        self.residency.lost(name)

    async def failed(self, name: str, operation: Operation, error: MuxdError) -> None:
        """It could not even be read; as ``reach`` tells of what it could not bring in."""
        entry = self.copies.entries[name]
        way = _Way(operation, entry.device, self.copies.clock.now(), None)
        way.errors.append(error)
        if entry.device:
            await self._nowhere(name, way, entry.device)
        else:
            entry.error = error.message
        self._tell_failure(name, way)

    def abort(self, name: str) -> None:
        """Its load, if there is one under way, ends at once."""
        if (way := self._ways.get(name)) is not None:
            way.abort.set()

    async def close(self) -> None:
        """Begin nothing any more; what is under way ends at once, and whoever waits hears of it."""
        self.copies.closing.set()
        for way in self._ways.values():
            way.abort.set()
            way.operation.hurry.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for name, way in self._ways.items():
            stopped = ShuttingDown(f"muxd stopped while {name} was being {way.operation.kind}")
            way.operation.errors += way.errors[:1] or [stopped]
            way.over.set()

    # ---- the loop ---------------------------------------------------------------------------------

    def _do(self, steps: Sequence[Step[str]]) -> None:
        if self.copies.closing.is_set():
            return
        for step in steps:
            match step:
                case Load():
                    self._begin(step.model, step.site, self._load(step))
                case Leave():
                    self._begin(step.model, step.to or "", self._leave(step))
                case NoRoom():
                    why = f"{step.model}: there will never be room, whoever leaves"
                    self._ways[step.model].errors.append(OutOfMemory(why))
        for name in [name for name in self._ways if self.residency.settled(name)]:
            self._settled(name, self._ways.pop(name))
        if self.residency.over:
            self._lend()

    def _begin(self, name: str, site: str, work: Coroutine[Any, Any, None]) -> None:
        way = self._ways[name]
        if way.operation.kind == "moved" and not way.told:
            way.told, why = True, way.operation.why
            source = self.copies.entries[name].device
            self.mark("moving", name, f"{source} to {site}" + (f": {why}" if why else ""))
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, step: Load[str]) -> None:
        name, way = step.model, self._ways[step.model]
        serves = self.residency.at(name) is not None
        parked = self.residency.parked(name) or way.operation.kind == "woken"  # its requests wait
        progress, site = way.progress or self._teller(way.operation), self.copies.sites[step.site]
        try:
            await self.copies.load(
                name, site, way.operation, progress, way.abort, serves=serves, parked=parked
            )
        except Exception as error:
            await self._not_loaded(step, _explained(error))
        else:
            self._free[step.site] -= self.copies.entries[name].weight_bytes
            self._do(self.residency.loaded(name))

    async def _not_loaded(self, step: Load[str], error: MuxdError) -> None:
        name, way = step.model, self._ways[step.model]
        if isinstance(error, OutOfMemory) and not self.copies.closing.is_set():
            steps = self.residency.no_room(name, own=error.shared)
            if steps is not None:
                _log.info("%s: no memory for its copy yet; it waits for what leaves", name)
                self._do(steps)
                return
        way.errors.append(error)
        if self.copies.closing.is_set():
            return
        steps = self.residency.failed(name)
        if self.residency.settled(name) and self.residency.at(name) is None:
            try:
                await self._nowhere(name, way, step.site)
            except Exception as defect:  # the others go on
                way.errors.append(_explained(defect))
        self._do(steps)

    async def _nowhere(self, name: str, way: _Way, site: str) -> None:
        """It holds nothing any more, and whoever asks hears why."""
        if way.operation.kind == "woken":
            reason = way.errors[0].message
            told = ModelNotReady(f"{name} could not be woken: {reason}", retry_after=10.0)
            await self.copies.asleep_again(name, told, reason)
            return
        first, last = way.errors[0], way.errors[-1]
        error = first if first is last else no_way_back(first, way.home, last)
        verb = "moved" if way.operation.kind == "moved" else "loaded"
        told = ModelNotReady(f"{name} could not be {verb}: {error.message}", retry_after=60.0)
        await self.copies.fail(name, self.copies.sites[way.home or site], told, error.message)
        way.errors = [] if way.target is None else [error]

    async def _leave(self, step: Leave[str]) -> None:
        name, way = step.model, self._ways[step.model]
        if step.to is not None:
            try:
                self.copies.park(name, self.copies.sites[step.to])
            except MuxdError as error:
                way.errors.append(error)
                self._do(self.residency.stay(name))
                return
            way.home = step.site
        site = self.copies.sites[step.site]
        sleeps = way.operation.kind == "asleep"
        try:
            leave = self.copies.sleep if sleeps else self.copies.leave
            freed = await leave(name, site, way.operation)
        except Exception as error:
            way.errors.append(_explained(error))
            if self.copies.closing.is_set():
                return
            freed = 0  # a defect; nothing more can be done for it here, and others wait
        self._free[step.site] += freed
        self._do(self.residency.left(name))

    # ---- what came of it --------------------------------------------------------------------------

    def _settled(self, name: str, way: _Way) -> None:
        entry, kind = self.copies.entries[name], way.operation.kind
        if way.errors:
            self._tell_failure(name, way)
        elif way.target is None and kind == "unloaded":
            entry.error, entry.changing = "", "unloaded"
        if not way.errors and not way.operation.patient:
            self.mark(kind, name, "")
            _log.info("%s is %s, after %.1f s", name, kind, self.copies.clock.now() - way.began)
            way.operation.tell(name, _LAST[kind])
        way.over.set()

    def _tell_failure(self, name: str, way: _Way) -> None:
        kind, message = way.operation.kind, way.errors[0].message
        way.operation.errors.append(way.errors[0])
        if not way.operation.patient:  # its supervisor has told
            failed: dict[Kind, Happening] = {"moved": "move failed", "woken": "asleep"}
            self.mark(failed.get(kind, "unloaded"), name, message)
            _log.error("%s could not be %s: %s", name, kind, message)

    def _lend(self) -> None:
        """What moves and unloads have left free at each site, less what has come there."""
        for site, nbytes in self._free.items():
            if nbytes > 0:
                self.copies.sites[site].loans.lend(nbytes)
        self._free.clear()

    def _teller(self, operation: Operation) -> Progress:
        def advance(name: str, done: int, total: int) -> None:
            stage: Stage = "weights" if done < total else "starting"
            operation.tell(name, stage, done, total)

        return advance


def no_way_back(why: MuxdError, site: str, error: MuxdError) -> ModelNotReady:
    """Of a parked model that could not be loaded at its new place, nor at ``site``, which it had left."""
    return ModelNotReady(f"{why.message}; nor could it go back to {site}: {error.message}")


def _explained(error: Exception) -> MuxdError:
    if isinstance(error, MuxdError):
        return error
    _log.error("a defect while a model was brought in or out", exc_info=error)
    return MuxdError("of a defect; muxd's log says more")
