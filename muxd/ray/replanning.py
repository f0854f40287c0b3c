"""Which model shall be at which host, by the rates that hosts measure. Pure; times are passed in.

It is decided by the files that decide it for the devices of one host (``placement/live.py``,
``placement/replanner.py``), every device of every host being one of them, and carried out in the order that
``placement/residency.py`` says: a model is loaded at its new host while the old one serves, wherever memory
permits. Between the devices of one host models are moved by its own muxd.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from itertools import count
from typing import NamedTuple

from msgspec import Struct, structs

from muxd.config import ModelConfig
from muxd.cost.analytic import Roofline
from muxd.placement import live
from muxd.placement.host_view import HostedModel, HostView
from muxd.placement.live import Live, Room
from muxd.placement.problem import Layout, ModelLoad
from muxd.placement.replan import Policy
from muxd.placement.replanner import Replanner, View
from muxd.placement.residency import Leave, Load, NoRoom, Residency, Step

Place = tuple[str, str]  # a host and one of its devices
_LEAST = 1e-3  # requests a second: who is not asked for stays ready all the same


class Order(Struct, frozen=True):
    """What a host's muxd is to do: ``load`` the model at ``device``, None: unload it."""

    id: str
    model: str
    load: ModelConfig | None = None
    device: str = ""


class ChangedHost(NamedTuple):
    """A model serves at its new host: its table goes from one file to the other."""

    source: str
    to: str
    config: ModelConfig


class _Parked(NamedTuple):
    """A model that serves nowhere: the host whose file has it, and how it is loaded there. ``refused``:
    places where it could not be loaded since."""

    host: str
    config: ModelConfig
    refused: set[Place]


class HostsProblem:
    """What the hosts have said, as one problem. Hosts are taken for alike: the smallest device's memory and
    the first host's speed count for all."""

    def __init__(self, views: Mapping[str, HostView]):
        self._views = {host: views[host] for host in sorted(views) if views[host].devices}
        self.places: list[Place] = [
            (host, name) for host, view in self._views.items() for name in view.devices
        ]
        served = Counter(model.name for view in self._views.values() for model in view.models)
        self.models: dict[str, tuple[str, HostedModel]] = {}
        self.stay = set[str]()  # copies stay where they are, too
        for host, view in self._views.items():
            for model in view.models:
                key = model.name if served[model.name] == 1 else f"{model.name} at {host}"
                self.models[key] = host, model
                if model.stays or served[model.name] > 1:
                    self.stay.add(key)

    @property
    def rates(self) -> dict[str, float]:
        """Requests a second, measured."""
        return {key: model.load.rate for key, (_, model) in self.models.items()}

    def at(self, key: str) -> Place:
        host, model = self.models[key]
        return host, model.device

    def problem(self, rates: Mapping[str, float]) -> Live:
        """Raises ConfigError where no plan could hold the models."""
        first = next(iter(self._views.values()))
        devices = [one for view in self._views.values() for one in view.devices.values()]
        loads = [self._load(key, model, rates[key]) for key, (_, model) in self.models.items()]
        room = Room(
            len(devices),
            min(one.memory for one in devices),
            max(one.pool for one in devices),
            first.rungs,
            tuple(one.members for one in devices),
        )
        ranks = {key: model.config.tp for key, (_, model) in self.models.items()}
        shapes, dtypes = {one.cost: one.shape for one in loads}, {one.cost: one.dtype for one in loads}
        least = {key: model.least for key, (_, model) in self.models.items()}
        return Live(
            loads, room, Roofline(first.peak, shapes, first.reach, dtypes), first.budget, least, ranks
        )

    def view(self, rates: Mapping[str, float]) -> View:
        """As of one daemon with all these devices."""
        return live.view(self.problem(rates), self._at(self.models), self._at(self.stay))

    def moves(self, layout: Layout) -> dict[str, Place]:
        """Who changes its host, and to where."""
        chosen = live.places(self.problem(self.rates).problem, layout)
        there = {key: self.places[number] for key, number in chosen.items()}
        return {key: place for key, place in there.items() if place[0] != self.at(key)[0]}

    def config(self, key: str, place: Place) -> ModelConfig:
        """As it is loaded there."""
        return structs.replace(self.models[key][1].config, device=_named(self._views, place))

    def _load(self, key: str, model: HostedModel, rate: float) -> ModelLoad:
        return structs.replace(model.load, name=key, cost=key, rate=max(_LEAST, rate))

    def _at(self, keys: Iterable[str]) -> dict[str, int]:
        return {key: self.places.index(self.at(key)) for key in keys}


