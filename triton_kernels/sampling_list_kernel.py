# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Kernels of ``sampling_kernel``: a list of what a line that filters may keep.

Tokens are counted by how far they lie below the best, chunk by chunk in one pass: bins of an eighth of a
temperature, so that a bin's weights differ by 13 % at most. ``cut`` finds the first bins that hold whatever
the filters may keep, ``collect`` writes their tokens down in the order of their ids. A cut by bins may list
too much, never too little; but what lies deeper than the bins, lighter than 1e-13, is taken for nothing.
"""

import triton
import triton.language as tl

from muxd.kernels.sampling_search_kernel import key_of


@triton.jit
def filters(top_k, top_p, min_p):
    """Whether a line keeps less than the vocabulary."""
    return (top_k > 0) | (top_p < 1) | (min_p > 0)


@triton.jit
def bins_of(z, top, temperature, BINS: tl.constexpr):
    """In eighths of a temperature below ``top``; the last bin has all that lies deeper. Never falls as z
    falls, so that equal logits share a bin."""
    return tl.minimum(tl.div_rn(top - z, temperature) * 8.0, BINS - 1.0).to(tl.int32)


@triton.jit
def _heaviest(bins):
    """What a token of these bins weighs at most, float64; a little more, for the rounding of ``bins_of``."""
    return tl.exp(bins.to(tl.float32) * -0.125).to(tl.float64) * 1.00001


@triton.jit
def cut(
    table, offsets, cuts, best, mass, temperatures, top_ks, top_ps, min_ps, chunks,
    CHUNKS_PAD: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Per line, cuts [b, 2]: the last bin that is listed, and how many tokens are; 0 where what the filters
    may keep is more than ``LIST``. Where each chunk's tokens begin in the list, offsets [b, chunks]."""
    line, bins, each = tl.program_id(0).to(tl.int64), tl.arange(0, BINS), tl.arange(0, CHUNKS_PAD)
    top_k, top_p, min_p = tl.load(top_ks + line), tl.load(top_ps + line), tl.load(min_ps + line)
    top = tl.max(tl.load(best + line * chunks + each, mask=each < chunks, other=float("-inf")), 0)
    finite = (top > float("-inf")) & (top < float("inf"))
    last = tl.full((), -1, tl.int32)
    number = tl.full((), 0, tl.int32)
    if filters(top_k, top_p, min_p) & (tl.load(temperatures + line) > 0) & finite:
        counts = tl.zeros([BINS], tl.int32)
        for start in range(0, chunks, ROWS):
            row = start + tl.arange(0, ROWS)
            at = table + (line * chunks + row)[:, None] * BINS + bins[None, :]
            counts += tl.sum(tl.load(at, mask=(row < chunks)[:, None], other=0), 0)
        above = tl.cumsum(counts, 0)  # tokens of a bin and of those before it
        heavy = counts.to(tl.float64) * _heaviest(bins)
        beyond = tl.sum(heavy, 0) - tl.cumsum(heavy, 0)  # no less than what lies behind a bin weighs
        total = tl.sum(tl.load(mass + line * chunks + each, mask=each < chunks, other=0.0), 0)
        # Of each filter where it alone is sure to keep nothing behind: never, where it is off.
        share = tl.where((top_p < 1) & (top_k <= 0) & (min_p <= 0), (1 - top_p) * total, -1.0)
        enough = (above >= tl.where(top_k > 0, top_k, 2147483647)) | (beyond <= share)
        enough = enough | (_heaviest(bins + 1) < tl.where(min_p > 0, min_p, -1.0))
        last = tl.min(tl.where(enough, bins, BINS - 2), 0)
        last = tl.minimum(last, BINS - 2)  # what the last bin holds is as good as nothing
        number = tl.sum(tl.where(bins == last, above, 0), 0)
        number = tl.where(number <= LIST, number, 0)
        before = tl.full((), 0, tl.int32)
        for start in range(0, chunks, ROWS):
            row = start + tl.arange(0, ROWS)
            at = table + (line * chunks + row)[:, None] * BINS + bins[None, :]
            found = tl.load(at, mask=(row < chunks)[:, None] & (bins <= last)[None, :], other=0)
            own = tl.sum(found, 1)
            tl.store(offsets + line * chunks + row, before + tl.cumsum(own, 0) - own, mask=row < chunks)
            before += tl.sum(own, 0)
    tl.store(cuts + 2 * line, last)
    tl.store(cuts + 2 * line + 1, number)


@triton.jit
def collect(
    adjusted, best, temperatures, cuts, offsets, listed, vocab, chunks,
    SIZE: tl.constexpr, CHUNKS_PAD: tl.constexpr, BINS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Per chunk and line: its tokens of the listed bins, int64 each: a logit's bits in order, then ids so
    that of equal logits the lower id is the larger number."""
    chunk, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(cuts + 2 * line + 1) > 0:
        each = tl.arange(0, CHUNKS_PAD)
        top = tl.max(tl.load(best + line * chunks + each, mask=each < chunks, other=float("-inf")), 0)
        token = chunk * SIZE + tl.arange(0, SIZE)
        z = tl.load(adjusted + line * vocab + token, mask=token < vocab, other=float("-inf"))
        deep = bins_of(z, top, tl.load(temperatures + line), BINS)
        chosen = (token < vocab) & (deep <= tl.load(cuts + 2 * line))
        place = tl.load(offsets + line * chunks + chunk) + tl.cumsum(chosen.to(tl.int32), 0) - 1
        packed = (key_of(z).to(tl.int64) << 32) | (2147483647 - token).to(tl.int64)
        tl.store(listed + line * LIST + place, packed, mask=chosen)
