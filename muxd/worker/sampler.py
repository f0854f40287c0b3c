"""From logits to the next token of each row.

Greedy is the argmax, exactly. Everything else draws one uniform number per token from a counter-based
generator keyed by (seed, position), so the outcome depends neither on the batch nor on preemption.
``cuda_sampling`` keeps the same rules on a device.
"""

from collections.abc import Sequence as Items
from functools import lru_cache
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from muxd.messages import NO_TOKEN, Sampling, TokenLogprob
from muxd.worker.bounds import Bound, ruled_out
from muxd.worker.draw import draw
from muxd.worker.sequence import Sequence

HOTTEST = 3e38  # by more, float32 divides nothing


def sample(
    logits: Tensor | None, sequences: Items[Sequence], largest: tuple[Tensor, Tensor] | None = None
) -> tuple[list[int], dict[int, TokenLogprob] | None]:
    """One token per row of ``logits`` [n, vocab], and log-probabilities of the rows that asked for them.

    ``largest``: value (NaN where a row has a NaN) and index of each row's maximum, where they are known; then
    no logits are needed of rows that ``picks_largest``.

    A row's position is the length of its sequence's history. Log-probabilities are of the model's own
    distribution, before temperature and penalties. NO_TOKEN for a row that has no finite maximum, be it the
    model's doing or that of penalties and bans: whatever it is asked, it harms no other row.
    """
    if largest is None:
        assert logits is not None
        largest = logits.max(-1)  # five times as fast as argmax on bf16; of a row with a NaN, NaN
    values, indices = largest
    tokens: list[int] = indices.tolist()
    found: dict[int, TokenLogprob] = {}
    for row, (sequence, finite) in enumerate(zip(sequences, values.isfinite().tolist(), strict=True)):
        sampling = sequence.sampling
        if not finite:
            tokens[row] = NO_TOKEN
        if not finite or logits is None:
            continue
        if sequence.bound is not None or not plain(sampling, sequence):
            tokens[row] = _pick(logits[row], sequence)
        if sampling.logprobs >= 0 and tokens[row] != NO_TOKEN:
            found[row] = _logprob(logits[row].float(), tokens[row], sampling.logprobs)
    return tokens, found or None


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to ``position`` under ``seed``: Philox 4x64 (Salmon et al. 2011)."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random())


def picks_largest(sequence: Sequence) -> bool:
    """Whether nothing of a row but its maximum is looked at."""
    free = sequence.bound is None and sequence.sampling.logprobs < 0
    return free and plain(sequence.sampling, sequence)


def plain(sampling: Sampling, sequence: Sequence) -> bool:
    """Whether the argmax of the raw logits is the answer."""
    return sampling.greedy and not adjusted(sampling) and not banned(sequence)


def adjusted(sampling: Sampling) -> bool:
    """Whether what a sequence has said changes its logits."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0)


def banned(sequence: Sequence) -> list[int]:
    """Tokens that cannot be sampled yet."""
    sampling = sequence.sampling
    generated = len(sequence.history) - sequence.prompt_tokens
    return list(sampling.banned_first) if generated < sampling.min_tokens else []


def bounded(logits: Tensor, sequence: Sequence, bound: Bound) -> None:
    """Adds biases to ``logits``, float32 [vocab], and sets to -inf what may not be sampled. Before
    penalties, which leave -inf as it is."""
    if bound.bias is not None:
        ids, values = bound.bias
        logits.index_add_(0, torch.from_numpy(ids), torch.from_numpy(values))
    if (mask := bound.mask(sequence.generated)) is not None:
        logits.masked_fill_(torch.from_numpy(ruled_out(mask, len(logits))), float("-inf"))


def _pick(row: Tensor, sequence: Sequence) -> int:
    """row: [vocab], which stays as it is."""
    sampling = sequence.sampling
    logits = _room(len(row)).copy_(row)
    if sequence.bound is not None:
        bounded(logits, sequence, sequence.bound)
    if adjusted(sampling):
        penalise(logits, sequence)
    if held_back := [token for token in banned(sequence) if 0 <= token < len(logits)]:
        logits.index_fill_(0, torch.tensor(held_back), float("-inf"))
    best = int(logits.numpy().argmax())  # the first of equals, or of NaNs; torch's takes 70 times as long
    top = float(logits[best])
    if not isfinite(top):
        return NO_TOKEN
    if sampling.greedy:
        return best
    # Largest first, then divided: a tiny temperature must not overflow to inf - inf.
    scaled = logits.sub_(top).div_(min(sampling.temperature, HOTTEST))
    return draw(scaled, sampling, uniform(sampling.seed, len(sequence.history)))


@lru_cache(maxsize=1)
def _room(vocab: int) -> Tensor:
    """For one row at a time: pages of new memory would cost more than what is done in them."""
    return torch.empty(vocab)


def penalise(logits: Tensor, sequence: Sequence) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019), presence and frequency over output.

    logits: float32 [vocab], which is changed.
    """
    sampling = sequence.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.array(sequence.history, dtype=np.int64))  # twice: the same is written
        old = logits[seen]
        logits[seen] = torch.where(
            old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty
        )
    if sampling.presence_penalty or sampling.frequency_penalty:
        tokens, counts = np.unique(np.array(sequence.generated, dtype=np.int64), return_counts=True)
        times = torch.from_numpy(counts).float()
        logits[torch.from_numpy(tokens)] -= sampling.presence_penalty + sampling.frequency_penalty * times


def _logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    """logits: float32 [vocab], raw."""
    logprobs = torch.log_softmax(logits, -1)
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    return TokenLogprob(float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
