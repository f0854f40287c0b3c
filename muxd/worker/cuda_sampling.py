"""Sampling on a device by the rules of ``muxd.worker.sampler``: only tokens come back.

What a sequence with penalties has said is counted in a line of ``counts``; sequences without cost nothing.
"""

from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.sampling import SamplingLines
from muxd.messages import TokenLogprob
from muxd.worker import sampler
from muxd.worker.cuda_upload import int32, upload
from muxd.worker.sequence import Sequence, Span

_SLOTS = 4  # lines of counts at first: 4 bytes for each token of the vocabulary


class CudaSampler:
    """Picks tokens of one model with ``vocab`` tokens."""

    def __init__(self, vocab: int, device: torch.device):
        self._device = device
        # counts[slot, token] = 2 · times generated + seen at all, see muxd.kernels.sampling
        self._counts = torch.zeros((1, vocab), dtype=torch.int32, device=device)
        self._free = [0]
        self._plain = _lines(device, [], 1)

    def note(self, spans: Items[Span]) -> None:
        """Count what these spans, computed but not sampled yet, say. Before ``sample``."""
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
                self._counts, *upload(self._device, int32(slots), int32(tokens), int32(generated))
            )

    def release(self, sequence: Sequence) -> None:
        """Its counts go to another."""
        if sequence.slot >= 0:
            self._free.append(sequence.slot)
            sequence.slot = -1

    def sample(
        self, logits: Tensor, sequences: Items[Sequence]
    ) -> tuple[list[int], dict[int, TokenLogprob] | None]:
        """See ``sampler.sample``; waits for the device."""
        if all(sampler.plain(s.sampling, s) for s in sequences):
            if len(self._plain.slot) < len(sequences):
                self._plain = _lines(self._device, [], 2 * len(sequences))
            picked = ops.sample(logits, _first(self._plain, len(sequences)), self._counts, greedy=True)
        else:
            lines = _lines(self._device, sequences, len(sequences))
            filtered = any(_filters(s) for s in sequences)
            picked = ops.sample(logits, lines, self._counts, filtered=filtered)
        found = self._logprobs(logits, picked, sequences)
        return picked.tolist(), found

    def _logprobs(
        self, logits: Tensor, picked: Tensor, sequences: Items[Sequence]
    ) -> dict[int, TokenLogprob] | None:
        """Of the model's own distribution, for those who asked."""
        asked = [i for i, sequence in enumerate(sequences) if sequence.sampling.logprobs >= 0]
        if not asked:
            return None
        (at,) = upload(self._device, int32(asked))
        logprobs = torch.log_softmax(logits.index_select(0, at).float(), -1)
        most = max(sequences[i].sampling.logprobs for i in asked)
        values, ids = torch.topk(logprobs, min(most, logprobs.shape[1]))
        own = logprobs.gather(1, picked.index_select(0, at)[:, None])[:, 0]
        found = {}
        for i, logprob, tokens, tops in zip(asked, own.tolist(), ids.tolist(), values.tolist(), strict=True):
            count = sequences[i].sampling.logprobs
            found[i] = TokenLogprob(logprob, list(zip(tokens[:count], tops[:count], strict=True)))
        return found

    def _slot(self) -> int:
        """A line of zeros."""
        if not self._free:
            count = len(self._counts)
            more = self._counts.new_zeros((max(_SLOTS, count), self._counts.shape[1]))
            self._counts = torch.cat((self._counts, more))
            self._free = list(range(len(self._counts) - 1, count - 1, -1))
        slot = self._free.pop()
        self._counts[slot].zero_()
        return slot


def _filters(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    return sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0)


def _lines(device: torch.device, sequences: Items[Sequence], size: int) -> SamplingLines:
    """How to pick for each sequence, padded to ``size`` lines that take the argmax."""
    said = [s.sampling for s in sequences]
    rest = size - len(said)

    def column(values: list[float], fill: float, dtype: type) -> NDArray[Any]:
        return np.array(values + [fill] * rest, dtype=dtype)

    held_back = [sampler.banned(s) for s in sequences]
    most = max(map(len, held_back), default=0)
    width = 1 << max(2, (most - 1).bit_length())  # a width is compiled for: few of them
    banned = np.full((size, width), -1, dtype=np.int32)
    for i, tokens in enumerate(held_back):
        banned[i, : len(tokens)] = tokens
    seeds = [s.seed % 2**64 for s in said] + [0] * rest
    return SamplingLines(
        *upload(
            device,
            column([s.temperature for s in said], 0.0, np.float32),
            column([s.top_k for s in said], 0, np.int32),
            column([s.top_p for s in said], 1.0, np.float64),
            column([s.min_p for s in said], 0.0, np.float64),
            column([s.presence_penalty for s in said], 0.0, np.float32),
            column([s.frequency_penalty for s in said], 0.0, np.float32),
            column([s.repetition_penalty for s in said], 1.0, np.float32),
            np.array(seeds, dtype=np.uint64).view(np.int64),
            column([len(s.history) for s in sequences], 0, np.int32),
            column([s.prompt_tokens + s.sampling.min_tokens for s in sequences], 0, np.int32),
            banned,
            column([s.slot for s in sequences], -1, np.int32),
        )
    )


def _first(lines: SamplingLines, count: int) -> SamplingLines:
    names = SamplingLines.__dataclass_fields__
    return SamplingLines(**{name: getattr(lines, name)[:count] for name in names})
