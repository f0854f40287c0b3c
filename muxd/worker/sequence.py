"""What the worker remembers of one sequence between batches. Owned by ``muxd.worker.runner``."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from muxd.messages import Pooling, Sampling
from muxd.worker.bounds import Bound


@dataclass(slots=True)
class Sequence:
    """Tokens known so far, how many of them have K and V in the pool, and in which rows."""

    sampling: Sampling
    prompt_tokens: int  # tokens of ``history`` from here on were generated
    rows: list[int] = field(default_factory=list)  # block table: row i holds tokens [i · T, (i + 1) · T)
    history: list[int] = field(default_factory=list)  # prompt, then generated tokens
    cached: int = 0  # tokens whose K and V lie in the pool; history is one longer while decoding
    pooling: Pooling = ""
    adapter: int = 0  # its number; 0: none
    pooled: Tensor | None = None  # float32 [hidden], so far (``pooling``)
    tail: Tensor | None = None  # [1, hidden] of its last token, while its prompt is scored (``scoring``)
    state: list[int] = field(default_factory=list)  # rows of its state, where its model keeps one
    bound: Bound | None = None  # what it may not sample, where there is anything
    # Where a device keeps what it knows; -1: nowhere. Written by ``cuda_state`` and ``cuda_sampling``.
    line: int = -1  # of the row lists
    told: int = 0  # rows that the list has already
    slot: int = -1  # of the token counts
    mode: int = -1  # ``cuda_sampling.SamplingMode`` that it needs; -1: nobody has asked

    @property
    def generated(self) -> list[int]:
        """Tokens sampled so far, also those recomputed after preemption."""
        return self.history[self.prompt_tokens :]


class Span(NamedTuple):
    """One sequence's part of a prefill batch: tokens [start, stop) of its context."""

    sequence: Sequence
    start: int
    stop: int
