"""From logits to the next token of each row.

Greedy is the argmax, exactly. Everything else draws one uniform number per token from a counter-based
generator keyed by (seed, position), so the outcome depends neither on the batch nor on preemption.
``cuda_sampling`` keeps the same rules on a device.
"""

from collections.abc import Sequence as Items
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from muxd.messages import NO_TOKEN, Sampling, TokenLogprob
from muxd.worker.bounds import Bound, ruled_out
from muxd.worker.sequence import Sequence

_SHORTLIST = 512  # candidates tried before a whole vocabulary is sorted
HOTTEST = 3e38  # by more, float32 divides nothing


def sample(logits: Tensor, sequences: Items[Sequence]) -> tuple[list[int], dict[int, TokenLogprob] | None]:
    """One token per row of ``logits`` [n, vocab], and log-probabilities of the rows that asked for them.

    A row's position is the length of its sequence's history. Log-probabilities are of the model's own
    distribution, before temperature and penalties. NO_TOKEN for a row that has no finite maximum, be it the
    model's doing or that of penalties and bans: whatever it is asked, it harms no other row.
    """
    best = logits.max(-1)  # five times as fast as argmax on bf16; of a row with a NaN, NaN
    tokens: list[int] = best.indices.tolist()
    found: dict[int, TokenLogprob] = {}
    for row, (sequence, finite) in enumerate(zip(sequences, best.values.isfinite().tolist(), strict=True)):
        sampling = sequence.sampling
        if not finite:
            tokens[row] = NO_TOKEN
        elif sequence.bound is not None or not plain(sampling, sequence):
            tokens[row] = _pick(logits[row].float(), sequence)
        if sampling.logprobs >= 0 and tokens[row] != NO_TOKEN:
            found[row] = _logprob(logits[row].float(), tokens[row], sampling.logprobs)
    return tokens, found or None


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to ``position`` under ``seed``: Philox 4x64 (Salmon et al. 2011)."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random())


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


def bounded(logits: Tensor, sequence: Sequence, bound: Bound) -> Tensor:
    """A copy of ``logits``, float32 [vocab]: biases added, -inf for what may not be sampled. Before
    penalties, which leave -inf as it is."""
    logits = logits.clone()
    if bound.bias is not None:
        ids, values = bound.bias
        logits.index_add_(0, torch.from_numpy(ids), torch.from_numpy(values))
    if (mask := bound.mask(sequence.generated)) is not None:
        logits.masked_fill_(torch.from_numpy(ruled_out(mask, len(logits))), float("-inf"))
    return logits


def _pick(logits: Tensor, sequence: Sequence) -> int:
    """logits: float32 [vocab] of one row."""
    sampling = sequence.sampling
    if sequence.bound is not None:
        logits = bounded(logits, sequence, sequence.bound)
    if adjusted(sampling):
        logits = penalise(logits, sequence)
    if held_back := [token for token in banned(sequence) if 0 <= token < len(logits)]:
        logits = logits.index_fill(0, torch.tensor(held_back), float("-inf"))
    top = logits.max()
    if not isfinite(top):
        return NO_TOKEN
    if sampling.greedy:
        return int(logits.argmax())
    # Largest first, then divided: a tiny temperature must not overflow to inf - inf.
    scaled = (logits - top) / min(sampling.temperature, HOTTEST)
    return draw(scaled, sampling, uniform(sampling.seed, len(sequence.history)))


def penalise(logits: Tensor, sequence: Sequence) -> Tensor:
    """Repetition penalty over prompt and output (Keskar et al. 2019), presence and frequency over output.

    logits: float32 [vocab]; returns a copy.
    """
    sampling = sequence.sampling
    logits = logits.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.history)), dtype=torch.int64)
        old = logits[seen]
        logits[seen] = torch.where(
            old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty
        )
    if sampling.presence_penalty or sampling.frequency_penalty:
        tokens, counts = np.unique(np.array(sequence.generated, dtype=np.int64), return_counts=True)
        times = torch.from_numpy(counts).float()
        logits[torch.from_numpy(tokens)] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def draw(scaled: Tensor, sampling: Sampling, u: float) -> int:
    """Invert the distribution left by min_p, top_k and top_p at ``u``; ``scaled``: float32 [vocab], max 0.

    The three filters keep a prefix of the tokens in falling order, so they commute except that top_p is a
    fraction of what top_k and min_p left.
    """
    if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
        return _invert(scaled.double().exp(), u)
    size, least = scaled.numel(), min(sampling.min_p, 1.0)  # the best one always passes
    limit = min(sampling.top_k, size) if sampling.top_k > 0 else size
    tries = [limit] if sampling.top_k > 0 else [min(_SHORTLIST, size), size]
    for count in tries:
        values, ids = torch.topk(scaled, count)
        weights = values.double().exp()
        if sampling.min_p > 0:
            weights = weights[weights >= least * weights[0]]
        # When the filter cut inside the shortlist, nothing beyond it could have passed either.
        complete = count == limit or len(weights) < count
        total = weights.sum() if complete else _mass(scaled, least)
        if sampling.top_p < 1:
            before = weights.cumsum(0) - weights
            kept = weights[(before < sampling.top_p * total) | (before == 0)]
            complete = complete or len(kept) < len(weights)
            weights = kept
        if complete:
            break
    return int(ids[_invert(weights, u)])


def _mass(scaled: Tensor, min_p: float) -> Tensor:
    """Weight of all tokens that ``min_p`` leaves: what top_p is a fraction of."""
    weights = scaled.double().exp()
    return weights[weights >= min_p].sum()


def _invert(weights: Tensor, u: float) -> int:
    """Index i with sum(weights[:i]) <= u · total < sum(weights[:i + 1]); never one of weight 0."""
    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
    return min(index, len(weights) - 1)


def _logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    """logits: float32 [vocab], raw."""
    logprobs = torch.log_softmax(logits, -1)
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    return TokenLogprob(float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
