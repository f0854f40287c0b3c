"""A batch on a GPU that was queued: its tokens come to the host behind it, and an event tells when."""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from muxd.messages import PromptScores
from muxd.worker import pooling, scoring
from muxd.worker.cuda_sampling import Logprobs
from muxd.worker.cuda_upload import to_host
from muxd.worker.step import Sampled


class CudaFlight:
    """See ``muxd.worker.step.Flight``. Made on the batch's stream, when all of it is queued.

    ``picked`` int64 [m] is copied here: the next batch may overwrite it.
    """

    def __init__(
        self,
        hidden: Tensor,
        picked: Tensor,
        logprobs: Logprobs | None = None,
        scored: Items[scoring.Read] = (),
        pooled: Items[pooling.Read] = (),
    ):
        self.hidden, self._scored, self._pooled = hidden, scored, pooled
        self._tokens, self._logprobs = to_host(picked), logprobs
        self.event: torch.cuda.Event | None = None
        if picked.is_cuda:
            self.event = torch.cuda.Event()
            self.event.record()

    def ready(self) -> bool:
        return self.event is None or bool(self.event.query())

    def result(self) -> Sampled:
        if self.event is not None:
            self.event.synchronize()
        return self._tokens.tolist(), self._logprobs() if self._logprobs else None

    def prompt_scores(self) -> list[PromptScores]:
        return [read() for read in self._scored]

    def vectors(self) -> list[tuple[int, bytes]]:
        return [read() for read in self._pooled]
