"""Requests that change their unit because their model does: given up here, taken in there. Pure."""

from muxd.engine.actions import Failed, Withdraw, Withdrawn
from muxd.engine.board import Board
from muxd.engine.rows import RowKeeper
from muxd.engine.sequence import Phase, Sequence


class Transfer:
    """Owned by the scheduler."""

    def __init__(self, board: Board, rows: RowKeeper):
        self._board, self._rows = board, rows

    def withdraw(self, event: Withdraw) -> None:
        """What is in a batch stays: its rows are being written, and a token may come of it."""
        lane = self._board.lanes[event.model]
        for sequence in list(lane.waiting.in_order()):
            if sequence.batch is None and not sequence.generated and len(sequence.tokens) < event.room:
                lane.remove(sequence)
                self._rows.release(sequence)
                sequence.reset()
                sequence.counter = None
                sequence.chain = None  # its rows have other names there
                sequence.estimate = None
                self._board.actions.append(Withdrawn(sequence))
        self._rows.note_gone(lane)
        self._board.refresh(lane)

    def join(self, sequence: Sequence, now: float) -> None:
        """It takes its place by arrival among those of its key; where the model has failed it hears why."""
        lane = self._board.lanes[sequence.model]
        if lane.failed is not None:
            sequence.phase = Phase.ENDED
            self._board.actions.append(Failed(sequence, lane.failed))
            return
        lane.waiting.add(sequence)
        self._rows.arrived(lane, sequence, now)
        self._board.refresh(lane)
