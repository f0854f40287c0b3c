"""Batches on a GPU: K and V stay in the pool, a decode step is one graph from its inputs to its tokens.

What a batch needs travels in one small copy; nothing waits for the device before the tokens are read back.
A decode step may be queued before that: it takes the tokens of the step before from where they were picked.

Batches of one phase follow each other on the device, whatever stream each is on; those of the two phases do
not. Nothing that is written by the one and read by the other is in flight: a sequence is in one phase at a
time, its rows, its state, its line of the row lists and its slot of the counts are its own, and the daemon
says who goes over to the other phase, or whose rows are somebody else's, when the batch that wrote them is
done. What all batches read may move only while nothing runs (``Streams.rest``). The same code runs over
tensors of the CPU, by the references of ``muxd.kernels.ops``: so it is tested.
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

from muxd.device.green import PROMPT_MASKS
from muxd.kernels import ops
from muxd.kernels.paged_decode import AN_SM
from muxd.messages import NewRows, Sampling, Setup
from muxd.models.layers import Attend
from muxd.models.registry import build
from muxd.models.spec import ModelSpec
from muxd.worker import pooling, scoring
from muxd.worker.cuda_attend import DecodeRecur, PagedDecode, PagedPrefill, PrefillRecur, woven
from muxd.worker.cuda_flight import CudaFlight
from muxd.worker.cuda_graphs import (
    Again,
    Arrays,
    CudaRecorder,
    KeptGraphs,
    StepGraphs,
    buckets_for,
    lines_of,
)
from muxd.worker.cuda_memory import Scratch
from muxd.worker.cuda_parts import CudaWeights
from muxd.worker.cuda_prompts import PROMPT_LINES, PROMPTS, prompt_arrays, prompt_padding
from muxd.worker.cuda_sampling import (
    BANNED,
    MOST,
    CudaSampler,
    SamplingMode,
    asks,
    bound,
    columns,
    mode_of,
    widest,
)
from muxd.worker.cuda_state import PagedState, no_rows
from muxd.worker.cuda_streams import Streams
from muxd.worker.cuda_upload import int32, to_host, upload
from muxd.worker.kept import kv_type
from muxd.worker.pooling import Pooler
from muxd.worker.ranks import RankWeights, entries, ranked
from muxd.worker.rows import check_tokens
from muxd.worker.scoring import Scorer
from muxd.worker.sequence import Sequence, Span
from muxd.worker.step import Copy

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
        parts = ranked(mapped, setup, spec, pool.device)
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
        sizes = buckets_for(setup.max_running)
        lines = sizes[-1] if pool.is_cuda else 0
        self._sampler = CudaSampler(spec.vocab_size, pool.device, lines, self._streams.rest)
        kept = KeptGraphs(CudaRecorder() if pool.is_cuda else Again())
        padded = partial(padding, spec.blocks_per_row)
        self._graphs: StepGraphs | None = None
        self._prompts: StepGraphs | None = None
        if graphs:
            self._graphs = StepGraphs(self._decode, padded, pool.device, kept, sizes)
        # Of one without a head every token is looked at; a padding span must not have a state.
        if graphs and not spec.headless and spec.delta is None:
            self._prompts = StepGraphs(
                self._prefilled, prompt_padding, pool.device, kept, PROMPTS, PROMPT_MASKS
            )
        self._read: tuple[Tensor, ...] = ()  # what the graphs read and may move: row lists, counts
        self._picked = torch.zeros(MOST, dtype=torch.int64, device=pool.device)  # by the last decode step
        self._none = torch.zeros(0, dtype=torch.int64, device=pool.device)  # by a prefill that ends no prompt
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
        state, setup, graphs = self._state, self._setup, (self._graphs, self._prompts)
        memory = torch.zeros(
            rows * self._spec.blocks_per_row * setup.block_bytes, dtype=torch.uint8, device=self.device
        )
        self._state = PagedState(self._spec, memory, setup.block_bytes, rows, rows, self._kept)
        self._graphs = self._prompts = None
        try:
            yield
        finally:
            self._state, (self._graphs, self._prompts) = state, graphs

    def ready(self, decodes: bool) -> None:
        """Record the largest graphs for the whole device: they say what memory a set takes. All others are
        recorded one by one, when they are first asked for, and find every kernel compiled."""
        reads = self._setup.phases != "decode"
        # The largest first.
        wanted = (self._prompts, reads, 0), (self._graphs, decodes, SamplingMode.FILTERED)
        with self._scratch.recorded():
            for graphs, asked, most in wanted:
                if graphs is not None and asked:
                    with self.share(100, 0, prefill=graphs is self._prompts):
                        for mode in range(most + 1):
                            graphs.rehearse(mode)
                        self._record(graphs, 0, most, graphs.largest)
        self._streams.wait()
        self._scratch.limit()

    def learn(self, new: NewRows) -> None:
        self._state.learn(new)

    def take(self, rows: list[int], filled: int) -> None:
        """Nothing is zeroed: what lies beyond a sequence's length is never read."""
        self._state.known.check(rows)

    def copy(self, rows: list[int], into: list[int]) -> None:
        self._state.copy(rows, into)

    def join(self, sequence: Sequence) -> None:
        check_tokens(int32(sequence.history), self._spec.vocab_size)  # a negative one would mean a place
        self._sampler.note([Span(sequence, 0, len(sequence.history))])

    def forget(self, sequence: Sequence) -> None:
        self._state.lists.release(sequence)
        self._sampler.release(sequence)

    def prefill(self, spans: Items[Span], ends: Items[int], copies: Items[Copy] = ()) -> CudaFlight:
        self._hold(spans)
        self._state.send()
        self._state.lists.place([span.sequence for span in spans])
        hidden, read = self._read_prompts(spans, ends)
        for rows, into in copies:
            self._state.copy(rows, into)
        self._sampler.note(spans)
        if not ends:
            return self._flown(CudaFlight(hidden, self._none, None, *read), prefill=True)
        sampling, known = [spans[i].sequence for i in ends], [spans[i].stop for i in ends]
        return self._sampled(hidden, sampling, known, read=read)

    def _read_prompts(self, spans: Items[Span], ends: Items[int]) -> tuple[Tensor, _Read]:
        """Hidden states [m, hidden] of the tokens that sample."""
        # Not of ranks: each would do it elsewhere, and collectives want one order of all that is launched.
        between = self.between if self._group is None else None
        graphs, size = self._prompts, self._prompt_size(spans)
        arrays = prompt_arrays(spans, ends, size)
        self._check(arrays[0], arrays[1])
        if graphs is not None and size:
            if between is not None:
                between()  # not behind it: the next graph of its mask overwrites what it returns
            return self._run(graphs, 0, size, arrays)[: len(ends)], _Read([], [])
        tensors = upload(self.device, *arrays)
        every = self._every(tensors, between)
        read = _Read(self.scorer.score(spans, every), self._pooler.pool(spans, every))
        return every.index_select(0, tensors[-1]), read

    def _prompt_size(self, spans: Items[Span]) -> int:
        """Tokens of the graph that these run in; 0: none is large enough, or somebody looks at every token,
        or so many sets of parts have graphs that another one's would be recorded again and again."""
        graphs = self._prompts
        if graphs is None or len(spans) > PROMPT_LINES or graphs.crowded(self._streams.mask) is not None:
            return 0
        if any(scoring.asks(span) or span.sequence.pooling for span in spans):
            return 0
        return graphs.size(sum(span.stop - span.start for span in spans)) or 0

    def _prefilled(self, mode: int, tensors: list[Tensor]) -> Tensor:
        """What is recorded of a prefill: from its inputs to the hidden states of the tokens that sample."""
        return self._every(tensors).index_select(0, tensors[-1])

    def _every(self, tensors: list[Tensor], between: Callable[[], None] | None = None) -> Tensor:
        """Hidden states of all tokens of a prefill, [n, hidden]; see ``woven``, never of what is recorded."""
        ids, places, positions, owners, begins, cached, lines, _ = tensors
        rows = self._state.lists.rows.index_select(0, lines)
        own = self._state.of(lines)
        recur = PrefillRecur(*own, begins, cached) if own else None
        attend: Attend = PagedPrefill(
            self._spec, self._state.pool, rows, positions, owners, begins, cached, recur
        )
        if between is not None:
            attend = woven(attend, between)
        return self.model.hidden(ids, places, attend)

    def decode(self, sequences: Items[Sequence]) -> CudaFlight:
        """Raises ValueError for more than ``MOST`` sequences, or a token that neither host nor device has."""
        if len(sequences) > MOST:
            raise ValueError(f"{len(sequences)} sequences in one batch; {MOST} fit")
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
        return self._run(graphs, mode, size, arrays)[:count]

    def _run(self, graphs: StepGraphs, mode: int, size: int, arrays: Arrays) -> Tensor:
        if not graphs.has(self._streams.mask, mode, size) or not self._recorded():
            self._record(graphs, self._streams.mask, mode, size)
        return graphs.run(self._streams.mask, mode, size, arrays)

    def _inputs(self, sequences: Items[Sequence], known: list[int], mode: SamplingMode, size: int) -> Arrays:
        """Those of ``padding``, the first lines in use."""
        count, state = len(sequences), self._state
        lines, tokens, positions, lengths, *_ = lines_of(size)
        grown = state.lists.grown(sequences, size)
        lines[:count] = [s.line for s in sequences]
        tokens[:count] = [
            s.history[s.cached] if len(s.history) > s.cached else self._unread(s) for s in sequences
        ]
        positions[:count], lengths[:count] = [n - 1 for n in known], known
        self._check(np.maximum(tokens, 0), positions)
        arrays = [lines, tokens, positions, lengths, *grown, *state.learnt(size)]
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
        """Each operation launched by itself; a prefill has no ``out``."""
        picked, logprobs = self._sampler.sample(self.model.logits, hidden, sequences, known, out)
        return self._flown(CudaFlight(hidden, picked, logprobs, *read), prefill=out is None)

    def _decode(self, mode: int, tensors: list[Tensor]) -> Tensor:
        """What is recorded: from a step's inputs to its tokens in ``_picked``; hidden [b, hidden]."""
        lines, tokens, positions, lengths, grown_at, grown, ids, blocks, *told = tensors
        state, spec = self._state, self._spec
        ops.learn_rows(state.pool.table, ids, blocks)
        rows = ops.take_rows(state.lists.rows, lines, grown_at, grown)
        fed, places = ops.feed(tokens, positions, self._picked)
        own, programs = state.of(lines), AN_SM * self._streams.sms
        recur = DecodeRecur(*own, positions) if own else None
        attend = PagedDecode(spec, state.pool, rows, positions, lengths, programs, {}, recur)
        hidden = self.model.hidden(fed, places, attend)
        self._sampler.pick(SamplingMode(mode), self.model.logits(hidden), told, self._picked[: len(lines)])
        return hidden

    def _record(self, graphs: StepGraphs, mask: int, mode: int, *sizes: int) -> None:
        """The steps that are run for it pick tokens too: those of the last one must stay. What goes for it
        may be a graph of the other phase."""
        self._streams.rest()
        if not self._recorded():
            for made in (self._graphs, self._prompts):
                if made is not None:
                    made.forget()
            self._read = self._movable()
        elif (crowded := graphs.crowded(mask)) is not None:
            graphs.forget(crowded)
        picked = self._picked.clone()
        graphs.record(mask, mode, *sizes)
        self._picked.copy_(picked)

    def _recorded(self) -> bool:
        """Whether what the graphs read is where it was."""
        now = self._movable()
        return len(self._read) == len(now) and all(a is b for a, b in zip(self._read, now, strict=True))

    def _movable(self) -> tuple[Tensor, ...]:
        return self._state.lists.rows, self._state.lists.states, self._sampler.counts

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


def padding(per_row: int, mode: int, size: int) -> Arrays:
    """Inputs of a step for ``size`` sequences that are none; ``per_row``: head blocks of a row."""
    arrays = [*lines_of(size), *no_rows(per_row, size)]
    return arrays if mode == SamplingMode.GREEDY else [*arrays, *columns([], [], size)]
