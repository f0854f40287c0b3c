"""Starting a batch: which of a lane's sequences go along, their rows, the command, the share it books. Pure.

A policy says which lane starts what on which share; that is all it says.
"""

from muxd.engine.actions import Launch
from muxd.engine.board import Board
from muxd.engine.commands import chunk_of, drain, new_rows
from muxd.engine.lane import InFlight, Lane
from muxd.engine.rows import NOTHING, RowKeeper
from muxd.engine.sequence import Sequence
from muxd.messages import Chunk, Decode, Prefill
from muxd.pool.ledger import Rows


class Batches:
    """Numbers batches and books shares. The lane's worker and the share must be free."""

    def __init__(self, board: Board, rows: RowKeeper):
        self._board = board
        self._rows = rows
        self.begun = 0  # the last number

    def prefill(self, lane: Lane, share: int, now: float) -> bool:
        """First come first served up to the token budget; the last prompt may be cut into chunks.

        False, and nothing happens, when not even the first prompt finds its rows.
        """
        budget = self._board.settings.prefill_tokens
        granted: list[Rows] = []
        chunks: list[Chunk] = []
        sequences: list[Sequence] = []
        for sequence in lane.waiting:
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
        self._fly(lane, command, InFlight(command.batch, True, sequences, sizes, share, now))
        self._board.prefilling += 1
        self._board.prefilled = command.batch
        self._board.waiting.to_back(lane)
        return True

    def decode(self, lane: Lane, share: int, now: float) -> bool:
        """One step of every running sequence that has, or finds, a row for its next token.

        False when none has: nothing is launched, and some of its sequences may have been preempted.
        """
        sequences, grown, rows = self._rows.grow(lane)
        if not sequences:
            return False
        ids = [sequence.id for sequence in sequences]
        command = Decode(self._next(), share, new_rows([rows]), ids, grown, drain(lane.forget))
        flight = InFlight(command.batch, False, sequences, [1] * len(sequences), share, now)
        self._fly(lane, command, flight)
        lane.stepped = command.batch
        self._board.decodable.to_back(lane)
        return True

    def land(self, lane: Lane, flight: InFlight) -> None:
        """The batch is done, or lost with its worker: its share is free again."""
        lane.flights.remove(flight)
        self._board.shares.release(flight.batch)
        self._board.prefilling -= flight.prefill

    def _fly(self, lane: Lane, command: Prefill | Decode, flight: InFlight) -> None:
        self._board.shares.book(flight.batch, flight.share)
        lane.flights.append(flight)
        lane.launched = flight.batch
        for sequence in flight.sequences:
            sequence.batch = flight.batch
        self._board.refresh(lane)
        self._board.actions.append(Launch(lane.spec.model, command))

    def _next(self) -> int:
        self.begun += 1
        return self.begun
