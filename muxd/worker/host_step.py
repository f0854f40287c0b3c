"""Batches on the CPU: K and V gathered layer by layer, a share is a number of threads."""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.device.cpu import threads
from muxd.messages import NewRows, PromptScores, Sampling, Setup
from muxd.models.layers import Attend
from muxd.models.registry import build
from muxd.models.spec import ModelSpec
from muxd.worker import pooling, sampler, scoring
from muxd.worker.attend import DecodeAttend, PrefillAttend
from muxd.worker.kept import kv_type
from muxd.worker.kv import PagedKv
from muxd.worker.mapped import DTYPES, MappedWeights
from muxd.worker.pooling import Pooler
from muxd.worker.rows import check_tokens
from muxd.worker.scoring import Scorer
from muxd.worker.sequence import Sequence, Span
from muxd.worker.step import Sampled


class Done(NamedTuple):
    """See ``muxd.worker.step.Flight``: here nothing runs by itself."""

    hidden: Tensor
    sampled: Sampled
    scored: tuple[scoring.Read, ...] = ()
    pooled: tuple[pooling.Read, ...] = ()

    def ready(self) -> bool:
        return True

    def result(self) -> Sampled:
        return self.sampled

    def prompt_scores(self) -> list[PromptScores]:
        return [read() for read in self.scored]

    def vectors(self) -> list[tuple[int, bytes]]:
        return [read() for read in self.pooled]


class HostStep:
    """See ``muxd.worker.step.Step``. ``pool`` and ``weights``: uint8 [bytes] of host memory."""

    ahead = False
    rehearsal = ((8, Sampling(temperature=0.0)),)

    def __init__(self, spec: ModelSpec, setup: Setup, pool: Tensor, weights: Tensor):
        self._spec, self._setup = spec, setup
        self._threads = 0
        self._use(100)  # OpenMP has read the zygote's environment, not this device's number of cores
        self.model = build(spec, MappedWeights(setup.tensors, weights))
        self._scorer = Scorer(self.model.logits, spec.vocab_size)
        self._pooler = Pooler(self.model.output)
        self._types = DTYPES[setup.dtype], kv_type(setup, pool.device)
        self._kv = PagedKv(spec, pool, setup.block_bytes, setup.max_rows, *self._types)

    @property
    def tokens(self) -> int:
        return self._kv.tokens

    @contextmanager
    def share(self, percent: int, parts: int) -> Iterator[None]:
        self._use(percent)
        yield

    @contextmanager
    def apart(self, rows: int) -> Iterator[None]:
        kv, block_bytes = self._kv, self._setup.block_bytes
        pool = torch.zeros(rows * self._spec.blocks_per_row * block_bytes, dtype=torch.uint8)
        self._kv = PagedKv(self._spec, pool, block_bytes, rows, *self._types)
        try:
            yield
        finally:
            self._kv = kv

    def ready(self, decodes: bool) -> None:
        pass

    def learn(self, new: NewRows) -> None:
        self._kv.learn(new)

    def take(self, rows: list[int], filled: int) -> None:
        self._kv.take(rows, filled)

    def join(self, sequence: Sequence) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass

    def prefill(self, spans: Items[Span], ends: Items[int]) -> Done:
        attend = PrefillAttend(self._kv, spans)
        parts = [np.array(span.sequence.history[span.start : span.stop], dtype=np.int64) for span in spans]
        hidden = self._hidden(np.concatenate(parts), attend.positions, attend)
        lasts = np.cumsum([span.stop - span.start for span in spans]) - 1
        done = self._sampled(hidden[torch.from_numpy(lasts[list(ends)])], [spans[i].sequence for i in ends])
        scored, pooled = self._scorer.score(spans, hidden), self._pooler.pool(spans, hidden)
        return done._replace(scored=tuple(scored), pooled=tuple(pooled))

    def decode(self, sequences: Items[Sequence]) -> Done:
        ordered = sorted(sequences, key=lambda sequence: -sequence.cached)
        attend = DecodeAttend(self._kv, ordered)
        tokens = np.array([sequence.history[-1] for sequence in ordered], dtype=np.int64)
        positions = torch.tensor([sequence.cached for sequence in ordered])
        hidden = self._hidden(tokens, positions, attend)
        place = {id(sequence): i for i, sequence in enumerate(ordered)}
        return self._sampled(hidden[torch.tensor([place[id(sequence)] for sequence in sequences])], sequences)

    def _hidden(self, tokens: NDArray[np.int64], positions: Tensor, attend: Attend) -> Tensor:
        check_tokens(tokens, self._spec.vocab_size)
        return self.model.hidden(torch.from_numpy(tokens), positions, attend)

    def _sampled(self, hidden: Tensor, sequences: Items[Sequence]) -> Done:
        """Logits only for the tokens that sample: hidden [m, hidden]."""
        if not sequences:
            return Done(hidden, ([], None))
        return Done(hidden, sampler.sample(self.model.logits(hidden), sequences))

    def _use(self, percent: int) -> None:
        count = threads(percent, self._setup.cores)
        if count != self._threads:
            torch.set_num_threads(count)
            self._threads = count
