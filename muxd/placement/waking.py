"""More models than memory: who wakes when it is asked for, and who sleeps to make room. Pure.

A model is *resident* (its weights are on a device), *asleep* (they are in host memory, it has no worker)
or *cold* (they are on disk). Requests for one that is not resident wait in its queue. The oldest of them
says who is next; room is made by those whose absence costs least: the seconds that their next request would
wait (``wakes.py``), times how soon it is to be expected. Who has something to do keeps its place until
somebody has waited ``patience``, and nobody leaves before it has been there for ``least``, nor before four
times what its waking takes: so the device spends its time on answers, not on loads.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import Literal

from msgspec import Struct

from muxd.engine.lane import Lane
from muxd.placement.residency import Residency
from muxd.placement.wakes import Wakes

Kind = Literal["worth", "lru", "one"]  # "one": one model at a time, as llama-swap does by default

_PAYS = 4.0  # a model is there at least so many times as long as it took to wake


class Standing(Struct, frozen=True):
    """A model as it stands. Times are seconds of the caller's clock."""

    name: str
    size: int  # bytes of a device that it takes: weights and workers
    weights: int  # bytes of host memory that it takes while it sleeps
    sites: tuple[str, ...]  # where it may be
    site: str = ""  # where it is, or is on its way to; "": nowhere
    asleep: bool = False  # nowhere, and its weights are in host memory
    settled: bool = True  # it neither comes nor goes just now
    leaving: bool = False  # it goes: its place is somebody's already, or free soon
    waiting: int = 0  # requests that are not begun
    oldest: float = inf  # when the oldest of these came, or was cut off
    running: int = 0
    rate: float = 0.0  # requests a second, as measured
    used: float = -inf  # when it last had something to do
    since: float = -inf  # when it came to its site
    keep: bool = False  # it never leaves
    parks: bool = True  # host memory can have its weights while it sleeps
    wakes: Wakes = Wakes()  # what its own have taken

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)


class Rules(Struct, frozen=True):
    """``memory``: bytes for ``Standing.size``, by site; ``host``: for the weights of those who sleep;
    ``shared``: for both together, where sites have no memory but the host's; ``most``: models that a site
    takes however small they are, where there is such a number.

    ``start``: seconds of a wake beside its bytes, at ``host_rate`` or ``disk_rate`` bytes a second, where
    none was seen yet. ``idle``: seconds without work after which a model sleeps though nobody needs its
    place; 0: it stays.
    """

    memory: Mapping[str, int]
    host: int
    shared: int | None = None
    most: Mapping[str, int] = {}
    start: float = 0.2
    host_rate: float = 10e9
    disk_rate: float = 2e9
    least: float = 2.0
    patience: float = 5.0
    idle: float = 0.0
    kind: Kind = "worth"


class Shift(Struct, frozen=True):
    """``wake``: model -> site. ``sleep``: who gives up its site. ``drop``: whose weights leave host memory,
    or do not stay in it. ``hopeless``: who is asked for and finds no room, whoever leaves."""

    wake: dict[str, str] = {}
    sleep: list[str] = []
    drop: list[str] = []
    hopeless: list[str] = []


class Model(Struct, frozen=True):
    """What stays of a model between two looks: ``Standing`` has the words."""

    name: str
    size: int
    weights: int
    sites: tuple[str, ...]
    keep: bool = False
    parks: bool = True
    wakes: Wakes = Wakes()


def standing(
    model: Model,
    lane: Lane,
    residency: Residency[str],
    now: float,
    *,
    asleep: bool,
    slept: float,
    since: float,
    rate: float,
    asked: bool = True,
    steady: bool = True,
) -> Standing:
    """How a model stands. ``asleep``: its weights are in host memory, unless they are on their way out of it;
    ``slept``: when it last left its site: who was cut waits from then on, so that those who have had nothing
    go first. Without ``asked`` those who wait for it do not count now; one that is not ``steady`` is to be
    served before it may leave."""
    leaving = residency.leaving.get(model.name)
    there = next((site for site in model.sites if model.name in residency.aimed(site)), "")
    waiting = len(lane.waiting) if asked else 0
    return Standing(
        name=model.name,
        size=model.size,
        weights=model.weights,
        sites=model.sites,
        site=there or leaving or "",
        asleep=asleep and not there and leaving is None,
        settled=steady and residency.settled(model.name),
        leaving=leaving is not None and not there,
        waiting=waiting,
        oldest=max(lane.waiting.head.arrived, slept) if waiting else inf,
        running=len(lane.running),
        rate=rate,
        used=now if lane.waiting or lane.running else lane.decode_ended,
        since=since,
        keep=model.keep,
        parks=model.parks,
        wakes=model.wakes,
    )


