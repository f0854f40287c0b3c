"""From logits to the next token of each line, without the host: penalties, filters and the draw.

The rules are those of ``muxd.worker.sampler``, where they are explained; here their inputs are tensors, so
that a captured decode step can sample and feed itself. Repetition penalty: Keskar et al. 2019; top-p:
Holtzman et al. 2020; min-p: Nguyen et al. 2024; the uniform number of (seed, position): Philox 4x64-10,
Salmon et al. 2011, bit for bit numpy's ``Generator(Philox(key=seed, counter=position)).random()``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from muxd.messages import NO_TOKEN

CHUNK = 2048  # tokens one program adjusts
SHORTLIST = 8192  # tokens that a line which filters may keep before its whole vocabulary is searched


@dataclass(frozen=True, slots=True)
class SamplingLines:
    """How to pick each line's token; all [b] and on the device. Padding: temperature 0, slot -1."""

    temperature: Tensor  # float32; 0 is the argmax, exactly
    top_k: Tensor  # int32; 0: off
    top_p: Tensor  # float64
    min_p: Tensor  # float64
    presence: Tensor  # float32
    frequency: Tensor  # float32
    repetition: Tensor  # float32; 1: off
    seed: Tensor  # int64, the bits of an unsigned one
    position: Tensor  # int32, length of the line's history
    free_from: Tensor  # int32: below this position ``banned`` cannot be sampled
    banned: Tensor  # int32 [b, k], -1 is padding
    slot: Tensor  # int32: the line's counts; -1: it has no penalties


def sample(
    logits: Tensor,
    lines: SamplingLines,
    counts: Tensor,
    *,
    greedy: bool = False,
    filtered: bool = True,
    out: Tensor | None = None,
    room: Tensor | None = None,
) -> Tensor:
    """The reference: a loop over lines in float64. Returns int64 [b] and counts the tokens it picked.

    NO_TOKEN for a line that has a NaN, or no finite maximum, with its penalties and bans or without.

    logits [b, vocab] in any float type. counts int32 [slots, vocab]: 2 · (times generated) + (seen at all),
    see ``count_tokens``. ``greedy`` promises that every line is a plain argmax; ``filtered`` False promises
    that none has top_k, top_p or min_p. Both only spare work. ``out`` int64 [b]: put the tokens there.
    ``room`` float32 [n, vocab]: what a kernel may write its adjusted logits to, where n >= b.
    """
    picked = []
    for i in range(logits.shape[0]):
        line = adjusted(logits, lines, counts, i)
        temperature, top = float(lines.temperature[i]), line.max()
        if not (top.isfinite() and logits[i].max().isfinite()):
            picked.append(NO_TOKEN)
            continue
        if not temperature > 0:
            picked.append(int(line.argmax()))
            continue
        scaled = ((line - top) / temperature).double()
        u = uniform(int(lines.seed[i]), int(lines.position[i]))
        picked.append(_draw(scaled, int(lines.top_k[i]), float(lines.top_p[i]), float(lines.min_p[i]), u))
    tokens = torch.tensor(picked, dtype=torch.int64, device=logits.device)
    if not greedy:
        slots = torch.where(tokens == NO_TOKEN, -1, lines.slot)
        count_tokens(counts, slots, tokens, torch.ones_like(slots))
    return tokens if out is None else out.copy_(tokens)


def count_tokens(counts: Tensor, slots: Tensor, tokens: Tensor, generated: Tensor) -> None:
    """Note ``tokens`` int [n] as seen by ``slots`` int32 [n] (-1 is padding), or as ``generated`` (1, not 0).

    A slot that is taken anew must be zeroed first.
    """
    real = slots >= 0
    where = (slots[real].long(), tokens[real].long())
    counts[where] |= 1
    counts.index_put_(where, 2 * generated[real].int(), accumulate=True)


def adjusted(logits: Tensor, lines: SamplingLines, counts: Tensor, i: int) -> Tensor:
    """Line ``i`` in float32 with its penalties and bans applied."""
    line = logits[i].float().clone()
    slot = int(lines.slot[i])
    if slot >= 0:
        seen, times = counts[slot] > 0, counts[slot] >> 1
        repetition = lines.repetition[i]
        line = torch.where(seen, torch.where(line > 0, line / repetition, line * repetition), line)
        line -= torch.where(times > 0, lines.presence[i] + lines.frequency[i] * times, 0.0)
    if int(lines.position[i]) < int(lines.free_from[i]):
        own = lines.banned[i]
        line[own[(own >= 0) & (own < len(line))].long()] = float("-inf")
    return line


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) of ``position`` under ``seed``."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=position)).random())


def _draw(scaled: Tensor, top_k: int, top_p: float, min_p: float, u: float) -> int:
    """Over the whole vocabulary sorted, or in its own order when nothing filters; ``scaled``: float64."""
    if top_k <= 0 and top_p >= 1 and min_p <= 0:
        return _invert(scaled.exp(), u)
    values, ids = torch.sort(scaled, descending=True, stable=True)
    weights = values.exp()[: top_k if top_k > 0 else None]
    weights = weights[weights >= min(min_p, 1.0)]  # the best one always passes
    if top_p < 1:
        weights = weights[: max(1, int((weights.cumsum(0) - weights < top_p * weights.sum()).sum()))]
    return int(ids[_invert(weights, u)])


def _invert(weights: Tensor, u: float) -> int:
    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
    return min(index, len(weights) - 1)
