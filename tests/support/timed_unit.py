"""A bench unit in virtual time: batches take what a simple cost says, requests arrive when a list says.

The journal and, with admission "slo", the forecast watch it as they watch a live one.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from muxd.engine.actions import Action, Arrived, Emit, Event, Tick
from muxd.engine.forecast import Forecast
from muxd.engine.journal import Journal
from muxd.engine.request import Request
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.slo import Slo
from muxd.errors import MuxdError
from muxd.messages import Decode, Prefill, Sampling
from support.bench_unit import BenchUnit
from support.bench_worker import Spec


@dataclass(frozen=True)
class Arrival:
    time: float
    model: str
    prompt: int
    max_tokens: int


class TimedUnit(BenchUnit):
    """``play`` runs to the end. ``seconds`` tells what a command costs: 1 ms and 1 ms a prefilled token, or
    10 ms a decode step, unless given."""

    def __init__(
        self,
        specs: list[Spec],
        total_blocks: int = 64,
        *,
        targets: dict[str, Slo] | None = None,
        seconds: Callable[[Prefill | Decode], float] | None = None,
        audit: bool = True,
        **settings: Any,
    ):
        super().__init__(specs, total_blocks, ready=False, **settings)
        self.journal = Journal(self.scheduler.lanes, self.ledger)
        self.forecast = Forecast(targets, self.settings.prefill_tokens) if targets else None
        self.seconds = seconds or _cost
        self.first: dict[int, float] = {}  # sequence -> seconds to its first token
        self.times: dict[int, list[float]] = {}  # sequence -> when its tokens came
        self.refused: dict[int, MuxdError] = {}
        self._audit = audit
        self._ends: dict[str, float] = {}
        for spec in specs:
            self.revive(spec.name)

    def handle(self, event: Event) -> list[Action]:
        actions = super().handle(event)
        self.journal.observe(event, actions, self.now)
        if self.forecast is not None:
            self.forecast.observe(event, actions, self.now)
        for action in actions:
            for sequence in action.sequences if isinstance(action, Emit) else ():
                self.times.setdefault(sequence.id, []).append(self.now)
        for seq in self.emitted:
            self.first.setdefault(seq, self.now - self.all[seq].arrived)
        for model in self.busy():
            command = self.workers[model].busy
            assert command is not None
            self._ends.setdefault(model, self.now + self.seconds(command))
        return actions

    def check(self) -> None:
        if self._audit:
            super().check()

    def lose(self, model: str, **how: Any) -> None:
        self._ends.pop(model, None)
        super().lose(model, **how)

    def finish(self, name: str, *how: Any, **more: Any) -> None:
        self._ends.pop(name, None)
        super().finish(name, *how, **more)

    # ---- virtual time -----------------------------------------------------------------------------

    def play(self, arrivals: list[Arrival]) -> None:
        """Everything that arrives, until nothing is left to do."""
        coming = deque(sorted(arrivals, key=lambda one: one.time))
        patience = 10_000 + len(self.launches) + sum(2 * one.prompt + 4 * one.max_tokens for one in arrivals)
        while coming or self._ends:
            assert len(self.launches) < patience, "the unit does not come to rest"
            arrival = coming[0].time if coming else inf
            end = min(self._ends.values(), default=inf)
            tick = self.scheduler.deadline(self.now) or inf
            self.now = max(self.now, min(arrival, end, tick))
            if tick < min(arrival, end):
                self.handle(Tick())
            elif end <= arrival:
                self.finish(min(self._ends, key=lambda name: self._ends[name]), 0.0)
            else:
                self.offer(coming.popleft())

    def offer(self, arrival: Arrival, *, force: bool = False) -> Sequence:
        """One request, which the forecast may refuse unless it is forced in."""
        request = Request(
            f"cmpl-{len(self.all)}-0",
            arrival.model,
            [len(self.all) % 50000] * arrival.prompt,  # nothing is found in the prefix cache
            arrival.max_tokens,
            Sampling(temperature=0.0),
            frozenset(),
        )
        sequence = Sequence(len(self.all), request, self.now)
        self.all.append(sequence)
        lane = self.scheduler.lanes[arrival.model]
        if self.forecast is not None and not force:
            error = self.forecast.refusal(lane, sequence, self.scheduler.lanes, self.now)
            if error is not None:
                sequence.phase = Phase.ENDED
                self.refused[sequence.id] = error
                self._end(sequence, "refused")
                return sequence
        self.handle(Arrived(sequence))
        return sequence


def _cost(command: Prefill | Decode) -> float:
    if isinstance(command, Prefill):
        return 0.001 + 0.001 * sum(len(chunk.tokens) // 4 for chunk in command.chunks)
    return 0.01
