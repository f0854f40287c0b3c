"""What every ``Costs`` promises, whatever is asked: positive, finite, monotone, and a source."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.costs import model, table
from support.published import linear, published, raw_table

from muxd.cost.analytic import Roofline
from muxd.cost.estimate import Costs, Source
from muxd.cost.peaks import CAPTURED, PEAKS
from muxd.cost.profile import ModelProfile
from muxd.cost.profiled import Profiled
from muxd.cost.table import CostTable
from muxd.errors import ConfigError


def noisy(share: int, batch: int, length: int) -> float:
    """Up to three times too long, here and there missing: the same in every run."""
    dice = (share * 7 + batch * 13 + length * 5) % 11
    return -1 if dice == 0 else linear(share, batch, length) * (3 if dice == 1 else 1)


@pytest.fixture(scope="module")
def implementations(tmp_path_factory: pytest.TempPathFactory) -> list[Costs]:
    folder: Path = tmp_path_factory.mktemp("tables")
    return [
        published(folder, raw_table(noisy, noisy)),
        published(folder, raw_table(model="llama-65b", gpus=8)),
        Profiled(table(a=model(), b=model(decode=0.1))),
        *(Roofline(device) for device in PEAKS),
        Roofline("h200", reach=CAPTURED, dtype="float32"),
    ]


@given(data=st.data())
def test_monotone_positive_and_labelled(implementations: list[Costs], data: st.DataObject) -> None:
    costs = data.draw(st.sampled_from(implementations))
    name = data.draw(st.sampled_from(costs.models()))
    gpus = data.draw(st.sampled_from(costs.degrees(name)))
    ask = data.draw(st.sampled_from([costs.prefill, costs.decode]))
    share, more_share = sorted(data.draw(st.tuples(st.integers(1, 100), st.integers(1, 100))))
    batch, length = data.draw(st.integers(1, 5000)), data.draw(st.integers(1, 100_000))
    more_batch, more_length = data.draw(st.integers(batch, 6000)), data.draw(st.integers(length, 200_000))
    here = ask(name, gpus, share, batch, length)
    slack = 1e-9 * here.seconds
    assert 0 < here.seconds < float("inf")
    assert here.source in get_args(Source)
    assert ask(name, gpus, share, more_batch, length).seconds >= here.seconds - slack
    assert ask(name, gpus, share, batch, more_length).seconds >= here.seconds - slack
    assert ask(name, gpus, more_share, batch, length).seconds <= here.seconds + slack


def test_degrees_and_shares_ascend(implementations: list[Costs]) -> None:
    for costs in implementations:
        for name in costs.models():
            degrees = costs.degrees(name)
            assert degrees == sorted(set(degrees)) != []
            for gpus in degrees:
                shares = costs.shares(name, gpus)
                assert shares == sorted(set(shares)) != []
                assert shares[-1] <= 100


# ---- a measured profile as Costs ----------------------------------------------------------------------


@pytest.fixture
def both() -> tuple[CostTable, Profiled]:
    cost = table(a=model(prefill=0.001, decode=0.01))
    return cost, Profiled(cost)


@given(batch=st.integers(1, 200), length=st.integers(1, 500), share=st.integers(50, 100))
def test_a_profile_answers_what_the_simulator_uses(batch: int, length: int, share: int) -> None:
    cost = table(a=model(prefill=0.001, decode=0.01))
    costs = Profiled(cost)
    assert costs.prefill("a", 1, share, batch, length).seconds == cost.prefill(
        "a", batch * length, 0, share, batch
    )
    assert costs.decode("a", 1, share, batch, length).seconds == cost.decode("a", batch, length, share)


def test_a_profile_says_what_was_measured(both: tuple[CostTable, Profiled]) -> None:
    _, costs = both
    assert costs.prefill("a", 1, 50, 1, 1024).source == "measured"
    assert costs.prefill("a", 1, 50, 1, 1000).source == "interpolated"
    assert costs.decode("a", 1, 100, 2000, 0).source == "extrapolated"
    assert costs.decode("a", 1, 25, 1, 0).source == "extrapolated"
    assert costs.decode("a", 1, 25, 1, 0).seconds == pytest.approx(2 * costs.decode("a", 1, 50, 1, 0).seconds)


def test_several_prompts_are_not_what_was_measured_where_each_costs_extra() -> None:
    grid = model()
    slower = ModelProfile(grid.shape, grid.prefill, grid.decode, chunk_seconds=0.5)
    costs = Profiled(table(a=slower))
    assert costs.prefill("a", 1, 100, 2, 512).seconds == pytest.approx(1.024 + 0.5)
    assert costs.prefill("a", 1, 100, 2, 512).source == "interpolated"


def test_a_computed_profile_stays_a_roofline() -> None:
    grid = model()
    computed = ModelProfile(grid.shape, grid.prefill, grid.decode, measured="roofline of h200")
    assert Profiled(table(a=computed)).decode("a", 1, 100, 1, 0).source == "roofline"


def test_a_profile_has_one_device(both: tuple[CostTable, Profiled]) -> None:
    _, costs = both
    assert costs.degrees("a") == [1]
    with pytest.raises(ConfigError, match=r"a on 2 GPUs, only on 1: a profile is of one device"):
        costs.decode("a", 2, 100, 1, 1)
    with pytest.raises(ConfigError, match=r"no model 'z'.*muxd profile"):
        costs.degrees("z")
