"""The optimum against plain enumeration, and the parts it is made of."""

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from support.examples import examples
from support.placements import COSTS, GB, load, problems

from muxd.errors import ConfigError
from muxd.placement.appraiser import layout_value
from muxd.placement.curves import MOST, Curves
from muxd.placement.estimator import Estimator
from muxd.placement.exact import TooLarge, optimum
from muxd.placement.meshes import count, divisions, groups, meshes
from muxd.placement.problem import Gpus, Mesh, Problem, check_layout
from muxd.placement.sets import Sets
from muxd.placement.spatial import spatial


def every_layout(problem: Problem) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Mesh sizes and models, in every way."""
    hosts = [divisions(problem.gpus.per_host)] * problem.gpus.hosts
    for chosen in product(*hosts):
        sizes = [size for division in chosen for size in division]
        for places in product(range(len(sizes)), repeat=len(problem.models)):
            yield [
                (size, tuple(m for m, place in enumerate(places) if place == i))
                for i, size in enumerate(sizes)
            ]


@settings(max_examples=examples(15))
@given(problems(most=4))
def test_the_optimum_is_what_enumeration_finds(problem: Problem) -> None:
    try:
        sets = Sets(Estimator(problem, COSTS))
    except ConfigError:
        return
    best = None
    for layout in every_layout(problem):
        found = [sets.worth(size, models) for size, models in layout]
        if all(worth is not None for worth in found):
            total = sum(worth[0] for worth in found if worth is not None)
            best = total if best is None else max(best, total)
    if best is None:
        with pytest.raises(ConfigError):
            optimum(sets)
        return
    found_layout = optimum(sets)
    check_layout(problem, found_layout)
    assert layout_value(sets.appraiser, found_layout) == pytest.approx(best)


def test_what_is_too_large_is_refused() -> None:
    many = tuple(load(f"m{i}", "llama-3.2-1b", 1.0) for i in range(17))
    with pytest.raises(TooLarge, match="17 models"):
        optimum(Sets(Estimator(Problem(many, Gpus("A100", 80 * GB, 8)), COSTS)))
    odd = Problem(many[:2], Gpus("A100", 80 * GB, 6))
    with pytest.raises(TooLarge, match="6 devices"):
        optimum(Sets(Estimator(odd, COSTS)))
    few = Problem(many[:6], Gpus("A100", 80 * GB, 8))
    with pytest.raises(TooLarge, match="more than 10 sets"):
        optimum(Sets(Estimator(few, COSTS)), limit=10)


def test_the_released_codes_lists_of_divisions() -> None:
    assert [len(divisions(n)) for n in (8, 6, 4, 2, 1)] == [10, 6, 4, 2, 1]
    assert count(Gpus("A100", 1, 8, 4)) == 715
    assert len(list(groups(Gpus("A100", 1, 8, 4), least=1, models=1000))) == 715


def test_many_hosts_are_divided_in_blocks() -> None:
    found = list(groups(Gpus("A100", 1, 8, 64), least=1, models=1000, limit=1000))
    assert len(found) <= 1000
    assert all(len(meshes(group)) and len(group) == 64 for group in found)


def test_a_curve_gives_the_least_batch_that_meets_the_rate() -> None:
    curve = Curves(COSTS).get("llama-3-8b", 1, 50, 161, 337, 100)
    for rate in (0.01, 0.5, 3.0, 11.0):
        batch = curve.needed(rate, 0.2, 337)
        lacking = rate * (0.2 + 337 * curve.at(batch)[1]) - batch
        assert lacking == pytest.approx(0, abs=1e-6) if 1 < batch < MOST else batch == 1 and lacking <= 0
    assert curve.needed(1e9, 0.2, 337) == MOST
    assert curve.at(MOST)[1] == pytest.approx(curve.decode[-1])


def test_decodes_together_have_no_more_than_the_memorys_bandwidth() -> None:
    """By each model's own bytes, whatever part of the time it decodes."""
    models = tuple(load(f"m{i}", "llama-3-8b", 50.0) for i in range(4))
    appraiser = Estimator(Problem(models, Gpus("A100", 88 * GB, 1)), COSTS)
    alone = appraiser.load(1, (0,), (100,))
    four = appraiser.load(1, (0, 1, 2, 3), (25,) * 4)
    assert alone.stretch == 1
    assert four.stretch > 1
    speeds = [appraiser._curve(models[0], 1, 25, 75).at(b)[2] for b in four.batches]
    assert COSTS.memory is not None
    assert sum(speeds) / four.stretch <= COSTS.memory.limit * 1.001


def test_spatial_needs_a_device_for_each_model() -> None:
    models = tuple(load(f"m{i}", "llama-3.2-1b", 1.0 + i) for i in range(5))
    with pytest.raises(ConfigError, match="5 models need devices of their own, 4 are not enough"):
        spatial(Estimator(Problem(models, Gpus("A100", 80 * GB, 4)), COSTS))
    found = spatial(Estimator(Problem(models[:3], Gpus("A100", 80 * GB, 4)), COSTS))
    assert sorted(m for mesh in found for m in mesh.models) == [0, 1, 2]
    assert sum(mesh.gpus for mesh in found) <= 4


def test_a_layout_that_is_none_is_noticed() -> None:
    problem = Problem((load("a", "llama-3.2-1b", 1.0),), Gpus("A100", 80 * GB, 2))
    for wrong in (
        (),
        (Mesh(0, 1, (0,), (50,)), Mesh(0, 1, (0,), (50,))),
        (Mesh(0, 4, (0,), (50,)),),
        (Mesh(1, 1, (0,), (50,)),),
        (Mesh(0, 1, (0,), (0,)),),
    ):
        with pytest.raises(ValueError, match=r"placed|devices|shares"):
            check_layout(problem, wrong)
