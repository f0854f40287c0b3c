"""The law of a device: no more bytes than it has, nobody faster than alone; by hand where that is simple."""

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muxd.cost.fit import fitted, predicted
from muxd.cost.law import Memory, Parts, factors, parts, stretch
from muxd.cost.profile import FORMAT, Beside, Device, Grid, ModelProfile, Profile, Shape

seconds = st.floats(1e-5, 10.0)


@st.composite
def batches(draw: st.DrawFn) -> Parts:
    weights, kv = draw(st.floats(0, 1e11)), draw(st.floats(0, 1e10))
    return parts(draw(seconds), draw(st.floats(0, 0.1)), weights, kv, draw(st.floats(1e8, 5e12)))


def seconds_at(one: Parts, x: float) -> float:
    """The law, as ``muxd.cost.law`` tells it."""
    return max(one.seconds - one.kv, one.fixed + one.weights * x) + one.kv * x


@given(batches())
def test_alone_a_batch_takes_its_seconds(one: Parts) -> None:
    assert seconds_at(one, 1.0) == pytest.approx(one.seconds)
    assert one.fixed >= 0
    assert one.fixed + one.weights + one.kv <= one.seconds * (1 + 1e-9)


NEXT_TO_NOTHING = parts(1.0, 0.0, 0.0, 5e-324, 1e8)
BUSY = parts(1.0, 0.0, 0.0, 1_000_001.0, 1e8)


@given(st.lists(batches(), min_size=1, max_size=10), st.floats(1e6, 1e13), st.floats(1.0, 3.0))
@example([NEXT_TO_NOTHING, BUSY], 1e6, 1.0)
def test_together_they_move_no_more_than_the_limit_and_no_less(
    running: list[Parts], limit: float, crowd: float
) -> None:
    x = stretch(running, limit, crowd)
    speed = sum(one.moved / (crowd * seconds_at(one, x)) for one in running)
    assert speed <= limit * (1 + 1e-6)
    if x > 1.0:
        assert speed == pytest.approx(limit, rel=1e-6)


@given(st.lists(batches(), min_size=1, max_size=6), batches(), st.floats(1e6, 1e13))
@example([NEXT_TO_NOTHING], BUSY, 1e6)
def test_a_neighbour_more_makes_nobody_faster(running: list[Parts], more: Parts, limit: float) -> None:
    memory = Memory(limit, [100], [limit])
    before, after = factors(running, memory), factors([*running, more], memory)
    assert all(b >= a * (1 - 1e-6) >= 1 - 2e-6 for a, b in zip(before, after[:-1], strict=True))


def test_two_batches_of_nothing_but_reading_share_what_there_is() -> None:
    one = parts(0.01, 0.0, 8e9, 2e9, 1e12)
    assert factors([one, one], Memory(1e12, [100], [1e12])) == pytest.approx([2.0, 2.0])
    assert factors([one, one], Memory(2e12, [100], [1e12])) == [1.0, 1.0]


def test_arithmetic_hides_weights_that_come_slowly() -> None:
    """A prefill of a second reads for a tenth of it: beside a step that wants all of memory it is not slowed,
    and the step gets what is left."""
    prefill, step = parts(1.0, 0.0, 1e11, 0.0, 1e12), parts(0.01, 0.0, 1e10, 0.0, 1e12)
    slowed = factors([prefill, step], Memory(1e12, [100], [1e12]))
    assert slowed[0] == pytest.approx(1.0)
    assert slowed[1] == pytest.approx(1 / 0.9)


def test_what_is_fixed_is_not_stretched() -> None:
    one = parts(0.03, 0.01, 2e10, 0.0, 1e12)
    assert factors([one, one], Memory(1e12, [100], [1e12])) == pytest.approx([4e10 / 1e12 / 0.03] * 2)


def test_shares_that_are_booked_twice_are_divided() -> None:
    one = parts(0.01, 0.0, 1e9, 0.0, 1e12)
    assert factors([one, one], None, 1.5) == [1.5, 1.5]
    assert factors([one, one], Memory(inf, [100], [1e12]), 1.5) == [1.5, 1.5]


def test_memory_between_measured_shares_is_on_the_line() -> None:
    memory = Memory(9.0, [25, 50, 100], [2.0, 4.0, 6.0])
    assert [memory.alone(share) for share in (1, 25, 30, 50, 75, 100)] == pytest.approx([2, 2, 2.4, 4, 5, 6])
    assert Memory(9.0, [50], [3.0]).alone(70) == 3.0


def _profile(limit: float, weights: float, fixed: float) -> ModelProfile:
    """What would be measured of a device that obeys the law exactly."""
    shape, read = Shape(2, 1, 64, 4096, "bfloat16"), 4 * 128
    reached = {50: 6e9, 100: 8e9}
    memory = Memory(limit, [50, 100], list(reached.values()))
    grid = Grid([50, 100], [1], [0], [[[fixed + weights / speed]] for speed in reached.values()])
    step = fixed + (weights + shape.kv_bytes * read) / 6e9
    decode, prefill = (
        parts(step, fixed, weights, shape.kv_bytes * read, 6e9),
        parts(1.0, fixed, weights, 0, 6e9),
    )
    beside = [
        one.seconds * factors([one, other], memory)[0]
        for one, other in ((decode, decode), (decode, prefill), (prefill, decode))
    ]
    return ModelProfile(
        shape, grid, grid, weight_bytes=round(weights),
        beside=Beside(50, 4, 128, 256, step, 1.0, *beside),
    )  # fmt: skip


def test_the_fit_finds_the_constants_that_measurements_were_made_with() -> None:
    limit = 9.5e9
    models = {"large": _profile(limit, 4e8, 0.0), "small": _profile(limit, 1e8, 0.005)}
    found = fitted(Profile(FORMAT, Device("hand", 2, [50, 100]), models))
    memory = found.device.memory
    assert memory is not None
    assert memory.reached == pytest.approx([6e9, 8e9])
    assert memory.limit == pytest.approx(limit, rel=0.02)
    assert found.models["large"].fixed == pytest.approx(0.0, abs=1e-9)
    assert found.models["small"].fixed == pytest.approx(0.005)
    for model in found.models.values():
        for seen, law in predicted(model, memory).values():
            assert law == pytest.approx(seen, rel=0.03)


def test_without_bytes_nothing_is_fitted() -> None:
    grid = Grid([100], [1], [0], [[[1.0]]])
    bare = ModelProfile(Shape(2, 1, 64, 4096, "bfloat16"), grid, grid)
    profile = Profile(FORMAT, Device("hand", 2, [50, 100]), {"a": bare})
    assert fitted(profile) == profile
    assert predicted(bare, Memory(1.0, [100], [1.0])) == {}
