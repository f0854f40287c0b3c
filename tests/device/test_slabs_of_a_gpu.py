"""The pool of a GPU grows and shrinks by slabs, over the stand-in driver: also where no memory is left."""

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.lanes import lane_spec

from muxd.clock import VirtualClock
from muxd.device.cuda import Cuda
from muxd.device.driver import CudaError
from muxd.device.reservation import CudaReservation
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.unit import Unit
from muxd.errors import OutOfMemory
from muxd.fleet.loans import Loans
from muxd.pool.arena import Arena

pytestmark = pytest.mark.usefixtures("no_descriptor_leak", "cuda_here")

PAGE, BLOCK = 2 << 20, 8192


def memory(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """What the stand-in has in all, from now on."""
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(pages * PAGE))


@pytest.fixture
def arena(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pool of two pages on a GPU of six; eight may be lent."""
    memory(monkeypatch, 6)
    arena = Arena(Cuda(), 2 * PAGE, BLOCK, 8 * PAGE)
    yield arena
    arena.close()


def test_slabs_come_until_the_memory_is_taken_and_again_when_one_is_given_back(arena: Arena) -> None:
    one, two = arena.lend(PAGE), arena.lend(3 * PAGE)
    assert one is not None
    assert two is not None
    with pytest.raises(OutOfMemory, match=r"not enough memory for pool on GPU 0: 2 MiB wanted of 12 MiB"):
        arena.lend(PAGE)
    assert arena.extents == [one, two]
    arena.withdraw(one)
    one.region.close()
    again = arena.lend(PAGE)
    assert again is not None
    assert again.offset == one.offset, "the addresses are free again"


def test_a_worker_maps_and_unmaps_slabs_behind_the_pool(arena: Arena) -> None:
    """At addresses it has reserved: what lies in the pool stays, what comes back is another slab."""
    driver = Cuda().driver
    with driver.context():
        space = CudaReservation(driver, arena.reach)
        space.map(0, arena.fds[0], arena.nbytes)
        driver.fill_bytes(space.address, 7, arena.nbytes)
        for value in (1, 2):
            extent = arena.lend(PAGE)
            assert extent is not None
            space.map(extent.offset, extent.region.pieces[0].fd, extent.region.nbytes)
            assert driver.to_host(space.address + extent.offset, 1) == b"\0", "memory of its own"
            driver.fill_bytes(space.address + extent.offset, value, PAGE)
            space.unmap(extent.offset)
            with pytest.raises(CudaError):
                driver.to_host(space.address + extent.offset, 1)
            arena.withdraw(extent)
            extent.region.close()
        assert driver.to_host(space.address, arena.nbytes) == b"\7" * arena.nbytes
        space.close()


def loans_of(arena: Arena) -> Loans:
    """With one model and no process."""
    arena.ledger.add_model("a", 1, arena.most_blocks, row_tokens=4)
    lane = lane_spec("a", 100, 4, 1, 60, 8, 100, arena.total_blocks)
    scheduler = Scheduler([lane], arena.ledger, Shares([100]), Settings())
    observer = Observer(Metrics(CollectorRegistry()))
    unit = Unit(scheduler, lambda *_: None, VirtualClock(), observer)
    return Loans(arena, unit, {}, grow=True)


def test_memory_that_somebody_else_has_taken_meanwhile_is_not_lent_and_the_log_says_so(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loans = loans_of(arena)
    memory(monkeypatch, 3)
    with caplog.at_level(logging.WARNING):
        loans.lend(2 * PAGE)
    assert "do not join the pool: not enough memory for pool on GPU 0" in caplog.text
    assert (arena.extents, arena.ledger.lent_blocks) == ([], 0)
    loans.lend(PAGE)
    assert arena.ledger.lent_blocks == PAGE // BLOCK
    arena.ledger.audit()


def test_a_driver_that_fails_at_a_loan_harms_nobody(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loans = loans_of(arena)
    monkeypatch.setenv("FAKE_CUDA_NO_EXPORT", "1")
    with caplog.at_level(logging.WARNING):
        loans.lend(2 * PAGE)
    assert "do not join the pool: cuMemExportToShareableHandle: CUDA_ERROR_NOT_SUPPORTED" in caplog.text
    assert (arena.extents, arena.ledger.lent_blocks) == ([], 0)
    monkeypatch.delenv("FAKE_CUDA_NO_EXPORT")
    loans.lend(4 * PAGE)  # nothing of the failed one is held
    assert arena.ledger.lent_blocks == 4 * PAGE // BLOCK
