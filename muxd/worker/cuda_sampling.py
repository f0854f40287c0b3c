"""Sampling on a device by the rules of ``muxd.worker.sampler``: only tokens come back.

What a sequence with penalties has said is counted in a line of ``counts``; sequences without cost nothing.
How many tokens a sequence has is told as ``known``, not read from its history: the last of them may be on the
device alone.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.sampling import SamplingLines
from muxd.messages import SAMPLED, Sampling, TokenLogprob
from muxd.worker import sampler
from muxd.worker.cuda_upload import int32, to_host, upload
from muxd.worker.sequence import Sequence, Span

MOST = 4096  # sequences of a batch
_SLOTS = 16  # lines of counts at first, where fewer run: 4 bytes for each token of the vocabulary
_ENDLESS = 2**31 - 1  # tokens: no sequence has as many, and an int32 holds no more
_MASKED = 16  # lines that are masked at once: 4 bytes for each token of the vocabulary while it is done
BANNED = 8  # tokens of a line that cannot be sampled yet, in a recorded step

Logprobs = Callable[[], dict[int, TokenLogprob]]


class SamplingMode(IntEnum):
    """How much a batch needs, least first."""

    GREEDY = 0  # every line is a plain argmax
    DRAWN = 1  # temperatures and penalties
    FILTERED = 2  # also top-k, top-p or min-p


class CudaSampler:
    """Picks tokens of one model with ``vocab`` tokens. Decode steps of up to ``lines`` work in one tensor,
    some of their lines at once, on any stream: they follow each other; as many may have counts before more
    room is made. A prefill beside them works in memory of its own.

    ``counts`` int32 [slots, vocab] is another tensor after ``note`` has made room; ``rest`` waits until
    nothing runs that reads or writes it.
    """

    def __init__(
        self, vocab: int, device: torch.device, lines: int = 0, rest: Callable[[], None] = lambda: None
    ):
        self._device, self._rest = device, rest
        self._room = torch.empty((min(lines, SAMPLED), vocab), dtype=torch.float32, device=device)
        # counts[slot, token] = 2 · times generated + seen at all, see muxd.kernels.sampling
        slots = max(_SLOTS, lines)
        self.counts = torch.zeros((slots, vocab), dtype=torch.int32, device=device)
        self._free = list(range(slots - 1, -1, -1))
        self._bits = torch.arange(32, dtype=torch.int32, device=device)
        self._plain = SamplingLines(*upload(device, *columns([], [], MOST)))

    def note(self, spans: Items[Span]) -> None:
        """Count what these spans, computed but not sampled yet, say. Before ``pick``."""
        slots: list[int] = []
        tokens: list[int] = []
        generated: list[int] = []
        for span in spans:
            sequence, first = span.sequence, span.start
            if not sampler.adjusted(sequence.sampling):
                continue
            if sequence.slot < 0:
                sequence.slot, first = self._slot(), 0
            tokens += sequence.history[first : span.stop]
            slots += [sequence.slot] * (span.stop - first)
            generated += [int(at >= sequence.prompt_tokens) for at in range(first, span.stop)]
        if tokens:
            ops.count_tokens(
                self.counts, *upload(self._device, int32(slots), int32(tokens), int32(generated))
            )

    def release(self, sequence: Sequence) -> None:
        """Its counts go to another."""
        if sequence.slot >= 0:
            self._free.append(sequence.slot)
            sequence.slot = -1

    def pick(
        self, mode: SamplingMode, logits: Tensor, tensors: Items[Tensor], out: Tensor | None = None
    ) -> Tensor:
        """One token for each line, or NO_TOKEN, int64 [b], of a decode step in ``out``.

        ``tensors``: ``columns`` on the device, none for a greedy batch. Can be recorded.
        """
        if mode is SamplingMode.GREEDY:
            lines = _some(self._plain, slice(len(logits)))
            return ops.sample(logits, lines, self.counts, greedy=True, out=out)
        lines, filtered = SamplingLines(*tensors), mode is SamplingMode.FILTERED
        if out is None or not len(self._room):
            return ops.sample(logits, lines, self.counts, filtered=filtered, out=out)
        for at in range(0, len(logits), len(self._room)):
            part = slice(at, at + len(self._room))
            some = _some(lines, part)
            ops.sample(logits[part], some, self.counts, filtered=filtered, out=out[part], room=self._room)
        return out

    def sample(
        self,
        logits_of: Callable[[Tensor], Tensor],
        hidden: Tensor,
        sequences: Items[Sequence],
        known: Items[int],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Logprobs | None]:
        """As ``pick``, and log-probabilities for those who asked, by operations that cannot be recorded. Of a
        prefill, which has no ``out``, logits are made for a few at once."""
        at_once = SAMPLED if out is None else len(sequences)
        picked, told = [], list[tuple[int, Logprobs]]()
        for at in range(0, len(sequences), at_once):
            part = slice(at, at + at_once)
            tokens, logprobs = self._sampled(logits_of(hidden[part]), sequences[part], known[part], out)
            picked.append(tokens)
            if logprobs is not None:
                told.append((at, logprobs))
        every = picked[0] if len(picked) == 1 else torch.cat(picked)
        return every, partial(_joined, told) if told else None

    def _sampled(
        self, logits: Tensor, sequences: Items[Sequence], known: Items[int], out: Tensor | None
    ) -> tuple[Tensor, Logprobs | None]:
        mode = mode_of(sequences, known)
        told = [] if mode is SamplingMode.GREEDY else columns(sequences, known, len(sequences))
        kept = self.bounded(logits, sequences) if any(map(bound, sequences)) else logits
        picked = self.pick(mode, kept, upload(self._device, *told) if told else [], out)
        asked = any(map(asks, sequences))
        return picked, self.logprobs(logits, picked, sequences) if asked else None

    def bounded(self, logits: Tensor, sequences: Items[Sequence]) -> Tensor:
        """A copy of ``logits`` with what ``Bound`` says of each line, as ``sampler.bounded``. The masks are
        made while the device computes the logits."""
        held = [(line, s, s.bound) for line, s in enumerate(sequences) if s.bound is not None]
        biased = [(line, *bound.bias) for line, _, bound in held if bound.bias is not None]
        masks = [(line, mask) for line, s, bound in held if (mask := bound.mask(s.generated)) is not None]
        logits = logits.float() if biased and logits.dtype != torch.float32 else logits.clone()
        if biased:
            lines = np.concatenate([np.full(len(ids), line, dtype=np.int64) for line, ids, _ in biased])
            ids = np.concatenate([ids for _, ids, _ in biased])
            places, values = upload(
                self._device, lines * logits.shape[1] + ids, np.concatenate([values for *_, values in biased])
            )
            logits.view(-1).index_add_(0, places, values)
        for first in range(0, len(masks), _MASKED):
            part = masks[first : first + _MASKED]
            at, packed = upload(
                self._device, int32([line for line, _ in part]), np.stack([m for _, m in part])
            )
            bits = (packed[:, :, None] >> self._bits) & 1
            out = bits.view(len(part), -1)[:, : logits.shape[1]] == 0
            logits.index_copy_(0, at.long(), logits.index_select(0, at).masked_fill_(out, float("-inf")))
        return logits

    def logprobs(self, logits: Tensor, picked: Tensor, sequences: Items[Sequence]) -> Logprobs:
        """Of the model's own distribution, for those who asked; what is returned waits for the device."""
        asked = [i for i, sequence in enumerate(sequences) if asks(sequence)]
        (at,) = upload(self._device, int32(asked))
        logprobs = torch.log_softmax(logits.index_select(0, at).float(), -1)
        most = max(sequences[i].sampling.logprobs for i in asked)
        values, ids = torch.topk(logprobs, min(most, logprobs.shape[1]))
        own = logprobs.gather(1, picked.index_select(0, at).clamp(min=0)[:, None])[:, 0]
        counts = [sequences[i].sampling.logprobs for i in asked]
        there = to_host(own), to_host(ids), to_host(values)

        def read() -> dict[int, TokenLogprob]:
            found = {}
            lists = (tensor.tolist() for tensor in there)
            for i, count, logprob, tokens, tops in zip(asked, counts, *lists, strict=True):
                found[i] = TokenLogprob(logprob, list(zip(tokens[:count], tops[:count], strict=True)))
            return found

        return read

    def _slot(self) -> int:
        """A line of zeros."""
        if not self._free:
            count = len(self.counts)
            self._rest()
            self.counts = torch.cat((self.counts, torch.zeros_like(self.counts)))
            self._rest()
            self._free = list(range(len(self.counts) - 1, count - 1, -1))
        slot = self._free.pop()
        self.counts[slot].zero_()
        return slot


