"""Several moves as one change: whatever fails, nobody stays parked, and each device never holds too much."""

import asyncio
from collections.abc import Coroutine, Set
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muxd.errors import ModelNotReady, MuxdError, OutOfMemory, ShuttingDown
from muxd.fleet.move import no_way_back
from muxd.fleet.rearrange import Rearrangement
from muxd.placement.transition import Transition


class Devices:
    """Each holds ``room`` models; moves do what ``fleet.move.Move`` promises, loads of ``fails`` not."""

    def __init__(
        self,
        places: dict[str, int],
        targets: dict[str, int],
        room: int,
        fails: Set[str] = frozenset(),
        error: MuxdError | None = None,
    ):
        self.room, self.fails, self.targets = room, fails, targets
        self.error = error or ModelNotReady("its weights cannot be read")
        self.source = dict(places)
        self.held = {site: {m for m in places if places[m] == site} for site in range(4)}
        self.serving: dict[str, int | None] = dict(places)
        self.told: list[tuple[str, str]] = []
        self.reasons: dict[str, str] = {}
        costs = {model: float(model[1:]) for model in targets}
        order = Transition(self.held, targets, costs, lambda _, models: len(models) <= room)
        self.work = Rearrangement(order, lambda model: Moving(self, model), self.tell)

    async def tell(self, model: str, work: Coroutine[Any, Any, None], last: bool) -> None:
        try:
            await work
        except MuxdError as error:
            self.told.append((model, "failed"))
            self.reasons[model] = error.message
            raise
        self.told.append((model, "moved" if last else "parked"))

    def load(self, model: str, site: int) -> None:
        if model in self.fails and site == self.targets[model]:
            raise self.error
        if len(self.held[site]) >= self.room:
            raise OutOfMemory("full")
        self.held[site].add(model)
        self.serving[model] = site


class Moving:
    def __init__(self, devices: Devices, model: str):
        self.devices, self.model = devices, model

    async def run(self) -> None:
        self.devices.load(self.model, self.devices.targets[self.model])
        self.devices.held[self.devices.source[self.model]].discard(self.model)

    async def park(self) -> None:
        self.devices.serving[self.model] = None
        self.devices.held[self.devices.source[self.model]].discard(self.model)

    async def arrive(self) -> None:
        try:
            self.devices.load(self.model, self.devices.targets[self.model])
        except ShuttingDown:
            raise
        except MuxdError as error:
            self.back(error)
            raise

    def back(self, why: MuxdError) -> None:
        source = self.devices.source[self.model]
        try:
            self.devices.load(self.model, source)
        except MuxdError as error:
            raise no_way_back(why, str(source), error) from None


def test_two_full_devices_swap() -> None:
    devices = Devices({"m1": 0, "m9": 1}, {"m1": 1, "m9": 0}, room=1)
    asyncio.run(devices.work.run())
    assert devices.told == [("m1", "parked"), ("m9", "moved"), ("m1", "moved")]
    assert devices.serving == {"m1": 1, "m9": 0}


def test_who_is_parked_comes_back_when_the_other_cannot_go() -> None:
    devices = Devices({"m1": 0, "m9": 1}, {"m1": 1, "m9": 0}, room=1, fails={"m9"})
    with pytest.raises(ModelNotReady, match="cannot be read"):
        asyncio.run(devices.work.run())
    assert devices.told == [("m1", "parked"), ("m9", "failed"), ("m1", "failed")]
    assert devices.serving == {"m1": 0, "m9": 1}


def test_who_finds_no_place_any_more_says_why_at_both() -> None:
    devices = Devices({"m1": 0, "m9": 1}, {"m1": 1, "m9": 0}, room=1, fails={"m1"})
    with pytest.raises(ModelNotReady, match="cannot be read; nor could it go back to 0: full"):
        asyncio.run(devices.work.run())
    assert devices.told == [("m1", "parked"), ("m9", "moved"), ("m1", "failed")]
    assert devices.serving == {"m1": None, "m9": 0}


def test_at_the_end_of_the_daemon_nothing_is_begun_any_more() -> None:
    devices = Devices({"m1": 0, "m9": 1}, {"m1": 1, "m9": 0}, 1, {"m9"}, ShuttingDown("over"))
    with pytest.raises(ShuttingDown):
        asyncio.run(devices.work.run())
    assert devices.told == [("m1", "parked"), ("m9", "failed")]


def test_an_order_without_a_way_is_an_error_and_nothing_has_moved() -> None:
    devices = Devices({"m1": 0, "m2": 1, "m3": 1}, {"m1": 1}, room=2)
    with pytest.raises(OutOfMemory, match="m1: there will never be room"):
        asyncio.run(devices.work.run())
    assert devices.told == []


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=8),
    st.integers(0, 2),
)
@example(models=[(1, 0, True), (0, 1, False)], spare=0)
def test_everybody_serves_in_the_end_or_has_failed_aloud(
    models: list[tuple[int, int, bool]], spare: int
) -> None:
    places = {f"m{i}": at for i, (at, _, _) in enumerate(models)}
    ends = {f"m{i}": to for i, (_, to, _) in enumerate(models)}
    fails = {f"m{i}" for i, (_, _, bad) in enumerate(models) if bad}
    targets = {name: to for name, to in ends.items() if to != places[name]}
    if not targets:
        return
    most = max(list(sites.values()).count(site) for site in range(4) for sites in (places, ends))
    devices = Devices(places, targets, most + spare, fails)
    try:
        asyncio.run(devices.work.run())
    except ModelNotReady as error:
        assert fails & set(targets)
        assert "cannot be read" in error.message, "the reason of the first that failed"  # noqa: PT017  # it may also not be raised
        for name, at in devices.serving.items():
            if at is None:
                assert "nor could it go back" in devices.reasons[name]
            else:
                assert at in (places[name], ends[name])
    else:
        assert devices.serving == ends
