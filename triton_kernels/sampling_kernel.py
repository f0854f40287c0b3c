# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernels of ``sampling``: adjust chunks of the vocabulary, weigh them, pick one token a line.

1. ``_adjust`` (chunk, line): penalties and bans; each chunk's best, infinite where one is no number or
   infinite. A plain argmax needs no more than 4.
2. ``_weigh`` (chunk, line): each chunk's sum of weights, in float64; of lines that filter, its tokens counted
   by how far they lie below the best.
3. Where any line filters: ``cut`` (line) and ``collect`` (chunk, line), a list of what it may keep
   (``sampling_list_kernel``).
4. ``_pick`` (line): the draw; of a line that filters by a search (``sampling_search_kernel``) of its list, or
   of the whole vocabulary where that would be too long.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, ceil_div, power_of_two
from muxd.kernels.sampling import CHUNK, SHORTLIST, SamplingLines
from muxd.kernels.sampling_list_kernel import bins_of, collect, cut, filters
from muxd.kernels.sampling_search_kernel import philox_uniform, search

# Entries that a searching program reads at a time: lists are short, and whole vocabularies rare.
SEARCH_BLOCK = 2048
BINS = 256  # that tokens are counted in: down to weights of 1e-14
_COUNTED = 32  # chunks whose bins are added up at once


@triton.jit(do_not_specialize=["width"])
def _adjust(
    logits, adjusted, best, place, counts, slots, repetitions, presences, frequencies,
    positions, free_from, banned, width, vocab, logits_stride, chunks,
    SIZE: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    chunk, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = chunk * SIZE + tl.arange(0, SIZE)
    real = token < vocab
    z = tl.load(logits + line * logits_stride + token, mask=real, other=float("-inf")).to(tl.float32)
    broken = (z != z) | (z == float("inf"))  # before a ban hides it
    if not PLAIN:
        slot = tl.load(slots + line).to(tl.int64)
        if slot >= 0:
            count = tl.load(counts + slot * vocab + token, mask=real, other=0)
            repetition, times = tl.load(repetitions + line), count >> 1
            z = tl.where(count > 0, tl.where(z > 0, tl.div_rn(z, repetition), z * repetition), z)
            penalty = tl.load(presences + line) + tl.load(frequencies + line) * times.to(tl.float32)
            z = z - tl.where(times > 0, penalty, 0.0)
        if tl.load(positions + line) < tl.load(free_from + line):
            for i in range(width):  # no constant: a longer list must not compile in service
                z = tl.where(token == tl.load(banned + line * width + i), float("-inf"), z)
        tl.store(adjusted + line * vocab + token, z, mask=real)
    # The lowest index wins a tie, and padding never wins, whatever the logits are.
    top = tl.max(z, 0)
    damaged = tl.max((broken | (z != z) | (z == float("inf"))).to(tl.int32), 0)  # tl.max may pass a NaN over
    top = tl.where(damaged > 0, float("inf"), top)
    first = tl.min(tl.where((z == top) & real, token, vocab - 1), 0)
    tl.store(best + line * chunks + chunk, top)
    tl.store(place + line * chunks + chunk, first)


@triton.jit
def _weigh(
    adjusted, best, mass, table, temperatures, top_ks, top_ps, min_ps, vocab, chunks,
    SIZE: tl.constexpr, CHUNKS_PAD: tl.constexpr, BINS: tl.constexpr, FILTERED: tl.constexpr,
):  # fmt: skip
    chunk, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperatures + line)
    if temperature > 0:
        each = tl.arange(0, CHUNKS_PAD)
        top = tl.max(tl.load(best + line * chunks + each, mask=each < chunks, other=float("-inf")), 0)
        token = chunk * SIZE + tl.arange(0, SIZE)
        z = tl.load(adjusted + line * vocab + token, mask=token < vocab, other=float("-inf"))
        weight = tl.exp(tl.div_rn(z - top, temperature)).to(tl.float64)
        tl.store(mass + line * chunks + chunk, tl.sum(weight, 0))
        if FILTERED:
            finite = (top > float("-inf")) & (top < float("inf"))
            asked = filters(tl.load(top_ks + line), tl.load(top_ps + line), tl.load(min_ps + line))
            if asked & finite:
                counted = tl.histogram(bins_of(z, top, temperature, BINS), BINS)
                tl.store(table + (line * chunks + chunk) * BINS + tl.arange(0, BINS), counted)


