"""Replanning: gains must beat moves, and noise moves nothing."""

from collections.abc import Mapping
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.placements import COSTS, GB, QUICK, load, problems

from muxd.errors import ConfigError
from muxd.placement.appraiser import canonical, layout_value
from muxd.placement.estimator import Estimator
from muxd.placement.planner import finished, layout_of
from muxd.placement.problem import Gpus, Layout, Mesh, Problem, check_layout
from muxd.placement.rates import Rates
from muxd.placement.replan import Policy, decide, kept, moves, propose, with_rates
from muxd.placement.replan import layout_of as layout_of_plan
from muxd.placement.replanner import Replanner, View, Watch

POLICY = Policy(steps=50)


def crowd() -> Problem:
    """Six models on four devices: two are asked for much more than the others."""
    rates = (30.0, 25.0, 1.0, 1.0, 0.5, 0.5)
    models = tuple(load(f"m{i}", "llama-3-8b", rate) for i, rate in enumerate(rates))
    return Problem(models, Gpus("A100", 80 * GB, 2, 2))


def tangled() -> Layout:
    """Both popular models on one device."""
    return (
        Mesh(0, 1, (0, 1), (50, 50)),
        Mesh(0, 1, (2,), (50,)),
        Mesh(1, 1, (3, 4), (50, 50)),
        Mesh(1, 1, (5,), (50,)),
    )


def test_a_gain_that_beats_its_moves_is_adopted_once() -> None:
    appraiser = Estimator(crowd(), COSTS)
    proposed = propose(appraiser, tangled(), POLICY)
    first = decide(appraiser, tangled(), proposed, POLICY, since_adoption=1e9)
    assert first.adopt
    assert first.reason == "adopt"
    assert first.moves
    assert first.gain * POLICY.horizon > first.cost > 0
    check_layout(appraiser.problem, first.layout)
    again = decide(appraiser, first.layout, proposed, POLICY, since_adoption=1e9)
    assert (again.adopt, again.reason, again.moves) == (False, "same", ())


@pytest.mark.parametrize(
    ("change", "since", "reason"),
    [
        ({}, 10.0, "cooldown"),
        ({"least_gain": 10.0}, 1e9, "small gain"),
        ({"horizon": 1e-3}, 1e9, "moves cost more"),
    ],
)
def test_what_keeps_a_better_plan_from_adoption_is_said(
    change: dict[str, float], since: float, reason: str
) -> None:
    appraiser, policy = Estimator(crowd(), COSTS), msgspec.structs.replace(POLICY, **change)
    decision = decide(appraiser, tangled(), propose(appraiser, tangled(), POLICY), policy, since)
    assert (decision.adopt, decision.reason, decision.moves) == (False, reason, ())
    assert layout_value(appraiser, decision.layout) == pytest.approx(layout_value(appraiser, tangled()))


def test_renamed_hosts_and_meshes_are_no_moves() -> None:
    problem = crowd()
    mirrored = tuple(msgspec.structs.replace(mesh, host=1 - mesh.host) for mesh in reversed(tangled()))
    decision = decide(Estimator(problem, COSTS), tangled(), mirrored, POLICY, 1e9)
    assert decision.reason == "same"
    assert moves(problem, tangled(), decision.layout, POLICY) == ()


def test_only_models_that_leave_their_mesh_move() -> None:
    problem = crowd()
    after = (
        Mesh(0, 1, (0,), (90,)),
        Mesh(0, 1, (1, 2), (60, 40)),
        Mesh(1, 1, (3, 4), (50, 50)),
        Mesh(1, 1, (5,), (50,)),
    )
    found = moves(problem, tangled(), after, POLICY)
    assert [move.model for move in found] == ["m1"]
    assert found[0].seconds == pytest.approx(5 + problem.models[1].weights / 2e9, rel=1e-6)
    assert len(set(kept(problem, tangled(), after).values())) == 4


def test_a_present_layout_that_no_longer_fits_is_left_at_once() -> None:
    problem = Problem(crowd().models, Gpus("A100", 40 * GB, 2, 2))
    appraiser = Estimator(problem, COSTS)
    crowded = (
        Mesh(0, 1, (0, 1, 2), (30, 30, 30)),
        Mesh(0, 1),
        Mesh(1, 1, (3,), (50,)),
        Mesh(1, 1, (4, 5), (50, 50)),
    )
    assert not appraiser.fits(1, (0, 1, 2), (30, 30, 30))
    with pytest.raises(ConfigError, match="plan anew"):
        propose(appraiser, crowded, POLICY)
    decision = decide(appraiser, crowded, layout_of("ours", appraiser, QUICK), POLICY, since_adoption=0.0)
    assert decision.adopt
    assert decide(appraiser, decision.layout, crowded, POLICY, 1e9).reason == "does not fit"


