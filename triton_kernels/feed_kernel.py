# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernel of ``feed``: one small launch at the start of a step instead of four of torch's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, ceil_div


@triton.jit(do_not_specialize=["n"])
def _feed(tokens, positions, before, ids, places, n, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    real = i < n
    told = tl.load(tokens + i, mask=real, other=0)
    picked = tl.load(before - 1 - told, mask=real & (told < 0), other=0).to(tl.int32)
    tl.store(ids + i, tl.where(told >= 0, told, tl.maximum(picked, 0)), mask=real)
    tl.store(places + i, tl.maximum(tl.load(positions + i, mask=real, other=0), 0), mask=real)


def feed_calls(tokens: Tensor, positions: Tensor, before: Tensor) -> tuple[tuple[Tensor, Tensor], list[Call]]:
    """Both output tensors and the launch that fills them; arguments as of ``feed.feed``."""
    n, size = tokens.shape[0], 128
    ids, places = torch.empty_like(tokens), torch.empty_like(positions)
    arguments = (tokens, positions, before, ids, places, n)
    return (ids, places), [Call(_feed, (ceil_div(n, size),), arguments, {"SIZE": size, "num_warps": 4})]


def feed(tokens: Tensor, positions: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """As ``feed.feed``."""
    found, calls = feed_calls(tokens, positions, before)
    for call in calls:
        call.run()
    return found
