"""Where models shall be, and in which order they get there: everybody arrives or stays, memory is never
overfull, gaps only where there is no other way, and a load that fails leaves nobody in between."""

from collections.abc import Mapping, Sequence, Set
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from muxd.placement.residency import UNLIMITED, Leave, Load, NoRoom, Residency, Step

Event = tuple[Literal["load", "leave"], str]


class Cluster:
    """Does what it is told, in the order ``draw`` says, and checks memory: ``room`` models a site. Loads of
    ``fails`` do not come to anything where the model is new."""

    def __init__(
        self,
        places: dict[str, int],
        targets: Mapping[str, int | None],
        costs: dict[str, float],
        room: int,
        before: dict[int, set[int]] | None = None,
        fails: Set[str] = frozenset(),
        parallel: int = UNLIMITED,
    ):
        self.room, self.fails, self.parallel = room, fails, parallel
        self.at = {site: {m for m in places if places[m] == site} for site in set(places.values())}
        self.serving: dict[str, int | None] = dict(places)
        self.loading: dict[str, int] = {}
        self.places, self.targets = places, targets
        self.order: Residency[int] = Residency(self.fits, before or {}, parallel)
        for model, site in places.items():
            self.order.served(model, site)
        self.costs = costs
        self.full: set[str] = set()  # parked ones who find that others are there
        self.parked: list[str] = []
        self.stayed: list[str] = []
        self.log: list[Step[int]] = []

    def fits(self, site: int, models: Set[str]) -> bool:
        return len(models) <= self.room

    def do(self, steps: Sequence[Step[int]]) -> None:
        for step in steps:
            self.log.append(step)
            match step:
                case NoRoom():
                    self.stayed.append(step.model)
                case Leave():
                    assert step.model not in self.loading
                    if step.to is not None:
                        self.parked.append(step.model)
                    if self.serving[step.model] == step.site:
                        self.serving[step.model] = None
                case Load():
                    self.begin(step)

    def begin(self, step: Load[int]) -> None:
        assert not any(self.at.get(gone) for gone in self.order.before.get(step.site, ()))
        here = self.at.setdefault(step.site, set())
        if len(here) == self.room and self.serving[step.model] is None:  # it tries what memory says
            self.full.add(step.model)
        else:
            here.add(step.model)
            assert len(here) <= self.room
        self.loading[step.model] = step.site
        assert len(self.loading) <= self.parallel

    def end(self, event: Event) -> None:
        kind, model = event
        if kind == "leave":
            self.at[self.order.leaving[model]].discard(model)
            self.do(self.order.left(model))
            return
        site = self.loading.pop(model)
        if model in self.full:
            self.full.remove(model)
            steps = self.order.no_room(model, own=False)
            self.do(self.order.failed(model) if steps is None else steps)
        elif model in self.fails and site != self.places.get(model):
            self.at[site].discard(model)
            self.do(self.order.failed(model))
        else:
            self.serving[model] = site
            self.do(self.order.loaded(model))

    def run(self, draw: st.DataObject | None = None) -> None:
        self.do(self.order.aim(self.targets, self.costs))
        while not self.order.over:
            events: list[Event] = [("load", m) for m in self.loading]
            events += [("leave", m) for m in self.order.leaving]
            self.end(draw.draw(st.sampled_from(events)) if draw else events[0])


