"""Starting a batch: which of a lane's sequences go along, their rows, the command, the share it books. Pure.

A policy says which lane starts what on which share; that is all it says.
"""

from muxd.engine.actions import Ahead, Completed, Launch
from muxd.engine.board import Board
from muxd.engine.commands import chunk_of, drain, new_rows
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
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
        """The first of the queue up to ``most`` tokens, ``prefill_tokens`` if that is 0; the last prompt may
        be cut into chunks.

        False, and nothing happens, when not even the first prompt finds its rows.
        """
        budget = most or self._board.settings.prefill_tokens
        granted: list[Rows] = []
        chunks: list[Chunk] = []
        sequences: list[Sequence] = []
        for sequence in lane.next_prompts():
            if sequences and sequences[0].suspect:
                break  # alone
            if lane.retiring and not sequence.rows:
                break
            if lane.spec.whole and sequence.remaining > budget:
                if chunks:
                    break
                budget = sequence.remaining
            if budget == 0 or (grant := self._rows.admit(lane, sequence)) is None:
                break
            granted += [
                rows for rows in (grant.rows, self._rows.keep(lane, sequence, budget)) if rows.ids.size
            ]
            chunk = chunk_of(sequence, budget, first=grant is not NOTHING)
            budget -= len(chunk.tokens) // 4
            chunks.append(chunk)
            sequences.append(sequence)
        if not chunks:
            return False
        mask = self._mask(lane, share, prefill=True)
        command = Prefill(
            self._next(), share, new_rows(granted), chunks, drain(lane.forget), self._board.parts.told(mask)
        )
        sizes = [len(chunk.tokens) // 4 for chunk in chunks]
        flight = self._flight(lane, command, sequences, sizes, mask, now)
        for sequence in sequences:
            if sequence.started is None:
                sequence.started = now
        self._launch(lane, flight)
        self._board.prefilling += 1
        self._board.prefilled = flight.batch
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
        mask = self._mask(lane, share, prefill=False)
        flight = self._step(lane, sequences, grown, rows, mask, share, now)
        self._launch(lane, flight)
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
        mask = self._mask(lane, front.share, prefill=False, front=front.mask)
        flight = lane.ahead = self._step(lane, *grown, mask, front.share, now)
        for sequence in flight.sequences:
            sequence.batch = flight.batch
        self._board.refresh(lane)
        self._board.actions.append(Ahead(flight))
        return True

    def complete(self, lane: Lane, flight: Flight, now: float) -> None:
        """The batch is done: the step that went ahead of it begins on its share, or that is free again."""
        self._end(lane, flight, now)
        behind = lane.ahead
        if flight.prefill or behind is None:
            return
        lane.ahead, behind.began = None, now
        self._begin(lane, behind)
        lane.stepped = behind.batch
        self._board.refresh(lane)
        self._board.actions.append(Launch(behind, ahead=True))

    def repeated(self, lane: Lane, flight: Flight, numbers: list[int], began: float, expected: float) -> None:
        """The lane is some steps further: in flight, and behind that, are the steps of these ``numbers``."""
        del self._board.flying[flight.batch]
        both = [flight] if lane.ahead is None else [flight, lane.ahead]
        for one, number in zip(both, numbers, strict=True):
            assert isinstance(one.command, Decode)
            one.batch, one.began = number, began
            parts, seqs = one.command.parts, [sequence.id for sequence in one.sequences]
            command = Decode(number, one.share, NewRows(), seqs, [], drain(lane.forget), parts=parts)
            one.worker, one.command = lane.told(command)
        self._board.flying[flight.batch] = flight
        lane.flights.remove(flight)  # it began after a prefill beside it
        lane.flights.append(flight)
        flight.asked = False
        self._patience.expect(lane, flight, expected)
        lane.stepped = flight.batch
        lane.launched = max(lane.launched, flight.batch)
        for sequence in flight.sequences:
            sequence.batch = numbers[-1]

    def lose(self, lane: Lane, now: float) -> None:
        """Nothing of the lane runs any more."""
        lane.ahead, lane.handover = None, None
        self._board.parts.forget(lane.spec.model)
        for flight in list(lane.flights):
            flight.lost = True
            self._end(lane, flight, now)

    def _end(self, lane: Lane, flight: Flight, now: float) -> None:
        flight.ended = now
        lane.flights.remove(flight)
        del self._board.flying[flight.batch]
        self._board.shares.release(flight.share)
        self._board.prefilling -= flight.prefill
        self._board.actions.append(Completed(flight))

    def _mask(self, lane: Lane, share: int, *, prefill: bool, front: int = 0) -> int:
        board = self._board
        if not board.parts.total:
            return 0
        return board.parts.choose(lane.spec.model, share, board.masks(), prefill=prefill, front=front)

    def _flight(
        self,
        lane: Lane,
        command: Prefill | Decode,
        sequences: list[Sequence],
        sizes: list[int],
        mask: int,
        now: float,
    ) -> Flight:
        worker, told = lane.told(command)
        return Flight(
            lane.spec.model, command.batch, isinstance(command, Prefill), sequences, sizes, command.share,
            now, told, worker, mask,
        )  # fmt: skip

    def _step(
        self,
        lane: Lane,
        sequences: list[Sequence],
        grown: list[tuple[int, int]],
        rows: Rows,
        mask: int,
        share: int,
        now: float,
    ) -> Flight:
        ids, parts = [sequence.id for sequence in sequences], self._board.parts.told(mask)
        command = Decode(self._next(), share, new_rows([rows]), ids, grown, drain(lane.forget), parts=parts)
        return self._flight(lane, command, sequences, [1] * len(sequences), mask, now)

    def _begin(self, lane: Lane, flight: Flight) -> None:
        self._board.shares.book(flight.share)
        lane.flights.append(flight)
        self._board.flying[flight.batch] = flight
        self._patience.begin(lane, flight)
        lane.launched = max(lane.launched, flight.batch)  # a prefill may have overtaken the step ahead

    def _launch(self, lane: Lane, flight: Flight) -> None:
        self._begin(lane, flight)
        for sequence in flight.sequences:
            sequence.batch = flight.batch
        self._board.refresh(lane)
        self._board.actions.append(Launch(flight))

    def _next(self) -> int:
        self.begun += 1
        return self.begun
