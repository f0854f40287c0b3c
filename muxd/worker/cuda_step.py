"""Batches on a GPU: K and V stay in the pool, decode is a graph, tokens are picked where the logits are.

What a batch needs travels in one small copy; nothing waits for the device before the tokens are read back.
The same code runs over tensors of the CPU, by the references of ``muxd.kernels.ops``: so it is tested.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels.paged_decode import plan_splits
from muxd.messages import NewRows, Sampling, Setup, TokenLogprob
from muxd.models.registry import build
from muxd.models.spec import ModelSpec
from muxd.worker.cuda_attend import PagedDecode, PagedPrefill
from muxd.worker.cuda_graphs import (
    LENGTHS,
    LINES,
    POSITIONS,
    TOKENS,
    Again,
    CudaRecorder,
    DecodeGraphs,
    padding,
)
from muxd.worker.cuda_parts import CudaWeights
from muxd.worker.cuda_sampling import CudaSampler
from muxd.worker.cuda_state import PagedState
from muxd.worker.cuda_streams import Streams
from muxd.worker.cuda_upload import int32, upload
from muxd.worker.mapped import DTYPES
from muxd.worker.sequence import Sequence, Span

_MANY = 300  # tokens of a prompt: kernels are chosen by size at 256
_AHEAD = 64  # tokens for which rows may be granted beyond the longest context


class CudaStep:
    """See ``muxd.worker.step.Step``. ``pool`` and ``weights``: uint8 [bytes], mapped device memory.

    ``graphs``: whether decode steps are recorded; without, every kernel is launched by itself.
    """

    rehearsal = (
        (8, Sampling(temperature=0.0)),
        (_MANY, Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1)),
        (8, Sampling(temperature=1.0)),
    )

    def __init__(self, spec: ModelSpec, setup: Setup, pool: Tensor, weights: Tensor, *, graphs: bool = True):
        torch.set_num_threads(1)  # the host only queues
        self._spec, self._setup, self._dtype = spec, setup, DTYPES[setup.dtype]
        self.device = pool.device
        self._streams = Streams(pool.device)
        self.model = build(spec, CudaWeights(setup.tensors, weights, setup.max_context))
        row_tokens = spec.tokens_per_row(setup.block_bytes, self._dtype.itemsize)
        width = min(setup.max_rows, -(-(setup.max_context + _AHEAD) // row_tokens) + 1)
        self._state = PagedState(spec, pool, setup.block_bytes, setup.max_rows, width, self._dtype)
        self._sampler = CudaSampler(spec.vocab_size, pool.device)
        recorder = CudaRecorder() if pool.is_cuda else Again()
        self._graphs = DecodeGraphs(self._decode, pool.device, recorder) if graphs else None
        self._recorded: Tensor | None = None  # the row lists that the graphs read

    @property
    def tokens(self) -> int:
        return self._state.pool.tokens

    @contextmanager
    def share(self, percent: int, parts: int) -> Iterator[None]:
        """``parts`` is a mask of SMs; a share alone is a promise of the daemon, or a cap from the spawn."""
        with self._streams.use(parts):
            yield

    @contextmanager
    def apart(self, rows: int) -> Iterator[None]:
        state, setup, graphs = self._state, self._setup, self._graphs
        memory = torch.zeros(
            rows * self._spec.blocks_per_row * setup.block_bytes, dtype=torch.uint8, device=self.device
        )
        self._state = PagedState(self._spec, memory, setup.block_bytes, rows, rows, self._dtype)
        self._graphs = None
        try:
            yield
        finally:
            self._state, self._graphs = state, graphs

    def ready(self) -> None:
        """Record the graphs for the whole device; those of parts are recorded when first asked for."""
        if self._graphs is not None:
            self._recorded = self._state.lists.rows
            self._graphs.record(0)
        self.settle()

    def learn(self, new: NewRows) -> None:
        self._state.learn(new)

    def take(self, rows: list[int], filled: int) -> None:
        """Nothing is zeroed: what lies beyond a sequence's length is never read."""
        self._state.known.check(rows)

    def join(self, sequence: Sequence) -> None:
        self._sampler.note([Span(sequence, 0, len(sequence.history))])

    def forget(self, sequence: Sequence) -> None:
        self._state.lists.release(sequence)
        self._sampler.release(sequence)

    def prefill(self, spans: Items[Span], ends: Items[int]) -> Tensor:
        lists, pool = self._state.lists, self._state.pool
        lists.place([span.sequence for span in spans])
        lengths = [span.stop - span.start for span in spans]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        tokens = np.concatenate([int32(s.sequence.history[s.start : s.stop]) for s in spans])
        positions = np.concatenate([np.arange(s.start, s.stop, dtype=np.int32) for s in spans])
        self._check(tokens, positions)
        ids, places, owners, begins, cached, lines, lasts = upload(
            self.device,
            *(tokens, positions, np.repeat(np.arange(len(spans), dtype=np.int32), lengths)),
            *(starts.astype(np.int32), int32([s.start for s in spans])),
            *(int32([s.sequence.line for s in spans]), int32([starts[i + 1] - 1 for i in ends])),
        )
        rows = lists.rows.index_select(0, lines)
        attend = PagedPrefill(self._spec, pool, rows, places, owners, begins, cached)
        hidden = self.model.hidden(ids, places, attend)
        self._sampler.note(spans)
        return hidden.index_select(0, lasts)

    def decode(self, sequences: Items[Sequence]) -> Tensor:
        self._state.lists.place(sequences)
        inputs = np.empty((4, len(sequences)), dtype=np.int32)
        inputs[LINES] = [s.line for s in sequences]
        inputs[TOKENS] = [s.history[-1] for s in sequences]
        inputs[POSITIONS] = [s.cached for s in sequences]
        inputs[LENGTHS] = inputs[POSITIONS] + 1
        self._check(inputs[TOKENS], inputs[POSITIONS])
        if self._graphs is not None and len(sequences):
            if self._recorded is not self._state.lists.rows:
                self._graphs.forget()
                self._recorded = self._state.lists.rows
            hidden = self._graphs.run(self._streams.mask, inputs)
            if hidden is not None:
                return hidden
        padded = padding(len(sequences))
        padded[:, : len(sequences)] = inputs
        return self._decode(upload(self.device, padded)[0][:, : len(sequences)])

    def sample(
        self, logits: Tensor, sequences: Items[Sequence]
    ) -> tuple[list[int], dict[int, TokenLogprob] | None]:
        return self._sampler.sample(logits, sequences)

    def settle(self) -> None:
        self._streams.wait()

    def _decode(self, inputs: Tensor) -> Tensor:
        """What is recorded: inputs int32 [4, b] -> hidden [b, hidden]."""
        lines, tokens, positions, lengths = inputs.unbind(0)
        state, spec = self._state, self._spec
        rows = state.lists.rows.index_select(0, lines)
        splits = plan_splits(len(lines), spec.kv_heads, self._setup.max_context, self._streams.sms)
        attend = PagedDecode(spec, state.pool, rows, positions, lengths, splits)
        return self.model.hidden(tokens, positions.clamp_min(0), attend)

    def _check(self, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """Raises ValueError. On a device an index out of range is a fault of every worker that shares it."""
        if len(tokens) == 0:
            return
        if tokens.min() < 0 or tokens.max() >= self._spec.vocab_size:
            raise ValueError(f"token ids must lie in [0, {self._spec.vocab_size})")
        if positions.max() >= self._setup.max_context:
            raise ValueError(f"positions must lie below {self._setup.max_context}")