def test_with_room_everybody_loads_beside_the_old_copies() -> None:
    cluster = Cluster({"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 1.0, "b": 2.0}, room=2)
    cluster.run()
    assert cluster.log == [Load("b", 0), Load("a", 1), Leave("b", 1), Leave("a", 0)]


def test_of_two_that_change_places_the_quieter_one_is_parked() -> None:
    cluster = Cluster({"loud": 0, "quiet": 1}, {"loud": 1, "quiet": 0}, {"loud": 7.0, "quiet": 0.4}, room=1)
    cluster.run()
    assert cluster.log == [Leave("quiet", 1, 0), Load("loud", 1), Leave("loud", 0), Load("quiet", 0)]


def test_one_of_a_ring_is_parked() -> None:
    cluster = Cluster({"a": 0, "b": 1, "c": 2}, {"a": 1, "b": 2, "c": 0}, {"a": 7, "b": 4, "c": 5}, room=1)
    cluster.run()
    assert cluster.parked == ["b"]


def test_a_mesh_on_others_devices_waits_for_all_of_them() -> None:
    """Two meshes are joined: nobody can stay where they are meanwhile."""
    places, targets = {"a": 0, "b": 0, "c": 1}, {"a": 2, "b": 2, "c": 2}
    cluster = Cluster(places, targets, {"a": 1, "b": 2, "c": 3}, room=9, before={2: {0, 1}})
    cluster.run()
    assert sorted(cluster.parked) == ["a", "b", "c"]


def test_who_can_leave_a_vanishing_mesh_for_one_with_room_is_not_parked() -> None:
    places, targets = {"a": 0, "b": 1}, {"a": 2, "b": 3}
    cluster = Cluster(places, targets, {"a": 1, "b": 2}, room=2, before={2: {0, 1}})
    cluster.run()
    assert cluster.parked == ["a"]


def test_who_can_never_go_stays_and_that_is_said() -> None:
    cluster = Cluster({"a": 0, "b": 1, "stays": 1}, {"a": 1}, {"a": 1.0}, room=2)
    cluster.run()
    assert cluster.log == [NoRoom("a")]
    assert cluster.order.at("a") == 0


def test_who_is_asked_for_no_more_leaves_and_makes_room_for_who_comes() -> None:
    cluster = Cluster({"old": 0}, {"old": None, "new": 0}, {"new": 1.0}, room=1)
    cluster.run()
    assert cluster.log == [Leave("old", 0), Load("new", 0)]


def test_one_load_at_a_time_parks_nobody_who_only_waits_for_the_other() -> None:
    places, targets = {"a": 0, "b": 1}, {"a": 1, "b": 0}
    cluster = Cluster(places, dict(targets), {"a": 1.0, "b": 2.0}, room=2, parallel=1)
    cluster.run()
    assert cluster.parked == []
    assert [step for step in cluster.log if isinstance(step, Load)] == [Load("b", 0), Load("a", 1)]


def test_where_memory_is_short_after_all_it_waits_for_who_leaves_then_for_itself() -> None:
    order: Residency[int] = Residency(parallel=2)
    for model in ("a", "b"):
        order.served(model, 0)
    assert order.aim({"a": 1, "b": None}) == [Leave("b", 0), Load("a", 1)]
    assert order.no_room("a", own=True) == []
    assert order.left("b") == [Load("a", 1)]
    assert order.no_room("a", own=True) == [Leave("a", 0, 1)]
    assert order.left("a") == [Load("a", 1)]
    assert order.no_room("a", own=True) is None
    assert order.failed("a") == [Load("a", 0)]
    assert order.failed("a") == []
    assert (order.over, order.at("a")) == (True, None)


def test_who_is_wanted_elsewhere_while_it_loads_arrives_first() -> None:
    order: Residency[int] = Residency()
    assert order.aim({"a": 0}) == [Load("a", 0)]
    assert order.aim({"a": None}) == []
    assert order.loaded("a") == [Leave("a", 0)]
    assert order.left("a") == []


def test_a_new_place_that_takes_it_not_leaves_it_where_it_is() -> None:
    order: Residency[int] = Residency(lambda _, models: len(models) <= 1)
    order.served("a", 0)
    order.served("b", 1)
    assert order.aim({"a": 1, "b": 0}, {"a": 0.0, "b": 1.0}) == [Leave("a", 0, 1)]
    assert order.stay("a") == []
    assert (order.over, order.at("a"), order.at("b")) == (True, 0, 1)


def test_who_is_parked_for_somebody_who_stays_after_all_tries_and_comes_back() -> None:
    order: Residency[int] = Residency(lambda _, models: len(models) <= 1)
    order.served("a", 1)
    order.served("b", 0)
    assert order.aim({"a": 0, "b": 1}) == [Leave("b", 0, 1)]
    assert order.left("b") == [Load("a", 0)]
    assert order.failed("a") == [Load("b", 1)]
    assert order.no_room("b", own=False) is None
    assert order.failed("b") == [Load("b", 0)]
    assert order.loaded("b") == []
    assert (order.over, order.at("a"), order.at("b")) == (True, 1, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.none() | st.integers(0, 3), st.floats(0, 9), st.booleans()),
        min_size=1, max_size=8,
    ),
    st.integers(0, 3),
    st.sampled_from([1, 2, UNLIMITED]),
    st.data(),
)  # fmt: skip
def test_everybody_arrives_or_stays_whatever_ends_first(
    models: list[tuple[int, int | None, float, bool]], spare: int, parallel: int, data: st.DataObject
) -> None:
    """Both layouts fit; in what order loads and drains end is drawn, and whose load fails."""
    names = [f"m{i}" for i in range(len(models))]
    places = {name: a for name, (a, _, _, _) in zip(names, models, strict=True)}
    ends = {name: b for name, (_, b, _, _) in zip(names, models, strict=True)}
    most = max(list(sites.values()).count(site) for site in range(4) for sites in (places, ends))
    targets = {name: site for name, site in ends.items() if site != places[name]}
    costs = {name: cost for name, (_, _, cost, _) in zip(names, models, strict=True)}
    fails = {name for name, (_, _, _, bad) in zip(names, models, strict=True) if bad}
    cluster = Cluster(places, targets, costs, most + spare, fails=fails, parallel=parallel)
    cluster.run(data)
    moves = {name: site for name, site in targets.items() if site is not None}
    if not fails & set(moves):
        assert cluster.serving == ends
    assert {name: site for site, here in cluster.at.items() for name in here} == {
        name: site for name, site in cluster.serving.items() if site is not None
    }
    for name, site in cluster.serving.items():
        assert site == cluster.order.at(name)
        assert site in (places[name], ends[name]) or (site is None and fails), "nobody stays in between"
    if spare >= len(targets):
        assert cluster.parked == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=5), st.data())
def test_the_target_may_change_at_any_time(wishes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Edits come in the midst of whatever goes on, and loads fail; the last edit of each model holds in the
    end, unless a load has failed since: then who has not begun to move stays. Who is to be nowhere is."""
    order: Residency[int] = Residency()
    running: list[Event] = []
    wanted: dict[str, int | None] = {}
    failed: set[str] = set()  # a load has, since it was last wished for

    def do(steps: Sequence[Step[int]]) -> None:
        running.extend(("load" if isinstance(s, Load) else "leave", s.model) for s in steps)

    def event() -> None:
        chosen: Event = data.draw(st.sampled_from(running))
        running.remove(chosen)
        kind, model = chosen
        if kind == "load" and data.draw(st.booleans()):
            failed.update(wanted)  # those that have not begun stay, too
            do(order.failed(model))
        else:
            do(order.loaded(model) if kind == "load" else order.left(model))

    for number, at in wishes:
        wish = {f"m{number}": None if at == 3 else at}
        wanted |= wish
        failed.difference_update(wish)
        do(order.aim(wish))
        if running and data.draw(st.sampled_from([False, True])):
            event()
    while running:
        event()
    assert order.over
    for name, site in wanted.items():
        assert order.at(name) == site or (name in failed and site is not None)
