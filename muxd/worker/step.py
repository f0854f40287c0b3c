"""One batch on one kind of device: what ``muxd.worker.runner`` needs of it.

``host_step`` gathers K and V and computes on the CPU; ``cuda_step`` leaves them where they lie.
"""

from collections.abc import Sequence as Items
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from muxd.messages import NewRows, Sampling, TokenLogprob
from muxd.models.layers import Model
from muxd.worker.sequence import Sequence, Span


class Step(Protocol):
    """A model, its K and V in the pool, and how its batches are computed. One batch at a time."""

    @property
    def model(self) -> Model: ...

    @property
    def tokens(self) -> int:
        """T, tokens of a row."""
        ...

    @property
    def rehearsal(self) -> tuple[tuple[int, Sampling], ...]:
        """Prompts (tokens, sampling) after which everything a batch needs is compiled."""
        ...

    def share(self, percent: int, parts: int) -> AbstractContextManager[None]:
        """Run what is inside with this much of the device."""
        ...

    def apart(self, rows: int) -> AbstractContextManager[None]:
        """Use a pool of ``rows`` rows of its own inside: no block of the shared one is touched."""
        ...

    def ready(self) -> None:
        """After the rehearsal, for a worker that decodes: what has to be prepared over the shared pool."""
        ...

    def learn(self, new: NewRows) -> None:
        """Take up rows not seen yet. Raises ValueError for ids or blocks outside pool and table."""
        ...

    def take(self, rows: list[int], filled: int) -> None:
        """Rows join a sequence; from index ``filled`` on nothing has filled them yet.

        Raises ValueError for a row whose head blocks were never sent.
        """
        ...

    def join(self, sequence: Sequence) -> None:
        """A sequence that this worker has not prefilled is about to be decoded."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """What the device holds for it can go."""
        ...

    def prefill(self, spans: Items[Span], ends: Items[int]) -> Tensor:
        """Compute the spans; hidden states [m, hidden] of the last tokens of the spans in ``ends``."""
        ...

    def decode(self, sequences: Items[Sequence]) -> Tensor:
        """Feed each sequence its last token, at position ``cached``: hidden [b, hidden] in their order."""
        ...

    def sample(
        self, logits: Tensor, sequences: Items[Sequence]
    ) -> tuple[list[int], dict[int, TokenLogprob] | None]:
        """One token for each line of ``logits``, by the rules of ``muxd.worker.sampler``. Waits for it."""
        ...

    def settle(self) -> None:
        """Wait until everything asked for is done."""
        ...
