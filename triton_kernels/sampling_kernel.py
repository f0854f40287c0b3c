# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernels of ``sampling``: adjust chunks of the vocabulary, weigh them, pick one token a line.

1. ``_adjust`` (chunk, line): penalties and bans; each chunk's best, infinite where one is no number or
   infinite. A plain argmax needs no more than 4.
2. ``_weigh`` (chunk, line): each chunk's sum of weights, in float64.
3. torch.topk, when any line filters: the shortlist.
4. ``_pick`` (line): the draw. Lines that the shortlist does not settle are searched over the whole vocabulary
   (``sampling_search_kernel``).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, ceil_div, power_of_two
from muxd.kernels.sampling import CHUNK, SHORTLIST, SamplingLines
from muxd.kernels.sampling_search_kernel import philox_uniform, search

SEARCH_BLOCK = 8192  # vocabulary entries a searching program reads at a time


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
def _weigh(adjusted, best, mass, temperatures, vocab, chunks, SIZE: tl.constexpr, CHUNKS_PAD: tl.constexpr):
    chunk, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperatures + line)
    if temperature > 0:
        each = tl.arange(0, CHUNKS_PAD)
        top = tl.max(tl.load(best + line * chunks + each, mask=each < chunks, other=float("-inf")), 0)
        token = chunk * SIZE + tl.arange(0, SIZE)
        z = tl.load(adjusted + line * vocab + token, mask=token < vocab, other=float("-inf"))
        weight = tl.exp(tl.div_rn(z - top, temperature)).to(tl.float64)
        tl.store(mass + line * chunks + chunk, tl.sum(weight, 0))


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
def _short(
    values,
    ids,
    mass,
    top,
    temperature,
    top_k,
    top_p,
    min_p,
    u,
    vocab,
    chunks,
    CHUNKS_PAD: tl.constexpr,
    LIST: tl.constexpr,
):
    """The draw over the best ``LIST``, and whether nothing outside them could have been drawn."""
    i = tl.arange(0, LIST)
    listed = i < vocab
    z = tl.load(values + i, mask=listed, other=float("-inf"))
    weight = tl.where(listed, tl.exp(tl.div_rn(z - top, temperature)), 0.0).to(tl.float64)
    limit = tl.where(top_k > 0, top_k, vocab)
    kept = listed & (i < limit) & (weight >= min_p)
    least = tl.minimum(vocab, LIST)
    complete = (limit <= least) | (tl.sum(kept.to(tl.int32), 0) < least)
    weight = tl.where(kept, weight, 0.0)
    each = tl.arange(0, CHUNKS_PAD)
    all_mass = tl.sum(tl.load(mass + each, mask=each < chunks, other=0.0), 0)
    total = tl.where(complete, tl.sum(weight, 0), all_mass)
    if top_p < 1:
        # A top_k or min_p that cuts beyond LIST narrows the total: only the search knows it then.
        cut = kept & ((tl.cumsum(weight, 0) - weight < top_p * total) | (i == 0))
        complete = complete | ((top_k <= 0) & (min_p <= 0) & (tl.sum(cut.to(tl.int32), 0) < least))
        kept = cut
        weight = tl.where(kept, weight, 0.0)
    target = tl.sum(weight, 0) * u
    index = tl.sum((kept & (tl.cumsum(weight, 0) <= target)).to(tl.int32), 0)
    index = tl.minimum(index, tl.maximum(tl.sum((kept & (weight > 0)).to(tl.int32), 0) - 1, 0))
    return tl.load(ids + index).to(tl.int32), complete


