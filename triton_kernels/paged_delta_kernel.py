# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernels of ``paged_delta``: the convolution with its tail, then the rule.

A program of the rule has some columns of one head's state in registers, from the first token to the last; the
columns of a state never meet, so no program waits for another, and each is alone with what it changes.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, Constants, ceil_div, power_of_two
from muxd.kernels.paged_states import PagedStates

_HELD = 32  # numbers of a state in a thread's registers


@triton.jit
def _lie(table, own_rows, block, real, table_stride, PER_ROW: tl.constexpr, BLOCK: tl.constexpr):
    """Where blocks of a state begin, in floats."""
    row = tl.load(own_rows + block // PER_ROW, mask=real, other=0).to(tl.int64)
    found = tl.load(table + row * table_stride + block % PER_ROW, mask=real, other=0)
    return found.to(tl.int64) * BLOCK


@triton.jit
def _input(
    table, own_rows, tail, slot, c, real, table_stride,
    CHANNELS: tl.constexpr, PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where channels ``c`` of the convolution's ``slot`` (0: the oldest) lie. ``tail``: the first block."""
    e = slot * CHANNELS + c
    return _lie(table, own_rows, tail + e // BLOCK, real, table_stride, PER_ROW, BLOCK) + e % BLOCK


@triton.jit(do_not_specialize=["tail", "rows_stride"])
def _convolve_one(
    mixed, conv, floats, table, rows, positions, out, tail, mixed_stride, rows_stride, table_stride,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    position = tl.load(positions + sequence)
    own = rows + sequence * rows_stride
    inside = c < CHANNELS
    real = inside & (position >= 0)
    new = tl.load(mixed + sequence * mixed_stride + c, mask=real, other=0.0).to(tl.float32)
    total = new * tl.load(conv + c * KERNEL + KERNEL - 1, mask=inside, other=0.0)
    to = _input(table, own, tail, 0, c, real, table_stride, CHANNELS, PER_ROW, BLOCK)
    for slot in tl.static_range(KERNEL - 1):  # each input moves to the slot before its own
        at = (
            to
            if slot == 0
            else _input(table, own, tail, slot, c, real, table_stride, CHANNELS, PER_ROW, BLOCK)
        )
        old = tl.load(floats + at, mask=real & (position > 0), other=0.0)
        total += old * tl.load(conv + c * KERNEL + slot, mask=inside, other=0.0)
        if slot > 0:
            tl.store(floats + to, old, mask=real)
        to = at
    tl.store(floats + to, new, mask=real)
    tl.store(out + sequence * CHANNELS + c, total / (1.0 + tl.exp(-total)), mask=inside)


@triton.jit
def _piece(starts, number, sequences, TOKENS: tl.constexpr):
    """Which sequence the ``number``-th piece of TOKENS tokens is of, and where in its chunk it begins."""
    low, high = 0, sequences
    while low < high:  # the first sequence whose pieces begin after ``number``
        middle = (low + high) // 2
        if tl.load(starts + middle) // TOKENS + middle <= number:
            low = middle + 1
        else:
            high = middle
    sequence = low - 1
    return sequence, (number - tl.load(starts + sequence) // TOKENS - sequence) * TOKENS


@triton.jit(do_not_specialize=["tail", "rows_stride", "sequences"])
def _convolve(
    mixed, conv, floats, table, rows, starts, cached, out,
    tail, mixed_stride, rows_stride, table_stride, sequences,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    sequence, begin = _piece(starts, tl.program_id(0), sequences, TOKENS)
    start = tl.load(starts + sequence)
    n = tl.load(starts + sequence + 1) - start
    if begin >= n:
        return
    own = rows + sequence.to(tl.int64) * rows_stride
    t, c = begin + tl.arange(0, TOKENS), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    real = (t < n)[:, None] & (c < CHANNELS)[None, :]
    line = (start + t).to(tl.int64)[:, None]
    total = tl.zeros((TOKENS, SIZE), dtype=tl.float32)
    for i in tl.static_range(KERNEL):
        back = KERNEL - 1 - i
        there = real & (t >= back)[:, None]
        x = tl.load(mixed + (line - back) * mixed_stride + c[None, :], mask=there, other=0.0)
        weight = tl.load(conv + c * KERNEL + i, mask=c < CHANNELS, other=0.0)
        total += x.to(tl.float32) * weight[None, :]
    # The first tokens see what was before the chunk.
    if (begin < KERNEL - 1) & (tl.load(cached + sequence) > 0):
        for i in tl.static_range(KERNEL - 1):
            slot = (t + i)[:, None]
            before = real & (slot < KERNEL - 1)
            at = _input(table, own, tail, slot, c[None, :], before, table_stride, CHANNELS, PER_ROW, BLOCK)
            weight = tl.load(conv + c * KERNEL + i, mask=c < CHANNELS, other=0.0)
            total += tl.load(floats + at, mask=before, other=0.0) * weight[None, :]
    tl.store(out + line * CHANNELS + c[None, :], total / (1.0 + tl.exp(-total)), mask=real)


@triton.jit(do_not_specialize=["tail", "rows_stride"])
def _keep(
    mixed, floats, table, rows, starts, cached, tail, mixed_stride, rows_stride, table_stride,
    CHANNELS: tl.constexpr, KERNEL: tl.constexpr, PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    start = tl.load(starts + sequence).to(tl.int64)
    n = tl.load(starts + sequence + 1) - start.to(tl.int32)
    if n == 0:
        return
    before = tl.load(cached + sequence)
    own = rows + sequence * rows_stride
    inside = c < CHANNELS
    for slot in tl.static_range(KERNEL - 1):  # rising: what a slot takes over lies behind it
        token = n - (KERNEL - 1) + slot  # of the chunk; below 0: an older input
        older = inside & (token < 0) & (before > 0)
        from_tail = _input(table, own, tail, n + slot, c, older, table_stride, CHANNELS, PER_ROW, BLOCK)
        old = tl.load(floats + from_tail, mask=older, other=0.0)
        new = tl.load(mixed + (start + token) * mixed_stride + c, mask=inside & (token >= 0), other=0.0)
        to = _input(table, own, tail, slot, c, inside, table_stride, CHANNELS, PER_ROW, BLOCK)
        tl.store(floats + to, old + new.to(tl.float32), mask=inside)


@triton.jit
def _read(
    active, decay, beta, line, head, real, k, v, decay_stride, beta_stride,
    CHANNELS: tl.constexpr, KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Of one token: its query, key and value, its decay and its beta."""
    own = active + line * CHANNELS + head // (HEADS // KEY_HEADS) * K + k
    query = tl.load(own, mask=real & (k < K), other=0.0)
    key = tl.load(own + KEY_HEADS * K, mask=real & (k < K), other=0.0)
    value = tl.load(
        active + line * CHANNELS + 2 * KEY_HEADS * K + head * V + v, mask=real & (v < V), other=0.0
    )
    g = tl.load(decay + line * decay_stride + head, mask=real, other=0.0)
    return query, key, value, g, tl.load(beta + line * beta_stride + head, mask=real, other=0.0)


@triton.jit
def _token(state, query, key, value, g, b, scale):
    """The state after one token, and what it gives."""
    query = query * (tl.rsqrt(tl.sum(query * query, 0) + 1e-6) * scale)
    key = key * tl.rsqrt(tl.sum(key * key, 0) + 1e-6)
    state = state * tl.exp(g)
    change = (value - tl.sum(state * key[:, None], 0)) * b
    state += key[:, None] * change[None, :]
    return state, tl.sum(state * query[:, None], 0)


@triton.jit(do_not_specialize=["first", "decay_stride", "beta_stride", "rows_stride"])
def _rule(
    active, decay, beta, floats, table, rows, starts, cached, out,
    first, scale, decay_stride, beta_stride, rows_stride, table_stride,
    CHANNELS: tl.constexpr, KEY_HEADS: tl.constexpr, HEADS: tl.constexpr,
    K: tl.constexpr, K_PAD: tl.constexpr, V: tl.constexpr, LINES: tl.constexpr, HEAD_BLOCKS: tl.constexpr,
    PER_ROW: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k, v = tl.arange(0, K_PAD), tl.program_id(0) * TILE + tl.arange(0, TILE)
    before = tl.load(cached + sequence)
    if ONE:  # the sequence's token is the batch's; without one nothing is kept, and 0 is given
        start = sequence
        n = tl.where(before >= 0, 1, 0)
    else:
        start = tl.load(starts + sequence).to(tl.int64)
        n = tl.load(starts + sequence + 1) - start.to(tl.int32)
        if n == 0:
            return
    some = n > 0
    block = first + head * HEAD_BLOCKS + k // LINES
    at = _lie(table, rows + sequence * rows_stride, block, some & (k < K), table_stride, PER_ROW, BLOCK)
    at = (at + k % LINES * V)[:, None] + v[None, :]
    held = some & (k < K)[:, None] & (v < V)[None, :]
    state = tl.load(floats + at, mask=held & (before > 0), other=0.0)
    query, key, value, g, b = _read(
        active, decay, beta, start, head, some, k, v, decay_stride, beta_stride,
        CHANNELS, KEY_HEADS, HEADS, K, V,
    )  # fmt: skip
    to = out + start * (HEADS * V) + head * V + v
    if ONE:
        state, given = _token(state, query, key, value, g, b, scale)
        tl.store(to, given, mask=v < V)
    else:
        for t in range(n):
            # What the next token brings is on its way while this one is computed.
            query1, key1, value1, g1, b1 = _read(
                active, decay, beta, start + t + 1, head, t + 1 < n, k, v, decay_stride, beta_stride,
                CHANNELS, KEY_HEADS, HEADS, K, V,
            )  # fmt: skip
            state, given = _token(state, query, key, value, g, b, scale)
            tl.store(to, given, mask=v < V)
            to += HEADS * V
            query, key, value, g, b = query1, key1, value1, g1, b1
    tl.store(floats + at, state, mask=held)


def decode_calls(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    positions: Tensor,
) -> tuple[Tensor, list[Call]]:
    """The output tensor and the launches that fill it; arguments as of ``paged_delta.delta_decode``."""
    b, channels = mixed.shape
    active = torch.empty(b, channels, dtype=torch.float32, device=mixed.device)
    sizes = _channels(channels, conv.shape[1], states.table.shape[1], states.block_floats)
    convolve = Call(
        _convolve_one,
        (b, ceil_div(channels, sizes["SIZE"])),
        (
            *(mixed, conv, states.floats, states.table, rows, positions, active),
            *(_tail(decay, states, first), mixed.stride(0), rows.stride(0), states.table.stride(0)),
        ),
        sizes,
    )
    out, rule = _rule_call(active, decay, beta, states, first, rows, positions, positions, one=True)
    return out, [convolve, rule]


def prefill_calls(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
) -> tuple[Tensor, list[Call]]:
    """The same of ``paged_delta.delta_prefill``."""
    (n, channels), sequences = mixed.shape, cached.shape[0]
    active = torch.empty(n, channels, dtype=torch.float32, device=mixed.device)
    shape = channels, conv.shape[1], states.table.shape[1], states.block_floats
    sizes, kept = _pieces(*shape), _channels(*shape)
    tail, strides = _tail(decay, states, first), (mixed.stride(0), rows.stride(0), states.table.stride(0))
    convolve = Call(
        _convolve,
        (n // sizes["TOKENS"] + sequences, ceil_div(channels, sizes["SIZE"])),
        (
            *(mixed, conv, states.floats, states.table, rows, starts, cached, active),
            *(tail, *strides, sequences),
        ),
        sizes,
    )
    keep = Call(
        _keep,
        (sequences, ceil_div(channels, kept["SIZE"])),
        (mixed, states.floats, states.table, rows, starts, cached, tail, *strides),
        kept,
    )
    out, rule = _rule_call(active, decay, beta, states, first, rows, starts, cached, one=False)
    return out, [convolve, keep, rule]


def _tail(decay: Tensor, states: PagedStates, first: int) -> int:
    """The block where the convolution's inputs begin: behind the heads."""
    return first + decay.shape[1] * states.head_blocks


def _rule_call(
    active: Tensor,
    decay: Tensor,
    beta: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
    *,
    one: bool,
) -> tuple[Tensor, Call]:
    (n, channels), heads = active.shape, decay.shape[1]
    out = torch.empty(n, heads * states.value_dim, dtype=torch.float32, device=active.device)
    sizes = _columns(
        *(channels, heads, states.key_dim, states.value_dim, states.table.shape[1], states.block_floats, one)
    )
    call = Call(
        _rule,
        (ceil_div(states.value_dim, sizes["TILE"]), heads, cached.shape[0]),
        (
            *(active, decay, beta, states.floats, states.table, rows, starts, cached, out),
            *(first, states.key_dim**-0.5, decay.stride(0), beta.stride(0)),
            *(rows.stride(0), states.table.stride(0)),
        ),
        sizes,
    )
    return out, call


@cache
def _channels(channels: int, kernel: int, per_row: int, block: int) -> Constants:
    # Not fewer channels than threads: of several that hold the same one, one alone may load and store it.
    size = max(32, min(256, power_of_two(channels)))
    return Constants(
        CHANNELS=channels,
        KERNEL=kernel,
        PER_ROW=per_row,
        BLOCK=block,
        SIZE=size,
        num_warps=max(1, size // 64),
    )


@cache
def _pieces(channels: int, kernel: int, per_row: int, block: int) -> Constants:
    return Constants(
        **{"CHANNELS": channels, "KERNEL": kernel, "PER_ROW": per_row, "BLOCK": block},
        **{"TOKENS": 16, "SIZE": min(128, power_of_two(channels)), "num_warps": 4},
    )


@cache
def _columns(
    channels: int, heads: int, key_dim: int, value_dim: int, per_row: int, block: int, one: bool
) -> Constants:
    padded = power_of_two(key_dim)
    # Of a prompt the latency of a token counts: one warp sums without waiting for others.
    warps = 4 if one else 1
    tile = max(1, min(power_of_two(value_dim), 32 * warps * _HELD // padded))
    lines = block // value_dim
    return Constants(
        CHANNELS=channels,
        KEY_HEADS=(channels - heads * value_dim) // (2 * key_dim),
        HEADS=heads,
        **{"K": key_dim, "K_PAD": padded, "V": value_dim, "TILE": tile},
        **{"LINES": lines, "HEAD_BLOCKS": ceil_div(key_dim, lines), "PER_ROW": per_row, "BLOCK": block},
        **{"ONE": one, "num_warps": warps},
    )


def delta_decode(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    positions: Tensor,
) -> Tensor:
    """As ``paged_delta.delta_decode``."""
    out, calls = decode_calls(mixed, decay, beta, conv, states, first, rows, positions)
    for call in calls:
        call.run()
    return out


def delta_prefill(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
) -> Tensor:
    """As ``paged_delta.delta_prefill``, but padding tokens' output stays what lies in memory."""
    out, calls = prefill_calls(mixed, decay, beta, conv, states, first, rows, starts, cached)
    for call in calls:
        call.run()
    return out
