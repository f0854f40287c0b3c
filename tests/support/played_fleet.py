"""One site with more models than memory, all of it muxd's own but the processes: those are played, on a
virtual clock, and end, stand still or cannot be forked whenever a test says so."""

import asyncio
import errno
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from muxd.clock import VirtualClock
from muxd.config import Config, ModelConfig, PlacementConfig, ResidencyConfig
from muxd.device.base import Region
from muxd.device.cpu import Cpu
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.errors import MuxdError, ShuttingDown
from muxd.fleet.build import open_site
from muxd.fleet.catalog import Entry, Opened
from muxd.fleet.popularity import Popularity
from muxd.fleet.replanner import watch
from muxd.fleet.roster import Roster
from muxd.link.daemon_end import Hearer
from muxd.messages import BatchDone, Decode, FromWorker, Prefill, Ready, Setup, Shutdown, ToWorker
from muxd.models.weights import WeightPlan, fill
from muxd.pool.arena import Arena
from support.bench_worker import Spec, Worker

POOL = 64 << 10
FORK, BOOT, BATCH = 0.02, 0.3, 0.01  # seconds


def answer(prompt: list[int], tokens: int) -> list[int]:
    """What a played worker says to that prompt, however often it begins anew."""
    said = list(prompt)
    for _ in range(tokens):
        said.append(_next(said))
    return said[len(prompt) :]


def _next(history: list[int]) -> int:
    return 3 + (sum(history) + 7 * len(history)) % 211


def _forgetful(error: MuxdError) -> MuxdError:
    """The same, without the frames it came through, and those of what it was raised for: they have the region
    mapped, which a reading process takes with it."""
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__context__
    return error


async def filled_here(
    region: Region, parts: Sequence[WeightPlan], progress: Callable[[int], None], streams: Callable[[], bool]
) -> None:
    """As ``fleet.loading.filled``, in the loop's own time: the reading itself, without its process. Not in a
    thread either: it would go on, with the region mapped, where whoever waits for it is cancelled."""
    for piece, part in zip(region.pieces, parts, strict=True):
        await asyncio.sleep(0.05)
        try:
            fill(part, piece.writer())
        except MuxdError as error:
            raise _forgetful(error) from None
    progress(sum(part.bytes for part in parts))


class Process:
    """As ``fleet.process.WorkerProcess``: one that is alive, stands still, or has ended."""

    def __init__(self, fleet: "PlayedFleet", setup: Setup):
        self.fleet, self.setup, self.pid = fleet, setup, next(fleet.pids)
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.still = False
        self._missed: list[Callable[[], None]] = []
        lane = fleet.entries[setup.model].lane
        assert lane is not None
        self._books = Worker(
            Spec(setup.model, lane.spec.blocks_per_row, lane.spec.row_tokens), pool=fleet.written
        )
        fleet.processes[setup.worker] = self
        self._later(BOOT, self._booted)

    @classmethod
    async def spawn(
        cls, zygote: Any, setup: Setup, fds: list[int], env: Mapping[str, str], end_work: Any
    ) -> "Process":
        await asyncio.sleep(FORK)
        if zygote.lacking:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return cls(zygote, setup)

    # ---- as the crew sees it ----------------------------------------------------------------------

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    async def kill(self) -> None:
        self.end(-9)

    async def stop(self, grace: float) -> None:
        try:
            await asyncio.wait_for(self.wait(), grace)
        except TimeoutError:
            self.end(-9)
            await self.wait()

    # ---- as the test sees it ----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def end(self, code: int) -> None:
        if self.alive:
            self.ended.set_result(code)

    def stand(self, still: bool) -> None:
        self.still = still
        if not still:
            missed, self._missed = self._missed, []
            for step in missed:
                self._do(step)

    # ---- its life ---------------------------------------------------------------------------------

    def hear(self, message: ToWorker) -> None:
        self._later(0.001, lambda: self._take(message))

    def _take(self, message: ToWorker) -> None:
        if isinstance(message, Shutdown):
            self.end(0)
            return
        assert isinstance(message, Prefill | Decode)
        self._books.receive(message)
        self._later(BATCH, self._answer)

    def _answer(self) -> None:
        books = self._books
        assert books.busy is not None
        batch, tokens = books.busy.batch, []
        for seq in books.sampling():
            tokens.append(_next(books.history[seq]))
            books.history[seq].append(tokens[-1])
        books.busy = None
        self._say(BatchDone(batch, tokens, BATCH))

    def _booted(self) -> None:
        if self.fleet.crashing:
            self.end(-11)
        else:
            self._say(Ready(self.setup.worker, self.pid, "none", 0.0, 0.0))

    def _say(self, message: FromWorker) -> None:
        if hearer := self.fleet.link.hearers.get(self.setup.worker):
            hearer.on_message(message)

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, self._do, step)

    def _do(self, step: Callable[[], None]) -> None:
        if self.still:
            self._missed.append(step)
        elif self.alive:
            step()


