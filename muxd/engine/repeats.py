"""Decode steps that decide nothing: how many are foreseen, and what they change when they are done. Pure.

While no prompt waits for a turn, no answer comes to its end and every step finds its rows, all that a step
leads to is the same step again. Who computes the steps' times (the simulator) asks once how many there are,
and tells of them in one event, ``Stepped``: lanes, ledger and averages are then what step by step would have
made of them, to the last bit. Where anything else could happen nothing is foreseen.
"""

from collections import Counter
from collections.abc import Iterator
from math import inf

from msgspec import Struct

from muxd.engine.actions import Stepped
from muxd.engine.batches import Batches
from muxd.engine.board import Board
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.patience import Patience
from muxd.engine.policies import Policy
from muxd.engine.rows import RowKeeper
from muxd.engine.sequence import Sequence

_NEVER = 2**62


class Foreseen(Struct, frozen=True):
    """``steps``: by model, how many answers of its worker lead to the same step again, if they come before
    ``until``. ``ahead``: the answer sends the step after the next. ``begun``: the number of the last batch;
    those steps have the next ones, in their order."""

    steps: dict[str, int]
    ahead: bool
    until: float
    begun: int


class Repeats:
    """Owned by the scheduler."""

    def __init__(self, board: Board, rows: RowKeeper, batches: Batches, patience: Patience):
        self._board, self._rows, self._batches, self._patience = board, rows, batches, patience

    # ---- before -----------------------------------------------------------------------------------

    def foresee(self, policy: Policy, now: float, *, ahead: bool) -> Foreseen | None:
        """None: nothing. Changes nothing. ``ahead``: steps run ahead where they can."""
        board = self._board
        if board.decodable or policy.held or not self._rows.at_peace:
            return None
        if not all(_prefills(lane) for lane in board.waiting.lanes):
            return None
        ahead = ahead and not board.waiting
        steps = dict(self._lanes(policy, ahead=ahead))
        while steps and not board.ledger.grants(self._rows_at_most(steps)):
            steps = {model: count // 2 for model, count in steps.items() if count > 1}
        return Foreseen(steps, ahead, self._until(policy, now), self._batches.begun) if steps else None

    def _lanes(self, policy: Policy, *, ahead: bool) -> Iterator[tuple[str, int]]:
        for flight in self._board.flying.values():
            lane = self._board.lanes[flight.model]
            if flight.prefill or not self._goes_on(lane, flight, ahead=ahead):
                continue
            if not ahead and policy.share_again(lane, flight) != flight.share:
                continue
            limit = lane.spec.max_context
            left = min([_left(sequence, limit) for sequence in flight.sequences]) - ahead
            if left > 0:
                yield flight.model, left

    def _goes_on(self, lane: Lane, flight: Flight, *, ahead: bool) -> bool:
        """All its sequences are in the step, and in the one behind it if there is one, and nobody else."""
        behind = lane.ahead
        if not lane.ready or lane.suspects or False not in lane.proven or (behind is not None) != ahead:
            return False
        same = behind is None or behind.sequences == flight.sequences
        return same and lane.running == flight.sequences

    def _rows_at_most(self, steps: dict[str, int]) -> dict[str, int]:
        found = {}
        for model, count in steps.items():
            lane = self._board.lanes[model]
            found[model] = len(lane.running) * (count // lane.spec.row_tokens + 1)
        return found

    def _until(self, policy: Policy, now: float) -> float:
        """A batch that begins from now on may take ``batch_timeout`` at least."""
        timeout = self._board.settings.batch_timeout or inf
        return min(policy.quiet_until(now), self._patience.deadline(), now + timeout)

    # ---- after ------------------------------------------------------------------------------------

    def done(self, event: Stepped) -> None:
        """In the order of the steps: which rows are named first, and which cached ones make room, depends on
        it."""
        times = Counter([model for model, _ in event.steps])
        runs = {model: _Run(self._board.lanes[model], count, event.token) for model, count in times.items()}
        self._prepare(runs)
        number = self._batches.begun
        for model, now in event.steps:
            number += 1
            run = runs[model]
            run.step(number, now)
            if run.done == run.due:
                self._rows_of(run)
        self._batches.begun = number
        last_first = dict.fromkeys([model for model, _ in reversed(event.steps)])
        for model in reversed(last_first):
            self._end(runs[model])

    def _prepare(self, runs: "dict[str, _Run]") -> None:
        """Rows that nobody will find, and for which no cached one has to go, are taken at once; others in the
        order of the steps."""
        named = any(run.named for run in runs.values())
        if named or not self._board.ledger.spare({model: run.rows for model, run in runs.items()}):
            for run in runs.values():
                run.schedule()
            return
        for run in runs.values():
            if run.needs:
                self._rows.extend(run.lane, run.needs)

    def _rows_of(self, run: "_Run") -> None:
        for sequence in run.pop(run.full, run.passed):
            sequence.computed = run.computed(sequence)
            self._rows.computed(run.lane, sequence)
        need = [(sequence, 1) for sequence in run.pop(run.need)]
        if need:
            self._rows.extend(run.lane, need)
        run.due = run.next_due()

    def _end(self, run: "_Run") -> None:
        lane, behind = run.lane, run.lane.ahead
        for sequence in run.sequences:
            sequence.computed = run.computed(sequence)
        self._rows.look_ahead.computed(run.done * len(run.sequences))
        lane.decode_ended, lane.prefilled_since_decode = run.began, False
        self._batches.repeated(lane, run.flight, run.numbers[run.done :], run.began, run.expected)
        if behind is None:
            self._board.decodable.to_back(lane)


class _Run:
    """One lane's steps while they are gone through. ``expected``: what the step in flight was expected to
    take when it began."""

    def __init__(self, lane: Lane, count: int, token: int):
        flight = lane.step
        assert flight is not None
        self.lane, self.flight, self.sequences = lane, flight, flight.sequences
        self.done, self.began, self.expected = 0, flight.began, 0.0
        self.numbers = [one.batch for one in (flight, lane.ahead) if one is not None]
        self._ahead = lane.ahead is not None
        self._row = lane.spec.row_tokens
        self._before = {one.id: one.computed for one in self.sequences}
        self.full: dict[int, list[int]] = {}  # after so many steps: whose rows are full
        self.passed: dict[int, list[int]] = {}  # whose windows have passed one more
        self.need: dict[int, list[int]] = {}  # and who needs a row
        self.due = _NEVER
        # Whether others' rows depend on the order: some get names, or fade.
        self.named = lane.spec.config.prefix_cache or lane.spec.windowed is not None
        self.needs: list[tuple[Sequence, int]] = []  # rows in all
        self.rows = 0
        for one in self.sequences:
            assert token not in one.request.eos
            one.tokens += [token] * count
            if one.counter is not None:
                one.counter.tokens += count
            due = self._needed(one)
            if due <= count:
                self.needs.append((one, 1 + (count - due) // self._row))
                self.rows += self.needs[-1][1]

    def _needed(self, sequence: Sequence) -> int:
        """The step after which it needs a row."""
        return len(sequence.rows) * self._row - sequence.computed - self._ahead

    def schedule(self) -> None:
        """When each row is full, passed or needed."""
        windowed = self.lane.spec.windowed
        for index, one in enumerate(self.sequences):
            if windowed is not None:
                full = one.faded + 1 + -(-(windowed.tokens - 1) // self._row)
                self._put(self.passed, full * self._row - one.computed, index)
            if one.chain is not None:
                self._put(self.full, (one.registered + 1) * self._row - one.computed, index)
            self._put(self.need, self._needed(one), index)
        self.due = self.next_due()

    def step(self, number: int, now: float) -> None:
        """One more is done, and the one of ``number`` is sent."""
        lane = self.lane
        before = lane.step_seconds
        lane.learn_step(now - self.began)
        # A step that is ahead begins before the daemon has learnt from the one in front.
        self.expected = before if self._ahead else lane.step_seconds
        self.began = now
        self.numbers.append(number)
        self.done += 1

    def computed(self, sequence: Sequence) -> int:
        """Tokens, so far."""
        return self._before[sequence.id] + self.done

    def next_due(self) -> int:
        """After how many steps rows are next full, passed or needed."""
        return min(min(dues, default=_NEVER) for dues in (self.full, self.passed, self.need))

    def pop(self, *kinds: dict[int, list[int]]) -> list[Sequence]:
        """Whose turn it is now, in the step's order; it is again a row later."""
        found: set[int] = set()
        for dues in kinds:
            turn = dues.pop(self.done, ())
            for index in turn:
                self._put(dues, self.done + self._row, index)
            found.update(turn)
        return [self.sequences[index] for index in sorted(found)]

    @staticmethod
    def _put(dues: dict[int, list[int]], due: int, index: int) -> None:
        dues.setdefault(due, []).append(index)


def _left(sequence: Sequence, max_context: int) -> int:
    """Tokens that surely are not its last."""
    if sequence.closing:
        return 0
    last = sequence.prompt_tokens + sequence.request.max_tokens
    return (last if last < max_context else max_context) - len(sequence.tokens) - 1


def _prefills(lane: Lane) -> bool:
    return any(flight.prefill for flight in lane.flights)
