"""Memory comes and goes in one address range, on the host and through the stand-in driver."""

import ctypes
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support.examples import examples

from muxd.device.cpu import Cpu
from muxd.device.cuda import Cuda
from muxd.device.driver import Driver
from muxd.device.reservation import CudaReservation, HostReservation, MappingError, Reservation
from muxd.errors import ConfigError
from muxd.pool.arena import Arena, Extent

pytestmark = pytest.mark.usefixtures("cuda_here")
PIECE = 2 << 20  # a page of today's GPUs
BLOCK, MOST = 8192, 6  # pieces that can be lent at once


@pytest.fixture(params=["host", "cuda"])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cuda":
        driver = Driver()
        driver.retain()
        yield "cuda"
        driver.release_context()
    else:
        yield "host"


def made(kind: str) -> Cpu | Cuda:
    return Cpu() if kind == "host" else Cuda()


def addresses(kind: str, nbytes: int) -> Reservation:
    return HostReservation(nbytes) if kind == "host" else CudaReservation(Driver(), nbytes)


def byte(address: int) -> int:
    return ctypes.c_ubyte.from_address(address).value


def ends(space: Reservation, offset: int, nbytes: int) -> tuple[int, int]:
    return byte(space.address + offset), byte(space.address + offset + nbytes - 1)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 255)), max_size=30))
def test_lent_memory_is_found_at_its_place_in_every_range_for_as_long_as_it_is_there(
    kind: str, steps: list[tuple[bool, int, int]]
) -> None:
    """Two workers map whatever is lent; both see exactly the bytes that are there, and the pool's."""
    arena = Arena(made(kind), 3 * BLOCK, BLOCK, MOST * PIECE)
    spaces = [addresses(kind, arena.reach) for _ in range(2)]
    for space in spaces:
        space.map(0, arena.fds[0], arena.nbytes)
    ctypes.memset(spaces[0].address, 77, arena.nbytes)
    there: dict[Extent, int] = {}
    for lend, many, mark in steps:
        extent = arena.lend(many * PIECE + BLOCK - 1) if lend else None
        if extent is not None:
            assert extent.first * BLOCK == extent.offset
            assert extent.count * BLOCK == extent.region.nbytes == many * PIECE
            for space in spaces:
                assert space.map(extent.offset, extent.region.pieces[0].fd, extent.region.nbytes)
            ctypes.memset(spaces[0].address + extent.offset, mark, extent.region.nbytes)
            there[extent] = mark
        elif not lend and there:
            extent = list(there)[many % len(there)]
            arena.withdraw(extent)
            for space in spaces:
                space.unmap(extent.offset)
            extent.region.close()
            del there[extent]
        elif lend:
            begin = arena.reach - MOST * PIECE
            taken = [
                (it.offset - begin) // PIECE + i for it in there for i in range(it.region.nbytes // PIECE)
            ]
            assert all(set(range(at, at + many)) & set(taken) for at in range(MOST - many + 1)), (
                "there was room"
            )
        assert arena.extents == sorted(there, key=lambda it: it.offset)
        for space in spaces:
            assert ends(space, 0, arena.nbytes) == (77, 77)
            for extent, mark in there.items():
                assert ends(space, extent.offset, extent.region.nbytes) == (mark, mark)
    for space in spaces:
        space.close()
        space.close()
    arena.close()


def test_what_cannot_be_mapped_changes_nothing(kind: str) -> None:
    device, space = made(kind), addresses(kind, 4 * PIECE)
    region = device.allocate(PIECE, "pool")
    space.map(PIECE, region.fd, PIECE)
    for offset, nbytes in (
        (PIECE, PIECE),
        (0, 2 * PIECE),
        (4 * PIECE, PIECE),
        (PIECE + 100, PIECE),
        (0, 0),
        (-PIECE, PIECE),
    ):
        with pytest.raises(MappingError):
            space.map(offset, region.fd, nbytes)
    with pytest.raises(MappingError, match=r"do not fit .* in pages of"):
        space.map(100, region.fd, 4096)
    with pytest.raises(MappingError, match=r"that holds|INVALID_VALUE"):
        space.map(2 * PIECE, region.fd, 2 * PIECE)
    space.map(2 * PIECE, region.fd, PIECE)
    ctypes.memset(space.address + PIECE, 5, 1)
    assert byte(space.address + 2 * PIECE) == 5, "one region may be mapped twice"
    space.close()
    region.close()


def test_a_descriptor_that_is_no_device_memory(kind: str) -> None:
    if kind == "host":
        pytest.skip("any file can be mapped")
    space = addresses(kind, PIECE)
    region = Cpu().allocate(PIECE, "pool")
    with pytest.raises(MappingError, match="cuMemImportFromShareableHandle: CUDA_ERROR_INVALID_VALUE"):
        space.map(0, region.fd, PIECE)
    region.close()
    space.close()


@pytest.mark.parametrize("supported", [True, False])
def test_read_only_mappings_where_there_are_any(
    kind: str, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supported:
        monkeypatch.setenv("FAKE_CUDA_NO_READ", "1")
    device, space = made(kind), addresses(kind, PIECE)
    region = device.allocate(100, "weights")
    writable = space.map(0, region.fd, 100, writable=False)
    assert writable == (kind == "cuda" and not supported)
    assert byte(space.address + 99) == 0
    space.close()
    region.close()


def test_growth_without_memory_is_refused_and_possible_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(3 * PIECE))
    arena = Arena(Cuda(), BLOCK, BLOCK, MOST * PIECE)
    first, second = (arena.lend(PIECE) for _ in range(2))
    assert first is not None
    before = arena.extents
    with pytest.raises(ConfigError, match=r"not enough memory for pool on GPU 0: .* lower pool\.bytes$"):
        arena.lend(PIECE)
    assert arena.extents == before == [first, second]
    arena.withdraw(first)
    first.region.close()
    again = arena.lend(PIECE)
    assert again is not None
    assert again.offset == first.offset
    arena.close()
    assert arena.extents == []
