"""Who wakes and who sleeps: memory is never promised twice, nobody waits for ever, and nobody is sent away
for nothing."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from muxd.placement.wakes import BOUND, Wakes
from muxd.placement.waking import (
    Model,
    Rules,
    Shift,
    Standing,
    decide,
    next_look,
    residents,
    stated_seconds,
    wake_seconds,
)

GPU = Rules({"gpu": 10}, host=100, start=0.1, host_rate=100.0, disk_rate=10.0, least=2.0, patience=5.0)


def model(name: str, size: int = 4, **more: object) -> Standing:
    return Standing(name, size, size, ("gpu",), **more)  # type: ignore[arg-type]


def there(name: str, size: int = 4, **more: object) -> Standing:
    return model(name, size, **{"site": "gpu", "since": 0.0, "used": 0.0, **more})


def asked(name: str, size: int = 4, since: float = 0.0) -> Standing:
    return model(name, size, waiting=1, oldest=since, used=since)


def test_where_there_is_room_nobody_leaves() -> None:
    assert decide([there("a"), asked("b")], GPU, 10.0) == Shift({"b": "gpu"})


def test_the_one_whose_absence_costs_least_leaves() -> None:
    models = [
        there("often", rate=5.0, used=9.9),
        there("seldom", rate=0.1, used=5.0),
        asked("new", since=9.9),
    ]
    assert decide(models, GPU, 10.0) == Shift({"new": "gpu"}, ["seldom"])


def test_a_single_large_one_leaves_instead_of_several_that_were_found_first() -> None:
    models = [there("small", 2, rate=0.1, used=1.0), there("large", 8, rate=1.0, used=9.0), asked("new", 8)]
    assert decide(models, GPU, 10.0) == Shift({"new": "gpu"}, ["large"])


def test_who_is_busy_stays_until_somebody_has_waited() -> None:
    models = [there("a", running=2), there("b", running=1, rate=9.0, used=10.0), asked("c", since=8.0)]
    assert decide(models, GPU, 10.0) == Shift()
    assert decide(models, GPU, 13.0) == Shift({"c": "gpu"}, ["a"])


def test_who_has_just_come_stays_for_a_while() -> None:
    models = [there("a", 8, since=9.0), asked("b")]
    assert decide(models, GPU, 10.0) == Shift()
    assert next_look(models, GPU, 10.0) == 11.0
    assert decide(models, GPU, 11.0) == Shift({"b": "gpu"}, ["a"])


def test_who_waits_longer_is_not_sent_away_for_who_waits_less() -> None:
    models = [there("a", 8, waiting=3, oldest=1.0), asked("b", since=2.0)]
    assert decide(models, GPU, 30.0) == Shift()


def test_a_place_that_is_being_left_is_given_away_once() -> None:
    leaving = there("a", 8, settled=False, leaving=True)
    coming = model("b", 8, site="gpu", settled=False)
    assert decide([leaving, coming, asked("c", 4)], GPU, 10.0) == Shift()
    assert decide([leaving, coming, asked("c", 2)], GPU, 10.0) == Shift({"c": "gpu"})


def test_pinned_models_stay_and_the_one_asked_longest_is_first() -> None:
    models = [there("a", 4, keep=True), asked("young", 6, since=5.0), asked("old", 6, since=4.0)]
    assert decide(models, GPU, 10.0) == Shift({"old": "gpu"})


def test_host_memory_keeps_those_whose_waking_saves_most() -> None:
    rules = replace(GPU, host=4)
    sleeping = model("quiet", asleep=True, rate=0.01, used=0.0)
    models = [there("a", 8, rate=0.1, used=5.0), sleeping, asked("b", 8)]
    assert decide(models, rules, 10.0) == Shift({"b": "gpu"}, ["a"], ["a"]), "a does not fit, quiet does"
    models = [there("a", 4, rate=9.0, used=9.0), there("c", 4, keep=True), sleeping, asked("b", 4)]
    assert decide(models, rules, 10.0) == Shift({"b": "gpu"}, ["a"], ["quiet"])


def test_where_memory_is_shared_what_sleeps_makes_room_for_who_wakes() -> None:
    rules = replace(GPU, host=100, shared=12)
    models = [there("a", 8, rate=0.1, used=5.0), model("old", asleep=True, rate=9.0), asked("b", 8)]
    assert decide(models, rules, 10.0) == Shift({"b": "gpu"}, ["a"], ["a"]), "four are left: old's"
    crowded = replace(GPU, shared=7)
    assert decide([there("a", 4, used=5.0), asked("b", 4)], crowded, 10.0) == Shift(
        {"b": "gpu"}, ["a"], ["a"]
    )
    assert residents([Model("a", 4, 4, ("gpu",)), Model("b", 4, 4, ("gpu",))], crowded) == {"a": "gpu"}


def test_who_finds_no_room_whoever_leaves_is_named() -> None:
    assert decide([asked("large", 11)], GPU, 10.0) == Shift(hopeless=["large"])
    models = [there("stays", 8, keep=True), there("a", 2, running=1), asked("b", 4)]
    assert decide(models, GPU, 10.0) == Shift(hopeless=["b"])
    assert decide([there("a", 8, running=1), asked("b", 4, since=9.0)], GPU, 10.0) == Shift(), "it waits"
    assert decide([asked("b", 4)], replace(GPU, shared=3), 10.0) == Shift(hopeless=["b"])
    models = [there("stays", 2, keep=True), asked("b", 2)]
    assert decide(models, replace(GPU, kind="one"), 10.0) == Shift(hopeless=["b"])


def test_one_at_a_time_and_least_recently_used() -> None:
    models = [there("a", 2, rate=9.0, used=3.0), there("b", 8, rate=0.1, used=4.0), asked("c", 2)]
    assert decide(models, replace(GPU, kind="lru"), 10.0) == Shift({"c": "gpu"}, ["a"])
    assert set(decide(models, replace(GPU, kind="one"), 10.0).sleep) == {"a", "b"}


def test_who_has_nothing_to_do_sleeps_after_a_while() -> None:
    rules = replace(GPU, idle=30.0)
    models = [there("a", used=1.0), there("b", used=20.0)]
    assert next_look(models, rules, 20.0) == 31.0
    assert decide(models, rules, 31.0).sleep == ["a"]


def test_who_is_seen_to_wake_slowly_stays_and_stays_longer() -> None:
    slow, quick = Wakes(parked=1.0, cold=3.0), Wakes(parked=0.1, cold=0.2)
    models = [there("slow", rate=0.1, used=9.0, wakes=slow), there("quick", rate=0.2, used=9.0, wakes=quick)]
    assert decide([*models, asked("new", since=9.9)], GPU, 10.0).sleep == ["quick"], (
        "0.02 s a second, not 0.1"
    )
    plain = [replace(one, wakes=Wakes()) for one in models]
    assert decide([*plain, asked("new", since=9.9)], GPU, 10.0).sleep == ["slow"]
    models = [there("a", 8, since=8.0, wakes=Wakes(parked=0.8)), asked("b", since=8.0)]
    assert next_look(models, GPU, 10.0) == 8.0 + 4 * 0.8
    assert decide(models, GPU, 11.0) == Shift()
    assert decide(models, GPU, 8.0 + 4 * 0.8).sleep == ["a"]


def test_host_memory_is_for_whom_it_is_seen_to_save_most() -> None:
    rules = replace(GPU, host=4)
    near, far = Wakes(parked=0.2, cold=0.3), Wakes(parked=0.2, cold=2.0)
    near_one = model("near", asleep=True, rate=0.2, used=9.0, wakes=near)
    models = [there("far", 8, rate=0.1, used=9.0, wakes=far), near_one, asked("b", 8)]
    models[0] = replace(models[0], weights=4)
    assert decide(models, rules, 10.0) == Shift({"b": "gpu"}, ["far"], ["near"])
    models[0] = replace(models[0], parks=False)
    assert decide(models, rules, 10.0) == Shift({"b": "gpu"}, ["far"], ["far"]), "it cannot"


def test_who_cannot_sleep_in_host_memory_is_as_dear_as_its_wake_from_disk() -> None:
    models = [
        there("host", rate=0.2, used=9.0),
        there("disk", rate=0.1, used=9.0, parks=False),
        asked("new", since=9.9),
    ]
    assert decide(models, GPU, 10.0).sleep == ["host"]


def test_a_site_takes_so_many_models_however_small_they_are() -> None:
    rules = replace(GPU, most={"gpu": 2})
    here = [there("often", 1, rate=5.0, used=9.9), there("seldom", 1, rate=0.1, used=5.0)]
    assert decide([*here, asked("new", 1, since=9.9)], rules, 10.0) == Shift({"new": "gpu"}, ["seldom"])
    assert decide([here[0], asked("new", 1, since=9.9)], rules, 10.0) == Shift({"new": "gpu"})
    kept = [replace(one, keep=True) for one in here]
    assert decide([*kept, asked("new", 1, since=9.9)], rules, 10.0) == Shift(hopeless=["new"])
    # The large one must go for its memory, and nobody else for a place.
    models = [*here[:1], there("large", 9, rate=9.0, used=9.9), asked("new", 9, since=9.9)]
    assert decide(models, rules, 10.0) == Shift({"new": "gpu"}, ["large"])


def test_who_is_there_from_the_start_is_no_more_than_a_site_takes() -> None:
    models = [Model(name, 1, 1, ("gpu",)) for name in "abc"]
    assert residents(models, replace(GPU, most={"gpu": 2})) == {"a": "gpu", "b": "gpu"}
    models[2] = replace(models[2], keep=True)
    assert residents([models[2], *models[:2]], replace(GPU, most={"gpu": 2})) == {"c": "gpu", "a": "gpu"}


learnt = st.builds(Wakes, *[st.just(0.0) | st.floats(0, 1e9)] * 2)
kinds = st.sampled_from(["worth", "lru", "one"])
sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(0, 20)), min_size=1, max_size=8)


@given(
    sizes,
    kinds,
    st.integers(0, 12),
    st.lists(learnt, min_size=8, max_size=8),
    st.booleans(),
    st.integers(1, 4),
)
def test_neither_memory_nor_places_are_promised_twice(
    drawn: list[tuple[int, int, int]], kind: str, host: int, wakes: list[Wakes], parks: bool, most: int
) -> None:
    rules = Rules({"x": 10, "y": 7}, host=host, kind=kind, most={"x": most})  # type: ignore[arg-type]
    models, free, left, places = [], dict(rules.memory), host, {"x": most, "y": 8}
    for i, (size, place, age) in enumerate(drawn):
        one = Standing(f"m{i}", size, size, ("x", "y"), rate=age / 7, used=float(age), wakes=wakes[i])
        one = replace(one, parks=parks or i % 2 == 0)
        site = ("x", "y", "")[place]
        if site and free[site] >= size and places[site]:
            free[site] -= size
            places[site] -= 1
            one = replace(one, site=site, since=0.0, running=age % 3)
        elif age % 2:
            one = replace(one, waiting=1, oldest=float(age))
        elif left >= size:
            left -= size
            one = replace(one, asleep=True)
        models.append(one)
    found = decide(models, rules, 30.0)
    by_name = {one.name: one for one in models}
    for name in found.sleep:
        free[by_name[name].site] += by_name[name].size
        places[by_name[name].site] += 1
    for name, site in found.wake.items():
        assert by_name[name].waiting
        assert not by_name[name].site
        free[site] -= by_name[name].size
        places[site] -= 1
    assert min(free.values()) >= 0
    assert min(places.values()) >= 0
    asleep = {one.name for one in models if one.asleep} - found.wake.keys()
    kept = (asleep | set(found.sleep)) - set(found.drop)
    assert sum(by_name[name].weights for name in kept) <= host


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 3)), max_size=60),
    kinds,
    st.lists(learnt, min_size=6, max_size=6),
)
def test_everybody_is_served_in_the_end_and_soon(
    asks: list[tuple[int, float]], kind: str, wakes: list[Wakes]
) -> None:
    """Six models of 4 bytes, room for two; an answer takes a second, a wake half a second. Nobody waits
    longer than all the others together may stay, whoever comes and whatever was learnt; and nobody is sent
    away before it has paid for what its wake is believed to take."""
    rules = replace(GPU, kind=kind)
    at, arrivals = 0.0, []
    for number, gap in asks:
        at += gap
        arrivals.append((at, f"m{number}"))
    models = {f"m{i}": model(f"m{i}", wakes=wakes[i]) for i in range(6)}
    coming: dict[str, float] = {}
    queue: dict[str, list[float]] = {name: [] for name in models}
    now, worst = 0.0, 0.0
    while arrivals or any(queue.values()):
        for name in [name for name, when in coming.items() if when <= now]:
            del coming[name]
            models[name] = replace(models[name], settled=True, since=now)
        while arrivals and arrivals[0][0] <= now:
            when, name = arrivals.pop(0)
            queue[name].append(when)
        for name, one in models.items():
            waits = queue[name]
            if one.site and one.settled and waits:
                worst = max(worst, now - waits.pop(0))
                models[name] = one = replace(one, used=now)
            models[name] = replace(one, waiting=len(waits), oldest=min(waits, default=inf))
        found = decide(models.values(), rules, now)
        for name in found.sleep:
            paid = max(rules.least, 4 * wake_seconds(models[name], rules, asleep=True))
            assert now >= models[name].since + paid
            models[name] = replace(models[name], site="", asleep=name not in found.drop)
        for name, site in found.wake.items():
            models[name] = replace(models[name], site=site, asleep=False, settled=False)
            coming[name] = now + 0.5
        now += 0.25
        assert now < 1000
    stay = max(GPU.least, 4 * BOUND * stated_seconds(4, GPU, asleep=True))
    assert worst <= 6 * (GPU.patience + stay + 1.0) + 0.25 * len(asks)