@triton.jit
def _in_order(z, mass, top, temperature, u, vocab, chunks, SIZE: tl.constexpr, CHUNKS_PAD: tl.constexpr):
    """Invert the unfiltered distribution at ``u`` in token order: first the chunk, then the token in it."""
    each = tl.arange(0, CHUNKS_PAD)
    weights = tl.load(mass + each, mask=each < chunks, other=0.0)
    cumulative = tl.cumsum(weights, 0)
    target = tl.sum(weights, 0) * u
    last = tl.max(tl.where(weights > 0, each, 0), 0)
    chunk = tl.minimum(tl.sum((cumulative <= target).to(tl.int32), 0), last)
    before = tl.sum(tl.where(each < chunk, weights, 0.0), 0)
    token = chunk * SIZE + tl.arange(0, SIZE)
    own = tl.load(z + token, mask=token < vocab, other=float("-inf"))
    weight = tl.exp(tl.div_rn(own - top, temperature)).to(tl.float64)
    index = tl.sum((before + tl.cumsum(weight, 0) <= target).to(tl.int32), 0)
    # Sums of different order may differ in the last bit: never past the last token that has weight.
    index = tl.minimum(index, tl.max(tl.where(weight > 0, tl.arange(0, SIZE), 0), 0))
    return chunk * SIZE + index


@triton.jit
def _pick(
    adjusted, best, place, mass, listed, cuts, counts, out,
    temperatures, top_ks, top_ps, min_ps, seeds, positions, slots, vocab, chunks,
    SIZE: tl.constexpr, CHUNKS_PAD: tl.constexpr, LIST: tl.constexpr, SEARCH: tl.constexpr,
    PLAIN: tl.constexpr, FILTERED: tl.constexpr,
):  # fmt: skip
    line, each = tl.program_id(0).to(tl.int64), tl.arange(0, CHUNKS_PAD)
    tops = tl.load(best + line * chunks + each, mask=each < chunks, other=float("-inf"))
    top = tl.max(tops, 0)
    places = tl.load(place + line * chunks + each, mask=each < chunks, other=vocab - 1)
    token = tl.min(tl.where((tops == top) & (each < chunks), places, vocab - 1), 0)
    finite = (top > float("-inf")) & (top < float("inf"))
    if not PLAIN:
        temperature = tl.load(temperatures + line)
        if (temperature > 0) & finite:
            u = philox_uniform(tl.load(seeds + line), tl.load(positions + line))
            own = adjusted + line * vocab
            if FILTERED:
                top_k, top_p, min_p = tl.load(top_ks + line), tl.load(top_ps + line), tl.load(min_ps + line)
                if filters(top_k, top_p, min_p):
                    masses = tl.load(mass + line * chunks + each, mask=each < chunks, other=0.0)
                    number = tl.load(cuts + 2 * line + 1)
                    token = search(
                        own, listed + line * LIST, tl.where(number > 0, number, vocab), number,
                        tl.sum(masses, 0), top, temperature, top_k, top_p, min_p, u, SEARCH,
                    )  # fmt: skip
                else:
                    token = _in_order(
                        own, mass + line * chunks, top, temperature, u, vocab, chunks, SIZE, CHUNKS_PAD
                    )
            else:
                token = _in_order(
                    own, mass + line * chunks, top, temperature, u, vocab, chunks, SIZE, CHUNKS_PAD
                )
        slot = tl.load(slots + line).to(tl.int64)
        if (slot >= 0) & finite:
            at = counts + slot * vocab + token
            tl.store(at, (tl.load(at) | 1) + 2)
    tl.store(out + line, tl.where(finite, token, -1).to(tl.int64))  # NO_TOKEN


