"""Several moves as one change of the target: whatever fails, nobody stays parked, and no device ever holds
too much. The loop is real; devices and loads are played."""

import asyncio
from collections.abc import Set
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muxd.clock import VirtualClock
from muxd.errors import ModelNotReady, MuxdError, OutOfMemory, ShuttingDown
from muxd.fleet.operation import Operation
from muxd.fleet.reconciler import Reconciler


class Loans:
    def __init__(self) -> None:
        self.lent = 0

    def lend(self, nbytes: int) -> None:
        self.lent += nbytes


class Site:
    def __init__(self, name: str):
        self.name, self.loans = name, Loans()


class Shown:
    """What the catalog has of a model."""

    def __init__(self, device: str):
        self.device, self.weight_bytes = device, 1
        self.error = self.changing = ""


class Devices:
    """Each holds ``room`` models; loads of ``fails`` at their new place come to nothing. As
    ``fleet.copies.Copies``."""

    def __init__(
        self,
        places: dict[str, str],
        targets: dict[str, str | None],
        room: int,
        fails: Set[str] = frozenset(),
        error: MuxdError | None = None,
    ):
        self.room, self.fails, self.targets, self.places = room, fails, targets, places
        self.error = error or ModelNotReady("its weights cannot be read")
        self.clock, self.closing = VirtualClock(), asyncio.Event()
        self.entries = {name: Shown(places.get(name, "")) for name in places.keys() | targets.keys()}
        self.sites = {str(site): Site(str(site)) for site in range(4)}
        self.held = {site: {m for m in places if places[m] == site} for site in self.sites}
        self.serving: dict[str, str | None] = dict(places)
        self.told: list[tuple[str, str]] = []
        self.reasons: dict[str, str] = {}
        self.loop = Reconciler(copies=cast(Any, self), mark=self.mark)
        for model, site in places.items():
            self.loop.residency.served(model, site)

    def mark(self, what: str, model: str, detail: str) -> None:
        self.told.append((model, what))
        if "failed" in what:
            self.reasons[model] = detail

    async def go(self) -> None:
        costs = {model: float(model[1:]) for model in self.targets}
        operation = Operation("", "moved", "reading")
        await self.loop.reach(
            self.targets, operation, costs=costs, fits=lambda _, models: len(models) <= self.room
        )

    async def load(self, name: str, target: Site, *args: Any, serves: bool, parked: bool) -> None:
        await asyncio.sleep(0)
        if name in self.fails and target.name != self.places.get(name):
            if isinstance(self.error, ShuttingDown):
                self.closing.set()
            raise self.error
        if len(self.held[target.name]) >= self.room:
            raise OutOfMemory("full")
        self.held[target.name].add(name)
        self.serving[name] = target.name
        self.entries[name].device = target.name

    def park(self, name: str, target: Site) -> None:
        self.told.append((name, "parked"))

    async def leave(self, name: str, source: Site, operation: Operation) -> int:
        await asyncio.sleep(0)
        self.held[source.name].discard(name)
        if self.serving[name] == source.name:
            self.serving[name] = None
        return 1

    async def fail(self, name: str, site: Site, told: MuxdError, reason: str) -> None:
        assert self.serving[name] is None
        self.entries[name].error = reason


def test_two_full_devices_swap() -> None:
    devices = Devices({"m1": "0", "m9": "1"}, {"m1": "1", "m9": "0"}, room=1)
    asyncio.run(devices.go())
    assert [one for one in devices.told if one[1] != "moving"] == [
        ("m1", "parked"), ("m9", "moved"), ("m1", "moved"),
    ]  # fmt: skip
    assert devices.serving == {"m1": "1", "m9": "0"}
    assert {site.loans.lent for site in devices.sites.values()} == {0}, "each took what the other left"


def test_what_is_left_in_the_end_is_lent_where_it_is() -> None:
    devices = Devices({"m1": "0", "m2": "0"}, {"m1": "1", "m2": None}, room=2)
    asyncio.run(devices.go())
    assert {name: site.loans.lent for name, site in devices.sites.items() if site.loans.lent} == {"0": 2}


