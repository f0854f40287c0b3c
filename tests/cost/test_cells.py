"""Grids with holes and noise become monotone and whole, and say which cell came from where."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.cost.cells import Cells, completed
from muxd.cost.profile import Grid
from muxd.cost.table import Surface
from muxd.errors import ConfigError

NAN = float("nan")
axis = st.lists(st.integers(1, 4096), min_size=1, max_size=4, unique=True).map(sorted)


@st.composite
def measured(draw: st.DrawFn, holes: bool = True) -> Cells:
    """Any noise and any holes, as long as one cell is there."""
    shares = draw(st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True).map(sorted))
    rows, contexts = draw(axis), draw(axis)
    count = len(shares) * len(rows) * len(contexts)
    cell = st.floats(1e-5, 10.0)
    flat = draw(st.lists(cell | st.just(NAN) if holes else cell, min_size=count, max_size=count))
    flat[draw(st.integers(0, count - 1))] = draw(cell)
    return Cells((shares, rows, contexts), np.array(flat).reshape(len(shares), len(rows), len(contexts)), "x")


@given(measured())
def test_filled_cells_are_monotone_and_positive(cells: Cells) -> None:
    seconds = cells.seconds
    assert np.isfinite(seconds).all()
    assert (seconds > 0).all()
    assert (np.diff(seconds, axis=0) <= 0).all(), "a larger share never takes longer"
    assert (np.diff(seconds, axis=1) >= 0).all()
    assert (np.diff(seconds, axis=2) >= 0).all()


@given(measured(), st.data())
def test_estimates_are_monotone_between_and_beyond_the_cells(cells: Cells, data: st.DataObject) -> None:
    number, share = st.floats(0, 20_000), data.draw(st.integers(1, 100))
    rows, context = data.draw(number), data.draw(number)
    here = cells.estimate(rows, context, share).seconds
    slack = 1e-9 * (1 + here)
    assert 0 < here < float("inf")
    assert cells.estimate(rows + data.draw(number), context, share).seconds >= here - slack
    assert cells.estimate(rows, context + data.draw(number), share).seconds >= here - slack
    assert cells.estimate(rows, context, data.draw(st.integers(share, 100))).seconds <= here + slack


@given(measured())
def test_what_was_measured_is_only_ever_lowered_and_says_so(cells: Cells) -> None:
    for (i, j, k), raw in np.ndenumerate(cells.raw):
        estimate = cells.estimate(cells.rows[j], cells.contexts[k], cells.shares[i])
        if np.isnan(raw):
            assert estimate.source in ("interpolated", "extrapolated")
        else:
            assert estimate.seconds <= raw
            assert estimate.source == ("measured" if estimate.seconds == raw else "interpolated")


@given(measured(holes=False), st.data())
def test_without_holes_it_is_the_simulators_surface(cells: Cells, data: st.DataObject) -> None:
    grid = Grid(cells.shares, cells.rows, cells.contexts, cells.raw.tolist())
    rows, context = data.draw(st.floats(0, 9000)), data.draw(st.floats(0, 9000))
    share = data.draw(st.integers(cells.shares[0], 100))
    assert cells.estimate(rows, context, share).seconds == Surface(grid).seconds(rows, context, share)


def small(values: list[list[float]]) -> Cells:
    """Rows 1, 2, 4, 8; contexts 10, 20; one share."""
    return Cells(([100], [1, 2, 4, 8][: len(values)], [10, 20]), np.array([values]), "x")


def test_a_hole_between_cells_lies_on_the_line() -> None:
    cells = small([[1.0, 2.0], [NAN, 3.0], [4.0, 5.0]])
    found = cells.estimate(2, 10, 100)
    assert found.seconds == pytest.approx(2.0)
    assert found.source == "interpolated"


def test_a_hole_at_the_edge_goes_on_with_the_slope() -> None:
    cells = small([[1.0, 1.0], [2.0, 2.0], [4.0, NAN]])
    found = cells.estimate(4, 20, 100)
    assert found.seconds == pytest.approx(4.0)
    assert found.source == "extrapolated"
    assert cells.estimate(3, 20, 100).source == "extrapolated", "half of it is a guess"
    assert cells.estimate(3, 10, 100).source == "interpolated"


def test_beyond_every_axis_is_extrapolated() -> None:
    cells = Cells(([30, 100], [1, 2], [10, 20]), np.array([[[3.0, 3.0]] * 2, [[1.0, 1.0]] * 2]), "x")
    assert [cells.source(*at) for at in [(1, 10, 30), (1.5, 10, 30), (1, 10, 65)]] == [
        "measured", "interpolated", "interpolated",
    ]  # fmt: skip
    for at in [(3, 10, 30), (1, 21, 30), (1, 9, 30), (1, 10, 29)]:
        assert cells.source(*at) == "extrapolated"
    assert cells.estimate(1, 10, 10).seconds == pytest.approx(9.0), (
        "a third of the share, three times as long"
    )


def test_a_hole_never_passes_what_must_cost_more() -> None:
    """At 50 % the larger batch took 3 s: at 100 % it takes no longer, whatever the slope says."""
    raw = np.array([[[1.0], [2.0], [3.0]], [[1.0], [2.0], [NAN]]])
    seconds, _ = completed(raw, [1, 2, 8], [10])
    assert seconds[1, 2, 0] == 3.0


def test_nothing_measured_is_refused_with_the_place() -> None:
    with pytest.raises(ConfigError, match="llama-7b, 2 GPUs: not one cell"):
        Cells(([100], [1], [1]), np.array([[[NAN]]]), "llama-7b, 2 GPUs")