def _joined(told: list[tuple[int, Logprobs]]) -> dict[int, TokenLogprob]:
    """Of parts of a batch, by the place of each's first."""
    return {at + i: found for at, read in told for i, found in read().items()}


def asks(sequence: Sequence) -> bool:
    """For log-probabilities."""
    return sequence.sampling.logprobs >= 0


def bound(sequence: Sequence) -> bool:
    """To what a recorded step does not know of."""
    return sequence.bound is not None


def mode_of(sequences: Items[Sequence], known: Items[int]) -> SamplingMode:
    """The least that serves all of them, ``known`` tokens each."""
    found = SamplingMode.GREEDY
    for sequence in sequences:
        if sequence.mode < 0:
            sequence.mode = _mode(sequence.sampling)
        if sequence.mode > found:
            found = SamplingMode(sequence.mode)
    return SamplingMode.DRAWN if found is SamplingMode.GREEDY and _held_back(sequences, known) else found


def _mode(said: Sampling) -> SamplingMode:
    """What a sequence needs that may sample every token."""
    if not said.greedy and (said.top_k > 0 or said.top_p < 1 or said.min_p > 0):
        return SamplingMode.FILTERED
    return SamplingMode.GREEDY if said.greedy and not sampler.adjusted(said) else SamplingMode.DRAWN


