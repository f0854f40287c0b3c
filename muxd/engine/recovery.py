"""What becomes of a model's sequences when its worker is lost: they go on, and who killed it is found. Pure.

Sampling is keyed by seed and position, so a sequence that is computed anew, prompt and answer so far, goes
on with the very tokens it would have had: its reader sees a pause. Those that were in the fatal batch are
suspects: with the next worker each is prefilled and stepped once with nobody beside it. One that is alone in
a batch when a worker is lost again has killed it, and is told so; the others were not in its company.
"""

from collections.abc import Collection, Mapping

from muxd.engine.actions import Failed, Resumed, WorkerLost
from muxd.engine.batches import Batches
from muxd.engine.board import Board
from muxd.engine.flight import Flight
from muxd.engine.lane import Lane
from muxd.engine.rows import RowKeeper
from muxd.engine.sequence import Phase, Sequence
from muxd.errors import ConstraintFailed, MuxdError, NoFiniteLogits, RequestKillsWorker


class Recovery:
    """Owned by the scheduler."""

    def __init__(self, board: Board, rows: RowKeeper, batches: Batches):
        self._board, self._rows, self._batches = board, rows, batches

    def culprit(self, lane: Lane) -> Sequence | None:
        """Who would have killed the worker, should it be lost now: a suspect that runs alone."""
        if len(lane.flights) != 1 or len(lane.flights[0].sequences) != 1:
            return None
        alone = lane.flights[0].sequences[0]
        return alone if alone.suspect else None

    def cleared(self, lane: Lane, flight: Flight) -> None:
        """A batch is done: a suspect that has taken a step of its own is none any more."""
        if lane.suspects and not flight.prefill:
            for sequence in flight.sequences:
                sequence.suspect = False
                lane.suspects.pop(sequence.id, None)

    def lose(self, event: WorkerLost, now: float) -> None:
        """Everybody goes on when the next worker is there; with ``final`` there will be none."""
        lane = self._board.lanes[event.model]
        innocent = event.final or event.blameless
        culprit = None if innocent else self.culprit(lane)
        fatal = set() if innocent else {s.id for flight in lane.all_flights for s in flight.sequences}
        lane.lose(event.error if event.final else None)
        ends: dict[int, MuxdError] = {}
        if event.final:
            ends = {sequence.id: event.error for sequence in lane.sequences()}
        elif culprit is not None:
            ends = {culprit.id: _verdict(culprit, event.error)}
        self._stop(lane, now, ends, fatal)

    def sleep(self, lane: Lane, now: float) -> None:
        """Its worker has gone on purpose. Nobody is to blame; who had begun is computed anew."""
        lane.lose(None)
        lane.retiring, lane.asleep = False, True
        self._stop(lane, now, {}, ())

    def _stop(self, lane: Lane, now: float, ends: Mapping[int, MuxdError], fatal: Collection[int]) -> None:
        """No worker is there: some requests end so, the others wait; those of a ``fatal`` batch are
        suspects."""
        self._board.even_out()
        self._batches.lose(lane, now)
        self._rows.lose(lane)
        for sequence in list(lane.sequences()):
            sequence.batch = None
            if sequence.closing:
                self.end(sequence)
            elif (error := ends.get(sequence.id)) is not None:
                self.fail(sequence, error)
            elif sequence.rows:
                self._resume(lane, sequence, suspect=sequence.id in fatal)
        lane.forget.clear()
        self._board.refresh(lane)

    def fail(self, sequence: Sequence, error: MuxdError) -> None:
        """Its end; its rows are free now, or when the step that went ahead with it is done."""
        sequence.closing = sequence.batch is not None and sequence.phase is Phase.RUNNING
        if not sequence.closing:
            self.end(sequence)
        self._board.actions.append(Failed(sequence, error))

    def end(self, sequence: Sequence) -> None:
        """Nothing of it is left."""
        self._board.lanes[sequence.model].remove(sequence)
        self._rows.release(sequence)
        sequence.batch = None
        sequence.phase = Phase.ENDED

    def _resume(self, lane: Lane, sequence: Sequence, *, suspect: bool) -> None:
        self._rows.release(sequence)
        lane.remove(sequence)
        sequence.suspect = sequence.suspect or suspect
        sequence.reruns += 1
        lane.requeue(sequence)
        self._board.actions.append(Resumed(sequence))


def _verdict(sequence: Sequence, error: MuxdError) -> MuxdError:
    return RequestKillsWorker(
        f"the request {sequence.request.id} was running when its worker was lost, and running alone when the "
        f"next one was ({error.message}): it is not tried again"
    )


def no_token(sequence: Sequence) -> MuxdError:
    """Why its step picked none."""
    if sequence.request.sampling.bounded:
        return ConstraintFailed(
            f"no token may follow the first {sequence.generated} of {sequence.request.id}: what its answer "
            "is held to (response_format, structured_outputs, allowed_token_ids, bad_words) leaves none, or "
            "costs too much; make it simpler or wider"
        )
    return NoFiniteLogits(
        f"the model produced no finite logits for token {len(sequence.tokens)} of {sequence.request.id}: an "
        "overflow, damaged weights, or penalties and bans that leave no token; the request ends here"
    )