def residents(models: Iterable[Model], rules: Rules) -> dict[str, str]:
    """Who is where from the start: in this order, at the first of its sites that has room; who is to be kept
    there always is."""
    free, shared, found = dict(rules.memory), _bytes(rules.shared), dict[str, str]()
    there = Counter[str]()
    for model in models:
        for site in model.sites:
            most = 1 if rules.kind == "one" else rules.most.get(site, inf)
            if model.keep or (there[site] < most and model.size <= min(free[site], shared)):
                there[site] += 1
                free[site] -= model.size
                shared -= model.size
                found[model.name] = site
                break
    return found


def decide(models: Iterable[Standing], rules: Rules, now: float) -> Shift:
    """What is to be begun now. What is under way is neither repeated nor taken back."""
    return _Look(models, rules, now).decide()


def next_look(models: Iterable[Standing], rules: Rules, now: float) -> float:
    """When the decision may be another although nothing happens; ``inf``: never."""
    dates = [inf]
    for model in models:
        if not model.site and model.waiting:
            dates.append(model.oldest + rules.patience)
        if model.site:
            dates.append(model.since + _stay(model, rules))
            if rules.idle and not model.busy and not model.keep:
                dates.append(model.used + rules.idle)
    return min([date for date in dates if date > now], default=inf)


def wake_seconds(model: Standing, rules: Rules, *, asleep: bool) -> float:
    """Until its first request is begun, as its own wakes say; ``asleep``: its weights are in host memory."""
    return model.wakes.seconds(stated_seconds(model.weights, rules, asleep=asleep), parked=asleep)


def stated_seconds(weights: int, rules: Rules, *, asleep: bool) -> float:
    """The same by bytes alone."""
    return rules.start + weights / (rules.host_rate if asleep else rules.disk_rate)


def _stay(model: Standing, rules: Rules) -> float:
    return max(rules.least, _PAYS * wake_seconds(model, rules, asleep=model.parks))


def _bytes(limit: int | None) -> float:
    return inf if limit is None else limit


