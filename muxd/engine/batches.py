"""Starting a batch: which of a lane's sequences go along, their rows, the command, the share it books. Pure.

A policy says which lane starts what on which share; that is all it says.
"""

from muxd.engine.actions import Ahead, Launch
from muxd.engine.board import Board
from muxd.engine.commands import chunk_of, drain, new_rows
from muxd.engine.lane import InFlight, Lane
from muxd.engine.patience import Patience
from muxd.engine.rows import NOTHING, RowKeeper
from muxd.engine.sequence import Sequence
from muxd.messages import Chunk, Decode, NewRows, Prefill
from muxd.pool.ledger import Rows


class Batches:
    """Numbers batches and books shares. The lane's worker and the share must be free."""

    def __init__(self, board: Board, rows: RowKeeper, patience: Patience):
        self._board, self._rows, self._patience = board, rows, patience
        self.begun = 0  # the last number

    def prefill(self, lane: Lane, share: int, now: float, most: int = 0) -> bool:
        """First come first served up to ``most`` tokens, ``prefill_tokens`` if that is 0; the last prompt may
        be cut into chunks.

        False, and nothing happens, when not even the first prompt finds its rows.
        """
        budget = most or self._board.settings.prefill_tokens
        granted: list[Rows] = []
        chunks: list[Chunk] = []
        sequences: list[Sequence] = []
        for sequence in lane.waiting:
            if sequences and sequences[0].suspect:
                break  # alone
            if budget == 0 or (grant := self._rows.admit(lane, sequence)) is None:
                break
            if grant.rows.ids.size:
                granted.append(grant.rows)
            chunk = chunk_of(sequence, budget, first=grant is not NOTHING)
            budget -= len(chunk.tokens) // 4
            chunks.append(chunk)
            sequences.append(sequence)
        if not chunks:
            return False
        command = Prefill(self._next(), share, new_rows(granted), chunks, drain(lane.forget))
        sizes = [len(chunk.tokens) // 4 for chunk in chunks]
        self._fly(lane, InFlight(lane.spec.model, command.batch, True, sequences, sizes, share, now, command))
        self._board.prefilling += 1
        self._board.prefilled = command.batch
        self._board.prefills += 1
        lane.prefilled_at = self._board.prefills
        self._board.waiting.to_back(lane)
        return True

    def decode(self, lane: Lane, share: int, now: float) -> bool:
        """One step of every running sequence that has, or finds, a row for its next token.

        False when none has: nothing is launched, and some of its sequences may have been preempted.
        """
        sequences, grown, rows = self._rows.grow(lane)
        if not sequences:
            return False
        flight = self._step(lane, sequences, grown, rows, share, now)
        self._fly(lane, flight)
        lane.stepped = flight.batch
        self._board.decodable.to_back(lane)
        return True

    def ahead(self, lane: Lane, now: float) -> bool:
        """The step after the one in flight, on its share, for those who will surely or likely go on.

        False when one of them finds no row: nobody is preempted for a step that is not due. False also while
        somebody of the lane is not in the step in flight: steps in a row would leave it out for ever. Nor
        while somebody is tried alone.
        """
        front = lane.step
        assert front is not None
        if lane.suspects or any([sequence.batch != front.batch for sequence in lane.running]):
            return False
        grown = self._rows.grow_ahead(lane, front.sequences)
        if grown is None:
            return False
        flight = lane.ahead = self._step(lane, *grown, front.share, now)
        for sequence in flight.sequences:
            sequence.batch = flight.batch
        self._board.refresh(lane)
        assert isinstance(flight.command, Decode)
        self._board.actions.append(Ahead(lane.spec.model, flight.command))
        return True

    def land(self, lane: Lane, flight: InFlight, now: float) -> None:
        """The batch is done: the step that went ahead of it begins on its share, or that is free again."""
        self._free(lane, flight)
        behind = lane.ahead
        if flight.prefill or behind is None:
            return
        lane.ahead, behind.began = None, now
        self._begin(lane, behind)
        lane.stepped = behind.batch
        self._board.refresh(lane)
        self._board.actions.append(Launch(lane.spec.model, behind.command, ahead=True))

    def repeated(
        self, lane: Lane, flight: InFlight, numbers: list[int], began: float, expected: float
    ) -> None:
        """The lane is some steps further: in flight, and behind that, are the steps of these ``numbers``."""
        shares = self._board.shares
        del self._board.flying[flight.batch]
        shares.release(flight.batch)
        both = [flight] if lane.ahead is None else [flight, lane.ahead]
        for one, number in zip(both, numbers, strict=True):
            assert isinstance(one.command, Decode)
            one.batch, one.began = number, began
            one.command = Decode(number, one.share, NewRows(), one.command.seqs, [], drain(lane.forget))
        shares.book(flight.batch, flight.share)
        self._board.flying[flight.batch] = flight
        lane.flights.remove(flight)  # it began after a prefill beside it
        lane.flights.append(flight)
        flight.asked = False
        self._patience.expect(lane, flight, expected)
        lane.stepped = flight.batch
        lane.launched = max(lane.launched, flight.batch)
        for sequence in flight.sequences:
            sequence.batch = numbers[-1]

    def lose(self, lane: Lane) -> None:
        """Nothing of the lane runs any more."""
        lane.ahead = None
        for flight in list(lane.flights):
            self._free(lane, flight)

    def _free(self, lane: Lane, flight: InFlight) -> None:
        lane.flights.remove(flight)
        del self._board.flying[flight.batch]
        self._board.shares.release(flight.batch)
        self._board.prefilling -= flight.prefill

    def _step(
        self,
        lane: Lane,
        sequences: list[Sequence],
        grown: list[tuple[int, int]],
        rows: Rows,
        share: int,
        now: float,
    ) -> InFlight:
        ids = [sequence.id for sequence in sequences]
        command = Decode(self._next(), share, new_rows([rows]), ids, grown, drain(lane.forget))
        return InFlight(
            lane.spec.model, command.batch, False, sequences, [1] * len(sequences), share, now, command
        )

    def _begin(self, lane: Lane, flight: InFlight) -> None:
        self._board.shares.book(flight.batch, flight.share)
        lane.flights.append(flight)
        self._board.flying[flight.batch] = flight
        self._patience.begin(lane, flight)
        lane.launched = max(lane.launched, flight.batch)  # a prefill may have overtaken the step ahead

    def _fly(self, lane: Lane, flight: InFlight) -> None:
        self._begin(lane, flight)
        for sequence in flight.sequences:
            sequence.batch = flight.batch
        self._board.refresh(lane)
        self._board.actions.append(Launch(lane.spec.model, flight.command))

    def _next(self) -> int:
        self.begun += 1
        return self.begun
