"""What models leave is lent to the pool: whose loans end for a load, and what becomes of them if it fails."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry
from support.lanes import lane_spec

from muxd.clock import VirtualClock
from muxd.device.cpu import Cpu
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.engine.unit import Unit
from muxd.errors import ShuttingDown
from muxd.fleet.loans import Loans, Room
from muxd.messages import BatchDone, Decode, Prefill, Sampling
from muxd.pool.arena import Arena

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")
BLOCK = 8192
POOL, REACH = 8, 24  # head blocks: the pool's own, and those that may be lent


class Bench:
    """One device with one model and no process; ``limit``: head blocks that the device has memory for."""

    def __init__(self, limit: int = POOL + REACH, *, grow: bool = True) -> None:
        self.arena = Arena(Cpu(limit=limit * BLOCK), POOL * BLOCK, BLOCK, REACH * BLOCK)
        self.ledger = self.arena.ledger
        self.ledger.add_model("a", 1, POOL + REACH, row_tokens=4)
        scheduler = Scheduler(
            [lane_spec("a", 100, 4, 1, 60, 8, 100, POOL)], self.ledger, Shares([100]), Settings()
        )
        self.sent: list[Prefill | Decode] = []
        observer = Observer(Metrics(CollectorRegistry()))
        self.unit = Unit(scheduler, lambda _, command: self.sent.append(command), VirtualClock(), observer)
        self.unit.worker_ready("a")
        self.loans = Loans(self.arena, self.unit, {}, grow=grow)
        self.hurry = asyncio.Event()

    def lend(self, *blocks: int) -> None:
        for count in blocks:
            self.loans.lend(count * BLOCK)

    @property
    def lent(self) -> list[int]:
        """Head blocks of every loan, in the order of addresses; the books agree with the arena."""
        self.ledger.audit()
        counts = [extent.count for extent in self.arena.extents]
        assert self.ledger.lent_blocks == sum(counts)
        assert not any(extent.region.closed for extent in self.arena.extents)
        assert all(one.first + one.count <= two.first for one, two in pairwise(self.arena.extents))
        return counts

    def step(self) -> None:
        """Its worker has done the oldest batch."""
        command = self.sent.pop(0)
        count = len(command.chunks) if isinstance(command, Prefill) else len(command.seqs)
        self.unit.batch_done("a", BatchDone(command.batch, [5] * count, 0.1))

    def room(self) -> Room:
        return Room(self.hurry)


def played(scene: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await scene()

    asyncio.run(whole())


def test_a_load_ends_the_loan_that_fits_it_best() -> None:
    async def scene() -> None:
        bench = Bench()
        bench.lend(3, 6, 2)
        assert await bench.loans.take_back(2 * BLOCK + 100, bench.hurry) == 2 * BLOCK
        assert bench.lent == [3, 6]
        assert await bench.loans.take_back(4 * BLOCK, bench.hurry) == 6 * BLOCK
        assert bench.lent == [3]
        assert await bench.loans.take_back(100 * BLOCK, bench.hurry) == 3 * BLOCK, "all there is"
        assert await bench.loans.take_back(1 * BLOCK, bench.hurry) == 0
        assert bench.lent == []
        bench.arena.close()

    played(scene)


def test_what_a_load_does_not_use_is_lent_again_and_all_of_it_when_it_fails() -> None:
    async def scene() -> None:
        here, beside = Bench(), Bench()
        here.lend(3)
        beside.lend(5)
        room = here.room()
        await room.make(4 * BLOCK, [here.loans, beside.loans])
        assert (here.lent, beside.lent) == ([], [])
        room.settle(0)
        assert (here.lent, beside.lent) == ([3], [5])
        room = here.room()
        await room.make(4 * BLOCK, [here.loans, beside.loans])
        room.settle(4 * BLOCK)
        assert (here.lent, beside.lent) == ([], [4])
        room.settle(0)
        assert (here.lent, beside.lent) == ([], [4]), "once"
        here.arena.close()
        beside.arena.close()

    played(scene)


def test_memory_that_is_not_there_is_not_lent(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        bench = Bench(limit=POOL + 4)
        bench.lend(3, 2)  # the second is more than the device has left
        assert bench.lent == [3]
        assert bench.ledger.present_blocks == bench.ledger.free_blocks == POOL + 3
        bench.lend(1)
        assert bench.lent == [3, 1]
        bench.arena.close()

    played(scene)
    (said,) = caplog.records
    assert (
        f"{2 * BLOCK} bytes that a model has left do not join the pool: not enough memory"
        in said.getMessage()
    )


def test_without_the_setting_nothing_is_lent() -> None:
    async def scene() -> None:
        bench = Bench(grow=False)
        bench.lend(3)
        assert bench.lent == []
        bench.arena.close()

    played(scene)


def busy() -> Bench:
    """Its one batch writes in lent memory."""
    bench = Bench()
    bench.lend(POOL)
    bench.unit.submit(Request("r", "a", [1] * 28, 2, Sampling(temperature=0.0), frozenset()))
    (extent,) = bench.arena.extents
    (batch,) = bench.sent
    assert isinstance(batch, Prefill)
    assert bench.ledger.held_blocks == 7
    assert bench.ledger.free_blocks == 2 * POOL - 7
    assert extent.first == POOL
    return bench


def test_a_batch_that_writes_there_is_waited_for_and_its_sequence_computed_elsewhere() -> None:
    async def scene() -> None:
        bench = busy()
        taking = asyncio.create_task(bench.loans.take_back(POOL * BLOCK, bench.hurry))
        for _ in range(3):
            await asyncio.sleep(0)
        assert bench.ledger.leaving_blocks > 0
        assert len(bench.arena.extents) == 1
        assert not taking.done()
        bench.step()
        assert await taking == POOL * BLOCK
        assert bench.lent == []
        while bench.sent:  # it starts again, in the pool's own
            assert 0 < bench.ledger.held_blocks <= POOL
            bench.step()
        assert bench.unit.idle
        assert bench.ledger.held_blocks == 0
        bench.arena.close()

    played(scene)


def test_the_end_of_muxd_waits_for_no_batch_and_lends_nothing_again() -> None:
    async def scene() -> None:
        bench = busy()
        bench.lend(3)
        room = bench.room()
        making = asyncio.create_task(room.make((POOL + 3) * BLOCK, [bench.loans]))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not making.done()
        bench.hurry.set()
        with pytest.raises(ShuttingDown):
            await making
        before = list(bench.arena.extents)
        room.settle(0)
        assert bench.arena.extents == before
        bench.arena.close()

    played(scene)