@triton.jit
def _pick(
    adjusted, best, place, mass, values, ids, counts, out,
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
                if (top_k > 0) | (top_p < 1) | (min_p > 0):
                    token, complete = _short(
                        values + line * LIST, ids + line * LIST, mass + line * chunks, top, temperature,
                        top_k, top_p, min_p, u, vocab, chunks, CHUNKS_PAD, LIST,
                    )  # fmt: skip
                    if complete == 0:
                        token = search(own, top, temperature, top_k, top_p, min_p, u, vocab, SEARCH)
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
    lies in ``room`` where that has enough lines."""

    def __init__(self, logits: Tensor, plain: bool, out: Tensor | None = None, room: Tensor | None = None):
        batch, vocab = logits.shape
        self.chunks = ceil_div(vocab, CHUNK)

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(batch, width, dtype=dtype, device=logits.device)

        if room is not None and not plain and len(room) >= batch:
            self.adjusted = room[:batch]
        else:
            self.adjusted = empty(1 if plain else vocab, torch.float32)
        self.best, self.place = empty(self.chunks, torch.float32), empty(self.chunks, torch.int32)
        self.mass = empty(self.chunks, torch.float64)
        self.out = torch.empty(batch, dtype=torch.int64, device=logits.device) if out is None else out


def _first_calls(
    logits: Tensor, lines: SamplingLines, counts: Tensor, room: _Room, plain: bool
) -> list[Call]:
    """The launches before the shortlist: each chunk's best, and where a line draws each chunk's mass."""
    grid, vocab = (room.chunks, logits.shape[0]), logits.shape[1]
    adjust = Call(
        _adjust,
        grid,
        (
            *(logits, room.adjusted, room.best, room.place, counts, lines.slot),
            *(
                lines.repetition,
                lines.presence,
                lines.frequency,
                lines.position,
                lines.free_from,
                lines.banned,
            ),
            *(lines.banned.shape[1], vocab, logits.stride(0), room.chunks),
        ),
        {"SIZE": CHUNK, "PLAIN": plain, "num_warps": 8},
    )
    if plain:
        return [adjust]
    arguments = (room.adjusted, room.best, room.mass, lines.temperature, vocab, room.chunks)
    sizes = {"SIZE": CHUNK, "CHUNKS_PAD": power_of_two(room.chunks), "num_warps": 8}
    return [adjust, Call(_weigh, grid, arguments, sizes)]


def _pick_call(
    lines: SamplingLines,
    counts: Tensor,
    room: _Room,
    vocab: int,
    best: tuple[Tensor, Tensor] | None,
    plain: bool,
) -> Call:
    """The last launch; ``best`` is the shortlist [b, k] of values and ids, None when no line filters."""
    values, ids = (room.best, room.place) if best is None else best
    return Call(
        _pick,
        (room.out.shape[0],),
        (
            *(room.adjusted, room.best, room.place, room.mass, values, ids, counts, room.out),
            *(
                lines.temperature,
                lines.top_k,
                lines.top_p,
                lines.min_p,
                lines.seed,
                lines.position,
                lines.slot,
            ),
            *(vocab, room.chunks),
        ),
        {
            **{"SIZE": CHUNK, "CHUNKS_PAD": power_of_two(room.chunks), "LIST": values.shape[1]},
            **{
                "SEARCH": min(SEARCH_BLOCK, power_of_two(vocab)),
                "PLAIN": plain,
                "FILTERED": best is not None,
            },
            "num_warps": 16,
        },
    )


def sample_calls(
    logits: Tensor, lines: SamplingLines, counts: Tensor, *, greedy: bool, filtered: bool
) -> tuple[Tensor, list[Call]]:
    """The tokens and all launches but torch's; where ``filtered``, the shortlist is left empty."""
    room, (batch, vocab) = _Room(logits, greedy), logits.shape
    best = None
    if filtered and not greedy:
        width = power_of_two(min(SHORTLIST, vocab))
        best = room.adjusted.new_empty(batch, width), torch.empty(batch, width, dtype=torch.int64)
    first = _first_calls(logits, lines, counts, room, greedy)
    return room.out, [*first, _pick_call(lines, counts, room, vocab, best, greedy)]


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
    own, vocab = _Room(logits, greedy, out, room), logits.shape[1]
    for call in _first_calls(logits, lines, counts, own, greedy):
        call.run()
    best = None
    if filtered and not greedy:
        values, ids = torch.topk(own.adjusted, min(shortlist, vocab))
        pad = power_of_two(values.shape[1]) - values.shape[1]
        if pad:
            values, ids = (torch.nn.functional.pad(part, (0, pad)) for part in (values, ids))
        best = values, ids
    _pick_call(lines, counts, own, vocab, best, greedy).run()
    return own.out


def count_calls(counts: Tensor, slots: Tensor, tokens: Tensor, generated: Tensor) -> list[Call]:
    """The launch; arguments as of ``sampling.count_tokens``, ``generated`` int32 [n]."""
    n, size = slots.shape[0], 256
    arguments = (counts, slots, tokens, generated, n, counts.shape[1])
    return [Call(_count, (ceil_div(n, size),), arguments, {"SIZE": size, "num_warps": 4})]


def count_tokens(counts: Tensor, slots: Tensor, tokens: Tensor, generated: Tensor) -> None:
    """As ``sampling.count_tokens``."""
    for call in count_calls(counts, slots, tokens, generated):
        call.run()