def test_who_is_parked_comes_back_when_the_other_cannot_go() -> None:
    devices = Devices({"m1": "0", "m9": "1"}, {"m1": "1", "m9": "0"}, room=1, fails={"m9"})
    with pytest.raises(ModelNotReady, match="cannot be read"):
        asyncio.run(devices.go())
    assert devices.told[-2:] == [("m9", "move failed"), ("m1", "move failed")]
    assert devices.serving == {"m1": "0", "m9": "1"}


def test_who_finds_no_place_any_more_says_why_at_both() -> None:
    devices = Devices({"m1": "0", "m9": "1"}, {"m1": "1", "m9": "0"}, room=1, fails={"m1"})
    with pytest.raises(ModelNotReady, match="cannot be read; nor could it go back to 0: full"):
        asyncio.run(devices.go())
    assert devices.told[-2:] == [("m9", "moved"), ("m1", "move failed")]
    assert devices.serving == {"m1": None, "m9": "0"}
    assert "nor could it go back" in devices.entries["m1"].error


def test_at_the_end_of_the_daemon_nothing_is_begun_any_more() -> None:
    devices = Devices({"m1": "0", "m9": "1"}, {"m1": "1", "m9": "0"}, 1, {"m9"}, ShuttingDown("over"))

    async def scene() -> None:
        work = asyncio.create_task(devices.go())
        await devices.closing.wait()
        await devices.loop.close()
        await work

    with pytest.raises(ShuttingDown):
        asyncio.run(scene())
    assert devices.told == [("m1", "moving"), ("m1", "parked"), ("m9", "moving")]


def test_an_order_without_a_way_is_an_error_and_nothing_has_moved() -> None:
    devices = Devices({"m1": "0", "m2": "1", "m3": "1"}, {"m1": "1"}, room=2)
    with pytest.raises(OutOfMemory, match="m1: there will never be room"):
        asyncio.run(devices.go())
    assert devices.told == [("m1", "move failed")]
    assert devices.serving == devices.places


def test_an_unload_that_comes_while_it_loads_waits_for_it() -> None:
    """The load that was asked for first hears nothing of a failure; the model is nowhere in the end."""
    devices = Devices({}, {"m1": "0"}, room=1)

    async def scene() -> None:
        first = asyncio.create_task(devices.go())
        await asyncio.sleep(0)
        await devices.loop.reach({"m1": None}, Operation("m1", "unloaded", "draining"))
        await first

    asyncio.run(scene())
    assert devices.serving == {"m1": None}
    assert devices.entries["m1"].changing == "unloaded"
    assert devices.told[-1] == ("m1", "unloaded")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=8),
    st.integers(0, 2),
)
@example(models=[(1, 0, True), (0, 1, False)], spare=0)
def test_everybody_serves_in_the_end_or_has_failed_aloud(
    models: list[tuple[int, int, bool]], spare: int
) -> None:
    places = {f"m{i}": str(at) for i, (at, _, _) in enumerate(models)}
    ends = {f"m{i}": str(to) for i, (_, to, _) in enumerate(models)}
    fails = {f"m{i}" for i, (_, _, bad) in enumerate(models) if bad}
    targets: dict[str, str | None] = {name: to for name, to in ends.items() if to != places[name]}
    if not targets:
        return
    most = max(list(sites.values()).count(str(site)) for site in range(4) for sites in (places, ends))
    devices = Devices(places, targets, most + spare, fails)
    try:
        asyncio.run(devices.go())
    except MuxdError:
        assert fails & set(targets)
        assert any("cannot be read" in reason for reason in devices.reasons.values())
        for name, at in devices.serving.items():
            if at is None:
                assert "nor could it go back" in devices.reasons[name]
            else:
                assert at in (places[name], ends[name])
    else:
        assert devices.serving == ends
    assert devices.loop.residency.over
