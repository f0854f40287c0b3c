"""Slabs come and go in one address range, on the host and through the stand-in driver."""

import ctypes
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from muxd.device.cpu import Cpu
from muxd.device.cuda import Cuda
from muxd.device.driver import Driver
from muxd.device.reservation import CudaReservation, HostReservation, MappingError, Reservation
from muxd.device.slabs import STEP, SlabPool
from muxd.errors import ConfigError

pytestmark = pytest.mark.usefixtures("cuda_here")
SLAB, MOST = STEP, 5


@pytest.fixture(params=["host", "cuda"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        driver = Driver()
        driver.retain()
        yield "cuda"
        driver.release_context()
    else:
        yield "host"


def made(kind: str, nbytes: int) -> tuple[Cpu | Cuda, Reservation]:
    return (Cpu(), HostReservation(nbytes)) if kind == "host" else (Cuda(), CudaReservation(Driver(), nbytes))


def byte(address: int) -> int:
    return ctypes.c_ubyte.from_address(address).value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, MOST - 1), st.integers(1, 255)), max_size=30))
def test_a_slab_is_found_at_its_place_in_every_range_for_as_long_as_it_is_there(
    kind: str, steps: list[tuple[bool, int, int]]
) -> None:
    """Two workers map whatever the pool adds; both always see the bytes of exactly the slabs there are."""
    device, first = made(kind, MOST * SLAB)
    second = made(kind, MOST * SLAB)[1]
    pool = SlabPool(device, SLAB, MOST)
    expected: dict[int, int] = {}
    for grow, index, mark in steps:
        if grow and len(expected) < MOST:
            slab = pool.add()
            assert slab.index == min(set(range(MOST)) - expected.keys())
            for space in (first, second):
                assert space.map(slab.index * SLAB, slab.fd, SLAB)
            expected[slab.index] = mark
            ctypes.memset(first.address + slab.index * SLAB, mark, SLAB)
        elif grow:
            with pytest.raises(ConfigError, match=f"has all {MOST} slabs"):
                pool.add()
        elif index in expected:
            for space in (first, second):
                space.unmap(index * SLAB)
            pool.remove(index)
            del expected[index]
        else:
            with pytest.raises(MappingError, match="nothing is mapped"):
                first.unmap(index * SLAB)
        assert pool.nbytes == len(expected) * SLAB
        assert [slab.index for slab in pool.slabs] == sorted(expected)
        for space in (first, second):
            seen = {i: byte(space.address + i * SLAB + SLAB - 1) for i in expected}
            assert seen == expected
    for space in (first, second):
        space.close()
        space.close()
    pool.close()


def test_what_cannot_be_mapped_changes_nothing(kind: str) -> None:
    device, space = made(kind, 4 * SLAB)
    region = device.allocate(SLAB, "pool")
    space.map(SLAB, region.fd, SLAB)
    for offset, nbytes in (
        (SLAB, SLAB),
        (0, 2 * SLAB),
        (4 * SLAB, SLAB),
        (SLAB + 100, SLAB),
        (0, 0),
        (-SLAB, SLAB),
    ):
        with pytest.raises(MappingError):
            space.map(offset, region.fd, nbytes)
    with pytest.raises(MappingError, match=r"do not fit .* in pages of"):
        space.map(100, region.fd, 4096)
    with pytest.raises(MappingError, match=r"that holds|INVALID_VALUE"):
        space.map(2 * SLAB, region.fd, 2 * SLAB)
    space.map(2 * SLAB, region.fd, SLAB)
    ctypes.memset(space.address + SLAB, 5, 1)
    assert byte(space.address + 2 * SLAB) == 5, "one region may be mapped twice"
    space.close()
    region.close()


def test_a_descriptor_that_is_no_device_memory(kind: str) -> None:
    if kind == "host":
        pytest.skip("any file can be mapped")
    _, space = made(kind, SLAB)
    region = Cpu().allocate(SLAB, "pool")
    with pytest.raises(MappingError, match="cuMemImportFromShareableHandle: CUDA_ERROR_INVALID_VALUE"):
        space.map(0, region.fd, SLAB)
    region.close()
    space.close()


@pytest.mark.parametrize("supported", [True, False])
def test_read_only_mappings_where_there_are_any(
    kind: str, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported:
        monkeypatch.setenv("FAKE_CUDA_NO_READ", "1")
    device, space = made(kind, SLAB)
    region = device.allocate(100, "weights")
    writable = space.map(0, region.fd, 100, writable=False)
    assert writable == (kind == "cuda" and not supported)
    assert byte(space.address + 99) == 0
    space.close()
    region.close()


def test_growth_without_memory_is_refused_and_possible_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(3 * SLAB))
    pool = SlabPool(Cuda(), SLAB, 8)
    for _ in range(3):
        pool.add()
    before = pool.slabs
    with pytest.raises(ConfigError, match=r"not enough memory for pool on GPU 0: .* lower pool\.bytes$"):
        pool.add()
    assert pool.slabs == before
    pool.remove(1)
    assert pool.add().index == 1
    pool.close()
    pool.close()
    assert pool.nbytes == 0


@pytest.mark.parametrize(("slab", "most"), [(0, 1), (STEP - 4096, 1), (STEP + 4096, 1), (STEP, 0)])
def test_sizes_no_device_can_map(slab: int, most: int) -> None:
    with pytest.raises(ConfigError):
        SlabPool(Cpu(), slab, most)