class Link:
    """As ``link.daemon_end.DaemonEnd``."""

    endpoint = "ipc://played"

    def __init__(self, processes: Mapping[str, Process]):
        self.hearers: dict[str, Hearer] = {}
        self._processes = processes
        self._hushed: set[str] = set()

    def announce(self, worker: str, hearer: Hearer, followers: Sequence[str] = ()) -> None:
        self.hearers[worker] = hearer

    def hush(self, worker: str) -> None:
        self._hushed.add(worker)

    def forget(self, worker: str) -> None:
        self.hearers.pop(worker, None)

    def send(self, worker: str, message: ToWorker) -> None:
        if worker not in self.hearers or worker in self._hushed:
            return
        if self._processes[worker].alive:
            self._processes[worker].hear(message)
        else:
            hearer = self.hearers.pop(worker)
            asyncio.get_running_loop().call_soon(hearer.on_lost, "is not connected")


class PlayedFleet:
    """``models``: name -> what its folder says. ``limit``: of ``device.memory``; 0: what the machine has.

    Made inside a running loop; ``muxd.fleet.crew.WorkerProcess`` is to be ``Process`` meanwhile, and
    ``muxd.fleet.supervisor.filled`` ``filled_here``. ``lacking``:
    no process can be forked; ``crashing``: each ends before it is ready.
    """

    def __init__(
        self, models: Mapping[str, Opened], clock: VirtualClock, residency: ResidencyConfig, limit: int
    ):
        self.clock = clock
        self.lacking = self.crashing = False
        self.pids, self.processes = count(1000), dict[str, Process]()
        self.written: dict[int, tuple[str, ...]] = {}
        self.link = Link(self.processes)
        self.device = Cpu(cores=2, limit=limit)
        self.arena = Arena(self.device, POOL, 4096)
        self.entries = {name: _entry(name, opened) for name, opened in models.items()}
        popularity = Popularity(watch(PlacementConfig()), clock.now())
        self.observer = Observer(Metrics(CollectorRegistry()), {}, popularity)
        self.site = open_site(
            "cpu", self.device, self.arena, Config(), grow=False, link=cast(Any, self.link),
            zygote=cast(Any, self), clock=clock, observer=self.observer, ids=count(1), spawns=count(1),
            tell=lambda mark: None,
        )  # fmt: skip
        self.roster = Roster(
            entries=self.entries, sites={"cpu": self.site}, clock=clock, gauges=cast(Any, None),
            progress=lambda *_: None, place=lambda entry: "cpu", texts=cast(Any, None), residency=residency,
            demands=lambda names: popularity.look(names, clock.now()),
        )  # fmt: skip
        self._waking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.roster.open()
        self.roster.start()
        self._waking = asyncio.create_task(self.roster.waker.run())
        await self.roster.settled()

    async def close(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
        await self.roster.close()
        self.site.unit.fail_all(ShuttingDown("over"))
        await self.site.unit.drain(0.0)
        self.arena.close()

    def living(self, model: str) -> Iterator[Process]:
        return (one for one in self.processes.values() if one.setup.model == model and one.alive)

    def audit(self) -> None:
        """No memory is held twice or by nobody."""
        self.arena.ledger.audit()
        held = {id(entry.shelved) for entry in self.entries.values() if entry.shelved is not None}
        awake = {
            id(supervisor._weights)
            for supervisor in self.site.supervisors.values()
            if supervisor._weights is not None and not supervisor._weights.closed
        }
        assert not held & awake, "weights both on the device and in host memory"
        regions = {id(region) for region in Cpu._regions if not region.closed and region.nbytes != POOL}
        assert regions == held | awake, "weights that nobody has, or that are gone"
        counted = self.device._budget.held - self.arena.nbytes
        sizes = [one.weights_bytes for one in self.site.supervisors.values()]
        assert counted == sum(sizes), "the device counts what is not there, or not what is"


def settings(name: str, folder: Path) -> ModelConfig:
    return ModelConfig(name, str(folder), dtype="float32", cpu_step="torch", device="cpu", max_queue=6)


def _entry(name: str, opened: Opened) -> Entry:
    entry = Entry(settings(name, opened.folder))
    entry.opened = opened
    return entry
