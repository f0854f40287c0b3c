"""With more models than memory: wakes those that are asked for, and has others sleep to make room.

What is to be done says ``placement/waking.py``; here is what it is asked about, and how it is begun: an edit
of the reconciler's target. Loads and sleeps are told as events, and a wake that fails is told to those who
wait.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from math import inf

from muxd.clock import Clock
from muxd.config import ResidencyConfig
from muxd.device.base import is_gpu
from muxd.device.cpu import available_memory
from muxd.errors import OutOfMemory
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import Demand, load_of
from muxd.fleet.loading import beside
from muxd.fleet.operation import Operation, WakeTime
from muxd.fleet.reconciler import Reconciler
from muxd.fleet.site import Site
from muxd.placement.memory import fixed
from muxd.placement.waking import (
    Model,
    Rules,
    Shift,
    Standing,
    decide,
    next_look,
    residents,
    standing,
    stated_seconds,
)
from muxd.sizes import AUTO, size

_log = logging.getLogger("muxd.fleet")

_TICK = 0.1  # seconds between looks while somebody waits for a model that sleeps
_AGAIN = 5.0  # seconds until a wake that has failed is tried again
_HOST_PART = 0.5  # of the host's free memory for the weights of models that sleep


@dataclass(kw_only=True)
class Waker:
    """``demands``: what each model is asked for now. ``rooms``: bytes for weights and workers, by site, when
    none was there yet."""

    config: ResidencyConfig
    entries: Mapping[str, Entry]
    sites: Mapping[str, Site]
    reconciler: Reconciler
    demands: Callable[[Iterable[str]], Mapping[str, Demand]]
    clock: Clock
    rooms: dict[str, int] = field(init=False)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    _host: int = field(init=False)

    def __post_init__(self) -> None:
        self.rooms = {name: self._room(site) for name, site in self.sites.items()}
        self._host = _host_memory(self.config.host_memory)
        for site in self.sites.values():
            site.unit.wanted = self.asked.set

    # ---- the start --------------------------------------------------------------------------------

    def residents(self) -> set[str]:
        """Who is there from the start: those first that never sleep and that most is expected of."""
        served = [entry for entry in self.entries.values() if entry.lane is not None]
        order = sorted(served, key=lambda one: (not one.pinned, -one.config.rate))
        return set(residents(map(self._model, order), self._rules()))

    def footprint(self, entry: Entry) -> int:
        """Bytes of its device that it takes while it is there: its weights and what workers copy of them, and
        on a GPU all else that they take."""
        assert entry.opened is not None
        site = self.sites[entry.device]
        if site.counts_workers and site.budget is not None:
            return fixed(load_of(entry), 1, site.budget)
        phases = 2 if site.place.apart else 1
        return entry.weight_bytes + beside(entry.opened.plan, site.device, phases)

    def _room(self, site: Site) -> int:
        """Bytes for models; what the pool's size left to the driver is left to it here, too."""
        spared = (1 - site.budget.usable) * site.device.memory if site.counts_workers and site.budget else 0
        return max(0, site.device.room - int(spared))

    # ---- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        until = inf
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.asked.wait(), None if until == inf else until - self.clock.now())
            self.asked.clear()
            try:
                until = self._look()
            except Exception:  # what is there serves on
                _log.exception("a defect while it was decided who wakes")
                until = self.clock.now() + _AGAIN

    def _look(self) -> float:
        """Begins what is to be begun; returns when to look again though nobody asks."""
        now = self.clock.now()
        rules, standings = self._rules(), self._standings(now)
        self._begin(decide(standings, rules, now), rules)
        lanes = [entry.lane for entry in self.entries.values() if entry.lane is not None]
        if any(lane.asleep and lane.waiting for lane in lanes):
            return now + _TICK
        return next_look(standings, rules, now) if rules.idle else inf

    def _rules(self) -> Rules:
        return Rules(
            memory=self.rooms, host=self._host, shared=self._shared(), most=self._most,
            least=self.config.least, patience=self.config.patience, idle=self.config.idle_after,
            kind=self.config.policy,
        )  # fmt: skip

    @property
    def _most(self) -> dict[str, int]:
        """Models that a site takes, where MPS says how many."""
        return {name: site.places for name, site in self.sites.items() if site.places is not None}

    def _shared(self) -> int | None:
        """What the machine has now for those who are there and those who sleep: others take of it, too."""
        left = {site.device.shared for site in self.sites.values()} - {None}
        if not left:
            return None
        asleep = [one for entry in self.entries.values() if (one := entry.shelved) is not None]
        held = sum(piece.nbytes for one in asleep for piece in one.pieces)
        for site in self.sites.values():
            held += sum(self._taken(one.entry, one.weights_bytes) for one in site.supervisors.values())
        return min(one for one in left if one is not None) + held

    def _taken(self, entry: Entry, weights: int) -> int:
        """Copies in workers are taken by the time it is ready."""
        return self.footprint(entry) if entry.state == "ready" else weights

    def _standings(self, now: float) -> list[Standing]:
        served = [one for one in self.entries.values() if one.lane is not None and one.opened is not None]
        demands = self.demands([one.name for one in served])
        return [self._standing(one, demands.get(one.name), now) for one in served]

    def _standing(self, entry: Entry, demand: Demand | None, now: float) -> Standing:
        assert entry.lane is not None
        return standing(
            self._model(entry), entry.lane, self.reconciler.residency, now, asleep=entry.shelved is not None,
            slept=entry.slept, since=entry.woken, rate=demand.rate if demand else 0.0,
            asked=not entry.error or now >= entry.slept + _AGAIN, steady=self._steady(entry),
        )  # fmt: skip

    def _steady(self, entry: Entry) -> bool:
        """One whose worker is being replaced is to be served before it may sleep; not so one that rests."""
        there = self.reconciler.residency.at(entry.name) is not None
        return not there or entry.state in ("ready", "failed")

    def _model(self, entry: Entry) -> Model:
        asleep = entry.weight_bytes * entry.config.tp
        parks = not is_gpu(self.sites[entry.device].device)  # see ``Device.shelve``
        return Model(
            entry.name, self.footprint(entry), asleep, (entry.device,), entry.pinned, parks, entry.wakes
        )  # fmt: skip

    def _begin(self, shift: Shift, rules: Rules) -> None:
        for name in shift.sleep:
            self.sleep(name, keep=name not in shift.drop, patience=rules.patience)
        for name in set(shift.drop) - set(shift.sleep):
            self.entries[name].unshelve()
        for name, site in shift.wake.items():
            self.wake(name, site)
        for name in shift.hopeless:
            self._refuse(name)

    # ---- what it does, and an operator may --------------------------------------------------------

    def sleep(self, name: str, *, keep: bool = True, patience: float) -> Operation:
        """Its streams are cut after ``patience`` seconds and go on when it wakes."""
        operation = Operation(name, "asleep", "draining", keeps=keep)
        asyncio.get_running_loop().call_later(patience, operation.hurry.set)
        return self._start(operation, {name: None})

    def wake(self, name: str, site: str) -> Operation:
        return self._start(Operation(name, "woken", "reading"), {name: site})

    def _refuse(self, name: str) -> Operation:
        """Those who wait for it hear that there is no room for it, and never will be."""
        entry = self.entries[name]
        why = OutOfMemory(
            f"it takes {self.footprint(entry):,} bytes of {entry.device}, which has less, whoever sleeps: "
            'free memory, lower the pool, or have fewer models with resident = "always"'
        )
        here = [one for one in self.entries.values() if one.pinned and one.device == entry.device]
        if len(here) >= self._most.get(entry.device, inf):
            why = OutOfMemory(
                f"{entry.device} takes {self._most[entry.device]} models at once (MPS), and as many never "
                'sleep there: have fewer with resident = "always"'
            )
        operation = Operation(name, "woken", "reading")
        operation.start(self.reconciler.failed(name, operation, why))
        return operation

    def _start(self, operation: Operation, targets: Mapping[str, str | None]) -> Operation:
        async def work() -> None:
            try:
                await self.reconciler.reach(targets, operation, fits=self._fits)
                if operation.woke is not None:
                    self._learn(self.entries[operation.model], operation.woke)
            finally:
                self.asked.set()

        operation.start(work())
        return operation

    def _learn(self, entry: Entry, woke: WakeTime) -> None:
        stated = stated_seconds(self._model(entry).weights, self._rules(), asleep=woke.parked)
        entry.wakes = entry.wakes.after(woke.seconds, stated, parked=woke.parked)

    def _fits(self, site: str, models: Set[str]) -> bool:
        if len(models) > self._most.get(site, len(models)):
            return False
        return sum(self.footprint(self.entries[name]) for name in models) <= self.rooms[site]


def _host_memory(text: str) -> int:
    if text == AUTO:
        return int(_HOST_PART * available_memory()[0])
    return size(text, key="residency.host_memory")
