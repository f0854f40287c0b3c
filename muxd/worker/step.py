"""One batch on one kind of device: what ``muxd.worker.runner`` needs of it.

``cpu_step`` says what the CPU's two share (``native_step``, ``host_step``); ``cuda_step`` is a GPU's.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from muxd.messages import NewRows, PromptScores, Sampling, TokenLogprob
from muxd.models.layers import Head
from muxd.worker.scoring import Scorer
from muxd.worker.sequence import Sequence, Span

Sampled = tuple[
    list[int], dict[int, TokenLogprob] | None
]  # tokens; by index, the log-probabilities asked for
Copy = tuple[list[int], list[int]]  # rows of a state, and those that it is copied into


class Flight(Protocol):
    """A batch that was asked for and may still be running."""

    @property
    def hidden(self) -> Tensor:
        """[m, hidden] of the m tokens that sample; overwritten by the next batch."""
        ...

    def ready(self) -> bool:
        """Whether ``result`` would return at once."""
        ...

    def result(self) -> Sampled:
        """Waits for the device."""
        ...

    def prompt_scores(self) -> list[PromptScores]:
        """Of a prefill's chunks that ask for them; after ``result``."""
        ...

    def vectors(self) -> list[tuple[int, bytes]]:
        """Of a prefill's chunks that are pooled and their texts' last; after ``result``."""
        ...


class Step(Protocol):
    """A model, its K and V in the pool, and how its batches are computed: one after another, or on a device
    that queues, the two phases beside each other.

    Sampling is by the rules of ``muxd.worker.sampler``, one token for each sequence.
    """

    @property
    def ahead(self) -> bool:
        """Whether batches queue on the device: a decode step behind another, and a prefill beside them, may
        be asked for before the flights of those are read."""
        ...

    # Called between the parts of a prefill as they are asked for, where batches queue: decode steps may be
    # asked for and read meanwhile.
    between: Callable[[], None] | None

    @property
    def model(self) -> Head: ...

    @property
    def scorer(self) -> Scorer: ...

    @property
    def tokens(self) -> int:
        """T, tokens of a row."""
        ...

    @property
    def rehearsal(self) -> tuple[tuple[int, Sampling], ...]:
        """Prompts (tokens, sampling) after which everything a batch needs is compiled."""
        ...

    def share(self, percent: int, parts: int, *, prefill: bool) -> AbstractContextManager[None]:
        """Run what is inside with this much of the device, behind what is under way of its phase."""
        ...

    def apart(self, rows: int) -> AbstractContextManager[None]:
        """Use a pool of ``rows`` rows of its own inside: no block of the shared one is touched."""
        ...

    def ready(self, decodes: bool) -> None:
        """After the rehearsal: prepare what needs the shared pool; a worker that ``decodes`` needs more."""
        ...

    def learn(self, new: NewRows) -> None:
        """Take up rows not seen yet. Raises ValueError for ids or blocks outside pool and table."""
        ...

    def take(self, rows: list[int], filled: int) -> None:
        """Rows join a sequence; from index ``filled`` on nothing has filled them yet.

        Raises ValueError for a row whose head blocks were never sent.
        """
        ...

    def copy(self, rows: list[int], into: list[int]) -> None:
        """Copy the blocks of rows that ``take`` has checked, behind what was asked for before."""
        ...

    def join(self, sequence: Sequence) -> None:
        """A sequence that this worker has not prefilled is about to be decoded."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """What the device holds for it can go."""
        ...

    def prefill(self, spans: Items[Span], ends: Items[int], copies: Items[Copy] = ()) -> Flight:
        """Compute the spans; sample after the last token of the spans in ``ends``. When its flight is done
        ``copies`` are made, too: of states as the spans leave them, which the next step changes."""
        ...

    def decode(self, sequences: Items[Sequence]) -> Flight:
        """Feed each sequence its token at position ``cached`` and sample the next.

        With ``ahead`` that token may be one which the batch before picked and nobody has read yet.
        """
        ...
