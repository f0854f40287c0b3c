"""Runs batch commands: what every sequence is at, and the step that computes it.

Called by ``muxd.worker.loop``, one command after another, begun in their order. Where the device queues
(``ahead``) a decode step may begin before the one in front of it is finished, and then feeds tokens that
nobody has read yet; a prefill, of sequences that are in no step yet, may begin and finish beside both.
Anything raised here is a broken command or a fault; the loop reports it and the worker ends, since sequence
state is then undefined.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from muxd.messages import (
    NO_TOKEN,
    BatchDone,
    Chunk,
    Decode,
    Joined,
    NewRows,
    Pooling,
    Prefill,
    Sampling,
    Setup,
)
from muxd.models.cut import cut_spec
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.state_layout import state_rows
from muxd.worker.bounds import Bounds
from muxd.worker.cuda_step import CudaStep
from muxd.worker.host_step import HostStep
from muxd.worker.native_step import NativeStep
from muxd.worker.sequence import Sequence, Span
from muxd.worker.step import Copy, Flight, Step

_log = logging.getLogger("muxd.worker")


class Batch:
    """A command's work under way; ``sequences`` are those that get a token."""

    def __init__(self, number: int, flight: Flight, sequences: list[Sequence], begun: float):
        self.number, self._flight, self._sequences, self._begun = number, flight, sequences, begun

    def ready(self) -> bool:
        """Whether ``finish`` would return at once."""
        return self._flight.ready()

    def finish(self, after: float = 0.0) -> BatchDone:
        """Wait for the device and take the tokens over. ``after``: when the batch in front was done, by
        ``time.perf_counter``: its time is not this one's."""
        tokens, logprobs = self._flight.result()
        for sequence, token in zip(self._sequences, tokens, strict=True):
            # Who got none is to be forgotten; the step that went ahead of the news has a token to feed.
            sequence.history.append(max(token, 0))
        if NO_TOKEN in tokens:
            lost = tokens.count(NO_TOKEN)
            _log.warning("batch %d: %d of %d rows have no finite logits", self.number, lost, len(tokens))
        seconds = time.perf_counter() - max(self._begun, after)
        scores, vectors = self._flight.prompt_scores(), self._flight.vectors()
        return BatchDone(self.number, tokens, seconds, logprobs, scores, vectors)


