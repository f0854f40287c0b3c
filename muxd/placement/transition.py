"""In which order models move while one layout becomes another. Pure: told what happened, says what to do.

A model loads at its new mesh while it still serves at the old one wherever memory permits, so it has no gap.
Where everybody waits for somebody else's memory, the model that is asked for least is *parked*: it serves
nowhere until it has loaded, and what it leaves lets the others go on. Two models that change places therefore
cost a gap of the quieter one alone.

    waiting -> loading -> served at the new mesh; the old one drains -> gone        (beside)
    waiting -> parked: the old one drains -> gone -> loading -> served              (parked)

Every model that leaves a mesh drains there: its running sequences end where they are.
"""

from collections.abc import Callable, Mapping, Set

from msgspec import Struct

Fits = Callable[[int, Set[str]], bool]


class Load(Struct, frozen=True):
    """Load the model's weights at ``site``; tell ``loaded`` when it could serve there."""

    model: str
    site: int


class Park(Struct, frozen=True):
    """Send the model nothing more; tell ``drained`` when its last sequence has ended."""

    model: str


Step = Load | Park


class Transition:
    """``residents``: models in the memory of each site. ``targets``: the models that move, and whereto.

    ``costs``: of a gap, for each model that moves; the cheapest is parked first. ``fits(site, models)``: may
    they all be in its memory. ``before``: for a site that is new, the sites whose devices it takes; it is
    free when they are empty. Raises RuntimeError where the new layout can never be reached.
    """

    def __init__(
        self,
        residents: Mapping[int, Set[str]],
        targets: Mapping[str, int],
        costs: Mapping[str, float],
        fits: Fits,
        before: Mapping[int, Set[int]] | None = None,
    ):
        self._residents = {site: set(models) for site, models in residents.items()}
        self._source = {model: site for site, models in self._residents.items() for model in models}
        self._targets = dict(targets)
        self._order = sorted(targets, key=lambda model: (-costs[model], model))  # dear ones first
        self._fits = fits
        self._before = before or {}
        self._waiting = list(self._order)
        self._loading: set[str] = set()
        self._leaving: dict[str, int] = {}  # who drains where
        self.parked: list[str] = []  # everybody who was parked, in order

    @property
    def over(self) -> bool:
        """Everybody serves where it shall, and nobody drains."""
        return not (self._waiting or self._loading or self._leaving)

    @property
    def leaving(self) -> dict[str, int]:
        """Models that drain, and where."""
        return dict(self._leaving)

    def begin(self) -> list[Step]:
        return self._go_on()

    def loaded(self, model: str) -> list[Step]:
        """From now on its requests go to the new site. One that was not parked begins to drain."""
        self._loading.remove(model)
        if model not in self.parked:
            self._leaving[model] = self._source[model]
        return self._go_on()

    def drained(self, model: str) -> list[Step]:
        """Its memory at the old site is free."""
        self._residents[self._leaving.pop(model)].discard(model)
        return self._go_on()

    # ---- who is next ---------------------------------------------------------------------------------

    def _go_on(self) -> list[Step]:
        steps: list[Step] = []
        for model in list(self._waiting):
            if self._has_room(model):
                self._waiting.remove(model)
                self._loading.add(model)
                self._residents.setdefault(self._targets[model], set()).add(model)
                steps.append(Load(model, self._targets[model]))
        for model in reversed(self._order):
            if self._shall_park(model):
                self.parked.append(model)
                self._leaving[model] = self._source[model]
                steps.append(Park(model))
        if self._waiting and not (self._loading or self._leaving):
            raise RuntimeError(f"{', '.join(self._waiting)}: there will never be room, whoever leaves")
        return steps

    def _has_room(self, model: str) -> bool:
        site = self._targets[model]
        return not self._taken(site) and self._fits(site, self._residents.get(site, set()) | {model})

    def _taken(self, site: int) -> set[str]:
        """Who still sits on the devices of a site that is new."""
        return {model for gone in self._before.get(site, ()) for model in self._residents.get(gone, ())}

    def _shall_park(self, model: str) -> bool:
        """It is in the way of somebody who waits, and neither it nor anybody else makes room there soon."""
        if model not in self._waiting or model in self.parked:
            return False
        soon = self._soon()
        return model not in soon and any(self._stops(model, other, soon) for other in self._waiting)

    def _stops(self, model: str, other: str, soon: Set[str]) -> bool:
        site = self._targets[other]
        if taken := self._taken(site):
            return model in taken
        return other != model and self._source[model] == site and not self._freed(site, soon)

    def _soon(self) -> set[str]:
        """Who will leave its mesh without being parked: it loads, or room is made where it goes to."""
        soon = set(self._loading)
        while more := {m for m in self._waiting if m not in soon and self._freed(self._targets[m], soon)}:
            soon |= more
        return soon

    def _freed(self, site: int, soon: Set[str]) -> bool:
        """Room is being made there."""
        going = soon | set(self._leaving)
        if taken := self._taken(site):
            return taken <= going
        here = self._residents.get(site, set())
        return any(model in going and self._source[model] == site for model in here)