class _Look:
    def __init__(self, models: Iterable[Standing], rules: Rules, now: float):
        self._models, self._rules, self._now = list(models), rules, now
        self._free = dict(rules.memory)
        self._shared = _bytes(rules.shared)
        self._places = {site: rules.most.get(site, inf) for site in rules.memory}
        for model in self._models:
            if model.site and not model.leaving:
                self._take(model.site, model.size)
        self._wake: dict[str, str] = {}
        self._sleep: dict[str, Standing] = {}
        self._hopeless: list[str] = []

    def decide(self) -> Shift:
        asked = [one for one in self._models if not one.site and one.waiting and one.settled]
        for model in sorted(asked, key=lambda one: (one.oldest, one.name)):
            self._bring(model)
        self._send_idle()
        return Shift(self._wake, list(self._sleep), self._drops(), self._hopeless)

    def _take(self, site: str, nbytes: int, places: int = 1) -> None:
        self._free[site] -= nbytes
        self._shared -= nbytes
        self._places[site] -= places

    def _room(self, site: str) -> float:
        """What sleeps is in nobody's way: it can leave host memory at once."""
        return min(self._free[site], self._shared)

    def _bring(self, model: Standing) -> None:
        """To the site where that costs least; who finds no room waits, if there can be any."""
        best: tuple[float, str, list[Standing]] | None = None
        for site in model.sites:
            victims = self._victims(model, site)
            if victims is not None:
                cost = sum(self._loss(victim) for victim in victims)
                if best is None or (cost, -self._free[site]) < (best[0], -self._free[best[1]]):
                    best = cost, site, victims
        if best is None:
            if not any(self._could_be(model, site) for site in model.sites):
                self._hopeless.append(model.name)
            return
        _, site, victims = best
        for victim in victims:
            self._sleep[victim.name] = victim
            self._take(site, -victim.size, -1)
        self._wake[model.name] = site
        self._take(site, model.size)

    def _could_be(self, model: Standing, site: str) -> bool:
        """Were all gone that ever leave."""
        stay = [one for one in self._models if one.keep and one.site]
        here = [one.size for one in stay if one.site == site]
        if len(here) >= (1 if self._rules.kind == "one" else self._rules.most.get(site, inf)):
            return False
        shared = _bytes(self._rules.shared) - sum(one.size for one in stay)
        return model.size <= min(self._rules.memory[site] - sum(here), shared)

    def _victims(self, model: Standing, site: str) -> list[Standing] | None:
        """Who leaves the site for it; None: nobody whose place it could have makes room enough."""
        here = [one for one in self._models if one.site == site and one.name not in self._sleep]
        may = [one for one in here if self._may_go(one, model)]
        if self._rules.kind == "one":
            alone = len(may) == len(here) and site not in self._wake.values()
            return may if alone and model.size <= self._room(site) + sum(one.size for one in may) else None
        found: list[Standing] = []
        missing, crowd = model.size - self._room(site), 1 - self._places[site]
        for victim in sorted(may, key=lambda one: (one.busy, self._loss(one) / one.size, one.used)):
            if missing <= 0 and crowd <= 0:
                break
            found.append(victim)
            missing -= victim.size
            crowd -= 1
        return None if missing > 0 or crowd > 0 else _needed(found, -missing, -crowd)

    def _may_go(self, victim: Standing, model: Standing) -> bool:
        if victim.keep or not victim.settled or self._now < victim.since + _stay(victim, self._rules):
            return False
        if not victim.busy:
            return True
        return self._now >= model.oldest + self._rules.patience and not victim.oldest < model.oldest

    def _loss(self, victim: Standing) -> float:
        """Seconds that requests will wait for it, a second."""
        if self._rules.kind == "lru":
            return victim.used - self._now
        return self._rate(victim) * wake_seconds(victim, self._rules, asleep=victim.parks)

    def _saves(self, model: Standing) -> float:
        """What is lost less while it sleeps where its weights are in host memory, not on disk."""
        if self._rules.kind == "lru":
            return self._loss(model)
        parked, cold = (wake_seconds(model, self._rules, asleep=asleep) for asleep in (True, False))
        return self._rate(model) * max(0.0, cold - parked)

    def _rate(self, model: Standing) -> float:
        """Requests a second that are to be expected: as measured, but no more than one in the time in which
        it has had nothing to do."""
        idle = self._now - model.used
        return min(model.rate, 1.0 / idle) if idle > 0 else model.rate

    def _send_idle(self) -> None:
        if not self._rules.idle:
            return
        for model in self._models:
            idle = self._now >= model.used + self._rules.idle and not model.busy
            there = model.site and model.settled and self._now >= model.since + _stay(model, self._rules)
            if idle and there and not model.keep and model.name not in self._sleep:
                self._sleep[model.name] = model
                self._take(model.site, -model.size, -1)

    def _drops(self) -> list[str]:
        """Host memory is for those to whom it saves most; what a waking model leaves is free."""
        stay = [one for one in self._models if one.asleep and one.name not in self._wake]
        wanted = [*stay, *self._sleep.values()]
        going = sum(one.weights for one in self._models if one.leaving)  # they may stay in it
        left, drops = min(self._rules.host, self._shared) - going, []
        for model in sorted(wanted, key=lambda one: (-self._saves(one) / one.weights, -one.used)):
            if model.parks and model.weights <= left:
                left -= model.weights
            else:
                drops.append(model.name)
        return drops


def _needed(found: Collection[Standing], spare: float, places: float) -> list[Standing]:
    """Without those that could as well stay, the dearest first."""
    needed = list(found)
    for victim in reversed(list(found)):
        if victim.size <= spare and places > 0:
            needed.remove(victim)
            spare -= victim.size
            places -= 1
    return needed
