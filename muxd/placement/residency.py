"""Which model is where, where it shall be, and what is to be done next. Pure: told what happened, says steps.

    waiting -> loading -> served at the new place; the old copy leaves -> gone           (beside)
    waiting -> parked: the old copy leaves -> gone -> loading -> served                  (parked)
    served -> leaves -> gone                                                             (nowhere any more)

A model loads at its new place while it still serves at the old one wherever memory permits, so it has no gap.
Where everybody waits for somebody else's memory, the model that is asked for least is *parked*: it serves
nowhere until it has loaded, and what it leaves lets the others go on. Two models that change places therefore
cost a gap of the quieter one alone. Whoever leaves a place drains there: running sequences end there.

When a load fails the model stays where it serves, and those that have not begun stay as well; one that is
parked goes back to where it was, and whoever else is parked goes on.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from msgspec import Struct

S = TypeVar("S")  # a place: a device's name, a mesh's number

UNLIMITED = 1 << 30  # loads at a time


class Load(Struct, Generic[S], frozen=True):
    """Bring the model's weights to ``site``, then its requests; tell ``loaded``, ``no_room``, ``failed``."""

    model: str
    site: S


class Leave(Struct, Generic[S], frozen=True):
    """Send the copy at ``site`` nothing more, and end it with its last sequence; tell ``left``. Meanwhile
    requests wait for ``to``; None: they go where the model serves, and are refused if it does nowhere."""

    model: str
    site: S
    to: S | None = None


class NoRoom(Struct, frozen=True):
    """It shall go where there will never be room, whoever leaves; it stays where it is."""

    model: str


Step = Load[S] | Leave[S] | NoRoom


@dataclass
class _Model(Generic[S]):
    """``at``: where it serves; ``home``: where it did before it was parked. ``crowded``: memory was short
    when it was last tried, and nobody has left since."""

    target: S | None = None
    cost: float = 0.0
    at: S | None = None
    loading: S | None = None
    leaving: S | None = None
    home: S | None = None
    crowded: bool = False

    @property
    def moving(self) -> bool:
        return self.loading is not None or self.leaving is not None

    @property
    def waits(self) -> bool:
        return self.target is not None and self.target != self.at and not self.moving


