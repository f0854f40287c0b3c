# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Device functions of ``sampling_kernel``: the uniform number of a token, and the draw without sorting.

``search`` finds ranks by value: a float's bits, made monotone, are bisected, and one pass over a line counts
or weighs what lies above. Exact for any distribution and 32 passes a question, so it goes over a list of what
the filters may keep; over the whole vocabulary where that would be too long. Equal values rank by token id.
"""

import triton
import triton.language as tl


@triton.jit
def philox_uniform(seed, position):
    """First double of numpy's Philox 4x64-10 stream keyed by ``seed`` (64 bits) at counter ``position``."""
    key0, key1 = seed.to(tl.uint64), (seed * 0).to(tl.uint64)
    c0 = (position.to(tl.int64) + 1).to(tl.uint64)  # numpy counts before it draws
    c1, c2, c3 = key1, key1, key1
    m0 = tl.full((), 0xD2E7470EE14C6C93, tl.uint64)
    m1 = tl.full((), 0xCA5A826395121157, tl.uint64)
    w0 = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    w1 = tl.full((), 0xBB67AE8584CAA73B, tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(m0, c0), m0 * c0
        high1, low1 = tl.umulhi(m1, c2), m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += w0
        key1 += w1
    return (c0 >> 11).to(tl.int64).to(tl.float64) * (1.0 / 9007199254740992.0)


@triton.jit
def key_of(z):
    """The bits of float32 ``z`` as a signed integer of the same order; both zeros are one."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The float32 whose ``key_of`` this is."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _keys(z, packed, at, n, short):
    """Of the entries ``at``: of the list where there is one (``short``), else of the logits. Below all others
    where none is."""
    of_list = (tl.load(packed + at, mask=(at < n) & (short > 0), other=0) >> 32).to(tl.int32)
    of_all = key_of(tl.load(z + at, mask=(at < n) & (short == 0), other=0.0))
    return tl.where(at < n, tl.where(short > 0, of_list, of_all), -2147483648)


@triton.jit
def _above(z, packed, n, short, key, top, temperature, SIZE: tl.constexpr):
    """How many entries have keys above ``key``, and their weight (float64)."""
    count = tl.zeros([SIZE], tl.int32)
    mass = tl.zeros([SIZE], tl.float64)
    for start in range(0, n, SIZE):
        own = _keys(z, packed, start + tl.arange(0, SIZE), n, short)
        higher = own > key
        count += higher.to(tl.int32)
        mass += tl.where(higher, tl.exp(tl.div_rn(value_of(own) - top, temperature)), 0.0).to(tl.float64)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _equal(z, packed, n, short, key, SIZE: tl.constexpr):
    """How many entries have ``key``."""
    count = tl.zeros([SIZE], tl.int32)
    for start in range(0, n, SIZE):
        count += (_keys(z, packed, start + tl.arange(0, SIZE), n, short) == key).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _crossing(
    z, packed, n, short, target, low, high, top, temperature,
    SIZE: tl.constexpr, COUNT: tl.constexpr, STRICT: tl.constexpr,
):  # fmt: skip
    """The least key in [low, high] with less (STRICT), or no more, than ``target`` above it."""
    low, high = low.to(tl.int64), high.to(tl.int64)
    while low < high:
        middle = (low + high) >> 1
        count, mass = _above(z, packed, n, short, middle.to(tl.int32), top, temperature, SIZE)
        measured = count.to(tl.float64) if COUNT else mass
        enough = measured < target if STRICT else measured <= target
        if enough:
            high = middle
        else:
            low = middle + 1
    return low.to(tl.int32)


@triton.jit
def _weight(key, top, temperature):
    return tl.exp(tl.div_rn(value_of(key) - top, temperature)).to(tl.float64)


@triton.jit
def search(z, packed, n, short, whole, top, temperature, top_k, top_p, min_p, u, SIZE: tl.constexpr):
    """The token drawn from ``n`` entries under the filters, at ``u``.

    The entries are a vocabulary's logits ``z``, or, where ``short``, a list of all that the filters may keep,
    as ``sampling_list_kernel`` packs it; ``whole``: what the vocabulary weighs. What is kept is described by
    its lowest key and by how many tokens of that key are kept.
    """
    highest = key_of(top)
    # Everything above -inf that has weight at all lies within 800 temperatures of the top.
    lowest = key_of(top - 800.0 * temperature)
    kept = tl.full((), 2147483647, tl.int32)
    if top_k > 0:
        wanted = top_k.to(tl.float64) - 1
        last = _crossing(z, packed, n, short, wanted, lowest, highest, top, temperature, SIZE, True, False)
        count, mass = _above(z, packed, n, short, last, top, temperature, SIZE)
        if last > lowest:
            lowest = last
            kept = top_k - count
    if min_p > 0:
        least, high = lowest.to(tl.int64), highest.to(tl.int64)
        while least < high:
            middle = (least + high) >> 1
            if _weight(middle.to(tl.int32), top, temperature) >= min_p:
                high = middle
            else:
                least = middle + 1
        least = least.to(tl.int32)
        if least > lowest:
            lowest = least
            kept = tl.full((), 2147483647, tl.int32)
    count, mass = _above(z, packed, n, short, lowest, top, temperature, SIZE)
    kept = tl.minimum(kept, _equal(z, packed, n, short, lowest, SIZE))
    total = mass + kept.to(tl.float64) * _weight(lowest, top, temperature)
    if top_p < 1:
        if (top_k <= 0) & (min_p <= 0):
            total = tl.maximum(total, whole)
        target = top_p * total
        edge = _crossing(z, packed, n, short, target, lowest, highest, top, temperature, SIZE, False, True)
        count, mass = _above(z, packed, n, short, edge, top, temperature, SIZE)
        same = _equal(z, packed, n, short, edge, SIZE)
        if edge == lowest:
            same = tl.minimum(same, kept)
        own = _weight(edge, top, temperature)
        lowest = edge
        kept = tl.minimum(tl.maximum(tl.ceil((target - mass) / own).to(tl.int32), 1), same)
        total = mass + kept.to(tl.float64) * own
    target = u * total
    found = _crossing(z, packed, n, short, target, lowest, highest, top, temperature, SIZE, False, False)
    count, mass = _above(z, packed, n, short, found, top, temperature, SIZE)
    same = _equal(z, packed, n, short, found, SIZE)
    if found == lowest:
        same = tl.minimum(same, kept)
    index = tl.floor((target - mass) / _weight(found, top, temperature)).to(tl.int32)
    index = tl.maximum(tl.minimum(index, same - 1), 0)
    return _nth(z, packed, n, short, found, index, SIZE)


@triton.jit
def _nth(z, packed, n, short, key, index, SIZE: tl.constexpr):
    """The token of the ``index``-th entry (from 0) that has ``key``."""
    answer = tl.full((), 0, tl.int32)
    passed = tl.full((), 0, tl.int32)
    for start in range(0, n, SIZE):
        at = start + tl.arange(0, SIZE)
        listed = tl.load(packed + at, mask=(at < n) & (short > 0), other=0) & 2147483647
        token = tl.where(short > 0, 2147483647 - listed.to(tl.int32), at)
        same = (_keys(z, packed, at, n, short) == key).to(tl.int32)
        rank = passed + tl.cumsum(same, 0)  # from 1, at the entries that have the key
        answer += tl.sum(tl.where((same > 0) & (rank == index + 1), token, 0), 0)
        passed += tl.sum(same, 0)
    return answer
