"""Inputs of a prefill on a GPU: as they are, or padded to one of a few sizes that are recorded.

A prefill of few tokens is bound by the host that launches it, op by op: up to 1024 tokens it is a graph.
Padding tokens belong to nobody: they are not written, what is computed of them is read by nobody.
"""

from collections.abc import Sequence as Items

import numpy as np

from muxd.worker.cuda_graphs import Arrays
from muxd.worker.cuda_upload import int32
from muxd.worker.sequence import Span

# Tokens of a batch; half of one at most is padding.
PROMPTS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
PROMPT_LINES = 8  # sequences of a batch that is recorded


def prompt_arrays(spans: Items[Span], ends: Items[int], size: int = 0) -> Arrays:
    """int32: ids, places, positions and owners [n]; starts [b + 1]; cached and lines [b]; lasts [m].

    Of b spans, m of which sample (``ends``). ``size``: padded to as many tokens, and to ``PROMPT_LINES``
    spans and samples; padding has position -1, and its spans are empty. 0: as they are.
    """
    starts = np.cumsum([0, *(span.stop - span.start for span in spans)])
    total = int(starts[-1])
    n, b, m = (size, PROMPT_LINES, PROMPT_LINES) if size else (total, len(spans), len(ends))
    ids, places, owners = (np.zeros(n, dtype=np.int32) for _ in range(3))
    positions, begins = np.full(n, -1, dtype=np.int32), np.full(b + 1, total, dtype=np.int32)
    for i, (span, start, stop) in enumerate(zip(spans, starts, starts[1:], strict=False)):
        ids[start:stop] = int32(span.sequence.history[span.start : span.stop])
        places[start:stop] = positions[start:stop] = np.arange(span.start, span.stop)
        owners[start:stop] = i
    begins[: len(starts)] = starts
    cached, lines, lasts = (np.zeros(count, dtype=np.int32) for count in (b, b, m))
    cached[: len(spans)] = [span.start for span in spans]
    lines[: len(spans)] = [span.sequence.line for span in spans]
    lasts[: len(ends)] = [starts[i + 1] - 1 for i in ends]
    return [ids, places, positions, owners, begins, cached, lines, lasts]


def prompt_padding(mode: int, size: int) -> Arrays:
    """Inputs of a prefill of nobody."""
    return prompt_arrays([], [], size)
