"""What of a prompt is computed already: rows of its first tokens, and where layers keep a state, a copy of
that. Pure.

Rows are found by the names of their chain (``muxd.pool.prefix``). Rows of tokens alone say nothing of a
state: of such a model a prompt begins behind the last whole row where somebody's state was copied, by the
worker, into rows of the cache. Their names go on from that row's, so that the ledger keeps them no longer
than it: a prompt holds them until its own state has been filled from them.
"""

import numpy as np

from muxd.engine.board import Board
from muxd.engine.commands import NO_ROWS
from muxd.engine.lane import Lane
from muxd.engine.sequence import Sequence
from muxd.pool.ledger import Grant, Rows
from muxd.pool.prefix import Chain

LEAST = 64  # tokens before a copy: fewer are computed again in little more than the copy costs


class FoundPrefixes:
    """Owned by the row keeper."""

    def __init__(self, board: Board):
        self._ledger = board.ledger
        self._copied: dict[str, set[int]] = {}  # by model: after how many rows a state was ever copied

    def fits(self, lane: Lane, sequence: Sequence, rows: int) -> bool:
        """Whether ``admit`` would find so many in all."""
        keys, copy = self._found(lane, sequence, rows)
        return self._ledger.fits(lane.spec.model, keys, rows + copy)

    def admit(self, lane: Lane, sequence: Sequence, rows: int, most: int) -> Grant | None:
        """``rows`` for it, of its state among them, as much of its prompt as is computed; ``most``: what it
        has to fit with. None: not now."""
        spec = lane.spec
        keys, copy = self._found(lane, sequence, most)
        grant = self._ledger.admit(spec.model, keys, rows + copy)
        if grant is None:
            return None
        shared = grant.shared.tolist()
        tokens = len(shared) - copy
        held = [*shared[:tokens], *grant.rows.ids.tolist()]
        sequence.rows, sequence.state = held[: rows - spec.state_rows], held[rows - spec.state_rows :]
        sequence.origin = shared[tokens:]
        sequence.registered = tokens
        sequence.computed = tokens * spec.row_tokens
        return grant

    def keep(self, lane: Lane, sequence: Sequence, budget: int, room: int) -> Rows:
        """Rows for a copy of its state, where its next chunk of at most ``budget`` tokens gets to a place for
        one and nobody has it: where it leaves what others had before it, as prompts of one kind do, else
        after the last whole row of what is known, as the next turn of a conversation will. ``room``: head
        blocks that are nobody's."""
        spec, chain = lane.spec, sequence.chain
        if not spec.state_rows or chain is None or sequence.request.pooling:
            return NO_ROWS
        end = sequence.computed + budget
        for rows in (sequence.branch, (len(sequence.tokens) - 1) // spec.row_tokens):
            mark = rows * spec.row_tokens
            if (
                mark >= LEAST
                and sequence.computed < mark <= end
                and not self._is_copied(lane, sequence, rows)
            ):
                break
        else:
            return NO_ROWS
        if spec.state_rows * spec.blocks_per_row > room:
            return NO_ROWS
        if (taken := self._ledger.take(spec.model, spec.state_rows)) is None:
            return NO_ROWS
        sequence.mark, sequence.copy = mark, taken.ids.tolist()
        return taken

    def computed(self, lane: Lane, sequence: Sequence) -> None:
        """More of it is computed: others may find its full rows, and a copy of its state, from now on."""
        spec, chain = lane.spec, sequence.chain
        assert chain is not None
        rows = sequence.computed // spec.row_tokens
        if rows > sequence.registered:
            keys = chain.keys(sequence.tokens, rows * spec.row_tokens)
            self._ledger.register(spec.model, sequence.rows, keys, start=sequence.registered)
            sequence.registered = rows
        if sequence.copy and sequence.computed >= sequence.mark:
            rows = sequence.mark // spec.row_tokens
            keys = [*chain.keys(sequence.tokens, sequence.mark), *chain.state_keys(rows, spec.state_rows)]
            self._ledger.register(spec.model, sequence.rows[:rows] + sequence.copy, keys, start=rows)
            self._copied.setdefault(spec.model, set()).add(rows)
            sequence.copy = self._given_back(sequence, sequence.copy)
        if sequence.origin:  # its own state has been filled
            sequence.origin = self._given_back(sequence, sequence.origin)

    def _is_copied(self, lane: Lane, sequence: Sequence, rows: int) -> bool:
        spec, chain = lane.spec, sequence.chain
        assert chain is not None
        chain.keys(sequence.tokens, rows * spec.row_tokens)
        return bool(self._ledger.matched(spec.model, [chain.state_key(rows, spec.state_rows - 1)]))

    def forget(self, model: str) -> None:
        """The model leaves the unit."""
        self._copied.pop(model, None)

    def _given_back(self, sequence: Sequence, rows: list[int]) -> list[int]:
        self._ledger.release(sequence.model, np.asarray(rows, dtype=np.int32))
        return []

    def _found(self, lane: Lane, sequence: Sequence, rows: int) -> tuple[list[bytes], int]:
        """Names of rows its prompt may find computed, and how many of the last ones are a copy of a state. A
        copy beside ``rows`` must fit too, while it is held; else the prompt begins at its first token."""
        spec, request = lane.spec, sequence.request
        anew = request.sampling.prompt_logprobs >= 0 or request.pooling in ("mean", "cls")
        if anew or not spec.caches:
            return [], 0
        if sequence.chain is None:
            sequence.chain = Chain(sequence.name, spec.row_tokens)
        keys = sequence.chain.match(sequence.tokens)
        if not spec.state_rows:
            return keys, 0
        sequence.branch = self._ledger.matched(spec.model, keys)
        keys = self._behind_a_copy(lane, sequence, keys)
        if keys and self._ledger.fits(spec.model, keys, rows + spec.state_rows):
            return keys, spec.state_rows
        return [], 0

    def _behind_a_copy(self, lane: Lane, sequence: Sequence, keys: list[bytes]) -> list[bytes]:
        """Names of the most rows behind which there is a copy, and of that."""
        spec, chain = lane.spec, sequence.chain
        assert chain is not None
        for rows in sorted(self._copied.get(spec.model, ()), reverse=True):
            if rows <= sequence.branch and self._is_copied(lane, sequence, rows):
                names = [*keys[:rows], *chain.state_keys(rows, spec.state_rows)]
                if self._ledger.matched(spec.model, names) == len(names):
                    return names
        return []
