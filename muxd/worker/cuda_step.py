"""Batches on a GPU: K and V stay in the pool, a decode step is one graph from its inputs to its tokens.

What a batch needs travels in one small copy; nothing waits for the device before the tokens are read back.
A decode step may be queued before that: it takes the tokens of the step before from where they were picked.

Batches of one phase follow each other on the device, whatever stream each is on; those of the two phases do
not. Nothing that is written by the one and read by the other is in flight: a sequence is in one phase at a
time, its rows, its line of the row lists and its slot of the counts are its own, and the daemon says who goes
over to the other phase, or whose rows are somebody else's, when the batch that wrote them is done. What all
batches read may move only while nothing runs (``Streams.rest``). The same code runs over tensors of the CPU,
by the references of ``muxd.kernels.ops``: so it is tested.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.launch import power_of_two
from muxd.kernels.paged_decode import plan_splits
from muxd.messages import SAMPLED, NewRows, Sampling, Setup, TokenLogprob
from muxd.models.layers import Attend
from muxd.models.registry import build
from muxd.models.spec import ModelSpec
from muxd.worker import pooling, scoring
from muxd.worker.cuda_attend import PagedDecode, PagedPrefill, Woven
from muxd.worker.cuda_flight import CudaFlight
from muxd.worker.cuda_graphs import Again, Arrays, CudaRecorder, DecodeGraphs, buckets_for, lines_of
from muxd.worker.cuda_memory import Scratch
from muxd.worker.cuda_parts import CudaWeights
from muxd.worker.cuda_sampling import (
    BANNED,
    MOST,
    CudaSampler,
    Logprobs,
    SamplingMode,
    asks,
    bound,
    columns,
    mode_of,
    widest,
)
from muxd.worker.cuda_state import PagedState
from muxd.worker.cuda_streams import Streams
from muxd.worker.cuda_upload import int32, to_host, upload
from muxd.worker.kept import kv_type
from muxd.worker.pooling import Pooler
from muxd.worker.ranks import RankWeights, entries, ranked
from muxd.worker.rows import check_tokens
from muxd.worker.scoring import Scorer
from muxd.worker.sequence import Sequence, Span

_MANY = 300  # tokens of a prompt: kernels are chosen by size at 256
_AHEAD = 64  # tokens for which rows may be granted beyond the longest context


class _Read(NamedTuple):
    """What comes to the host with a prefill's tokens."""

    scored: list[scoring.Read]
    pooled: list[pooling.Read]


