"""Who gets rows, who keeps them, who has to give them back. Pure.

Admission, growth and preemption of one unit's sequences over the pool's ledger. The ledger decides what a
model may hold; the row keeper decides which sequence gets it, and whose sequence goes when there is too
little. Every policy works on top of it; the rules are told in ``design.md``.
"""

import numpy as np

from muxd.engine.actions import Preempted
from muxd.engine.board import Board
from muxd.engine.commands import NO_ROWS
from muxd.engine.lane import Lane
from muxd.engine.lookahead import LookAhead
from muxd.engine.prefixes import FoundPrefixes
from muxd.engine.progress import fade
from muxd.engine.quota import Demand, Quotas
from muxd.engine.sequence import Phase, Sequence
from muxd.pool.ledger import Grant, Rows

NOTHING = Grant(NO_ROWS.ids, NO_ROWS)


class RowKeeper:
    """``quotas`` is set while the policy has quotas that move; else a model's own is its guarantee."""

    def __init__(self, board: Board, quotas: Quotas | None = None):
        self.board = board
        self.ledger = board.ledger
        self.quotas = quotas
        self.prefixes = FoundPrefixes(board)
        self.look_ahead = LookAhead(board.settings.look_ahead)
        self.starving: set[str] = set()  # models of which a running sequence waits for its next row
        self.claims: set[str] = set()  # models whose prompts wait for rows within their quota
        self._evicting: dict[int, Sequence] = {}  # in flight, preempted when the batch is done
        self._promised = 0  # head blocks of all lanes' look-ahead that nobody holds yet
        self._news = 0  # counts what could let somebody in who was refused before
        self._refused: dict[str, tuple[int, int]] = {}  # model -> head of its queue, news when it was refused

    # ---- admission --------------------------------------------------------------------------------

    def admissible(self, lane: Lane) -> bool:
        """Whether the head of the queue can be (or already is) given its rows."""
        head = lane.waiting.head
        if head.rows:
            return True
        if self.starving or lane.full(head):
            # What comes free is the starving sequence's. Otherwise a prompt that was preempted to make room
            # would be admitted into that very room again.
            return False
        refused = (head.id, self._news)
        if self._refused.get(lane.spec.model) == refused:
            return False  # so that who waits costs nothing while nothing has changed
        if self._fits(lane, head):
            return True
        self._refused[lane.spec.model] = refused
        return False

    def admit(self, lane: Lane, sequence: Sequence) -> Grant | None:
        """The rows it needs beyond those it has; None if it must wait.

        It holds rows for what is known; its look-ahead is promised, not held, so that it costs nobody
        anything until it is written.
        """
        if sequence.rows:
            return NOTHING
        if self.starving or lane.full(sequence) or not self._fits(lane, sequence):
            return None
        known, charge = self._known_rows(lane, sequence), self.charge(lane, sequence)
        grant = self.prefixes.admit(lane, sequence, known, charge + lane.promised)
        if grant is None:
            return None
        sequence.faded = lane.passed(sequence.computed)
        if not sequence.preemptions and not sequence.reruns:
            sequence.cached = sequence.computed
        sequence.charge = charge - lane.spec.state_rows
        self._promise(lane, max(0, charge - known))
        lane.admit(sequence)
        if lane.spec.model in self.claims:
            self.claims.discard(lane.spec.model)
            self._news += 1
        return grant

    def charge(self, lane: Lane, sequence: Sequence) -> int:
        """Rows for its state, for what is known, and for a bounded look-ahead of what will be generated."""
        left = sequence.request.max_tokens - sequence.generated
        tokens = len(sequence.tokens) + min(self.look_ahead.tokens(lane), left)
        return min(lane.rows_for(min(tokens, lane.spec.max_context)), lane.spec.capacity_rows)

    def quota(self, model: str) -> int:
        """Head blocks that nobody takes from the model."""
        return self.quotas.quota(model) if self.quotas else self.ledger.guarantee(model)

    def right(self, model: str) -> int:
        """Head blocks up to which it does not borrow: its quota, or where that is going."""
        return self.quotas.goal(model) if self.quotas else self.ledger.guarantee(model)

    def _fits(self, lane: Lane, sequence: Sequence) -> bool:
        """Its rows are there, and neither promises to running sequences nor claims stand against it."""
        spec = lane.spec
        charge = self.charge(lane, sequence)
        if self.ledger.held(spec.model) + charge * spec.blocks_per_row > self.right(spec.model):
            if self.claims - {spec.model} and self.ledger.held_blocks:
                return False  # it would borrow what another is owed; when nobody holds anything, nobody is
            known = self._known_rows(lane, sequence) * spec.blocks_per_row
            if self._promised + known > self.ledger.unheld_blocks:
                return False
        return self.prefixes.fits(lane, sequence, charge + lane.promised)

    def _known_rows(self, lane: Lane, sequence: Sequence) -> int:
        return lane.rows_for(len(sequence.tokens))

    def keep(self, lane: Lane, sequence: Sequence, budget: int) -> Rows:
        """Rows for a copy of its state, which later prompts may begin with; not those that anybody is
        promised."""
        room = self.ledger.unheld_blocks - self._promised
        return NO_ROWS if self.starving or self.claims else self.prefixes.keep(lane, sequence, budget, room)

    def arrived(self, lane: Lane, sequence: Sequence, now: float) -> None:
        """One request more to count in the model's demand."""
        if self.quotas is not None:
            blocks = self.charge(lane, sequence) * lane.spec.blocks_per_row
            self.quotas.arrived(lane.spec.model, blocks, now)

    # ---- growth -----------------------------------------------------------------------------------

    @property
    def at_peace(self) -> bool:
        """Nobody waits for rows that somebody else has to give back."""
        owed = self.ledger.leaving_blocks or self.ledger.owed_blocks
        return not (owed or self.starving or self.claims or self._evicting)

    def grow(self, lane: Lane) -> tuple[list[Sequence], list[tuple[int, int]], Rows]:
        """Rows for the running sequences whose next token starts a new one.

        Returns who can step now, (sequence, row) for each row given, and those rows; who cannot have one
        sits out.
        """
        size = lane.spec.row_tokens
        running = list(lane.steppers)
        need = [s for s in running if s.computed >= len(s.rows) * size]
        if not need:
            self._note_starving(lane, False)
            return running, [], NO_ROWS
        stalled: set[int] = set()
        granted: Rows | None = NO_ROWS
        while need and (granted := self.ledger.take(lane.spec.model, len(need))) is None:
            victim = self._make_room(lane)
            if victim is None:
                stalled.add(need.pop().id)
            elif victim in need:
                need.remove(victim)
        if not need or granted is None:
            granted = NO_ROWS
        self._note_starving(lane, bool(stalled))
        grown = self._extend(lane, need, granted)
        # Who was preempted meanwhile, for others' rows, is not running any more.
        steppers = [s for s in running if s.phase is Phase.RUNNING and s.id not in stalled]
        return steppers, grown, granted

    def grow_ahead(
        self, lane: Lane, stepping: list[Sequence]
    ) -> tuple[list[Sequence], list[tuple[int, int]], Rows] | None:
        """Rows for the token after the one that ``stepping`` sample now, as ``grow`` returns them.

        Who is known to end, or to be preempted, stays out, and whose next tokens depend on that one. None
        when nobody is left or rows are short.
        """
        limit = lane.spec.max_context
        size, evicting = lane.spec.row_tokens, self._evicting
        going = [s for s in stepping if not (s.closing or s.reads_back or s.id in evicting or s.ends(limit))]
        need = [s for s in going if s.computed + 1 >= len(s.rows) * size]
        granted = self.ledger.take(lane.spec.model, len(need)) if need else NO_ROWS
        if not going or granted is None:
            return None
        return going, self._extend(lane, need, granted), granted

    def extend(self, lane: Lane, need: list[tuple[Sequence, int]]) -> None:
        """So many rows more for each; the ledger has said that it grants them."""
        granted = self.ledger.take(lane.spec.model, sum([count for _, count in need]))
        assert granted is not None
        ids, at = granted.ids.tolist(), 0
        for sequence, count in need:
            held = len(sequence.rows)
            promised = min(sequence.charge, held + count) - held
            if promised > 0:
                self._promise(lane, -promised)
            sequence.rows += ids[at : at + count]
            at += count

    def _extend(self, lane: Lane, need: list[Sequence], granted: Rows) -> list[tuple[int, int]]:
        """One row each."""
        grown = list(zip((s.id for s in need), granted.ids.tolist(), strict=True))
        for sequence, (_, row) in zip(need, grown, strict=True):
            if len(sequence.rows) < sequence.charge:
                self._promise(lane, -1)
            sequence.rows.append(row)
        return grown

    def computed(self, lane: Lane, sequence: Sequence) -> None:
        """More of it is computed, and may be found by others; names first, for what has none is not kept when
        it fades."""
        if sequence.chain is not None:
            self.prefixes.computed(lane, sequence)
        self._news += fade(self.ledger, lane, sequence)

    def answered(self, lane: Lane, sequence: Sequence) -> None:
        """It has come to its own end."""
        self._news += self.look_ahead.answered(lane, sequence.generated)

    def release(self, sequence: Sequence) -> None:
        """Give its rows back and let the worker forget it."""
        self._evicting.pop(sequence.id, None)
        if not sequence.rows:
            return
        lane = self.board.lanes[sequence.model]
        self._promise(lane, -max(0, sequence.charge - len(sequence.rows)))
        held = np.asarray(sequence.held, dtype=np.int32)
        self.ledger.release(sequence.model, held, sequence.faded)
        lane.forget.append(sequence.id)
        lane.release(sequence)
        sequence.drop_rows()
        self._news += 1

    # ---- preemption -------------------------------------------------------------------------------

    def _make_room(self, asking: Lane) -> Sequence | None:
        """Preempt one sequence and return it; None when the room is only coming (or not to be had)."""
        if self._evicting:
            return None
        holders = self._holders(self._most_over() or asking)
        if not holders:
            return None
        victim = max(holders, key=_age)
        return victim if self._evict(victim) else None

    def reclaim(self, now: float) -> None:
        """A model within its quota whose prompt has waited ``drain_timeout`` for rows takes them from
        borrowers, youngest sequence first; nobody borrows meanwhile."""
        if not self.board.waiting and not self.claims:
            return
        before = self.claims
        self.claims = {model for model in self.claims if self._claims(self.board.lanes.get(model))}
        for lane in self.board.waiting.lanes:
            waited = now - lane.blocked_since >= self.board.settings.drain_timeout
            if lane.blocked == "rows" and waited and self._claims(lane):
                self.claims.add(lane.spec.model)
        self._news += self.claims != before
        if not self.claims and not self.ledger.owed_blocks:
            return
        wanted = sum(self._missing(self.board.lanes[model]) for model in self.claims if self._by_right(model))
        wanted = max(wanted, self.ledger.owed_blocks) - sum(self._coming().values())
        while wanted > 0 and (giver := self._most_over()) is not None:
            victim = max(self._holders(giver), key=_age)
            wanted -= giver.blocks_of(victim)
            self._evict(victim)

    def vacate(self) -> None:
        """Recalled blocks are given back: who holds some computes again elsewhere."""
        if not self.ledger.leaving_blocks:
            return
        for model, lane in self.board.lanes.items():
            leaving = set(self.ledger.leaving(model).tolist())
            for sequence in self._holders(lane) if leaving else ():
                if not leaving.isdisjoint(sequence.held):
                    self._evict(sequence)

    def _claims(self, lane: Lane | None) -> bool:
        """The head of the queue waits for rows within its model's quota, or that is still growing."""
        if lane is None or not lane.prompts or lane.waiting.head.rows or not lane.ready:
            return False
        model = lane.spec.model
        owed = self._by_right(model) or (
            self.quotas is not None and self.quotas.growing(model, self.ledger.held(model))
        )
        return owed and not lane.full(lane.waiting.head) and not self.admissible(lane)

    def _by_right(self, model: str) -> bool:
        """The head of its queue, and what its running sequences are promised, stay within its quota."""
        lane = self.board.lanes[model]
        need = (self.charge(lane, lane.waiting.head) + lane.promised) * lane.spec.blocks_per_row
        return self.ledger.held(model) + need <= self.right(model)

    def _missing(self, lane: Lane) -> int:
        """Head blocks that the head of the queue lacks."""
        need = self.charge(lane, lane.waiting.head) + lane.promised
        return max(0, need - self.ledger.available(lane.spec.model)) * lane.spec.blocks_per_row

    def _most_over(self) -> Lane | None:
        """The model that holds most beyond its quota and has something to give.

        What will come back when a running batch is done counts as given.
        """
        coming = self._coming()
        best: Lane | None = None
        most = 0
        for model, lane in self.board.lanes.items():
            over = self.ledger.held(model) - self.quota(model) - coming.get(model, 0)
            if over > most and self._holders(lane):
                best, most = lane, over
        return best

    def _coming(self) -> dict[str, int]:
        """Head blocks, per model, of sequences that are preempted when their batch is done."""
        coming: dict[str, int] = {}
        for sequence in self._evicting.values():
            blocks = self.board.lanes[sequence.model].blocks_of(sequence)
            coming[sequence.model] = coming.get(sequence.model, 0) + blocks
        return coming

    def _evict(self, sequence: Sequence) -> bool:
        """Preempt it now, or, while a batch writes its rows, when that is done. True: now."""
        if sequence.batch is not None:
            self._evicting[sequence.id] = sequence
            return False
        self._preempt(sequence)
        return True

    def finish_evictions(self, sequences: list[Sequence]) -> None:
        """Their batch is done; who is in the step that went ahead of it stays until that is."""
        if self._evicting:
            for sequence in sequences:
                if (
                    sequence.batch is None
                    and self._evicting.pop(sequence.id, None) is not None
                    and sequence.phase is not Phase.ENDED
                ):
                    self._preempt(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Its rows go back (those that have names stay cached until somebody needs them); it waits again."""
        lane = self.board.lanes[sequence.model]
        lane.remove(sequence)
        self._news += self.look_ahead.wasted(sequence.computed)
        self.release(sequence)
        sequence.preemptions += 1
        lane.requeue(sequence)
        self.board.refresh(lane)
        self.board.actions.append(Preempted(sequence))

    def lose(self, lane: Lane) -> None:
        """The worker and its row table are gone, and with them what its cached rows meant."""
        self.ledger.drop_cache(lane.spec.model)
        self.starving.discard(lane.spec.model)

    # ---- small things -----------------------------------------------------------------------------

    def forget(self, model: str) -> None:
        """The model leaves the unit."""
        self.starving.discard(model)
        self.claims.discard(model)
        self._refused.pop(model, None)
        self.prefixes.forget(model)

    def look_again(self) -> None:
        """Quotas or guarantees have moved: who was refused rows may find them now."""
        self._news += 1

    def demands(self, now: float) -> dict[str, Demand]:
        """What every model holds and waits for, for the quotas."""
        return {model: self._demand(lane, now) for model, lane in self.board.lanes.items()}

    def _demand(self, lane: Lane, now: float) -> Demand:
        rows = sum(self.charge(lane, sequence) for sequence in lane.waiting if not sequence.rows)
        width = lane.spec.blocks_per_row
        head = self.charge(lane, lane.waiting.head) * width if lane.waiting else 0
        return Demand(
            held=self.ledger.held(lane.spec.model),
            waiting_blocks=rows * width,
            oldest=now - lane.waiting.head.arrived if lane.blocked == "rows" else 0.0,
            head_blocks=head,
            ready=lane.ready or lane.failed is not None or lane.asleep,
        )

    def note_gone(self, lane: Lane) -> None:
        """Without running sequences a model cannot starve."""
        if not lane.running:
            self.starving.discard(lane.spec.model)

    def _note_starving(self, lane: Lane, starving: bool) -> None:
        if starving:
            self.starving.add(lane.spec.model)
        else:
            self.starving.discard(lane.spec.model)

    def _promise(self, lane: Lane, rows: int) -> None:
        lane.promised += rows
        self._promised += rows * lane.spec.blocks_per_row

    def _holders(self, lane: Lane) -> list[Sequence]:
        """Sequences whose rows could be taken."""
        return [s for s in lane.sequences() if s.rows and not s.closing and s.id not in self._evicting]


def _age(sequence: Sequence) -> tuple[float, int]:
    return sequence.arrived, sequence.id
