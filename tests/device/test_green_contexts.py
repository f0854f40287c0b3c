"""Parts of a device: made of one split, apart from each other, the same in every process, or not used."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from support.stand_ins import python

from muxd.device.driver import CudaError, Driver
from muxd.device.green import CAP, PARTS, GreenContexts, Unsplittable, disjoint, place, quarters

pytestmark = pytest.mark.usefixtures("cuda_here")

MEASURE = """
import json
from muxd.device.driver import Driver
from muxd.device.green import GreenContexts
from muxd.device.kernels import Kernels
from muxd.device.reservation import CudaReservation
driver = Driver()
driver.retain()
contexts, kernels = GreenContexts(driver), Kernels(driver)
handle, space = driver.create(1 << 21), driver.reserve(1 << 21)
driver.map(space, 1 << 21, handle)
seen = [kernels.sms_of(contexts.green(1 << i).stream, space, 132) for i in range(4)]
both = kernels.sms_of(contexts.green(0b1001).stream, space, 132)
assert both == seen[0] | seen[3] and contexts.green(0b1001).sms == len(both)
contexts.close()
print(json.dumps([sorted(part) for part in seen]))
"""


def measured(**env: str) -> list[frozenset[int]]:
    return [frozenset(part) for part in json.loads(python(MEASURE, env=env))]


def test_four_parts_use_every_sm_once() -> None:
    parts = quarters(Driver())
    assert parts.sms == (32, 32, 32, 36)
    assert parts.rungs == (25, 50, 75, 100)
    assert quarters(Driver(), parts=3).rungs == (33, 66, 100)
    with pytest.raises(Unsplittable, match="16 groups of 8 SMs cannot make 17 parts"):
        quarters(Driver(), parts=17)


def test_parts_measured_in_two_processes_are_apart() -> None:
    first, second = measured(), measured()
    assert [len(part) for part in first] == [32, 32, 32, 36]
    assert disjoint([first, second]) == ""


def test_a_driver_that_splits_differently_in_each_process_is_found_out() -> None:
    one = measured(FAKE_CUDA_SCRAMBLE="1")
    for _ in range(5):  # process ids could agree modulo 132 by chance
        other = measured(FAKE_CUDA_SCRAMBLE="1")
        if other != one:
            break
    assert "shares SMs" in disjoint([one, other])


def test_never_with_a_percentage() -> None:
    driver = Driver()
    for text in ("40", "0=40", "nonsense"):
        with pytest.raises(Unsplittable, match="one or the other"):
            GreenContexts(driver, environ={CAP: text})
    GreenContexts(driver, environ={CAP: "100"})


def test_masks_that_name_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    with driver.context():
        contexts = GreenContexts(driver)
        for mask in (0, 16, -1):
            with pytest.raises(ValueError, match="names no part"):
                contexts.green(mask)
        assert contexts.green(3) is contexts.green(3)
        contexts.close()
    monkeypatch.setenv("FAKE_CUDA_NO_GREEN", "1")
    with pytest.raises(CudaError, match="NOT_SUPPORTED"):
        GreenContexts(driver)


@given(taken=st.integers(0, 2**PARTS - 1), parts=st.integers(1, PARTS))
def test_a_place_is_free_and_as_large_as_asked(taken: int, parts: int) -> None:
    mask = place(taken, parts)
    free = PARTS - taken.bit_count()
    assert (mask is None) == (parts > free)
    if mask is not None:
        assert mask.bit_count() == parts
        assert not mask & taken
        assert 0 < mask < 1 << PARTS


@given(st.lists(st.integers(1, PARTS), max_size=8))
def test_places_given_out_together_never_overlap(sizes: list[int]) -> None:
    taken = 0
    for size in sizes:
        mask = place(taken, size)
        if mask is not None:
            assert not taken & mask
            taken |= mask
        else:
            assert taken.bit_count() + size > PARTS


def test_a_place_of_nothing_or_too_much() -> None:
    for parts in (0, PARTS + 1):
        with pytest.raises(ValueError, match=f"{parts} of {PARTS} parts"):
            place(0, parts)


sets = st.lists(st.frozensets(st.integers(0, 30)), min_size=2, max_size=4)


@given(st.lists(sets, min_size=1, max_size=3).filter(lambda reports: len({len(r) for r in reports}) == 1))
def test_disjoint_means_every_pair_of_different_parts(reports: list[list[frozenset[int]]]) -> None:
    parts = range(len(reports[0]))
    apart = all(
        not one[i] & other[j]
        for one in (reports[0],)
        for other in reports
        for i in parts
        for j in parts
        if i != j
    ) and all(not seen[i] & seen[j] for seen in reports for i in parts for j in parts if i != j)
    complete = all(part for seen in reports for part in seen)
    assert (disjoint(reports) == "") == (apart and complete)
