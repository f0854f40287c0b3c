"""Log-probabilities of a prompt's own tokens, for who asks (``Sampling.prompt_logprobs``); by every step.

The token at p is told by the hidden state at p - 1. A chunk ends before it is known what follows, so that its
last state stays with the sequence (``tail``) until the next one comes.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.messages import PromptScores, TokenLogprob
from muxd.worker.sequence import Span

_AT_ONCE = 32 << 20  # bytes of float32 logits

Read = Callable[[], PromptScores]
_Part = tuple[Tensor, Tensor, Tensor, Tensor]  # own log-probability and rank; ids and values of the best


def asks(span: Span) -> bool:
    """It wants log-probabilities of tokens of its prompt."""
    sequence = span.sequence
    return sequence.sampling.prompt_logprobs >= 0 and span.start < sequence.prompt_tokens


class Scorer:
    """``logits``: of hidden states, [n, vocab]; ``to_host`` and ``to_device`` begin copies of tensors from
    and of int32 ids to where those are. ``watch``, where there is one, is shown the log-probabilities that
    scores are read off, float32 [n, vocab], some tokens at a time."""

    watch: Callable[[Tensor], None] | None = None

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        vocab: int,
        to_host: Callable[[Tensor], Tensor] = torch.clone,
        to_device: Callable[[NDArray[np.int32]], Tensor] = torch.from_numpy,
    ):
        self._logits, self._to_host, self._to_device = logits, to_host, to_device
        self._step = max(1, _AT_ONCE // (4 * vocab))

    def score(self, spans: Items[Span], hidden: Tensor) -> list[Read]:
        """Of the spans that ask. ``hidden``: [n, hidden] of all their tokens, one span after another. What is
        returned is called when all copies are there."""
        found, end = [], 0
        for chunk, span in enumerate(spans):
            states = hidden[end : (end := end + span.stop - span.start)]
            sequence, prompt = span.sequence, span.sequence.prompt_tokens
            if not asks(span):
                continue
            first = span.start + 1
            if sequence.tail is not None:
                first, states = span.start, torch.cat((sequence.tail, states))
            sequence.tail = states[-1:].clone() if span.stop < prompt else None
            if tokens := sequence.history[first : min(span.stop, prompt)]:
                parts = self._parts(states[: len(tokens)], tokens, sequence.sampling.prompt_logprobs)
                found.append(_reader(chunk, first, parts))
        return found

    def _parts(self, states: Tensor, tokens: list[int], count: int) -> list[_Part]:
        """A few tokens at a time: a vocabulary of logits for each is more than all of the model's states."""
        parts = []
        for at in range(0, len(tokens), self._step):
            logprobs = torch.log_softmax(self._logits(states[at : at + self._step]).float(), -1)
            ids = self._to_device(np.array(tokens[at : at + self._step], dtype=np.int32))
            own = logprobs.gather(1, ids.long()[:, None])
            if self.watch is not None:
                self.watch(logprobs)
            values, best = torch.topk(logprobs, min(count, logprobs.shape[1]))
            rank = (logprobs > own).sum(1) + 1
            parts.append(tuple(self._to_host(one) for one in (own[:, 0], rank, best, values)))
        return parts  # type: ignore[return-value]


def _reader(chunk: int, first: int, parts: list[_Part]) -> Read:
    def read() -> PromptScores:
        scores, ranks = [], []
        for own, rank, best, values in parts:
            ranks += rank.tolist()
            for logprob, ids, tops in zip(own.tolist(), best.tolist(), values.tolist(), strict=True):
                scores.append(TokenLogprob(logprob, list(zip(ids, tops, strict=True))))
        return PromptScores(chunk, first, scores, ranks)

    return read