@dataclass
class Residency(Generic[S]):
    """``fits(site, models)``: may they all be in its memory. ``before``: for a site that is new, the sites
    whose devices it takes; it is free when they are empty. ``parallel``: most loads at a time."""

    fits: Callable[[S, Set[str]], bool] = lambda site, models: True
    before: Mapping[S, Set[S]] = field(default_factory=dict)
    parallel: int = 1
    _models: dict[str, _Model[S]] = field(default_factory=dict)

    # ---- what is so -----------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Everybody serves where it shall, and nobody leaves."""
        return not any(model.waits or model.moving for model in self._models.values())

    def settled(self, name: str) -> bool:
        """Nothing is to be done for the model, or done already."""
        model = self._models.get(name)
        return model is None or not (model.waits or model.moving)

    def at(self, name: str) -> S | None:
        """Where it serves."""
        model = self._models.get(name)
        return None if model is None else model.at

    def loading(self, name: str) -> S:
        """Where the load goes that was asked for. Raises KeyError where none is under way."""
        site = self._models[name].loading
        if site is None:
            raise KeyError(name)
        return site

    def parked(self, name: str) -> bool:
        """It serves nowhere until it has loaded."""
        model = self._models.get(name)
        return model is not None and model.home is not None

    @property
    def leaving(self) -> dict[str, S]:
        """Models that leave, and where."""
        return {name: m.leaving for name, m in self._models.items() if m.leaving is not None}

    def aimed(self, site: S) -> set[str]:
        """Who is there or shall be."""
        return {name for name, m in self._models.items() if site in (m.at, m.target)}

    # ---- what happens ---------------------------------------------------------------------------------

    def served(self, name: str, site: S) -> None:
        """It is there, and shall be: so it was found."""
        self._models[name] = _Model(target=site, at=site)

    def aim(self, targets: Mapping[str, S | None], costs: Mapping[str, float] | None = None) -> list[Step[S]]:
        """Where models shall be from now on, None: nowhere. ``costs``: of a gap; the cheapest is parked
        first. One that is on its way arrives before it turns."""
        for name, site in targets.items():
            model = self._models.setdefault(name, _Model())
            model.target, model.cost, model.crowded = site, (costs or {}).get(name, 0.0), False
        return self._go_on()

    def loaded(self, name: str) -> list[Step[S]]:
        """From now on it serves there; the old copy leaves."""
        model = self._models[name]
        old, model.at, model.loading, model.home = model.at, model.loading, None, None
        if old is None:
            return self._go_on()
        model.leaving = old
        return [Leave(name, old), *self._go_on()]

    def left(self, name: str) -> list[Step[S]]:
        """What it had there is free."""
        self._models[name].leaving = None
        for model in self._models.values():
            model.crowded = False
        return self._go_on()

    def no_room(self, name: str, *, own: bool) -> list[Step[S]] | None:
        """The memory that ``fits`` promised is not there; ``own``: what its old copy has would do. It waits
        for whoever leaves, else for itself; None: nothing makes room, and it is to have ``failed``."""
        model = self._models[name]
        if any(other.leaving is not None for other in self._models.values()):
            model.loading, model.crowded = None, True
            return self._go_on()
        if not own or model.at is None:
            return None
        model.loading = None
        return [self._park(name), *self._go_on()]

    def failed(self, name: str) -> list[Step[S]]:
        """It could not be loaded. Of a parked one the requests wait; where the way back fails as well, or
        there is none, it is nowhere."""
        model = self._models[name]
        tried, model.loading = model.loading, None
        if model.target != tried:  # it is wanted elsewhere by now, or nowhere
            model.home = None
            return self._go_on()
        back = model.home if model.home != tried else None
        self._stop(name)
        if model.at is not None or back is None:
            model.target, model.home = model.at, None
            return self._go_on()
        model.target = model.loading = back
        return [Load(name, back), *self._go_on()]

    def lost(self, name: str) -> None:
        """Its copy has gone by itself; it is nowhere, and shall be."""
        self._models.pop(name, None)

    def stay(self, name: str) -> list[Step[S]]:
        """It cannot leave where it is after all: nothing of a ``Leave`` was done."""
        model = self._models[name]
        model.at, model.leaving, model.home = model.leaving, None, None
        model.target = model.at
        self._stop(name)
        return self._go_on()

    def _stop(self, but: str) -> None:
        """Who serves and has not begun to move stays."""
        for name, model in self._models.items():
            if name != but and model.waits and model.at is not None:
                model.target = model.at

    # ---- who is next ----------------------------------------------------------------------------------

    def _go_on(self) -> list[Step[S]]:
        steps: list[Step[S]] = []
        for name in self._order():
            model = self._models[name]
            if model.target is None and model.at is not None and not model.moving:
                steps.append(self._leave(name))
        for name in self._order():
            model = self._models[name]
            if model.waits and self._has_room(name) and self._loads() < self.parallel:
                assert model.target is not None
                model.loading = model.target
                steps.append(Load(name, model.loading))
        short = [name for name in self._order() if self._models[name].waits and not self._has_room(name)]
        for name in reversed(short):
            if self._shall_park(name, short):
                steps.append(self._park(name))
        return steps + self._resigned(short)

    def _resigned(self, short: list[str]) -> list[Step[S]]:
        """Nobody leaves who could make room: whoever serves stays, the others try what memory says."""
        steps: list[Step[S]] = []
        if any(model.moving for model in self._models.values()):
            return steps
        for name in short:
            model = self._models[name]
            if model.at is not None:
                model.target = model.at
                steps.append(NoRoom(name))
            elif self._loads() < self.parallel:
                assert model.target is not None
                model.loading = model.target
                steps.append(Load(name, model.loading))
        return steps

    def _order(self) -> list[str]:
        """Dear ones first."""
        return sorted(self._models, key=lambda name: (-self._models[name].cost, name))

    def _loads(self) -> int:
        return sum(model.loading is not None for model in self._models.values())

    def _leave(self, name: str) -> Leave[S]:
        model = self._models[name]
        assert model.at is not None
        model.leaving, model.at = model.at, None
        return Leave(name, model.leaving)

    def _park(self, name: str) -> Leave[S]:
        model = self._models[name]
        model.home = model.at
        leave = self._leave(name)
        return Leave(name, leave.site, model.target)

    def _residents(self, site: S) -> set[str]:
        return {name for name, m in self._models.items() if site in (m.at, m.loading, m.leaving)}

    def _has_room(self, name: str) -> bool:
        model = self._models[name]
        site = model.target
        assert site is not None
        return not model.crowded and not self._taken(site) and self.fits(site, self._residents(site) | {name})

    def _taken(self, site: S) -> set[str]:
        """Who still sits on the devices of a site that is new."""
        return {name for gone in self.before.get(site, ()) for name in self._residents(gone)}

    def _shall_park(self, name: str, short: list[str]) -> bool:
        """It is in the way of somebody who waits, and neither it nor anybody else makes room there soon."""
        model = self._models[name]
        if not model.waits or model.at is None:
            return False
        soon = self._soon()
        others = [other for other in short if self._models[other].waits]
        return name not in soon and any(self._stops(name, other, soon) for other in others)

    def _stops(self, name: str, other: str, soon: Set[str]) -> bool:
        site = self._models[other].target
        assert site is not None
        if taken := self._taken(site):
            return name in taken
        return other != name and self._models[name].at == site and not self._freed(site, soon)

    def _soon(self) -> set[str]:
        """Who will leave its place without being parked: it loads, or room is made where it goes to."""
        waiting = {name: m.target for name, m in self._models.items() if m.waits and m.target is not None}
        soon = {name for name, m in self._models.items() if m.loading is not None}
        soon |= {name for name in waiting if self._has_room(name)}
        while more := {name for name in waiting if name not in soon and self._freed(waiting[name], soon)}:
            soon |= more
        return soon

    def _freed(self, site: S, soon: Set[str]) -> bool:
        """Room is being made there."""
        if taken := self._taken(site):
            return all(self._models[name].leaving is not None or name in soon for name in taken)
        here = [(name, self._models[name]) for name in self._residents(site)]
        return any(m.leaving == site or (name in soon and m.at == site) for name, m in here)
