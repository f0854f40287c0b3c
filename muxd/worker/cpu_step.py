"""What the two steps of a CPU share: threads are the share, and a batch is done when it returns.

``native_step`` and ``host_step`` are the two; each says what keeps its K and V and how a batch is computed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.device.cpu import threads
from muxd.messages import NewRows, PromptScores, Sampling, Setup
from muxd.models.layers import Head
from muxd.models.spec import ModelSpec
from muxd.worker import pooling, sampler, scoring
from muxd.worker.rows import check_tokens
from muxd.worker.sequence import Sequence, Span
from muxd.worker.step import Copy, Sampled


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


class Kv(Protocol):
    """K and V of a step's rows; see ``muxd.worker.step.Step`` for what these do."""

    tokens: int

    def learn(self, new: NewRows) -> None: ...

    def take(self, rows: list[int], filled: int) -> None: ...

    def copy(self, rows: list[int], into: list[int]) -> None: ...


K = TypeVar("K", bound=Kv)


class CpuStep(ABC, Generic[K]):
    """See ``muxd.worker.step.Step``, but for ``decode``. A subclass makes its ``model`` and,
    with that, calls ``_turn_to`` with what ``_over`` made of the shared pool."""

    ahead = False
    between: Callable[[], None] | None = None
    rehearsal = ((8, Sampling(temperature=0.0)),)
    model: Head

    def __init__(self, spec: ModelSpec, setup: Setup):
        self._spec, self._setup = spec, setup
        self._threads = 0
        self._use(100)  # OpenMP has read the zygote's environment, not this device's number of cores

    @abstractmethod
    def _over(self, memory: Tensor, rows: int) -> K:
        """A table of ``rows`` rows over ``memory``, uint8 [bytes] of host memory."""

    def _turn_to(self, kv: K) -> None:
        """From now on K and V lie there."""
        self._kv = kv

    @property
    def tokens(self) -> int:
        return self._kv.tokens

    @contextmanager
    def share(self, percent: int, parts: int, *, prefill: bool) -> Iterator[None]:
        self._use(percent)
        yield

    @contextmanager
    def apart(self, rows: int) -> Iterator[None]:
        shared = self._kv
        own = torch.zeros(rows * self._spec.blocks_per_row * self._setup.block_bytes, dtype=torch.uint8)
        self._turn_to(self._over(own, rows))
        try:
            with self.share(1, 0, prefill=True):  # one thread: others stream meanwhile
                yield
        finally:
            self._turn_to(shared)

    def ready(self, decodes: bool) -> None:
        self._threads = 0  # OpenMP keeps their number by the thread, and another one may serve

    def learn(self, new: NewRows) -> None:
        self._kv.learn(new)

    def take(self, rows: list[int], filled: int) -> None:
        self._kv.take(rows, filled)

    def copy(self, rows: list[int], into: list[int]) -> None:
        self._kv.copy(rows, into)

    def prefill(self, spans: Items[Span], ends: Items[int], copies: Items[Copy] = ()) -> Done:
        done = self._prefilled(spans, ends)
        for rows, into in copies:
            self.copy(rows, into)
        return done

    @abstractmethod
    def _prefilled(self, spans: Items[Span], ends: Items[int]) -> Done:
        """``prefill`` without copies."""

    def join(self, sequence: Sequence) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass

    def _tokens_of(self, spans: Items[Span]) -> NDArray[np.int32]:
        """Of all spans, one after another. Raises ValueError for a token that the model has not."""
        return self._checked(
            [token for span in spans for token in span.sequence.history[span.start : span.stop]]
        )

    def _last_tokens(self, sequences: Items[Sequence]) -> NDArray[np.int32]:
        """Raises ValueError for a token that the model has not."""
        return self._checked([sequence.history[-1] for sequence in sequences])

    def _checked(self, tokens: list[int]) -> NDArray[np.int32]:
        found = np.array(tokens, dtype=np.int32)
        check_tokens(found, self._spec.vocab_size)
        return found

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


def lasts(spans: Items[Span], ends: Items[int]) -> NDArray[np.int64]:
    """Which of all spans' tokens are the last ones of the spans ``ends``."""
    found: NDArray[np.int64] = np.cumsum([span.stop - span.start for span in spans])[list(ends)] - 1
    return found