class CudaStep:
    """See ``muxd.worker.step.Step``. ``pool`` and ``weights``: uint8 [bytes], mapped device memory.

    ``graphs``: whether decode steps are recorded; without, every kernel is launched by itself.
    """

    ahead = True
    between: Callable[[], None] | None = None
    rehearsal = (
        (8, Sampling(temperature=0.0)),
        (_MANY, Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1)),
        (8, Sampling(temperature=1.0)),
    )

    def __init__(self, spec: ModelSpec, setup: Setup, pool: Tensor, weights: Tensor, *, graphs: bool = True):
        torch.set_num_threads(1)  # the host only queues
        self._spec, self._setup, self._kept = spec, setup, kv_type(setup, pool.device)
        self.device = pool.device
        self._streams = Streams(pool.device)
        self._scratch = Scratch(setup.model, pool.device, setup.scratch.get(setup.phases, 0))
        mapped = CudaWeights(entries(setup, spec.vocab_size), weights, setup.max_context)
        parts = ranked(mapped, setup, spec.vocab_size, pool.device)
        self._group = parts.group if isinstance(parts, RankWeights) else None
        self.model = build(spec, parts)
        self.scorer = Scorer(
            self.model.logits, spec.vocab_size, to_host, lambda ids: upload(pool.device, ids)[0]
        )
        self._pooler = Pooler(self.model.output, to_host)
        row_tokens = spec.tokens_per_row(setup.block_bytes, self._kept.itemsize)
        width = min(setup.max_rows, -(-(setup.max_context + _AHEAD) // row_tokens) + 1)
        self._state = PagedState(
            spec, pool, setup.block_bytes, setup.max_rows, width, self._kept,
            lines=setup.max_running, rest=self._streams.rest,
        )  # fmt: skip
        sizes = self._sizes = buckets_for(setup.max_running)
        lines = sizes[-1] if pool.is_cuda else 0
        self._sampler = CudaSampler(spec.vocab_size, pool.device, lines, self._streams.rest)
        recorder = CudaRecorder() if pool.is_cuda else Again()
        self._graphs = DecodeGraphs(self._decode, padding, pool.device, recorder, sizes) if graphs else None
        self._read: tuple[Tensor, ...] = ()  # what the graphs read and may move: row lists, counts
        self._picked = torch.zeros(MOST, dtype=torch.int64, device=pool.device)  # by the last decode step
        self._places: dict[int, int] = {}  # of its sequences, by identity, in ``_picked``
        self._stepped: Items[Sequence] = ()  # they stay, so that no other gets the identity of one
        self._last: dict[bool, CudaFlight] = {}  # of each phase, by whether it prefills

    @property
    def tokens(self) -> int:
        return self._state.pool.tokens

    @contextmanager
    def share(self, percent: int, parts: int, *, prefill: bool) -> Iterator[None]:
        """``parts`` is a mask of SMs; a share alone is a promise of the daemon, or a cap from the spawn."""
        with self._scratch.named(), self._streams.use(parts):
            before = self._last.get(prefill)
            if before is not None and before.event is not None:
                # It may be on another stream; what is queued now comes after it.
                torch.cuda.current_stream(self.device).wait_event(before.event)
            if self._group is not None:
                self._group.prefill = prefill
            yield

    @contextmanager
    def apart(self, rows: int) -> Iterator[None]:
        state, setup, graphs = self._state, self._setup, self._graphs
        memory = torch.zeros(
            rows * self._spec.blocks_per_row * setup.block_bytes, dtype=torch.uint8, device=self.device
        )
        self._state = PagedState(self._spec, memory, setup.block_bytes, rows, rows, self._kept)
        self._graphs = None
        try:
            yield
        finally:
            self._state, self._graphs = state, graphs

    def ready(self, decodes: bool) -> None:
        """Record the first set of graphs for the whole device, as far as that says what a set takes. All
        others are recorded one by one, when they are first asked for, and find every kernel compiled."""
        if decodes:
            self._rehearse_splits()
        if decodes and self._graphs is not None:
            self._rehearse_sizes()
            with self._scratch.recorded():
                self._record(self._graphs, 0, SamplingMode.FILTERED, self._sizes[0])
        self._streams.wait()
        self._scratch.limit()

    def learn(self, new: NewRows) -> None:
        self._state.learn(new)

    def take(self, rows: list[int], filled: int) -> None:
        """Nothing is zeroed: what lies beyond a sequence's length is never read."""
        self._state.known.check(rows)

    def join(self, sequence: Sequence) -> None:
        check_tokens(int32(sequence.history), self._spec.vocab_size)  # a negative one would mean a place
        self._sampler.note([Span(sequence, 0, len(sequence.history))])

    def forget(self, sequence: Sequence) -> None:
        self._state.lists.release(sequence)
        self._sampler.release(sequence)

    def prefill(self, spans: Items[Span], ends: Items[int]) -> CudaFlight:
        self._hold(spans)
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
        attend: Attend = PagedPrefill(self._spec, pool, rows, places, owners, begins, cached)
        if self.between is not None and self._group is None:
            # Not of ranks: each would do it elsewhere, and collectives want one order of all that is
            # launched.
            attend = Woven(attend, self.between)
        every = self.model.hidden(ids, places, attend)
        hidden = every.index_select(0, lasts)
        read = _Read(self.scorer.score(spans, every), self._pooler.pool(spans, every))
        self._sampler.note(spans)
        if not ends:
            return self._flown(CudaFlight(hidden, lasts[:0], None, *read), prefill=True)
        sampling, known = [spans[i].sequence for i in ends], [spans[i].stop for i in ends]
        return self._sampled(hidden, sampling, known, read=read)

    def decode(self, sequences: Items[Sequence]) -> CudaFlight:
        """Raises ValueError for more than ``MOST`` sequences, or a token that neither host nor device has."""
        if len(sequences) > MOST:
            raise ValueError(f"{len(sequences)} sequences in one batch; {MOST} fit")
        self._state.lists.place(sequences)
        known = [s.cached + 1 for s in sequences]
        mode = mode_of(sequences, known)
        # Neither log-probabilities nor masks nor long lists of banned tokens are recorded.
        apart = (
            any(map(asks, sequences))
            or any(map(bound, sequences))
            or (mode > SamplingMode.GREEDY and widest(sequences, known) > BANNED)
        )
        hidden = self._step(sequences, known, SamplingMode.GREEDY if apart else mode)
        if apart:
            flight = self._sampled(hidden, sequences, known, self._picked[: len(sequences)])
        else:
            flight = self._flown(CudaFlight(hidden, self._picked[: len(sequences)]), prefill=False)
        self._places, self._stepped = {id(sequence): i for i, sequence in enumerate(sequences)}, sequences
        return flight

    def _step(self, sequences: Items[Sequence], known: list[int], mode: SamplingMode) -> Tensor:
        """Model and sampling, as a graph where one is large enough; hidden [b, hidden]."""
        count, graphs = len(sequences), self._graphs
        size = graphs.size(count) if graphs is not None and count else None
        arrays = self._inputs(sequences, known, mode, size or count)
        if graphs is None or size is None:
            return self._decode(mode, upload(self.device, *arrays))
        if not graphs.has(self._streams.mask, mode, size) or not self._recorded():
            self._record(graphs, self._streams.mask, mode, size)
        return graphs.run(self._streams.mask, mode, size, arrays)[:count]

    def _inputs(self, sequences: Items[Sequence], known: list[int], mode: SamplingMode, size: int) -> Arrays:
        """Those of ``padding``, the first lines in use."""
        count, arrays = len(sequences), lines_of(size)
        tokens = [s.history[s.cached] if len(s.history) > s.cached else self._unread(s) for s in sequences]
        for array, values in zip(
            arrays, ([s.line for s in sequences], tokens, [n - 1 for n in known], known), strict=True
        ):
            array[:count] = values
        self._check(np.maximum(arrays[1], 0), arrays[2])
        return arrays if mode is SamplingMode.GREEDY else [*arrays, *columns(sequences, known, size)]

    def _unread(self, sequence: Sequence) -> int:
        """Where ``ops.feed`` finds its token."""
        place = self._places.get(id(sequence))
        if place is None:
            raise ValueError(f"the token at {sequence.cached} of a sequence was not in the step before")
        return -1 - place

    def _sampled(
        self,
        hidden: Tensor,
        sequences: Items[Sequence],
        known: list[int],
        out: Tensor | None = None,
        read: "_Read | tuple[()]" = (),
    ) -> CudaFlight:
        """Logits only for the tokens that sample, each operation launched by itself; of a prefill, which has
        no ``out``, for a few at once."""
        at_once = SAMPLED if out is None else len(sequences)
        picked, told = [], list[tuple[int, Logprobs]]()
        for at in range(0, len(sequences), at_once):
            part = slice(at, at + at_once)
            tokens, logprobs = self._pick(hidden[part], sequences[part], known[part], out)
            picked.append(tokens)
            if logprobs is not None:
                told.append((at, logprobs))
        every = picked[0] if len(picked) == 1 else torch.cat(picked)
        read_logprobs = partial(_joined, told) if told else None
        return self._flown(CudaFlight(hidden, every, read_logprobs, *read), prefill=out is None)

    def _pick(
        self, hidden: Tensor, sequences: Items[Sequence], known: list[int], out: Tensor | None
    ) -> tuple[Tensor, Logprobs | None]:
        logits, mode = self.model.logits(hidden), mode_of(sequences, known)
        told = [] if mode is SamplingMode.GREEDY else columns(sequences, known, len(sequences))
        kept = self._sampler.bounded(logits, sequences) if any(map(bound, sequences)) else logits
        picked = self._sampler.pick(mode, kept, upload(self.device, *told) if told else [], out)
        asked = any(map(asks, sequences))
        return picked, self._sampler.logprobs(logits, picked, sequences) if asked else None

    def _decode(self, mode: int, tensors: list[Tensor], splits: int = 0) -> Tensor:
        """What is recorded: from a step's inputs to its tokens in ``_picked``; hidden [b, hidden]. ``splits``
        of each context: 0 for as many as suit the batch and its part of the device."""
        lines, tokens, positions, lengths, *told = tensors
        state, spec = self._state, self._spec
        rows = state.lists.rows.index_select(0, lines)
        ids, places = ops.feed(tokens, positions, self._picked)
        splits = splits or plan_splits(len(lines), spec.kv_heads, self._setup.max_context, self._streams.sms)
        attend = PagedDecode(spec, state.pool, rows, positions, lengths, splits)
        hidden = self.model.hidden(ids, places, attend)
        self._sampler.pick(SamplingMode(mode), self.model.logits(hidden), told, self._picked[: len(lines)])
        return hidden

    def _rehearse_splits(self) -> None:
        """A part of the device may want fewer splits than the whole ever does. A kernel knows their number to
        the next power of two."""
        most = plan_splits(1, 1, self._setup.max_context, self._streams.sms)
        inputs = upload(self.device, *padding(SamplingMode.GREEDY, 1))
        for power in range(power_of_two(most).bit_length()):
            self._decode(SamplingMode.GREEDY, inputs, 1 << power)

    def _rehearse_sizes(self) -> None:
        """Kernels are compiled by size and by how a batch samples."""
        for mode in SamplingMode:
            for size in self._sizes:
                self._decode(mode, upload(self.device, *padding(mode, size)))

    def _record(self, graphs: DecodeGraphs, mask: int, mode: SamplingMode, *sizes: int) -> None:
        """The steps that are run for it pick tokens too: those of the last one must stay."""
        self._streams.wait()
        if not self._recorded():
            graphs.forget()
            self._read = (self._state.lists.rows, self._sampler.counts)
        elif (crowded := graphs.crowded(mask)) is not None:
            graphs.forget(crowded)
        picked = self._picked.clone()
        graphs.record(mask, mode, *sizes)
        self._picked.copy_(picked)

    def _recorded(self) -> bool:
        """Whether what the graphs read is where it was."""
        now = (self._state.lists.rows, self._sampler.counts)
        return len(self._read) == len(now) and all(a is b for a, b in zip(self._read, now, strict=True))

    def _flown(self, flight: CudaFlight, *, prefill: bool) -> CudaFlight:
        self._last[prefill] = flight
        return flight

    def _hold(self, spans: Items[Span]) -> None:
        """What their chunks before have left may be another stream's: its memory is nobody else's until this
        batch has read it."""
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            for left in (left for span in spans for left in (span.sequence.tail, span.sequence.pooled)):
                if left is not None:
                    left.record_stream(stream)

    def _check(self, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """Raises ValueError. On a device an index out of range is a fault of every worker that shares it."""
        check_tokens(tokens, self._spec.vocab_size)
        if len(positions) and positions.max() >= self._setup.max_context:
            raise ValueError(f"positions must lie below {self._setup.max_context}")


def _joined(told: list[tuple[int, Logprobs]]) -> dict[int, TokenLogprob]:
    """Of parts of a batch, by the place of each's first."""
    return {at + i: found for at, read in told for i, found in read().items()}


def padding(mode: int, size: int) -> Arrays:
    """Inputs of a step for ``size`` sequences that are none."""
    return lines_of(size) if mode == SamplingMode.GREEDY else [*lines_of(size), *columns([], [], size)]
