"""Batches on the CPU by torch: K and V gathered layer by layer."""

from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.messages import Setup
from muxd.models.layers import Attend, Model
from muxd.models.registry import build
from muxd.models.spec import ModelSpec
from muxd.worker.attend import DecodeAttend, PrefillAttend
from muxd.worker.cpu_step import CpuStep, Done, lasts
from muxd.worker.kept import kv_type
from muxd.worker.kv import PagedKv
from muxd.worker.lora import AdaptedWeights
from muxd.worker.mapped import DTYPES
from muxd.worker.pooling import Pooler
from muxd.worker.ranks import entries, ranked
from muxd.worker.scoring import Scorer
from muxd.worker.sequence import Sequence, Span


class HostStep(CpuStep[PagedKv]):
    """See ``muxd.worker.step.Step``. ``pool`` and ``weights``: uint8 [bytes] of host memory."""

    model: Model

    def __init__(self, spec: ModelSpec, setup: Setup, pool: Tensor, weights: Tensor):
        super().__init__(spec, setup)
        mapped = AdaptedWeights(entries(setup, spec.vocab_size), weights, setup.lora)
        parts = ranked(mapped, setup, spec, pool.device)
        self._adapters, self.model = mapped.adapters, build(spec, parts)
        self.scorer = Scorer(self.model.logits, spec.vocab_size)
        self._pooler = Pooler(self.model.output)
        self._types = DTYPES[setup.dtype], kv_type(setup, pool.device)
        self._turn_to(self._over(pool, setup.max_rows))

    def _over(self, memory: Tensor, rows: int) -> PagedKv:
        return PagedKv(self._spec, memory, self._setup.block_bytes, rows, *self._types)

    def _prefilled(self, spans: Items[Span], ends: Items[int]) -> Done:
        attend = PrefillAttend(self._kv, spans)
        self._adapters.use([span.sequence for span in spans], [span.stop - span.start for span in spans])
        hidden = self._hidden(self._tokens_of(spans), attend.positions, attend)
        picked = hidden[torch.from_numpy(lasts(spans, ends))]
        done = self._sampled(picked, [spans[i].sequence for i in ends])
        scored, pooled = self.scorer.score(spans, hidden), self._pooler.pool(spans, hidden)
        return done._replace(scored=tuple(scored), pooled=tuple(pooled))

    def decode(self, sequences: Items[Sequence]) -> Done:
        ordered = sorted(sequences, key=lambda sequence: -sequence.cached)
        attend = DecodeAttend(self._kv, ordered)
        self._adapters.use(ordered)
        positions = torch.tensor([sequence.cached for sequence in ordered])
        hidden = self._hidden(self._last_tokens(ordered), positions, attend)
        place = {id(sequence): i for i, sequence in enumerate(ordered)}
        return self._sampled(hidden[torch.tensor([place[id(sequence)] for sequence in sequences])], sequences)

    def _hidden(self, tokens: NDArray[np.int32], positions: Tensor, attend: Attend) -> Tensor:
        return self.model.hidden(torch.from_numpy(tokens).long(), positions, attend)
