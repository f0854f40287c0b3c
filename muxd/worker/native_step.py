"""Batches on the CPU by the native step: one call a batch, K and V where they lie.

Prompts and decode rows go through the same call. Only the tokens that sample get logits, and those only where
somebody looks at more of them than the largest.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels.native import BatchFields
from muxd.messages import Setup
from muxd.models.spec import ModelSpec
from muxd.worker import sampler, scoring
from muxd.worker.cpu_step import CpuStep, Done, lasts
from muxd.worker.native_model import NativeModel
from muxd.worker.native_pool import NativePool
from muxd.worker.sequence import Sequence, Span

Ids = NDArray[np.int32]


class NativeStep(CpuStep[NativePool]):
    """See ``muxd.worker.step.Step``. ``pool`` and ``weights``: uint8 [bytes] of host memory."""

    model: NativeModel

    def __init__(self, spec: ModelSpec, setup: Setup, pool: Tensor, weights: Tensor):
        super().__init__(spec, setup)
        self.model = NativeModel(spec, setup, weights)
        self.model.threads = self._threads
        self.scorer = scoring.Scorer(self.model.logits, spec.vocab_size)
        self._turn_to(self._over(pool, setup.max_rows))

    def _over(self, memory: Tensor, rows: int) -> NativePool:
        return NativePool(self._spec, self._setup, memory, rows)

    def _turn_to(self, kv: NativePool) -> None:
        super()._turn_to(kv)
        self.model.use(kv)

    @contextmanager
    def share(self, percent: int, parts: int, *, prefill: bool) -> Iterator[None]:
        with super().share(percent, parts, prefill=prefill):
            self.model.threads = self._threads
            yield

    def _prefilled(self, spans: Items[Span], ends: Items[int]) -> Done:
        rows = [span.sequence for span in spans]
        starts = np.array([span.start for span in spans], dtype=np.int32)
        counts = np.array([span.stop - span.start for span in spans], dtype=np.int32)
        tokens, picks = self._tokens_of(spans), lasts(spans, ends)
        wanted = [rows[i] for i in ends]
        if not any(scoring.asks(span) for span in spans):
            return self._run(rows, starts, counts, tokens, picks.astype(np.int32), wanted)
        # Every token's state is looked at; logits are made of a few at a time.
        every = np.arange(len(tokens), dtype=np.int32)
        states = self._run(rows, starts, counts, tokens, every, ()).hidden
        done = self._sampled(states[torch.from_numpy(picks)], wanted)
        return done._replace(scored=tuple(self.scorer.score(spans, states)))

    def decode(self, sequences: Items[Sequence]) -> Done:
        count = len(sequences)
        starts = np.array([sequence.cached for sequence in sequences], dtype=np.int32)
        every, ones = np.arange(count, dtype=np.int32), np.ones(count, dtype=np.int32)
        return self._run(sequences, starts, ones, self._last_tokens(sequences), every, sequences)

    def _run(
        self,
        rows: Items[Sequence],
        starts: Ids,
        counts: Ids,
        tokens: Ids,
        picks: Ids,
        wanted: Items[Sequence],
    ) -> Done:
        """Spans of the sequences ``rows``; states after the tokens ``picks``, and of those, where there are
        ``wanted``, a token for each."""
        lengths = np.array([len(sequence.rows) for sequence in rows], dtype=np.int32)
        first = np.cumsum(lengths, dtype=np.int32) - lengths
        listed = np.concatenate([np.array(sequence.rows, dtype=np.int32) for sequence in rows])
        hidden = torch.empty(len(picks), self._spec.hidden_size)
        whole = not all(sampler.picks_largest(sequence) for sequence in wanted)
        logits = torch.empty(len(picks), self._spec.vocab_size) if whole else None
        adapters = np.repeat(np.array([one.adapter for one in rows], dtype=np.int32), counts)
        states = np.array([one.state for one in rows], dtype=np.int32)  # of all sequences as many
        best, choice = torch.empty(len(picks)), torch.empty(len(picks), dtype=torch.int64)
        self.model.run(
            BatchFields(
                len(rows), len(tokens), len(picks), starts.ctypes.data, counts.ctypes.data,
                listed.ctypes.data, first.ctypes.data, tokens.ctypes.data, picks.ctypes.data,
                hidden.data_ptr(), None if logits is None else logits.data_ptr(),
                best.data_ptr() if wanted else None, choice.data_ptr() if wanted else None,
                adapters.ctypes.data if adapters.any() else None,
                states.ctypes.data if states.size else None,
            )
        )  # fmt: skip
        if not wanted:
            return Done(hidden, ([], None))
        return Done(hidden, sampler.sample(logits, wanted, (best, choice)))
