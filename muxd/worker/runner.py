"""Runs batch commands: the model, its K and V in the pool, and the state of every sequence it knows.

Called by ``muxd.worker.loop``, one command at a time. Anything raised here is a broken command or a fault;
the loop reports it and the worker ends, since sequence state is then undefined.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from muxd.messages import BatchDone, Chunk, Decode, NewRows, Prefill, Sampling, Setup
from muxd.models.layers import Model
from muxd.models.registry import build
from muxd.models.spec import ModelSpec, read_spec
from muxd.worker.attend import DecodeAttend, PrefillAttend, Span
from muxd.worker.kv import PagedKv
from muxd.worker.mapped import DTYPES, MappedWeights
from muxd.worker.sampler import sample
from muxd.worker.sequence import Sequence

_WARM_TOKENS = 8


class Runner:
    """One model on one device.

    ``pool`` and ``weights`` are uint8 [bytes], mapped from the daemon's file descriptors. Raises
    ModelFolderError when the folder's config.json cannot be served.
    """

    def __init__(self, setup: Setup, pool: Tensor, weights: Tensor):
        self._setup = setup
        self._spec: ModelSpec = read_spec(Path(setup.folder))
        self._dtype = DTYPES[setup.dtype]
        self._threads = 0
        self._set_share(100)
        self._model: Model = build(self._spec, MappedWeights(setup.tensors, weights))
        self._kv = PagedKv(self._spec, pool, setup.block_bytes, setup.max_rows, self._dtype)
        self._sequences: dict[int, Sequence] = {}

    def warm_up(self) -> None:
        """Run one prefill and one decode in a pool of its own: no block of the shared one is touched yet."""
        kv, per_row = self._kv, self._spec.blocks_per_row
        tokens = kv.tokens
        count = -(-(_WARM_TOKENS + 1) // tokens)
        pool = torch.zeros(count * per_row * self._setup.block_bytes, dtype=torch.uint8)
        self._kv = PagedKv(self._spec, pool, self._setup.block_bytes, count, self._dtype)
        ids, blocks = np.arange(count, dtype="<i4"), np.arange(count * per_row, dtype="<i4")
        try:
            prompt = np.zeros(_WARM_TOKENS, dtype="<i4").tobytes()
            greedy = Sampling(temperature=0.0)
            chunk = Chunk(0, 0, prompt, ids.tobytes(), True, greedy, _WARM_TOKENS)
            self.prefill(Prefill(0, 100, NewRows(ids.tobytes(), blocks.tobytes()), [chunk], []))
            self.decode(Decode(0, 100, NewRows(), [0], [], []))
        finally:
            self._kv = kv
            self._sequences.clear()

    @torch.inference_mode()
    def prefill(self, cmd: Prefill) -> BatchDone:
        """Run the chunks' tokens through the model; sample one token for each chunk with ``last``."""
        begun = time.perf_counter()
        self._begin(cmd)
        spans = [self._take_chunk(chunk) for chunk in cmd.chunks]
        attend = PrefillAttend(self._kv, spans)
        tokens = np.concatenate([np.frombuffer(chunk.tokens, dtype="<i4") for chunk in cmd.chunks])
        hidden = self._model.hidden(torch.from_numpy(tokens.astype(np.int64)), attend.positions, attend)
        ends = np.cumsum([span.stop - span.start for span in spans]) - 1
        last = [i for i, chunk in enumerate(cmd.chunks) if chunk.last]
        sampled = hidden[torch.from_numpy(ends[last])]
        return self._finish(cmd.batch, sampled, [spans[i].sequence for i in last], begun)

    @torch.inference_mode()
    def decode(self, cmd: Decode) -> BatchDone:
        """Feed every sequence its last token and sample the next one."""
        begun = time.perf_counter()
        self._begin(cmd)
        for seq, row in cmd.grown:
            self._kv.take([row], 0)
            self._sequences[seq].rows.append(row)
        wanted = [self._reach(seq, self._sequences[seq].cached) for seq in cmd.seqs]
        ordered = sorted(wanted, key=lambda sequence: -sequence.cached)
        attend = DecodeAttend(self._kv, ordered)
        tokens = torch.tensor([sequence.history[-1] for sequence in ordered])
        positions = torch.tensor([sequence.cached for sequence in ordered])
        hidden = self._model.hidden(tokens, positions, attend)
        for sequence in ordered:
            sequence.cached += 1
        place = {id(sequence): i for i, sequence in enumerate(ordered)}
        back = torch.tensor([place[id(sequence)] for sequence in wanted])
        return self._finish(cmd.batch, hidden[back], wanted, begun)

    def _begin(self, cmd: Prefill | Decode) -> None:
        self._set_share(cmd.share)
        for seq in cmd.forget:
            self._sequences.pop(seq, None)
        self._kv.learn(cmd.rows)

    def _set_share(self, share: int) -> None:
        threads = max(1, round(share / 100 * self._setup.cores))
        if threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads

    def _take_chunk(self, chunk: Chunk) -> Span:
        """Bring the sequence up to date with its next chunk. Raises ValueError when one was skipped."""
        if chunk.first or chunk.start == 0:
            self._sequences[chunk.seq] = self._begun(chunk)
        sequence = self._sequences[chunk.seq]
        if chunk.start != sequence.cached:
            raise ValueError(f"sequence {chunk.seq}: chunk starts at {chunk.start}, not {sequence.cached}")
        tokens: list[int] = np.frombuffer(chunk.tokens, dtype="<i4").tolist()
        rows: list[int] = np.frombuffer(chunk.rows, dtype="<i4").tolist()
        stop = chunk.start + len(tokens)
        # Full rows are filled by this chunk, or shared and full already; later ones are garbage until zeroed.
        self._kv.take(rows, max(0, stop // self._kv.tokens - len(sequence.rows)))
        sequence.rows += rows
        sequence.history += tokens
        sequence.cached = stop
        self._reach(chunk.seq, stop - 1)
        return Span(sequence, chunk.start, stop)

    def _begun(self, chunk: Chunk) -> Sequence:
        """A sequence at its first chunk, what it shares already computed. Raises ValueError when a shared row
        would be written, or its tokens are missing."""
        known: list[int] = np.frombuffer(chunk.known, dtype="<i4").tolist()
        if len(known) != chunk.start or chunk.start % self._kv.tokens:
            raise ValueError(
                f"sequence {chunk.seq}: begins at {chunk.start} with {len(known)} known tokens; "
                f"both must be the same multiple of {self._kv.tokens}"
            )
        return Sequence(chunk.sampling, chunk.prompt_tokens, history=known, cached=chunk.start)

    def _reach(self, seq: int, position: int) -> Sequence:
        """The sequence, its rows reaching to ``position``. Raises ValueError when they do not."""
        sequence = self._sequences[seq]
        if position // self._kv.tokens >= len(sequence.rows):
            raise ValueError(f"sequence {seq}: no row for token {position}")
        return sequence

    def _finish(self, batch: int, hidden: Tensor, sequences: list[Sequence], begun: float) -> BatchDone:
        """Logits only for the rows that sample: hidden [m, hidden]."""
        if not sequences:
            return BatchDone(batch, [], time.perf_counter() - begun)
        tokens, logprobs = sample(self._model.logits(hidden), sequences)
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.history.append(token)
        return BatchDone(batch, tokens, time.perf_counter() - begun, logprobs)
