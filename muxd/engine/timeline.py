"""Who ran when: bounded rings of batches, counts and marks, for ``muxctl trace``. Pure.

Written by ``engine/journal.py``; ``engine/chrome.py`` turns what ``snapshot`` returns into a trace file.
"""

from collections import deque
from collections.abc import Mapping

from muxd.engine.flight import Flight
from muxd.engine.kept import Kept
from muxd.engine.lane import Lane
from muxd.engine.trace import Mark, Sample, Span, Trace
from muxd.pool.ledger import Ledger

_SPANS = 20_000
_MARKS = 5_000
_COUNTS = 400_000  # numbers kept in all samples together
_SAMPLE_PERIOD = 0.02  # seconds


class Timeline:
    """O(1) per batch and O(models) per sample, at most one sample every 20 ms."""

    def __init__(self, lanes: Mapping[str, Lane], ledger: Ledger):
        self._lanes, self._ledger = lanes, ledger
        self.spans: Kept[Span] = Kept(_SPANS)  # of batches that are over
        self.marks: Kept[Mark] = Kept(_MARKS)
        kept = _COUNTS // (3 + 3 * max(1, len(lanes)))
        self._samples: deque[Sample] = deque(maxlen=max(100, min(10_000, kept)))

    def completed(self, flight: Flight) -> None:
        """The batch is over."""
        self.spans.add(_span(flight))

    def mark(self, mark: Mark) -> None:
        self.marks.add(mark)

    def sample(self, now: float) -> None:
        """Count blocks and sequences, if the last count is old enough."""
        if self._samples and now - self._samples[-1].time < _SAMPLE_PERIOD:
            return
        usage, lanes = self._ledger.usage(), list(self._lanes.values())
        self._samples.append(
            Sample(
                now,
                self._ledger.free_blocks,
                self._ledger.cached_blocks,
                tuple(self._lanes),
                tuple(usage[lane.spec.model].blocks for lane in lanes),
                tuple(lane.queued for lane in lanes),
                tuple(lane.admitted for lane in lanes),
            )
        )

    def prefilled_beside(self, model: str, begin: float, end: float) -> dict[str, float]:
        """Seconds that the other models' prefills took within [begin, end], as far as remembered."""
        seconds: dict[str, float] = {}
        for span in (*self.spans, *self.running()):
            last = end if span.end is None else span.end
            overlap = min(end, last) - max(begin, span.start)
            if span.model != model and span.phase == "prefill" and overlap > 0:
                seconds[span.model] = seconds.get(span.model, 0.0) + overlap
        return seconds

    def running(self) -> list[Span]:
        """Batches that are being computed."""
        return [_span(flight) for lane in self._lanes.values() for flight in lane.flights]

    def snapshot(self, now: float) -> Trace:
        spans = sorted((*self.spans, *self.running()), key=lambda span: span.start)
        return Trace(now, spans, list(self.marks), list(self._samples))


def _span(flight: Flight) -> Span:
    return Span(
        flight.model, "prefill" if flight.prefill else "decode", flight.began, flight.ended, flight.batch,
        flight.share, len(flight.sequences), flight.tokens, flight.lost,
    )  # fmt: skip
