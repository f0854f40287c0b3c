"""Interpolation in the cost table: exact at the points, between its neighbours elsewhere, monotone always."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.costs import SHAPE, model, table

from muxd.cost.experts import Sparse
from muxd.cost.law import Memory
from muxd.cost.profile import FORMAT, Device, Grid, ModelProfile, Overhead, Profile
from muxd.cost.table import CostTable, Surface, monotone
from muxd.errors import ConfigError

GRID = Grid([100], [1], [0], [[[1.0]]])

axis = st.lists(st.integers(1, 4096), min_size=1, max_size=4, unique=True).map(sorted)
seconds = st.floats(1e-5, 10.0)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    shares = draw(st.lists(st.integers(1, 100), min_size=1, max_size=3, unique=True).map(sorted))
    rows, contexts = draw(axis), draw(axis)
    count = len(shares) * len(rows) * len(contexts)
    flat = draw(st.lists(seconds, min_size=count, max_size=count))
    cells = np.array(flat).reshape(len(shares), len(rows), len(contexts))
    return Grid(shares, rows, contexts, cells.tolist())


@given(grids(), st.data())
def test_more_work_never_costs_less_and_more_share_never_costs_more(grid: Grid, data: st.DataObject) -> None:
    surface = Surface(grid)
    number = st.floats(0, 10_000)
    rows, context = data.draw(number), data.draw(number)
    share = data.draw(st.integers(1, 100))
    here = surface.seconds(rows, context, share)
    slack = 1e-9 * (1 + here)
    assert surface.seconds(rows + data.draw(number), context, share) >= here - slack
    assert surface.seconds(rows, context + data.draw(number), share) >= here - slack
    assert surface.seconds(rows, context, data.draw(st.integers(share, 100))) <= here + slack


@given(grids())
def test_inside_the_grid_a_value_lies_between_its_neighbours(grid: Grid) -> None:
    surface, cells = Surface(grid), monotone(np.array(grid.seconds))
    for i, share in enumerate(grid.shares):
        for j, (low, high) in enumerate(zip(grid.rows, grid.rows[1:], strict=False)):
            middle = surface.seconds((low + high) / 2, grid.contexts[0], share)
            assert middle == pytest.approx((cells[i, j, 0] + cells[i, j + 1, 0]) / 2)


@given(grids())
def test_cleaning_only_ever_lowers_and_is_done_after_once(grid: Grid) -> None:
    cells = np.array(grid.seconds)
    cleaned = monotone(cells)
    assert (cleaned <= cells).all()
    assert np.array_equal(monotone(cleaned), cleaned)


def test_the_points_of_a_monotone_grid_come_back_exactly() -> None:
    grid = Grid([50, 100], [1, 8], [0, 256], [[[2.0, 3.0], [4.0, 6.0]], [[1.0, 2.0], [2.5, 4.0]]])
    surface = Surface(grid)
    for i, share in enumerate(grid.shares):
        for j, rows in enumerate(grid.rows):
            for k, context in enumerate(grid.contexts):
                assert surface.seconds(rows, context, share) == grid.seconds[i][j][k]


def test_beyond_the_grid_the_last_slope_goes_on() -> None:
    surface = Surface(Grid([100], [10, 20], [0], [[[1.0], [1.5]]]))
    assert surface.seconds(40, 0, 100) == pytest.approx(2.5)
    assert surface.seconds(1, 0, 100) == 1.0, "a batch has a floor"


def test_a_gross_outlier_is_lowered_to_the_larger_batch() -> None:
    # 30B, four GPUs, 100 %, batch 64, length 64 of the table that MuxServe ships, in ms.
    surface = Surface(Grid([100], [32, 64, 128], [64], [[[24.0], [230.9], [31.0]]]))
    assert surface.seconds(64, 64, 100) == 31.0


def test_an_unmeasured_model_is_named_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no model 'other'.*only: a.*muxd profile FOLDER --name other"):
        table(a=model()).model("other")


def test_like_gives_a_profile_a_second_name() -> None:
    profile = Profile(FORMAT, Device("hand", 2, [50, 100]), {"a": model(decode=0.02)})
    cost = CostTable(profile, {"copy": "a"})
    assert cost.decode("copy", 4, 100, 100) == cost.decode("a", 4, 100, 100)
    with pytest.raises(ConfigError, match="no model 'b'"):
        CostTable(profile, {"copy": "b"})


def test_the_parts_of_a_batch_are_its_bytes_at_the_speed_of_its_share() -> None:
    memory = Memory(limit=1e9, shares=[50, 100], reached=[4e8, 8e8])
    cost = table(memory=memory, a=ModelProfile(SHAPE, GRID, GRID, weight_bytes=80_000_000, fixed=0.01))
    assert cost.parts("a", 1.0, 0, 100, 4) == (1.0, 0.01, 0.1, 0.0, 80_000_000)
    half = cost.parts("a", 1.0, 1000, 50, 4)
    assert half.weights == pytest.approx(0.2)
    assert half.kv == pytest.approx(1000 * SHAPE.kv_bytes / 4e8)
    assert half.moved == 80_000_000 + 1000 * SHAPE.kv_bytes
    assert table(a=ModelProfile(SHAPE, GRID, GRID, weight_bytes=1)).parts("a", 1.0, 9, 50, 4).moved == 0
    experts = Sparse(8_000_000, 4, 1)
    mixed = table(memory=memory, a=ModelProfile(SHAPE, GRID, GRID, weight_bytes=80_000_000, sparse=experts))
    assert [mixed.parts("a", 1.0, 0, 100, n).moved for n in (1, 2)] == [82_000_000, 83_500_000]


def test_alone_is_prefill_then_one_step_a_token_with_the_daemons_part() -> None:
    extra = Overhead(batch=0.002, token=0.0005, request=0.003)
    cost = table(a=model(prefill=0.001, decode=0.01, overhead=extra))
    assert cost.alone_ttft("a", 100) == pytest.approx(0.1 + 0.003 + 0.0025)
    assert cost.alone("a", 100, 11) == pytest.approx(0.1055 + 10 * 0.0125)