def widest(sequences: Items[Sequence], known: Items[int]) -> int:
    """Tokens in the longest list of those that cannot be sampled yet."""
    return max(map(len, _held_back(sequences, known).values()), default=0)


def columns(sequences: Items[Sequence], known: Items[int], size: int) -> list[NDArray[Any]]:
    """How to pick for each sequence, in the order of ``SamplingLines``, padded to ``size`` lines that take
    the argmax. The lists of banned tokens are ``BANNED`` wide, or wider where one is longer."""
    said = [s.sampling for s in sequences]
    rest = size - len(said)

    def column(values: Items[float], fill: float, dtype: type) -> NDArray[Any]:
        return np.array([*values, *[fill] * rest], dtype=dtype)

    held_back = _held_back(sequences, known)
    longest = max(map(len, held_back.values()), default=0)
    width = max(BANNED, longest)
    banned = np.full((size, width), -1, dtype=np.int32)
    for i, tokens in held_back.items():
        banned[i, : len(tokens)] = tokens
    seeds = [s.seed % 2**64 for s in said] + [0] * rest
    return [
        column([0.0 if s.greedy else min(s.temperature, sampler.HOTTEST) for s in said], 0.0, np.float32),
        column([s.top_k for s in said], 0, np.int32),
        # What is no number filters nothing, as in ``sampler``.
        column([s.top_p if s.top_p < 1 else 1.0 for s in said], 1.0, np.float64),
        column([s.min_p if s.min_p > 0 else 0.0 for s in said], 0.0, np.float64),
        column([s.presence_penalty for s in said], 0.0, np.float32),
        column([s.frequency_penalty for s in said], 0.0, np.float32),
        column([s.repetition_penalty for s in said], 1.0, np.float32),
        np.array(seeds, dtype=np.uint64).view(np.int64),
        column(known, 0, np.int32),
        column([min(s.prompt_tokens + s.sampling.min_tokens, _ENDLESS) for s in sequences], 0, np.int32),
        banned,
        column([s.slot for s in sequences], -1, np.int32),
    ]


def _held_back(sequences: Items[Sequence], known: Items[int]) -> dict[int, tuple[int, ...]]:
    """By line, where there are any. See ``sampler.banned``."""
    return {
        i: sequence.sampling.banned_first
        for i, sequence in enumerate(sequences)
        if sequence.sampling.banned_first and known[i] - sequence.prompt_tokens < sequence.sampling.min_tokens
    }


def _some(lines: SamplingLines, which: slice) -> SamplingLines:
    names = SamplingLines.__dataclass_fields__
    return SamplingLines(**{name: getattr(lines, name)[which] for name in names})
