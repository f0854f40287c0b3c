"""Places on a daemon's devices: everybody once, pins kept, memory kept where it can be."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.placements import COSTS, GB, SIZES, load

from muxd.errors import ConfigError
from muxd.placement import live
from muxd.placement.appraiser import layout_value
from muxd.placement.live import Live, Pinned, Room
from muxd.placement.memory import Budget
from muxd.placement.replan import Policy, decide, propose
from muxd.placement.sets import Sets

QUICK = 30


def taking(sizes: tuple[int, ...], ranks: Mapping[str, int], name: str) -> list[int]:
    """The devices that a model may run on."""
    return [at for at, size in enumerate(sizes) if ranks.get(name, 1) in (1, size)]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Live, dict[str, int]]:
    """1 to 7 models on 1 to 4 devices, some of which are meshes of two; some models are pinned, some cut."""
    devices = draw(st.integers(1, 4))
    sizes = tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(devices))
    models = [
        load(f"m{i}", draw(st.sampled_from(SIZES[:4])), draw(st.floats(0.01, 40)))
        for i in range(draw(st.integers(1, 7)))
    ]
    cut = 2 in sizes and draw(st.booleans())
    ranks = {m.name: 2 for m in models if cut and draw(st.booleans())}
    pins = {
        m.name: draw(st.sampled_from(taking(sizes, ranks, m.name)))
        for m in models
        if draw(st.integers(0, 3)) == 0
    }
    pool = draw(st.sampled_from([4, 20])) * GB
    room = Room(devices, draw(st.sampled_from([60, 160])) * GB, pool, sizes=sizes)
    least = {m.name: draw(st.sampled_from([0, pool // 3])) for m in models}
    try:
        return Live(models, room, COSTS, Budget(), least, ranks), pins
    except ConfigError:
        small = [load(m.name, SIZES[0], m.rate) for m in models]
        large = Room(devices, 400 * GB, pool, sizes=sizes)
        return Live(small, large, COSTS, Budget(), ranks=ranks), pins


def check_ranks(appraiser: Live, places: Mapping[str, int]) -> None:
    for i, model in enumerate(appraiser.problem.models):
        assert appraiser.takes(places[model.name], i)


@settings(max_examples=examples(40))
@given(scenes())
def test_a_start_places_everybody_keeps_pins_and_is_no_worse_than_where_it_began(
    scene: tuple[Live, dict[str, int]],
) -> None:
    appraiser, pins = scene
    found = live.start(appraiser, pins, QUICK)
    assert set(found) == {model.name for model in appraiser.problem.models}
    assert {name: found[name] for name in pins} == pins
    check_ranks(appraiser, found)
    sets = Pinned(appraiser, pins)
    chosen, begun = (live.layout(sets, p) for p in (found, live._spread(appraiser, pins)))
    assert live.places(appraiser.problem, chosen) == found
    fit = all(appraiser.fits(1, mesh.models, mesh.shares) for mesh in begun)
    if fit:
        assert all(appraiser.fits(1, mesh.models, mesh.shares) for mesh in chosen)
        assert layout_value(appraiser, chosen) >= layout_value(appraiser, begun) * (1 - 1e-9)


@settings(max_examples=examples(40))
@given(scenes(), st.data())
def test_a_decision_never_moves_a_pinned_model_nor_a_cut_one_off_its_meshes(
    scene: tuple[Live, dict[str, int]], data: st.DataObject
) -> None:
    appraiser, pins = scene
    hosts = range(appraiser.problem.gpus.hosts)
    now = {
        m.name: pins.get(m.name, data.draw(st.sampled_from([at for at in hosts if appraiser.takes(at, i)])))
        for i, m in enumerate(appraiser.problem.models)
    }
    sets, policy = Pinned(appraiser, pins), Policy(least_gain=0.0, horizon=1e9, steps=QUICK)
    present = live.layout(sets, now)
    if not all(appraiser.fits(1, mesh.models, mesh.shares) for mesh in present):
        return
    proposed = propose(appraiser, present, policy, sets)
    decision = decide(appraiser, present, proposed, policy, 1e9, live.indices(appraiser.problem, pins))
    after = live.places(appraiser.problem, decision.layout)
    check_ranks(appraiser, after)
    check_ranks(appraiser, live.places(appraiser.problem, decision.proposed))
    assert {name: after[name] for name in pins} == pins
    moved = {move.model: move.to_host for move in decision.moves}
    if decision.adopt:
        assert {name: at for name, at in after.items() if at != now[name]} == moved


def test_two_busy_models_begin_on_two_devices() -> None:
    models = [load("a", SIZES[2], 20.0), load("b", SIZES[2], 20.0), load("c", SIZES[0], 0.1)]
    appraiser = Live(models, Room(2, 80 * GB, 20 * GB), COSTS, Budget())
    found = live.start(appraiser, {})
    assert found["a"] != found["b"]
    assert live.start(appraiser, {"a": 1, "b": 1})["b"] == 1


def test_one_model_more_goes_where_it_gains_most_or_fits() -> None:
    models = [load("busy", SIZES[2], 30.0), load("idle", SIZES[2], 0.1), load("new", SIZES[2], 10.0)]
    appraiser = Live(models, Room(2, 80 * GB, 20 * GB), COSTS, Budget())
    assert live.best(appraiser, Sets(appraiser), [(0,), (1,)], 2) == 1
    tight = Live(models, Room(2, 60 * GB, 20 * GB), COSTS, Budget())
    assert live.best(tight, Sets(tight), [(0, 1), ()], 2) == 1


def test_models_that_are_cut_are_spread_and_moved_over_meshes_of_their_size() -> None:
    """Two that are busy share one mesh of two, beside a device that is none: one leaves for the other."""
    models = [load("a", SIZES[2], 25.0), load("b", SIZES[2], 25.0), load("c", SIZES[0], 0.1)]
    room = Room(3, 80 * GB, 20 * GB, sizes=(1, 2, 2))
    appraiser = Live(models, room, COSTS, Budget(), ranks={"a": 2, "b": 2})
    begun = live.start(appraiser, {})
    assert {begun["a"], begun["b"]} == {1, 2}
    seen, policy = live.view(appraiser, {"a": 1, "b": 1, "c": 0}, {}), Policy(steps=QUICK)
    proposed = propose(appraiser, seen.present, policy, seen.sets, seen.pinned)
    decision = decide(appraiser, seen.present, proposed, policy, 1e9, seen.pinned)
    assert decision.adopt
    assert [move.to_host for move in decision.moves if move.model in "ab"] == [2]
