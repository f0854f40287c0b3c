"""The order of moves: everybody arrives, memory is never overfull, gaps only where there is no other way."""

from collections.abc import Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.placement.transition import Load, Park, Step, Transition


class Cluster:
    """Does what it is told, in the order ``draw`` says, and checks memory: ``room`` models a site."""

    def __init__(self, places: dict[str, int], targets: dict[str, int], costs: dict[str, float], room: int,
                 before: dict[int, set[int]] | None = None):  # fmt: skip
        self.room, self.before = room, before or {}
        self.at = {site: {m for m in places if places[m] == site} for site in set(places.values())}
        self.serving: dict[str, int | None] = dict(places)
        self.loading: list[str] = []
        self.targets = targets
        self.order = Transition(self.at, targets, costs, self.fits, before)
        self.log: list[Step] = []

    def fits(self, site: int, models: Set[str]) -> bool:
        return len(models) <= self.room

    def do(self, steps: list[Step]) -> None:
        for step in steps:
            self.log.append(step)
            if isinstance(step, Park):
                assert step.model not in self.loading
                self.serving[step.model] = None
                continue
            assert not any(self.at.get(gone) for gone in self.before.get(step.site, ()))
            here = self.at.setdefault(step.site, set())
            here.add(step.model)
            assert len(here) <= self.room
            self.loading.append(step.model)

    def run(self, draw: st.DataObject | None = None) -> None:
        self.do(self.order.begin())
        while not self.order.over:
            events = [("loaded", m) for m in self.loading] + [("drained", m) for m in self.order.leaving]
            kind, model = draw.draw(st.sampled_from(events)) if draw else events[0]
            if kind == "loaded":
                self.loading.remove(model)
                self.serving[model] = self.targets[model]
                self.do(self.order.loaded(model))
            else:
                self.at[self.order.leaving[model]].discard(model)
                self.do(self.order.drained(model))


def test_with_room_everybody_loads_beside_the_old_copies() -> None:
    cluster = Cluster({"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 1.0, "b": 2.0}, room=2)
    cluster.run()
    assert cluster.log == [Load("b", 0), Load("a", 1)]


def test_of_two_that_change_places_the_quieter_one_is_parked() -> None:
    cluster = Cluster({"loud": 0, "quiet": 1}, {"loud": 1, "quiet": 0}, {"loud": 7.0, "quiet": 0.4}, room=1)
    cluster.run()
    assert cluster.log == [Park("quiet"), Load("loud", 1), Load("quiet", 0)]


def test_one_of_a_ring_is_parked() -> None:
    cluster = Cluster({"a": 0, "b": 1, "c": 2}, {"a": 1, "b": 2, "c": 0}, {"a": 7, "b": 4, "c": 5}, room=1)
    cluster.run()
    assert cluster.order.parked == ["b"]


def test_a_mesh_on_others_devices_waits_for_all_of_them() -> None:
    """Two meshes are joined: nobody can stay where they are meanwhile."""
    places, targets = {"a": 0, "b": 0, "c": 1}, {"a": 2, "b": 2, "c": 2}
    cluster = Cluster(places, targets, {"a": 1, "b": 2, "c": 3}, room=9, before={2: {0, 1}})
    cluster.run()
    assert sorted(cluster.order.parked) == ["a", "b", "c"]


def test_who_can_leave_a_vanishing_mesh_for_one_with_room_is_not_parked() -> None:
    places, targets = {"a": 0, "b": 1}, {"a": 2, "b": 3}
    cluster = Cluster(places, targets, {"a": 1, "b": 2}, room=2, before={2: {0, 1}})
    cluster.run()
    assert cluster.order.parked == ["a"]


def test_what_can_never_be_reached_is_said() -> None:
    cluster = Cluster({"a": 0, "b": 1, "stays": 1}, {"a": 1}, {"a": 1.0}, room=2)
    with pytest.raises(RuntimeError, match="a: there will never be room"):
        cluster.run()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 9)), min_size=1, max_size=8),
    st.integers(0, 3),
    st.data(),
)
def test_everybody_arrives_whatever_ends_first(
    models: list[tuple[int, int, float]], spare: int, data: st.DataObject
) -> None:
    """Both layouts fit; in what order loads and drains end is drawn."""
    names = [f"m{i}" for i in range(len(models))]
    places = {name: a for name, (a, _, _) in zip(names, models, strict=True)}
    ends = {name: b for name, (_, b, _) in zip(names, models, strict=True)}
    most = max(max(list(sites.values()).count(site) for site in range(4)) for sites in (places, ends))
    targets = {name: site for name, site in ends.items() if site != places[name]}
    costs = {name: cost for name, (_, _, cost) in zip(names, models, strict=True)}
    cluster = Cluster(places, targets, costs, most + spare)
    cluster.run(data)
    assert cluster.serving == ends
    assert {name: site for site, here in cluster.at.items() for name in here} == ends
    loads = [step.model for step in cluster.log if isinstance(step, Load)]
    assert sorted(loads) == sorted(targets), "each is loaded once"
    if spare >= len(targets):
        assert cluster.order.parked == []