@triton.jit(do_not_specialize=["n"])
def _count(counts, slots, tokens, generated, n, vocab, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    slot = tl.load(slots + i, mask=i < n, other=-1).to(tl.int64)
    real = slot >= 0
    at = counts + slot * vocab + tl.load(tokens + i, mask=real, other=0)
    tl.atomic_or(at, 1, mask=real)
    tl.atomic_add(at, 2 * tl.load(generated + i, mask=real, other=0), mask=real)


class _Room:
    """Scratch of one call. ``plain``: nothing is adjusted, so nothing of the vocabulary's size is needed; it
    lies in ``room`` where that has enough lines. ``shortlist``: tokens of a line that are listed at most; 0:
    none filters."""

    def __init__(
        self,
        logits: Tensor,
        plain: bool,
        shortlist: int = 0,
        out: Tensor | None = None,
        room: Tensor | None = None,
    ):
        batch, vocab = logits.shape
        self.chunks, self.shortlist = ceil_div(vocab, CHUNK), 0 if plain else shortlist

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(batch, width, dtype=dtype, device=logits.device)

        if room is not None and not plain and len(room) >= batch:
            self.adjusted = room[:batch]
        else:
            self.adjusted = empty(1 if plain else vocab, torch.float32)
        self.best, self.place = empty(self.chunks, torch.float32), empty(self.chunks, torch.int32)
        self.mass = empty(self.chunks, torch.float64)
        self.out = torch.empty(batch, dtype=torch.int64, device=logits.device) if out is None else out
        if self.shortlist:
            self.table = empty(self.chunks * BINS, torch.int32)
            self.offsets, self.cuts = empty(self.chunks, torch.int32), empty(2, torch.int32)
            self.listed = empty(self.shortlist, torch.int64)
        else:
            self.table = self.offsets = self.cuts = self.listed = self.place  # not looked at


def _calls(logits: Tensor, lines: SamplingLines, counts: Tensor, own: _Room, plain: bool) -> list[Call]:
    batch, vocab = logits.shape
    grid, sizes = (own.chunks, batch), {"SIZE": CHUNK, "num_warps": 8}
    adjusting = (
        *(logits, own.adjusted, own.best, own.place, counts, lines.slot),
        *(lines.repetition, lines.presence, lines.frequency),
        *(lines.position, lines.free_from, lines.banned, lines.banned.shape[1]),
        *(vocab, logits.stride(0), own.chunks),
    )
    adjust = Call(_adjust, grid, adjusting, {**sizes, "PLAIN": plain})
    pick = _pick_call(lines, counts, own, vocab, plain)
    if plain:
        return [adjust, pick]
    sizes["CHUNKS_PAD"] = power_of_two(own.chunks)
    filtering, chosen = bool(own.shortlist), (lines.top_k, lines.top_p, lines.min_p)
    weighing = (own.adjusted, own.best, own.mass, own.table, lines.temperature, *chosen, vocab, own.chunks)
    weigh = Call(_weigh, grid, weighing, {**sizes, "BINS": BINS, "FILTERED": filtering})
    if not filtering:
        return [adjust, weigh, pick]
    return [adjust, weigh, *_list_calls(lines, own, vocab), pick]


def _list_calls(lines: SamplingLines, own: _Room, vocab: int) -> list[Call]:
    batch = len(own.out)
    sizes = {"CHUNKS_PAD": power_of_two(own.chunks), "BINS": BINS, "LIST": own.shortlist, "num_warps": 8}
    cutting = (
        *(own.table, own.offsets, own.cuts, own.best, own.mass),
        *(lines.temperature, lines.top_k, lines.top_p, lines.min_p, own.chunks),
    )
    collecting = (own.adjusted, own.best, lines.temperature, own.cuts, own.offsets, own.listed)
    wide = sizes | {"SIZE": CHUNK, "num_warps": 16}  # with half as many Triton 3.6 spills
    return [
        Call(cut, (batch,), cutting, {**sizes, "ROWS": _COUNTED}),
        Call(collect, (own.chunks, batch), (*collecting, vocab, own.chunks), wide),
    ]


def _pick_call(lines: SamplingLines, counts: Tensor, own: _Room, vocab: int, plain: bool) -> Call:
    told = (lines.temperature, lines.top_k, lines.top_p, lines.min_p, lines.seed, lines.position, lines.slot)
    found = (own.adjusted, own.best, own.place, own.mass, own.listed, own.cuts)
    sizes = {"SIZE": CHUNK, "CHUNKS_PAD": power_of_two(own.chunks), "LIST": max(1, own.shortlist)}
    sizes |= {"SEARCH": min(SEARCH_BLOCK, power_of_two(vocab)), "num_warps": 16}
    kind = {"PLAIN": plain, "FILTERED": bool(own.shortlist)}
    return Call(
        _pick, (len(own.out),), (*found, counts, own.out, *told, vocab, own.chunks), {**sizes, **kind}
    )


def sample_calls(
    logits: Tensor,
    lines: SamplingLines,
    counts: Tensor,
    *,
    greedy: bool = False,
    filtered: bool = True,
    out: Tensor | None = None,
    room: Tensor | None = None,
    shortlist: int = SHORTLIST,
) -> tuple[Tensor, list[Call]]:
    """The tokens, and the launches that pick them; arguments as of ``sample``."""
    own = _Room(logits, greedy, shortlist if filtered else 0, out, room)
    return own.out, _calls(logits, lines, counts, own, greedy)


def sample(
    logits: Tensor,
    lines: SamplingLines,
    counts: Tensor,
    *,
    greedy: bool = False,
    filtered: bool = True,
    out: Tensor | None = None,
    room: Tensor | None = None,
    shortlist: int = SHORTLIST,
) -> Tensor:
    """As ``sampling.sample``. ``shortlist``: a power of two; smaller ones search more often."""
    tokens, calls = sample_calls(
        logits, lines, counts,
        greedy=greedy, filtered=filtered, out=out, room=room, shortlist=shortlist,
    )  # fmt: skip
    for call in calls:
        call.run()
    return tokens


def count_calls(counts: Tensor, slots: Tensor, tokens: Tensor, generated: Tensor) -> list[Call]:
    """The launch; arguments as of ``sampling.count_tokens``, ``generated`` int32 [n]."""
    n, size = slots.shape[0], 256
    arguments = (counts, slots, tokens, generated, n, counts.shape[1])
    return [Call(_count, (ceil_div(n, size),), arguments, {"SIZE": size, "num_warps": 4})]


def count_tokens(counts: Tensor, slots: Tensor, tokens: Tensor, generated: Tensor) -> None:
    """As ``sampling.count_tokens``."""
    for call in count_calls(counts, slots, tokens, generated):
        call.run()
