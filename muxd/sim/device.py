"""The device in virtual time: which batches run, when each ends, how they slow each other down.

A device that queues (a GPU) has its next decode step before the daemon hears that the last one ended: there
the daemon's part of a batch follows its work, and the device computes meanwhile. Elsewhere it is part of the
work.
"""

from heapq import heappop, heappush
from math import inf

from muxd.cost.law import Parts, factors
from muxd.cost.table import CostTable
from muxd.engine.sequence import Sequence
from muxd.messages import Decode, Prefill


class Batch:
    """One batch on its way. ``left``: seconds of work still to do at ``since`` if it ran alone; ``after``:
    seconds from its end until the daemon hears of it."""

    __slots__ = ("after", "command", "demand", "end", "factor", "left", "model", "parts", "prefill", "since")

    def __init__(
        self,
        model: str,
        command: Prefill | Decode,
        parts: Parts,
        seconds: float,
        after: float,
        demand: int,
        now: float,
    ):
        self.model = model
        self.parts = parts
        self.after = after
        self.demand = demand  # percent of the device it can keep busy
        self.command = command
        self.prefill = isinstance(command, Prefill)
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
        self._queues = cost.device.gpu
        self._running: dict[Worker, Batch] = {}
        self._behind: dict[Worker, tuple[Decode, list[Sequence]]] = {}
        self._answers: list[tuple[float, int, Batch]] = []  # a heap: when the daemon hears of which batch
        self._heard: dict[Worker, float] = {}  # when it hears of the last one: answers keep their order
        self.moved = 0.0  # bytes, of batches that have ended
        self._memory = cost.device.memory
        self._smallest = cost.device.rungs[0]
        self._demand = 0
        self.busy = 0.0  # share-seconds computed, 1.0 a second of the whole device

    @property
    def due(self) -> float:
        """When a batch ends or the daemon hears of one; infinity if none is on its way."""
        ends = min((batch.end for batch in self._running.values()), default=inf)
        return min(ends, self._answers[0][0]) if self._answers else ends

    def start(
        self,
        model: str,
        command: Prefill | Decode,
        sequences: list[Sequence],
        now: float,
        *,
        split: bool = False,
    ) -> None:
        """``sequences``: those of the command, in its order. ``split``: each phase has its own worker."""
        worker = (model, isinstance(command, Prefill))
        if worker in self._running or (not split and (model, not worker[1]) in self._running):
            raise ValueError(f"two batches at once on the worker of {model}")
        self._begin(worker, command, sequences, now)

    def queue(self, model: str, command: Decode, sequences: list[Sequence], now: float) -> None:
        """Begins when the step in front ends; at once if it has, and the daemon has not heard of it yet."""
        worker = (model, False)
        if not self._queues or worker in self._behind:
            raise ValueError(f"one step too many for the worker of {model}")
        if worker in self._running:
            self._behind[worker] = command, sequences
        else:
            self._begin(worker, command, sequences, now, ahead=True)

    def advance(self, now: float) -> Batch | None:
        """What is ``due`` next, and that is now: the batch that the daemon hears of, if it is that."""
        batch = min(self._running.values(), key=lambda batch: batch.end, default=None)
        if batch is None or (self._answers and self._answers[0][0] < batch.end):
            return heappop(self._answers)[-1]
        self.moved += batch.parts.moved
        self._end(batch, now)
        if not self._queues:
            return batch
        worker = (batch.model, batch.prefill)
        heard = self._heard[worker] = max(now + batch.after, self._heard.get(worker, 0.0))
        heappush(self._answers, (heard, batch.command.batch, batch))
        return None

    def _end(self, batch: Batch, now: float) -> None:
        worker = (batch.model, batch.prefill)
        self._demand -= self._running.pop(worker).demand
        behind = None if batch.prefill else self._behind.pop(worker, None)
        if behind is not None:
            self._begin(worker, *behind, now, ahead=True)
        self._settle(now)

    def _begin(
        self,
        worker: Worker,
        command: Prefill | Decode,
        sequences: list[Sequence],
        now: float,
        *,
        ahead: bool = False,
    ) -> None:
        """``ahead``: the daemon has not counted the token of the step in front."""
        model = worker[0]
        parts, after = self._parts(model, command, sequences, ahead=ahead), self._overhead(model, command)
        seconds = parts.seconds
        if not self._queues:
            seconds, after = seconds + after, 0.0
        self.busy += seconds * command.share / 100
        # Less than the smallest rung there is not: on a CPU, who has a part of a core has a thread.
        batch = Batch(model, command, parts, seconds, after, max(command.share, self._smallest), now)
        self._running[worker] = batch
        self._demand += batch.demand
        self._settle(now)

    def _parts(
        self, model: str, command: Prefill | Decode, sequences: list[Sequence], *, ahead: bool
    ) -> Parts:
        """Computing alone on its share."""
        share = command.share
        if isinstance(command, Prefill):
            sizes = [len(chunk.tokens) // 4 for chunk in command.chunks]
            tokens = sum(sizes)
            starts = [chunk.start for chunk in command.chunks]
            before = sum(n * start for n, start in zip(sizes, starts, strict=True)) / tokens
            seconds = self._cost.prefill(model, tokens, before, share, len(sizes))
            return self._cost.parts(model, seconds, sum(starts), share)
        count = len(sequences)
        read = sum([sequence.computed for sequence in sequences]) + count * ahead
        return self._cost.parts(model, self._cost.decode(model, count, read / count, share), read, share)

    def _overhead(self, model: str, command: Prefill | Decode) -> float:
        """The daemon's part."""
        extra = self._cost.model(model).overhead
        count = len(command.chunks if isinstance(command, Prefill) else command.seqs)
        return extra.batch + extra.token * count

    def _settle(self, now: float) -> None:
        """Everybody's pace for the set that runs from ``now`` on; what is booked twice is divided."""
        running = list(self._running.values())
        found = factors([one.parts for one in running], self._memory, max(1.0, self._demand / 100))
        for batch, factor in zip(running, found, strict=True):
            if factor != batch.factor:
                batch.slow_to(factor, now)
