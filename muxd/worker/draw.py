"""One token drawn from a distribution over a vocabulary, in few passes over it and no memory of its size.

A quarter of a million numbers are a third of what a small model's step reads, for every row of a batch. So a
whole vocabulary is neither sorted nor summed up token by token: it is looked at in runs, and only runs that
matter are opened. Nor is it copied: new memory of a megabyte costs more, page by page, than all passes.
"""

from math import exp, nextafter

import torch
from torch import Tensor
from torch.nn.functional import pad, threshold

from muxd.messages import Sampling

RUN = 64  # tokens
_SHORTLISTS = (128, 4096)  # candidates tried before a whole vocabulary is sorted
_NONE = -80.0  # no weight beyond is felt; of numbers that float32 hardly has, exp takes 70 times as long


def draw(scaled: Tensor, sampling: Sampling, u: float) -> int:
    """Invert the distribution left by min_p, top_k and top_p at ``u``; ``scaled``: float32 [vocab], max 0,
    which is used up.

    The three filters keep a prefix of the tokens in falling order, so they commute except that top_p is a
    fraction of what top_k and min_p left.
    """
    weights = threshold(scaled.clamp_(min=_NONE).exp_(), 1.1 * exp(_NONE), 0.0, inplace=True)
    if sampling.top_k <= 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
        return _invert_all(weights, u)
    size, least = weights.numel(), min(sampling.min_p, 1.0)  # the best one always passes
    limit = min(sampling.top_k, size) if sampling.top_k > 0 else size
    tries = [limit] if sampling.top_k > 0 else [*(count for count in _SHORTLISTS if count < size), size]
    for count in tries:
        values, ids = largest(weights, count)
        kept = values.double()
        if sampling.min_p > 0:
            kept = kept[kept >= least * kept[0]]
        # When the filter cut inside the shortlist, nothing beyond it could have passed either.
        complete = count == limit or len(kept) < count
        if sampling.top_p < 1:
            total = float(kept.sum()) if complete else _mass(weights, least)
            before = kept.cumsum(0) - kept
            nucleus = kept[(before < sampling.top_p * total) | (before == 0)]
            complete = complete or len(nucleus) < len(kept)
            kept = nucleus
        if complete:
            break
    return int(ids[_invert(kept, u)])


def largest(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of ``weights`` [n], none below 0, falling, and where they are. The place of a 0
    may be beyond n.

    Whatever is in a run whose largest is not among the ``count`` largest of all runs has as many before it.
    """
    if 2 * RUN * count > weights.numel():
        every = weights.topk(count)
        return every.values, every.indices
    runs = _runs(weights)
    opened = runs.amax(-1).topk(count, sorted=False).indices
    found, at = runs[opened].flatten().topk(count)
    return found, opened[at // RUN] * RUN + at % RUN


def _runs(weights: Tensor) -> Tensor:
    """[n] -> [n / RUN, RUN], filled up with 0."""
    missing = -weights.numel() % RUN
    return (pad(weights, (0, missing)) if missing else weights).view(-1, RUN)


def _mass(weights: Tensor, min_p: float) -> float:
    """Of all tokens that ``min_p`` leaves: what top_p is a fraction of."""
    if min_p > 0:
        weights = weights[weights >= min_p]
    return float(_runs(weights).sum(-1).double().sum())


def _invert_all(weights: Tensor, u: float) -> int:
    """``_invert`` of a vocabulary in its own order. A run is summed up by one thread, so that their number
    changes nothing."""
    runs = _runs(weights)
    sums = runs.sum(-1).double()
    at = _invert(sums, u)
    beyond = u * float(sums.sum()) - float(sums[:at].sum())
    return at * RUN + _invert(runs[at].double(), max(0.0, beyond) / float(sums[at]))


def _invert(weights: Tensor, u: float) -> int:
    """Index i with sum(weights[:i]) <= u · total < sum(weights[:i + 1]); never one of weight 0, though ``u``
    be 1 or more by rounding."""
    cumulative = weights.cumsum(0)
    total = float(cumulative[-1])
    return int(torch.searchsorted(cumulative, min(u * total, nextafter(total, 0.0)), right=True))