class Runner:
    """One model on one device.

    ``pool`` and ``weights`` are uint8 [bytes], mapped from the daemon's file descriptors. ``paged``: K and V
    are read where they lie, as on a GPU; by default there alone. Raises ModelFolderError when the folder's
    config.json cannot be served.
    """

    def __init__(self, setup: Setup, pool: Tensor, weights: Tensor, *, paged: bool | None = None):
        tied = all(tensor.name != "head" for tensor in setup.tensors)  # the daemon has compared
        read = read_spec(Path(setup.folder)).within(setup.max_context)
        whole = structs.replace(read, tied_embeddings=tied)
        self._spec: ModelSpec = cut_spec(whole, setup.ranks)
        self._max_context = setup.max_context
        self._decodes = setup.phases != "prefill" and not self._spec.headless
        make: Callable[[ModelSpec, Setup, Tensor, Tensor], Step] = HostStep
        if setup.device != "cpu" if paged is None else paged:
            make = CudaStep
        elif any(tensor.form for tensor in setup.tensors):
            make = NativeStep
        self._step = make(self._spec, setup, pool, weights)
        self._tokens = self._step.tokens  # of a row; asked for with every token
        self._state_rows = state_rows(self._spec, setup.block_bytes)
        self.ahead = self._step.ahead
        self._sequences: dict[int, Sequence] = {}
        self._adapters = {0, *(part.adapter for part in setup.lora)}
        self._bounds = Bounds(Path(setup.folder), self._spec.vocab_size)

    def weave(self, between: Callable[[], None]) -> None:
        """``between`` is called from within ``begin`` of a prefill, and may begin and finish decode steps."""
        self._step.between = between

    def watch_scores(self, seen: Callable[[Tensor], None]) -> None:
        """``seen``: see ``muxd.worker.scoring.Scorer.watch``."""
        self._step.scorer.watch = seen

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run batches of every kind in a pool of their own: no block of the shared one is touched yet."""
        longest = max(min(tokens, self._max_context - 1) for tokens, _ in self._step.rehearsal)
        with self._step.apart(-(-(longest + 1) // self._tokens) + self._state_rows):
            try:
                for tokens, sampling in self._step.rehearsal:
                    self._rehearse(min(tokens, self._max_context - 1), sampling)
            finally:
                self._forget(list(self._sequences))
        self._step.ready(self._decodes)

    def prefill(self, cmd: Prefill) -> BatchDone:
        """Run the chunks' tokens through the model; sample one token for each chunk with ``last``."""
        return self.begin(cmd).finish()

    def decode(self, cmd: Decode) -> BatchDone:
        """Feed every sequence its last token and sample the next one."""
        return self.begin(cmd).finish()

    @torch.inference_mode()
    def begin(self, cmd: Prefill | Decode) -> Batch:
        """Ask the device for it.

        Only with ``ahead`` may it begin while others are not finished: a decode step behind another, or
        beside a prefill of other sequences, or such a prefill.
        """
        begun = time.perf_counter()
        with self._step.share(cmd.share, cmd.parts, prefill=isinstance(cmd, Prefill)):
            self._forget(cmd.forget)
            self._step.learn(cmd.rows)
            flight, sequences = self._prefill(cmd) if isinstance(cmd, Prefill) else self._decode(cmd)
        return Batch(cmd.batch, flight, sequences, begun)

    def _prefill(self, cmd: Prefill) -> tuple[Flight, list[Sequence]]:
        spans = [self._take_chunk(chunk) for chunk in cmd.chunks]
        last = [i for i, chunk in enumerate(cmd.chunks) if chunk.last and not chunk.pooling]
        late = self._copied(spans, cmd.chunks)
        flight = self._step.prefill(spans, last, late)
        return flight, [spans[i].sequence for i in last]

    def _copied(self, spans: list[Span], chunks: list[Chunk]) -> list[Copy]:
        """Compute those whose states are to be copied before their ends as far as to there, and copy them:
        ``spans`` is what is left. Returns the rows of states to be copied at their ends, and into which."""
        before, early, late = list[Span](), list[Copy](), list[Copy]()
        for i, (span, chunk) in enumerate(zip(spans, chunks, strict=True)):
            if not chunk.copy:
                continue
            if not span.start < chunk.mark <= span.stop:
                raise ValueError(f"sequence {chunk.seq}: no state after {chunk.mark} tokens can be copied")
            pair = span.sequence.state, self._state(chunk.seq, chunk.copy)
            if chunk.mark == span.stop:
                late.append(pair)
                continue
            early.append(pair)
            before.append(span._replace(stop=chunk.mark))
            spans[i] = span._replace(start=chunk.mark)
        if before:
            self._step.prefill(before, [], early)
        return late

    def _decode(self, cmd: Decode) -> tuple[Flight, list[Sequence]]:
        for one in cmd.joined:
            self._join(one)
        for seq, row in cmd.grown:
            self._step.take([row], 0)
            self._sequences[seq].rows.append(row)
        wanted = [self._reach(seq, self._sequences[seq].cached) for seq in cmd.seqs]
        flight = self._step.decode(wanted)
        for sequence in wanted:
            sequence.cached += 1
        return flight, wanted

    def _rehearse(self, tokens: int, sampling: Sampling) -> None:
        """One prompt and one token more, in the rows from 0 on."""
        count = -(-(tokens + 1) // self._tokens)
        ids = np.arange(count + self._state_rows, dtype="<i4")
        blocks = np.arange(len(ids) * self._spec.blocks_per_row, dtype="<i4").tobytes()
        rows, state = ids[:count].tobytes(), ids[count:].tobytes()
        pooling: Pooling = "mean" if self._spec.headless else ""
        zeros = np.zeros(tokens, dtype="<i4").tobytes()
        chunk = Chunk(0, 0, zeros, rows, True, sampling, tokens, pooling=pooling, state=state)
        self.prefill(Prefill(0, 100, NewRows(ids.tobytes(), blocks), [chunk], []))
        if not pooling:
            self.decode(Decode(0, 100, NewRows(), [0], [], []))

    def _forget(self, seqs: list[int]) -> None:
        for seq in seqs:
            if (sequence := self._sequences.pop(seq, None)) is not None:
                self._step.forget(sequence)

    def _take_chunk(self, chunk: Chunk) -> Span:
        """Bring the sequence up to date with its next chunk. Raises ValueError when one was skipped."""
        if chunk.first or chunk.start == 0:
            self._forget([chunk.seq])
            self._sequences[chunk.seq] = self._begun(chunk)
        sequence = self._sequences[chunk.seq]
        if chunk.start != sequence.cached:
            raise ValueError(f"sequence {chunk.seq}: chunk starts at {chunk.start}, not {sequence.cached}")
        tokens: list[int] = np.frombuffer(chunk.tokens, dtype="<i4").tolist()
        rows: list[int] = np.frombuffer(chunk.rows, dtype="<i4").tolist()
        stop = chunk.start + len(tokens)
        # Full rows are filled by this chunk, or shared and full already; later ones are garbage until zeroed.
        self._step.take(rows, max(0, stop // self._tokens - len(sequence.rows)))
        sequence.rows += rows
        sequence.history += tokens
        sequence.cached = stop
        self._reach(chunk.seq, stop - 1)
        return Span(sequence, chunk.start, stop)

    def _begun(self, chunk: Chunk) -> Sequence:
        """A sequence at its first chunk, what it shares already computed. Raises ValueError when a shared row
        would be written, its tokens or rows of its state are missing, or there is no such adapter."""
        known: list[int] = np.frombuffer(chunk.known, dtype="<i4").tolist()
        if len(known) != chunk.start or chunk.start % self._tokens:
            raise ValueError(
                f"sequence {chunk.seq}: begins at {chunk.start} with {len(known)} known tokens; "
                f"both must be the same multiple of {self._tokens}"
            )
        bound, state = self._bounds.of(chunk.sampling), self._state(chunk.seq, chunk.state)
        if chunk.origin:
            self._step.copy(self._state(chunk.seq, chunk.origin), state)
        return Sequence(
            chunk.sampling,
            chunk.prompt_tokens,
            history=known,
            cached=chunk.start,
            bound=bound,
            pooling=chunk.pooling,
            adapter=self._adapter(chunk.seq, chunk.adapter),
            state=state,
        )

    def _adapter(self, seq: int, number: int) -> int:
        if number not in self._adapters:
            raise ValueError(f"sequence {seq}: there is no adapter {number}")
        return number

    def _state(self, seq: int, told: bytes) -> list[int]:
        """Rows of a state. Raises ValueError for too few, too many, or such as were never named."""
        rows: list[int] = np.frombuffer(told, dtype="<i4").tolist()
        if len(rows) != self._state_rows:
            raise ValueError(f"sequence {seq}: its state needs {self._state_rows} rows, not {len(rows)}")
        if rows:
            self._step.take(rows, len(rows))
        return rows

    def _join(self, one: Joined) -> None:
        """Another worker has prefilled it. Raises ValueError for rows that were never named here, or an
        adapter that is none."""
        rows: list[int] = np.frombuffer(one.rows, dtype="<i4").tolist()
        tokens: list[int] = np.frombuffer(one.tokens, dtype="<i4").tolist()
        self._step.take(rows, len(rows))
        bound = self._bounds.of(one.sampling)
        sequence = Sequence(
            one.sampling, one.prompt_tokens, rows, tokens, len(tokens) - 1, bound=bound,
            adapter=self._adapter(one.seq, one.adapter), state=self._state(one.seq, one.state),
        )  # fmt: skip
        self._sequences[one.seq] = sequence
        self._step.join(sequence)

    def _reach(self, seq: int, position: int) -> Sequence:
        """The sequence, its rows reaching to ``position``. Raises ValueError when they do not."""
        sequence = self._sequences[seq]
        if position // self._tokens >= len(sequence.rows):
            raise ValueError(f"sequence {seq}: no row for token {position}")
        return sequence
