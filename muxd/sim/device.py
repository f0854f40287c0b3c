"""The device in virtual time: which batches run, when each ends, how they slow each other down.

A device that queues (a GPU) has its next decode step before the daemon hears that the last one ended: there
the daemon's part of a batch follows its work, and the device computes meanwhile. Elsewhere it is part of the
work.
"""

from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from muxd.cost.law import Parts, factors
from muxd.cost.profile import Overhead
from muxd.cost.table import CostTable


class Task(NamedTuple):
    """What a worker is given: a batch's number and what it costs by."""

    number: int
    prefill: bool
    share: int
    members: int  # sequences of a step, chunks of a prefill
    tokens: int  # to compute
    read: int  # tokens whose K and V are read
    before: float  # tokens before each of those of a prefill, on average
    sampled: int  # tokens that come of it


class Batch:
    """One batch on its way. ``left``: seconds of work still to do at ``since`` if it ran alone; ``after``:
    seconds from its end until the daemon hears of it."""

    __slots__ = ("after", "demand", "end", "factor", "left", "model", "parts", "since", "task")

    def __init__(
        self, model: str, task: Task, parts: Parts, seconds: float, after: float, demand: int, now: float
    ):
        self.model = model
        self.task = task
        self.parts = parts
        self.after = after
        self.demand = demand  # percent of the device it can keep busy
        self.left = seconds
        self.since = now
        self.factor = 1.0
        self.end = now + seconds

    def slow_to(self, factor: float, now: float) -> None:
        """From ``now`` on every second of its work takes ``factor`` seconds."""
        self.left -= (now - self.since) / self.factor
        self.since = now
        self.factor = factor
        self.end = now + self.left * factor


Worker = tuple[str, bool]  # model, and whether it prefills


class VirtualDevice:
    """A worker computes one batch, and where the device queues it may have a decode step more behind it.

    Raises ValueError for any further one.
    """

    def __init__(self, cost: CostTable):
        self._cost = cost
        self.queues = cost.device.gpu
        self._running: dict[Worker, Batch] = {}
        self._behind: dict[Worker, Task] = {}
        self._answers: list[tuple[float, int, Batch]] = []  # a heap: when the daemon hears of which batch
        self._heard: dict[Worker, float] = {}  # when it hears of the last one: answers keep their order
        self.moved = 0.0  # bytes, of batches that have ended
        self._memory = cost.device.memory
        self._smallest = cost.device.rungs[0]
        self._overheads: dict[str, Overhead] = {}
        self._demand = 0
        self.busy = 0.0  # share-seconds computed, 1.0 a second of the whole device

    @property
    def due(self) -> float:
        """When a batch ends or the daemon hears of one; infinity if none is on its way."""
        return self.next()[0]

    def next(self) -> tuple[float, Batch | None, bool]:
        """When something happens next, to which batch, and whether the daemon hears of it then."""
        first, end = None, inf
        for batch in self._running.values():
            if batch.end < end:
                first, end = batch, batch.end
        if self._answers and (first is None or self._answers[0][0] < end):
            return self._answers[0][0], self._answers[0][2], True
        return end, first, not self.queues

    def start(self, model: str, task: Task, now: float, *, split: bool = False) -> None:
        """``split``: each phase has its own worker."""
        worker = (model, task.prefill)
        if worker in self._running or (not split and (model, not task.prefill) in self._running):
            raise ValueError(f"two batches at once on the worker of {model}")
        self._begin(worker, task, now)
        self._settle(now)

    def queue(self, model: str, task: Task, now: float) -> None:
        """Begins when the step in front ends; at once if it has, and the daemon has not heard of it yet."""
        worker = (model, False)
        if not self.queues or worker in self._behind:
            raise ValueError(f"one step too many for the worker of {model}")
        if worker in self._running:
            self._behind[worker] = task
        else:
            self._begin(worker, task, now)
            self._settle(now)

    def again(self, batch: Batch, number: int, now: float, *, ahead: bool) -> None:
        """The daemon has heard of a step, and gives the worker the same one once more: the next, or with
        ``ahead`` the one after that."""
        task = batch.task
        count = task.members
        read = task.read + count * (1 + ahead)
        following = Task(number, False, task.share, count, count, read, 0.0, count)
        if ahead:
            self.queue(batch.model, following, now)
        else:
            self.start(batch.model, following, now, split=True)

    def advance(self, batch: Batch, heard: bool, now: float) -> None:
        """What ``next`` has said, and that is now."""
        if heard and self.queues:
            heappop(self._answers)
            return
        self.moved += batch.parts.moved
        worker = (batch.model, batch.task.prefill)
        self._finish(worker, batch, now)
        if self.queues:
            when = self._heard[worker] = max(now + batch.after, self._heard.get(worker, 0.0))
            heappush(self._answers, (when, batch.task.number, batch))

    def drop(self, model: str, now: float) -> None:
        """The model's workers are gone, with all they had."""
        for worker in [(model, True), (model, False)]:
            self._behind.pop(worker, None)
            self._heard.pop(worker, None)
            if (batch := self._running.pop(worker, None)) is not None:
                self._demand -= batch.demand
        self._answers = [answer for answer in self._answers if answer[2].model != model]
        heapify(self._answers)
        self._settle(now)

    def _finish(self, worker: Worker, batch: Batch, now: float) -> None:
        del self._running[worker]
        self._demand -= batch.demand
        if not batch.task.prefill and worker in self._behind:
            self._begin(worker, self._behind.pop(worker), now)
        self._settle(now)

    def _begin(self, worker: Worker, task: Task, now: float) -> None:
        """Its pace, and everybody's beside it, is still to be settled."""
        model = worker[0]
        parts, after = self._parts(model, task), self._overhead(model, task)
        seconds = parts.seconds
        if not self.queues:
            seconds, after = seconds + after, 0.0
        self.busy += seconds * task.share / 100
        # Less than the smallest rung there is not: on a CPU, who has a part of a core has a thread.
        batch = Batch(model, task, parts, seconds, after, max(task.share, self._smallest), now)
        self._running[worker] = batch
        self._demand += batch.demand

    def _parts(self, model: str, task: Task) -> Parts:
        """Computing alone on its share."""
        if not task.prefill:
            return self._cost.steps(model, task.members, task.share).parts(task.read)
        seconds = self._cost.prefill(model, task.tokens, task.before, task.share, task.members)
        return self._cost.parts(model, seconds, task.read, task.share, task.tokens, task.members)

    def _overhead(self, model: str, task: Task) -> float:
        """The daemon's part."""
        extra = self._overheads.get(model)
        if extra is None:
            extra = self._overheads[model] = self._cost.model(model).overhead
        return extra.batch + extra.token * task.members

    def _settle(self, now: float) -> None:
        """Everybody's pace for the set that runs from ``now`` on; what is booked twice is divided."""
        running = self._running.values()
        found = factors([one.parts for one in running], self._memory, max(1.0, self._demand / 100))
        for batch, factor in zip(running, found, strict=True):
            if factor != batch.factor:
                batch.slow_to(factor, now)
