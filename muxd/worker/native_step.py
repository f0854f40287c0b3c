"""Batches on the CPU by the native step: one call a batch, K and V where they lie, threads are the share.

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

from muxd.device.cpu import threads
from muxd.kernels.native import BatchFields
from muxd.messages import NewRows, Sampling, Setup
from muxd.models.spec import ModelSpec
from muxd.worker import sampler, scoring
from muxd.worker.host_step import Done
from muxd.worker.native_model import NativeModel
from muxd.worker.native_pool import NativePool
from muxd.worker.rows import check_tokens
from muxd.worker.sequence import Sequence, Span

Ids = NDArray[np.int32]


class NativeStep:
    """See ``muxd.worker.step.Step``. ``pool`` and ``weights``: uint8 [bytes] of host memory."""

    ahead = False
    rehearsal = ((8, Sampling(temperature=0.0)),)

    def __init__(self, spec: ModelSpec, setup: Setup, pool: Tensor, weights: Tensor):
        self._spec, self._setup = spec, setup
        self.model = NativeModel(spec, setup, weights)
        self._scorer = scoring.Scorer(self.model.logits, spec.vocab_size)
        self._pool = NativePool(spec, setup, pool, setup.max_rows)
        self.model.use(self._pool)
        self._use(100)

    @property
    def tokens(self) -> int:
        return self._pool.tokens

    @contextmanager
    def share(self, percent: int, parts: int) -> Iterator[None]:
        self._use(percent)
        yield

    @contextmanager
    def apart(self, rows: int) -> Iterator[None]:
        shared, spec = self._pool, self._spec
        own = torch.zeros(rows * spec.blocks_per_row * self._setup.block_bytes, dtype=torch.uint8)
        self._pool = NativePool(spec, self._setup, own, rows)
        self.model.use(self._pool)
        try:
            yield
        finally:
            self._pool = shared
            self.model.use(shared)

    def ready(self, decodes: bool) -> None:
        pass

    def learn(self, new: NewRows) -> None:
        self._pool.learn(new)

    def take(self, rows: list[int], filled: int) -> None:
        self._pool.take(rows)

    def join(self, sequence: Sequence) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass

    def prefill(self, spans: Items[Span], ends: Items[int]) -> Done:
        if any(scoring.asks(span) for span in spans):
            return self._scored(spans, ends)
        counts = np.array([span.stop - span.start for span in spans], dtype=np.int32)
        parts = [np.array(span.sequence.history[span.start : span.stop], dtype=np.int32) for span in spans]
        picks = np.cumsum(counts, dtype=np.int32)[list(ends)] - 1
        sequences = [span.sequence for span in spans]
        starts = np.array([span.start for span in spans], dtype=np.int32)
        return self._run(
            sequences, starts, counts, np.concatenate(parts), picks, [sequences[i] for i in ends]
        )

    def _scored(self, spans: Items[Span], ends: Items[int]) -> Done:
        """Every token's state is looked at; logits are made of a few at a time."""
        counts = np.array([span.stop - span.start for span in spans], dtype=np.int32)
        tokens = np.concatenate(
            [np.array(span.sequence.history[span.start : span.stop], dtype=np.int32) for span in spans]
        )
        starts = np.array([span.start for span in spans], dtype=np.int32)
        every = np.arange(len(tokens), dtype=np.int32)
        states = self._run([span.sequence for span in spans], starts, counts, tokens, every, ()).hidden
        lasts = torch.from_numpy(np.cumsum(counts)[list(ends)] - 1)
        hidden, wanted = states[lasts], [spans[i].sequence for i in ends]
        sampled = sampler.sample(self.model.logits(hidden), wanted) if wanted else ([], None)
        return Done(hidden, sampled, tuple(self._scorer.score(spans, states)))

    def decode(self, sequences: Items[Sequence]) -> Done:
        count = len(sequences)
        tokens = np.array([sequence.history[-1] for sequence in sequences], dtype=np.int32)
        starts = np.array([sequence.cached for sequence in sequences], dtype=np.int32)
        every = np.arange(count, dtype=np.int32)
        return self._run(sequences, starts, np.ones(count, dtype=np.int32), tokens, every, sequences)

    def _run(
        self,
        rows: Items[Sequence],
        starts: Ids,
        counts: Ids,
        tokens: Ids,
        picks: Ids,
        wanted: Items[Sequence],
    ) -> Done:
        """Spans of the sequences ``rows``; sample after the tokens ``picks`` for ``wanted``.

        Raises ValueError for a token that the model has not.
        """
        check_tokens(tokens, self._spec.vocab_size)
        lengths = np.array([len(sequence.rows) for sequence in rows], dtype=np.int32)
        first = np.cumsum(lengths, dtype=np.int32) - lengths
        listed = np.concatenate([np.array(sequence.rows, dtype=np.int32) for sequence in rows])
        hidden = torch.empty(len(picks), self._spec.hidden_size)
        whole = not all(sampler.picks_largest(sequence) for sequence in wanted)
        logits = torch.empty(len(picks), self._spec.vocab_size) if whole else None
        best, choice = torch.empty(len(picks)), torch.empty(len(picks), dtype=torch.int64)
        self.model.run(
            BatchFields(
                len(rows), len(tokens), len(picks), starts.ctypes.data, counts.ctypes.data,
                listed.ctypes.data, first.ctypes.data, tokens.ctypes.data, picks.ctypes.data,
                hidden.data_ptr(), None if logits is None else logits.data_ptr(), best.data_ptr(),
                choice.data_ptr(),
            )
        )  # fmt: skip
        if not wanted:
            return Done(hidden, ([], None))
        return Done(hidden, sampler.sample(logits, wanted, (best, choice)))

    def _use(self, percent: int) -> None:
        count = threads(percent, self._setup.cores)
        if count != self.model.threads:
            torch.set_num_threads(count)  # for sampling
            self.model.threads = count