class HostsReplanner:
    """Looks while nothing moves; then gives orders, and is told what came of each. ``name`` begins the
    orders' ids, so that those of another replanner are not taken for its own."""

    def __init__(self, name: str, policy: Policy | None = None):
        self._name, self._numbers = name, count(1)
        self._planner = Replanner(policy or Policy(steps=live.STEPS))
        self._residency: Residency[Place] | None = None
        self._fleet = HostsProblem({})
        self._orders: dict[str, tuple[str, Order, Step[Place] | None]] = {}  # by id: host, order, its step
        self._parked: dict[str, _Parked] = {}

    @property
    def busy(self) -> bool:
        """Orders are under way."""
        return bool(self._orders)

    @property
    def hosts(self) -> set[str]:
        """That have orders."""
        return {host for host, _, _ in self._orders.values()}

    def look(self, views: Mapping[str, HostView], now: float) -> dict[str, Place]:
        """Who should change its host: the work of a search, which changes nothing. Raises ConfigError where
        the models cannot be planned."""
        fleet = HostsProblem(views)
        if len(views) < 2 or not fleet.models:
            return {}
        decision = self._planner.look(fleet.rates, fleet.view, now)
        return fleet.moves(decision.proposed) if decision.adopt else {}

    def begin(self, views: Mapping[str, HostView], moves: Mapping[str, Place], now: float) -> None:
        """Carry ``look``'s moves out."""
        if not moves:
            return
        fleet = self._fleet = HostsProblem(views)
        problem = fleet.problem(fleet.rates)
        self._planner.moved(now)
        self._residency = Residency(fits=lambda _, models: live.fits(problem, models))
        for key in fleet.models:
            self._residency.served(key, fleet.at(key))
        self._take(self._residency.aim(moves, live.gaps(problem)))

    def mend(self, views: Mapping[str, HostView], named: Mapping[str, Set[str]]) -> None:
        """What an end in the midst of a move has left: a copy at a host whose file does not have it, and who
        serves nowhere: it goes where it was, or where there is room by now. ``named``: the models of each
        host's file."""
        served = {host: {model.name for model in view.models} for host, view in views.items()}
        for host, models in served.items():
            for model in models - named[host]:
                if any(model in served[other] & named[other] for other in served if other != host):
                    self._give(host, Order(self._id(), model))
        for model, parked in list(self._parked.items()):
            if any(model in models for models in served.values()):
                del self._parked[model]
            elif parked.host in views:
                host, device = _somewhere(parked, views)
                self._give(
                    host, Order(self._id(), model, structs.replace(parked.config, device=device), device)
                )

    def orders(self, host: str) -> list[Order]:
        """What it has not said to be done; the same again until it has."""
        return [order for at, order, _ in self._orders.values() if at == host]

    def done(self, id: str, *, failed: bool = False) -> ChangedHost | None:
        """The host has carried it out, or cannot."""
        host, order, step = self._orders.pop(id, ("", None, None))
        if order is None:
            return None
        if step is None or self._residency is None:
            return self._mended(host, order, failed)
        residency, key, moved = self._residency, step.model, None
        source = self._fleet.at(key)[0]
        if isinstance(step, Load):
            if not failed and order.load is not None and host != source:
                moved = ChangedHost(source, host, order.load)
            if not failed:
                self._parked.pop(order.model, None)
            self._take(residency.failed(key) if failed else residency.loaded(key))
        else:
            if isinstance(step, Leave) and step.to is not None and not failed:
                self._parked[order.model] = _Parked(host, self._fleet.config(key, step.site), set())
            self._take(residency.stay(key) if failed else residency.left(key))
        return moved

    def _mended(self, host: str, order: Order, failed: bool) -> ChangedHost | None:
        """What came of an order that ``mend`` gave."""
        parked = self._parked.get(order.model)
        if parked is None or order.load is None:
            return None
        if failed:
            parked.refused.add((host, order.device))
            return None
        del self._parked[order.model]
        return ChangedHost(parked.host, host, order.load) if host != parked.host else None

    def abandon(self) -> None:
        """Somebody is lost: what is under way is told to nobody any more; the next look sees what is so."""
        self._orders.clear()
        self._residency = None

    def _take(self, steps: list[Step[Place]]) -> None:
        for step in steps:
            if isinstance(step, NoRoom):
                continue  # it stays
            host = step.site[0]
            name = self._fleet.models[step.model][1].name
            load = self._fleet.config(step.model, step.site) if isinstance(step, Load) else None
            self._give(host, Order(self._id(), name, load, load.device if load else ""), step)

    def _give(self, host: str, order: Order, step: Step[Place] | None = None) -> None:
        self._orders[order.id] = host, order, step

    def _id(self) -> str:
        return f"{self._name}-{next(self._numbers)}"


def _named(views: Mapping[str, HostView], place: Place) -> str:
    """The device as the host's settings name it: its only one goes by no name."""
    host, device = place
    return device if len(views[host].devices) > 1 else ""


def _somewhere(parked: _Parked, views: Mapping[str, HostView]) -> Place:
    """Where it was; where that refuses, what has the fewest weights; all of them anew once all have refused.
    Devices as ``_named``."""
    held: dict[Place, int] = {}
    for host, view in views.items():
        for device in (name for name, one in view.devices.items() if one.members == 1):
            weights = sum(model.load.weights for model in view.models if model.device == device)
            held[host, _named(views, (host, device))] = weights
    if parked.refused >= held.keys():
        parked.refused.clear()
    home = parked.host, parked.config.device
    return min(
        held.keys() - parked.refused, key=lambda place: (place != home, held[place], place), default=home
    )
