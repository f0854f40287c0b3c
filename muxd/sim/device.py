"""The device in virtual time: which batches run, when each ends, how they slow each other down."""

from muxd.cost.table import CostTable
from muxd.engine.sequence import Sequence
from muxd.messages import Decode, Prefill


class Batch:
    """One batch on its way. ``left``: seconds of work still to do at ``since`` if it ran alone."""

    __slots__ = ("command", "demand", "end", "factor", "left", "model", "prefill", "since")

    def __init__(self, model: str, command: Prefill | Decode, seconds: float, demand: int, now: float):
        self.model = model
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


class VirtualDevice:
    """At most one batch a worker. Raises ValueError for a second one."""

    def __init__(self, cost: CostTable):
        self._cost = cost
        self._running: dict[tuple[str, bool], Batch] = {}  # by worker: model, and whether it prefills
        self._contended = any(
            cost.slowdown(model, prefill, {True: 1, False: 1}) != 1.0
            for model in cost.models
            for prefill in (True, False)
        )
        self._smallest = cost.device.rungs[0]
        self._demand = 0
        self.busy = 0.0  # share-seconds computed, 1.0 a second of the whole device

    @property
    def next(self) -> Batch | None:
        """The batch that ends first; of two at once the one that started first."""
        return min(self._running.values(), key=lambda batch: batch.end, default=None)

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
        seconds = self._seconds(model, command, sequences)
        self.busy += seconds * command.share / 100
        # Less than the smallest rung there is not: on a CPU, who has a part of a core has a thread.
        batch = Batch(model, command, seconds, max(command.share, self._smallest), now)
        self._running[worker] = batch
        self._demand += batch.demand
        if self._contended or self._demand > 100:
            self._settle(now)

    def finish(self, batch: Batch, now: float) -> None:
        crowded = self._demand > 100
        self._demand -= self._running.pop((batch.model, batch.prefill)).demand
        if self._contended or crowded:
            self._settle(now)

    def _seconds(self, model: str, command: Prefill | Decode, sequences: list[Sequence]) -> float:
        """Computing alone on its share, and the daemon's part."""
        extra = self._cost.model(model).overhead
        if isinstance(command, Prefill):
            sizes = [len(chunk.tokens) // 4 for chunk in command.chunks]
            tokens = sum(sizes)
            before = sum(n * chunk.start for n, chunk in zip(sizes, command.chunks, strict=True)) / tokens
            cost = self._cost.prefill(model, tokens, before, command.share, len(sizes))
            return cost + extra.batch + extra.token * len(sizes)
        count = len(sequences)
        context = sum([sequence.computed for sequence in sequences]) / count
        return self._cost.decode(model, count, context, command.share) + extra.batch + extra.token * count

    def _settle(self, now: float) -> None:
        """Everybody's pace for the set that runs from ``now`` on; what is booked twice is divided."""
        crowd = max(1.0, self._demand / 100)
        prefills = sum(batch.prefill for batch in self._running.values())
        decodes = len(self._running) - prefills
        for batch in self._running.values():
            beside = {True: prefills - batch.prefill, False: decodes - (not batch.prefill)}
            batch.slow_to(crowd * self._cost.slowdown(batch.model, batch.prefill, beside), now)
