"""One vector of a text's hidden states, for who is to be embedded (``Chunk.pooling``); by every step.

Chunks of a text add up in its sequence, so that one which is cut gives what it gives whole.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from muxd.worker.sequence import Span

Read = Callable[[], tuple[int, bytes]]


class Pooler:
    """``output``: hidden states as they are pooled; ``to_host``: begins a copy to the host."""

    def __init__(self, output: Callable[[Tensor], Tensor], to_host: Callable[[Tensor], Tensor] = torch.clone):
        self._output, self._to_host = output, to_host

    def pool(self, spans: Items[Span], hidden: Tensor) -> list[Read]:
        """Vectors of the spans that are their texts' last. ``hidden``: [n, hidden] of all their tokens, one
        span after another. What is returned is called when all copies are there."""
        found, end = [], 0
        for chunk, span in enumerate(spans):
            states = hidden[end : (end := end + span.stop - span.start)]
            sequence = span.sequence
            if not sequence.pooling:
                continue
            if sequence.pooling == "mean":
                part = self._output(states).float().sum(0)
                sequence.pooled = part if sequence.pooled is None else sequence.pooled + part
            elif sequence.pooling == "last" or sequence.pooled is None:
                at = -1 if sequence.pooling == "last" else 0
                sequence.pooled = self._output(states[at:][:1])[0].float()
            if span.stop == sequence.prompt_tokens:
                assert sequence.pooled is not None
                mean = sequence.pooling == "mean"
                found.append(
                    _reader(chunk, self._to_host(sequence.pooled / span.stop if mean else sequence.pooled))
                )
        return found


def _reader(chunk: int, vector: Tensor) -> Read:
    return lambda: (chunk, vector.numpy().astype("<f4").tobytes())
