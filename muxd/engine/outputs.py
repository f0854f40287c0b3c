"""What a batch that is done has given its sequences: rows computed, a token each, or their end."""

from muxd.engine.actions import Action, Emit, Ended
from muxd.engine.board import Board
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.recovery import Recovery, no_token
from muxd.engine.rows import RowKeeper
from muxd.engine.sequence import Phase, Sequence
from muxd.messages import NO_TOKEN


class Outputs:
    """Part of the scheduler."""

    def __init__(self, board: Board, rows: RowKeeper, recovery: Recovery):
        self._board, self._rows, self._recovery = board, rows, recovery

    def take(self, lane: Lane, flight: Flight, tokens: list[int], now: float) -> None:
        """``tokens``: of those sequences that sampled, in the batch's order."""
        emit = Emit([], [], [], [])
        ended: list[Action] = []
        index, prefill = 0, flight.prefill
        for sequence, computed in zip(flight.sequences, flight.chunk, strict=True):
            if sequence.batch == flight.batch:
                sequence.batch = None  # else it is in the step that went ahead, too
            # What is computed behind a sequence's end is nobody's.
            known = len(sequence.tokens)
            sequence.computed = min(sequence.computed + computed, known)
            pooled = prefill and bool(sequence.request.pooling)
            sampled = sequence.computed == known and not pooled
            if sequence.chain is not None or lane.spec.windowed is not None:
                self._rows.computed(lane, sequence)
            if sequence.closing:
                if sequence.batch is None:
                    self._recovery.end(sequence)
            elif sampled and tokens[index] == NO_TOKEN:
                self._recovery.fail(sequence, no_token(sequence))
            elif sampled:
                self._accept(lane, sequence, tokens[index], index, emit, ended, now)
            elif pooled and sequence.computed == known:
                self._recovery.end(sequence)
                ended.append(Ended(sequence, "stop"))
            index += sampled
        if emit.sequences:
            self._board.actions.append(emit)
        self._board.actions.extend(ended)

    def _accept(
        self,
        lane: Lane,
        sequence: Sequence,
        token: int,
        index: int,
        emit: Emit,
        ended: list[Action],
        now: float,
    ) -> None:
        if sequence.phase is Phase.WAITING:
            lane.waiting.remove(sequence)
            sequence.phase = Phase.RUNNING
            lane.running.append(sequence)
        before = len(sequence.tokens)
        finish = sequence.take(token, lane.spec.max_context)
        if len(sequence.tokens) > before:
            emit.sequences.append(sequence)
            emit.tokens.append(token)
            emit.index.append(index)
            if sequence.first is None:
                sequence.first = now
                emit.gaps.append(None)
            else:
                emit.gaps.append(now - sequence.latest)
            sequence.latest = now
        if finish is not None:
            sequence.closing = sequence.batch is not None
            if not sequence.closing:
                self._recovery.end(sequence)
            self._rows.answered(lane, sequence)
            ended.append(Ended(sequence, finish))