@settings(max_examples=examples(15))
@given(problems(most=5), st.lists(st.floats(0.1, 8), min_size=2, max_size=6), st.integers(0, 200))
def test_moves_are_bounded_by_cooldown_gain_and_cost(
    problem: Problem, factors: list[float], period: int
) -> None:
    """Rates that jump every ``period`` seconds: each adoption keeps every promise of the policy."""
    try:
        present = layout_of("ours", Estimator(problem, COSTS), QUICK)
    except ConfigError:
        return
    names, adopted, now = [m.name for m in problem.models], [-1e9], 0.0
    for i, factor in enumerate(factors):
        now += period
        rates = {
            name: problem.models[k].rate * (factor if (i + k) % 2 else 1) for k, name in enumerate(names)
        }
        appraiser = Estimator(with_rates(problem, rates), COSTS)
        decision = decide(appraiser, present, propose(appraiser, present, POLICY), POLICY, now - adopted[-1])
        if decision.adopt:
            changed = [mesh for mesh in present if mesh not in decision.layout]
            assert decision.moves
            assert decision.gain >= POLICY.least_gain * layout_value(appraiser, changed) * (1 - 1e-9)
            assert decision.gain * POLICY.horizon > decision.cost
        if decision.moves:
            adopted.append(now)
        present = decision.layout
        check_layout(problem, present)
    assert all(b - a >= POLICY.cooldown for a, b in pairwise(adopted))


@settings(max_examples=examples(10))
@given(problems(most=5), st.lists(st.floats(0.99, 1.01), min_size=1, max_size=4))
def test_noise_within_the_hysteresis_moves_nothing_after_an_adoption(
    problem: Problem, noise: list[float]
) -> None:
    """All rates one percent up or down change no layout's worth by five percent against another's."""
    try:
        appraiser = Estimator(problem, COSTS)
        present = layout_of("ours", appraiser, QUICK)
    except ConfigError:
        return
    proposed = propose(appraiser, present, POLICY)
    settled = decide(appraiser, present, proposed, POLICY, 1e9).layout
    for factor in noise:
        rates = {model.name: model.rate * factor for model in problem.models}
        noisy = Estimator(with_rates(problem, rates), COSTS)
        assert not decide(noisy, settled, proposed, POLICY, 1e9).adopt


def pairs(*hot: int) -> tuple[Problem, Layout]:
    """Eight 14B models, two on each of four devices, no device with room for a third."""
    rates = [6.5 if i in hot else 0.5 for i in range(8)]
    models = tuple(load(f"m{i}", "qwen2.5-14b", rate, 100, 261) for i, rate in enumerate(rates))
    layout = canonical(Mesh(0, 1, (2 * i, 2 * i + 1), (50, 50)) for i in range(4))
    return Problem(models, Gpus("A100", 80 * GB, 4)), layout


def test_what_is_proposed_moves_only_whom_it_must() -> None:
    """The popular models sit together: one of them changes places with a quiet one, nobody else moves."""
    problem, present = pairs(0, 1)
    appraiser = Estimator(problem, COSTS)
    decision = decide(appraiser, present, propose(appraiser, present, POLICY), POLICY, 1e9)
    hot, *rest = sorted(decision.moves, key=lambda move: -move.lost)
    assert hot.model in ("m0", "m1")
    assert [move.lost < 20 for move in rest] == [True]


def test_other_shares_alone_are_no_other_plan() -> None:
    """They follow who is there: a layout that differs in nothing else is the present one."""
    problem, equal = pairs(1, 3)
    present = canonical(msgspec.structs.replace(mesh, shares=(100, 100)) for mesh in equal)
    decision = decide(Estimator(problem, COSTS), present, equal, POLICY, 1e9)
    assert (decision.adopt, decision.reason, decision.moves, decision.cost) == (False, "same", (), 0.0)


def test_a_replanner_sees_a_change_at_the_next_look_and_moves_once() -> None:
    """Popular are m0 and m2, then m0 and m1, who share a device."""
    problem, present = pairs(0, 2)
    measured = Rates({model.name: model.rate for model in problem.models}, Watch().memory)
    planner, moved = Replanner(POLICY), []

    def view(wanted: Mapping[str, float]) -> View:
        return View(Estimator(with_rates(problem, wanted), COSTS), present)

    for step in range(1, 41):
        for model, count in {"m0": 30, "m1" if step > 20 else "m2": 30}.items():
            for _ in range(count):
                measured.arrived(model)
        made = planner.look(measured.look(5.0 * step), view, 5.0 * step)
        if made.moves:
            planner.moved(5.0 * step)
            moved.append((step, {move.model for move in made.moves}))
        present = made.layout
    ((step, names),) = moved
    assert step in (21, 22)
    assert len(names) == 2
    assert measured.look(200.0)["m1"] == pytest.approx(6.0, rel=0.01)


def test_rates_of_unknown_models_are_refused_and_silence_keeps_a_model_ready() -> None:
    problem = crowd()
    with pytest.raises(ConfigError, match="not placed: other"):
        with_rates(problem, {"other": 1.0})
    assert with_rates(problem, {"m0": 0.0}).models[0].rate == 1e-3
    assert with_rates(problem, {"m0": 2.0}).models[1].rate == 25.0


def test_a_plan_gives_its_layout_back() -> None:
    appraiser = Estimator(crowd(), COSTS)
    layout = layout_of("greedy", appraiser, QUICK)
    assert layout_of_plan(finished("greedy", appraiser, layout), appraiser.problem) == layout
