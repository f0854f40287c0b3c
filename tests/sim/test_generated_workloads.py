"""Synthetic workloads have the rates, gaps and lengths that were asked for."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from muxd.errors import ConfigError
from muxd.sim.generate import Recipe, arrivals, generate, rates
from muxd.sim.lengths import lengths

NINETEEN = [f"llm-{i}" for i in range(19)]


def test_each_model_gets_its_own_rate_also_when_names_sort_otherwise() -> None:
    """MuxServe's generator sorted llm-10 before llm-2 and so gave every model another one's requests."""
    made = generate(Recipe(NINETEEN, rate=400.0, duration=100.0, alpha=1.3, lengths="constant:8,4"))
    counts = Counter(item.model for item in made.items)
    for rank, name in enumerate(NINETEEN, 1):
        expected = 40_000 * rank**-1.3 / sum(i**-1.3 for i in range(1, 20))
        assert abs(counts[name] - expected) < 5 * expected**0.5, name
    assert counts["llm-2"] > 5 * counts["llm-10"]


@given(st.integers(1, 40), st.floats(0.1, 1000), st.floats(0, 3))
def test_rates_add_up_and_fall_by_the_power_law(models: int, total: float, alpha: float) -> None:
    found = rates([f"m{i}" for i in range(models)], total, alpha)
    assert list(found) == [f"m{i}" for i in range(models)]
    values = list(found.values())
    assert sum(values) == pytest.approx(total)
    for rank, (more, less) in enumerate(pairwise(values), 1):
        assert more / less == pytest.approx(((rank + 1) / rank) ** alpha)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gaps_have_their_mean_and_variation(cv: float) -> None:
    times = arrivals(np.random.default_rng(1), 50.0, 4000.0, cv)
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert 0 <= times[0] <= times[-1] < 4000.0
    assert len(times) == pytest.approx(200_000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_bursty_arrivals_do_not_begin_with_a_burst() -> None:
    """The expected number in the first second is the rate, whatever the variation."""
    random = np.random.default_rng(2)
    counts = [len(arrivals(random, 5.0, 1.0, 4.0)) for _ in range(3000)]
    assert np.mean(counts) == pytest.approx(5.0, rel=0.15)


@pytest.mark.parametrize(("name", "mean_in", "mean_out"), [("sharegpt", 161, 338), ("chatlmsys", 100, 261)])
def test_the_data_sets_keep_their_means(name: str, mean_in: int, mean_out: int) -> None:
    ins, outs = lengths(name).draw(np.random.default_rng(3), 200_000)
    assert ins.mean() == pytest.approx(mean_in, rel=0.02)
    assert outs.mean() == pytest.approx(mean_out, rel=0.02)
    assert ins.min() >= 4
    assert outs.max() <= 1024
    assert np.percentile(ins, 99) > 4 * np.median(ins), "a heavy tail"


@settings(max_examples=examples(10))
@given(st.integers(50, 2_400_000), st.floats(0.5, 10))
def test_a_lognormal_has_its_mean_however_long(mean: int, scale: float) -> None:
    ins, outs = lengths(f"lognormal:{mean},500", scale=scale).draw(np.random.default_rng(4), 200_000)
    assert ins.mean() == pytest.approx(mean * scale, rel=0.02, abs=0.5)
    assert outs.mean() == pytest.approx(500 * scale, rel=0.02, abs=0.5)
    assert ins.max() <= max(1024, 4 * mean) * scale + 1


@settings(max_examples=examples(30))
@given(st.integers(1, 500), st.integers(0, 500), st.floats(0.1, 4))
def test_uniform_and_constant_lengths(low: int, more: int, scale: float) -> None:
    ins, outs = lengths(f"uniform:{low}-{low + more},{low}-{low}", scale=scale).draw(
        np.random.default_rng(0), 50
    )
    assert ins.min() >= max(1, round(low * scale))
    assert ins.max() <= max(1, round((low + more) * scale))
    assert set(outs.tolist()) == {max(1, round(low * scale))}
    assert lengths(f"constant:{low},7").draw(np.random.default_rng(0), 2)[0].tolist() == [low, low]


def test_the_same_seed_gives_the_same_and_another_seed_another_workload() -> None:
    recipe = Recipe(["a", "b"], 20.0, 10.0)
    assert generate(recipe) == generate(recipe)
    assert generate(recipe).items != generate(Recipe(["a", "b"], 20.0, 10.0, seed=1)).items
    assert generate(recipe).header["rates"] == rates(["a", "b"], 20.0, 0.9)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe([], 1.0, 1.0), "--models"),
        (Recipe(["a", "a"], 1.0, 1.0), "each once"),
        (Recipe(["a"], 0.0, 1.0), "--rate 0.0"),
        (Recipe(["a"], 1.0, float("inf")), "--duration inf"),
        (Recipe(["a"], 1.0, 1.0, cv=-1.0), "--cv"),
        (Recipe(["a"], 1.0, 1.0, alpha=-1.0), "--alpha"),
        (Recipe(["a"], 1.0, 1.0, lengths="zipf:3"), "not a length distribution"),
        (Recipe(["a"], 1.0, 1.0, cv=101.0), "--cv 101.0: must be above 0 and at most 100"),
        (Recipe(["a"], 1.0, 1.0, seed=-1), "--seed -1"),
        (Recipe(["a"], 1.0, 1.0, length_scale=0.0), "--length-scale 0"),
        (Recipe(["a"], 1e9, 60.0), "6e\\+10 requests in 60 s are more than 20,000,000"),
        (Recipe(["a"], 1.0, 1.0, lengths="lognormal:5000"), "not a length distribution"),
        (Recipe(["a"], 1.0, 1.0, lengths="uniform:9-3,1-2"), "9-3 ends below its beginning"),
        (
            Recipe(["a"], 1.0, 1.0, lengths="lognormal:3,10"),
            "a mean of 3 tokens is not between 4 and 2,500,000",
        ),
        (Recipe(["a"], 1.0, 1.0, lengths="lognormal:1e400,10"), "a mean of inf tokens"),
        (Recipe(["a"], 1.0, 1.0, lengths="constant:0,10"), "0 tokens are not between 1 and 10,000,000"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(recipe: Recipe, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        generate(recipe)
