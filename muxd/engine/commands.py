"""Sequences and granted rows as they go on the wire. Decides nothing."""

import numpy as np

from muxd.engine.sequence import Sequence, pack
from muxd.messages import Chunk, NewRows, Sampling
from muxd.pool.ledger import Rows

_TOLD = Sampling()  # a sequence's own travels with its first chunk
NO_ROWS = Rows(ids=np.empty(0, np.int32), blocks=np.empty((0, 0), np.int32))


def chunk_of(sequence: Sequence, budget: int, *, first: bool) -> Chunk:
    """Its next at most ``budget`` tokens; with ``first`` all its rows and what they already hold."""
    tokens = sequence.chunk(budget)
    marked = bool(sequence.copy)  # taken for this chunk, and given back when it is done
    return Chunk(
        seq=sequence.id,
        start=sequence.computed,
        tokens=pack(tokens),
        rows=pack(sequence.rows) if first else b"",
        last=len(tokens) == sequence.remaining,
        sampling=sequence.request.sampling if first or not sequence.computed else _TOLD,
        prompt_tokens=sequence.prompt_tokens,
        first=first,
        pooling=sequence.request.pooling,
        adapter=sequence.request.adapter,
        known=pack(sequence.tokens[: sequence.computed]) if first and sequence.computed else b"",
        state=pack(sequence.state) if first else b"",
        origin=pack(sequence.origin) if first else b"",
        copy=pack(sequence.copy) if marked else b"",
        mark=sequence.mark if marked else 0,
    )


def new_rows(granted: list[Rows]) -> NewRows:
    """Every grant of one command, one after another."""
    return NewRows(
        b"".join(rows.ids.astype("<i4").tobytes() for rows in granted),
        b"".join(rows.blocks.astype("<i4").tobytes() for rows in granted),
    )


def drain(forget: list[int]) -> list[int]:
    """Take everything out of the list: each sequence is told once."""
    drained = forget.copy()
    forget.clear()
    return drained
