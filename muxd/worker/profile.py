"""``python -m muxd.worker.profile``: times batches of one model through the real ``Runner``, when asked.

Spawned by `muxd profile` with the environment of a worker. Reads ``cost.probe`` lines from standard input,
answers each with one line on standard output, and ends when the input does. Weights and pool are its own
memory. Contexts are rows that hold no prompt: what they contain does not change how long it takes.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from muxd.cost import probe
from muxd.errors import MuxdError
from muxd.messages import BatchDone, Chunk, Decode, NewRows, Prefill
from muxd.worker.alone import Alone
from muxd.worker.runner import Batch

_MOST = 200  # batches of one probe


class Bench:
    """A Runner, and the rows it is told to use. ModelFolderError for a folder that cannot be served."""

    def __init__(self, setup: probe.Setup):
        own = Alone(setup)
        self.spec, self.row_tokens, self.rows = own.spec, own.row_tokens, own.rows
        self.packed = own.plan.bytes if own.plan.packed else 0
        self.state_rows = own.state_rows
        self._runner, self._unsaid = own.runner, own.new
        self._batch = itertools.count(1)
        self._sampling = setup.sampling

    def decode(self, asked: probe.Decode) -> list[float]:
        """Raises ValueError when the pool is too small."""
        most = self._rows_for(self.spec.max_positions)  # no sequence can ever have more
        per_sequence = min(self.rows // asked.batch, most)
        tokens = (per_sequence - self.state_rows) * self.row_tokens
        room = min(tokens, self.spec.max_positions) - asked.context - 1
        if room <= asked.least:
            raise ValueError(f"a batch of {asked.batch} at context {asked.context} does not fit the pool")
        seqs = list(range(asked.batch))
        with self._sequences(seqs, asked):
            chunks = [self._chunk(seq, seq * per_sequence, per_sequence, 1, asked.context) for seq in seqs]
            self._prefill(chunks, asked)

            def step() -> Batch:
                return self._runner.begin(
                    Decode(next(self._batch), asked.share, NewRows(), seqs, [], [], asked.parts)
                )

            steps = min(room - 1 - self._runner.ahead, _MOST)
            return _timed(step, asked.least, asked.seconds, steps, ahead=self._runner.ahead)

    def prefill(self, asked: probe.Prefill) -> list[float]:
        """Raises ValueError when the pool is too small."""
        size = asked.tokens // asked.chunks
        per_sequence = self._rows_for(size + asked.context)
        if per_sequence * asked.chunks > self.rows:
            raise ValueError(f"{asked.tokens} tokens at context {asked.context} do not fit the pool")
        seqs = list(range(asked.chunks))
        with self._sequences(seqs, asked):
            chunks = [self._chunk(seq, seq * per_sequence, per_sequence, size, asked.context) for seq in seqs]
            return _timed(lambda: self._begin(chunks, asked), asked.least, asked.seconds, _MOST)

    def _rows_for(self, tokens: int) -> int:
        return self.state_rows + -(-tokens // self.row_tokens)

    def _chunk(self, seq: int, first_row: int, rows: int, tokens: int, context: int) -> Chunk:
        """``tokens`` new tokens after ``context`` that count as computed; whole rows of them. The first
        ``rows`` are its state's."""
        before = context // self.row_tokens * self.row_tokens
        ids = np.arange(first_row, first_row + rows, dtype="<i4")
        state, ids = ids[: self.state_rows], ids[self.state_rows :]
        return Chunk(
            seq=seq, start=before, tokens=np.full(tokens, 5, "<i4").tobytes(), rows=ids.tobytes(), last=True,
            sampling=self._sampling, prompt_tokens=before + tokens, first=True,
            known=np.full(before, 5, "<i4").tobytes(), state=state.tobytes(),
        )  # fmt: skip

    def _prefill(self, chunks: list[Chunk], asked: probe.Probe, forget: Sequence[int] = ()) -> BatchDone:
        return self._begin(chunks, asked, forget).finish()

    def _begin(self, chunks: list[Chunk], asked: probe.Probe, forget: Sequence[int] = ()) -> Batch:
        rows, self._unsaid = self._unsaid, NewRows()
        batch = next(self._batch)
        return self._runner.begin(Prefill(batch, asked.share, rows, chunks, list(forget), asked.parts))

    @contextmanager
    def _sequences(self, seqs: list[int], asked: probe.Probe) -> Iterator[None]:
        """The runner forgets them afterwards; its share is kept to throughout, for whoever runs beside."""
        yield
        chunk = self._chunk(0, 0, self._rows_for(1), 1, 0)
        self._prefill([chunk], asked, seqs[1:])


def _timed(
    begin: Callable[[], Batch], least: int, seconds: float, most: int, *, ahead: bool = False
) -> list[float]:
    """The runner's own times. The first batch of a shape is left out: it prepares kernels. ``ahead``: each
    begins before the one in front of it is finished, as the daemon has it."""
    begin().finish()
    found: list[float] = []
    front, done = begin() if ahead else None, 0.0
    end = time.perf_counter() + seconds
    while len(found) < most and (len(found) < least or time.perf_counter() < end):
        batch = begin()
        found.append((front or batch).finish(done).seconds)
        front, done = batch if ahead else None, time.perf_counter()
    if front is not None:
        front.finish()
    return found


def main() -> int:
    lines = iter(sys.stdin.buffer.readline, b"")
    try:
        bench = Bench(probe.decode_setup(next(lines)))
    except MuxdError as error:
        print(error.message, file=sys.stderr)
        return 1
    _answer(
        probe.Opened(
            bench.spec.max_positions,
            bench.row_tokens,
            bench.rows,
            str(torch.__version__),
            bench.packed,
            bench.state_rows,
        )
    )
    for line in lines:
        asked = probe.decode_probe(line)
        found = bench.decode(asked) if isinstance(asked, probe.Decode) else bench.prefill(asked)
        _answer(probe.Measured(found))
    return 0


def _answer(answer: probe.Opened | probe.Measured) -> None:
    sys.stdout.buffer.write(probe.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
