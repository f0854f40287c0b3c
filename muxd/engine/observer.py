"""What the unit's driver reports: times and outcomes per request, all from one clock.

Counts are kept here for muxctl and for the audit "every request ends exactly once"; the same calls feed
``engine/metrics.py`` and measure requests against their model's targets. It decides nothing.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Protocol

from muxd.engine.actions import Launch
from muxd.engine.metrics import Metrics
from muxd.engine.request import Request
from muxd.engine.sequence import Sequence
from muxd.engine.slo import Attainment, Course, Outcome, Slo
from muxd.messages import Prefill


class Popularity(Protocol):
    """Hears of every arrival and of what was served."""

    def arrived(self, model: str, prompt_tokens: int, now: float) -> None: ...

    def ended(self, model: str, output_tokens: int, now: float) -> None: ...


class Observer:
    """Called by ``engine/unit.py`` only. Times are seconds of the unit's clock."""

    def __init__(
        self,
        metrics: Metrics,
        targets: Mapping[str, Slo] | None = None,
        popularity: Popularity | None = None,
    ):
        self._metrics, self._popularity = metrics, popularity
        self.attainment = Attainment({})
        for model, slo in (targets or {}).items():
            self.aim(model, slo)
        self.arrivals = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.tokens_out: Counter[str] = Counter()
        self._ttft: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=1000))
        self._queued: dict[int, float] = {}  # sequence -> arrival, until its first batch is launched
        self._first: dict[int, float] = {}  # sequence -> when its first token came
        self._last: dict[int, float] = {}  # sequence -> when its newest token came

    def aim(self, model: str, slo: Slo) -> None:
        """Measure the model's requests against these targets from now on."""
        self.attainment.targets[model] = slo
        self._metrics.add_slo(model, slo)

    # ---- one sequence -----------------------------------------------------------------------------

    def arrived(self, sequence: Sequence) -> None:
        self.arrivals += 1
        self._queued[sequence.id] = sequence.arrived
        self._metrics.arrived(sequence.model, sequence.prompt_tokens)
        if self._popularity is not None:
            self._popularity.arrived(sequence.model, sequence.prompt_tokens, sequence.arrived)

    def tokens(self, sequences: Iterable[Sequence], now: float) -> None:
        """One new token for each."""
        for sequence in sequences:
            before = self._last.get(sequence.id)
            self._last[sequence.id] = now
            self.tokens_out[sequence.model] += 1
            if before is None:
                self._first[sequence.id] = now
                self._ttft[sequence.model].append(now - sequence.arrived)
                self._metrics.first_token(sequence.model, now - sequence.arrived)
            else:
                self._metrics.token(sequence.model, now - before)

    def turned_away(self, request: Request) -> None:
        """Refused before it became a sequence."""
        self.arrivals += 1
        self.outcomes["refused"] += 1
        self._metrics.ended(request.model, "refused")

    def ended(self, sequence: Sequence, outcome: Outcome, now: float) -> None:
        """Exactly once per sequence that arrived."""
        self.outcomes[outcome] += 1
        self._queued.pop(sequence.id, None)
        if self._popularity is not None and outcome == "served":
            self._popularity.ended(sequence.model, sequence.generated, now)
        self._metrics.ended(sequence.model, outcome, now - sequence.arrived if outcome == "served" else None)
        verdict = self.attainment.ended(sequence.model, self._course(sequence, outcome, now))
        if verdict is not None:
            self._metrics.judged(sequence.model, verdict)

    def _course(self, sequence: Sequence, outcome: Outcome, now: float) -> Course:
        """How it went; forgets its times."""
        first, last = self._first.pop(sequence.id, None), self._last.pop(sequence.id, None)
        age, gaps = now - sequence.arrived, sequence.generated - 1
        if first is None or last is None:
            return Course(outcome, age)
        return Course(outcome, age, first - sequence.arrived, (last - first) / gaps if gaps > 0 else None)

    def preempted(self, sequence: Sequence) -> None:
        self._metrics.preempted(sequence.model)

    def resumed(self, sequence: Sequence) -> None:
        """Its worker was lost, and it goes on with the next one."""
        self._metrics.resumed(sequence.model)

    def ttft_p99_ms(self, model: str) -> float | None:
        """Of the last 1,000 requests that got a token; None before the first."""
        seconds = sorted(self._ttft[model])
        return seconds[ceil(0.99 * len(seconds)) - 1] * 1000 if seconds else None

    # ---- batches ----------------------------------------------------------------------------------

    def launched(self, launch: Launch, now: float) -> None:
        """A command left for the worker."""
        if isinstance(launch.command, Prefill):
            for chunk in launch.command.chunks:
                arrived = self._queued.pop(chunk.seq, None)
                if arrived is not None:
                    self._metrics.started(launch.model, now - arrived, chunk.start)

    def device_faulted(self) -> None:
        """A fault has reached all workers of a device."""
        self._metrics.device_faulted()

    def worker_restarted(self, model: str) -> None:
        """Its worker was lost and another one is on its way."""
        self._metrics.worker_restarted(model)

    def batch_done(self, model: str, *, prefill: bool, seconds: float) -> None:
        """``seconds`` on the device, as the worker measured."""
        self._metrics.batch(model, "prefill" if prefill else "decode", seconds)
