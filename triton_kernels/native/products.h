// Products of activations with a matrix of row blocks. Floats multiply floats; codes multiply activations
// rounded to int8 by groups of 32, as their own groups are: every sum of a group is exact in int32.
#pragma once
#include <cmath>
#include <vector>

#include "formats.h"
#include "tiles.h"

struct Matrix {
  const uint8_t* w;
  int64_t rows, columns;
  int32_t format;
};

// What one token is multiplied as. ``total``: of each half of a group; ``weighted``: scale times both;
// ``rounded``: in bfloat16.
struct Activation {
  const float* f;
  int8_t* q;
  float *scale, *weighted;
  int32_t* total;
  uint16_t* rounded;
};

// Fills codes from ``a.f`` of ``k`` padded columns. What is not finite stays so in the products.
inline void quantise(Activation& a, int64_t k) {
  for (int64_t g = 0; g < k / GROUP; g++) {
    Floats u = load(a.f + g * GROUP), v = load(a.f + g * GROUP + LANES);
    float most = largest(larger(magnitude(u), magnitude(v)));
    if (has_nan(u) || has_nan(v)) most = NAN;
    Floats inverse = all(most > 0 ? 127.f / most : 0.f);
    Ints p = nearest(mul(u, inverse)), q = nearest(mul(v, inverse));
    store_bytes(a.q + g * GROUP, p);
    store_bytes(a.q + g * GROUP + LANES, q);
    a.scale[g] = most / 127.f;
    a.total[2 * g] = int_sum(p), a.total[2 * g + 1] = int_sum(q);
    a.weighted[g] = a.scale[g] * (a.total[2 * g] + a.total[2 * g + 1]);
  }
}

constexpr int AHEAD = 8192;

// Bits FIELD of the bytes behind a group's nibbles, where they belong in its codes.
template <int BITS, int FIELD> inline Ints higher(const uint8_t* codes) {
  constexpr int wide = BITS - 4, per = 8 / wide, shift = FIELD % per * wide;
  Ints h = int_load(codes + 256 + FIELD / per * 64), mask = byte_all(((1 << wide) - 1) << 4);
  if constexpr (shift <= 4) return int_and(left16<4 - shift>(h), mask);
  else return int_and(right16<shift - 4>(h), mask);
}

// Nibbles STEP of a group: columns 4 STEP ... and 16 + 4 STEP ...
template <class C, int STEP> inline void codes_of(const uint8_t* codes, Ints& low, Ints& high) {
  const Ints nibble = byte_all(15);
  Ints both = int_load(codes + 64 * STEP);
  low = int_and(both, nibble), high = int_and(right16<4>(both), nibble);
  if constexpr (C::SCALES == EXPONENT) low = looked_up(FOURS, low), high = looked_up(FOURS, high);
  if constexpr (C::BITS > 4) {
    low = int_or(low, higher<C::BITS, 2 * STEP>(codes));
    high = int_or(high, higher<C::BITS, 2 * STEP + 1>(codes));
  }
}

template <class C, int B, int STEP>
inline void nibble_step(const uint8_t* codes, const Activation* a, int64_t g, Ints* s, Ints* t) {
  Ints low, high;
  codes_of<C, STEP>(codes, low, high);
  for (int b = 0; b < B; b++) {
    s[b] = dot(s[b], low, four(a[b].q + g * GROUP + 4 * STEP));
    Ints& upper = C::SCALES == HALVES ? t[b] : s[b];
    upper = dot(upper, high, four(a[b].q + g * GROUP + 16 + 4 * STEP));
  }
}

// What is read so many bytes later than ``at``: prefetchers of CPUs stop at pages.
template <int BYTES> inline void fetch(const uint8_t* at) {
  for (int i = 0; i < BYTES; i += 64) _mm_prefetch((const char*)at + i + AHEAD, _MM_HINT_T0);
}

template <class C, int B>
inline void coded_block(const uint8_t* block, int64_t groups, const Activation* a, Floats* out) {
  const Places<C> at(block, groups);
  Floats acc[B];
  for (int b = 0; b < B; b++) acc[b] = zeros();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* codes = at.codes + g * C::CODES;
    const uint8_t* scales = at.scales + g * C::SCALE;
    Ints s[B], t[C::SCALES == HALVES ? B : 1];
    for (int b = 0; b < B; b++) {
      const int32_t *two = a[b].total + 2 * g;
      if constexpr (C::SCALES == HALVES) s[b] = int_all(-C::OFFSET * two[0]), t[b] = int_all(-C::OFFSET * two[1]);
      else s[b] = C::OFFSET ? int_all(-C::OFFSET * (two[0] + two[1])) : int_zeros();
    }
    if constexpr (C::BITS == 8) {
      for (int i = 0; i < 8; i++) {
        Ints w = int_load(codes + 64 * i);
        for (int b = 0; b < B; b++) s[b] = dot(s[b], w, four(a[b].q + g * GROUP + 4 * i));
      }
    } else {
      nibble_step<C, B, 0>(codes, a, g, s, t);
      nibble_step<C, B, 1>(codes, a, g, s, t);
      nibble_step<C, B, 2>(codes, a, g, s, t);
      nibble_step<C, B, 3>(codes, a, g, s, t);
    }
    fetch<C::CODES + C::SCALE>(block + g * (C::CODES + C::SCALE));
    if constexpr (C::SCALES == EXPONENT) {
      // The least exponent counts as none: a number of 2^-128 reaches no sum.
      Floats scale = mul(as_floats(left32<23>(widened(scales))), all(0.5f));
      for (int b = 0; b < B; b++) acc[b] = fma(floats(s[b]), mul(scale, all(a[b].scale[g])), acc[b]);
    } else if constexpr (C::SCALES == PLAIN || C::SCALES == MINIMUM) {
      Floats scale = from_half((const uint16_t*)scales);
      for (int b = 0; b < B; b++) acc[b] = fma(floats(s[b]), mul(scale, all(a[b].scale[g])), acc[b]);
      if constexpr (C::SCALES == MINIMUM) {
        Floats minimum = from_half((const uint16_t*)(scales + 32));
        for (int b = 0; b < B; b++) acc[b] = fma(minimum, all(a[b].weighted[g]), acc[b]);
      }
    } else if constexpr (C::SCALES == NESTED) {
      const uint16_t* super = (const uint16_t*)(at.supers + g / SUPER * C::NEST);
      Floats scale = mul(from_half(super), floats(widened(scales)));
      Floats minimum = mul(from_half(super + 16), floats(widened(scales + 16)));
      for (int b = 0; b < B; b++) {
        acc[b] = fma(floats(s[b]), mul(scale, all(a[b].scale[g])), acc[b]);
        acc[b] = sub(acc[b], mul(minimum, all(a[b].weighted[g])));
      }
    } else {
      Floats super = from_half((const uint16_t*)(at.supers + g / SUPER * C::NEST));
      Floats first = mul(super, floats(widened((const int8_t*)scales)));
      Floats second = mul(super, floats(widened((const int8_t*)scales + 16)));
      for (int b = 0; b < B; b++)
        acc[b] = fma(fma(floats(s[b]), first, mul(floats(t[b]), second)), all(a[b].scale[g]), acc[b]);
    }
  }
  for (int b = 0; b < B; b++) out[b] = acc[b];
}

// Of few tokens two sums each, of even and of odd columns, so that one does not wait for the other.
template <int FORMAT, int B>
inline void float_block(const uint8_t* block, int64_t k, const Activation* a, Floats* out) {
  constexpr int SUMS = B < 4 ? 2 : 1;
  Floats acc[SUMS][B];
  for (int i = 0; i < SUMS; i++)
    for (int b = 0; b < B; b++) acc[i][b] = zeros();
  constexpr int STEP = 2 * LANES * (FORMAT == F32 ? 4 : 2);  // bytes of two columns
  for (int64_t i = 0; i < k; i += 2) {
    const uint8_t* at = block + i / 2 * STEP;
    Floats u, v;
    if constexpr (FORMAT == F32) u = load((const float*)at), v = load((const float*)at + LANES);
    if constexpr (FORMAT == F16) u = from_half((const uint16_t*)at), v = from_half((const uint16_t*)at + LANES);
    if constexpr (FORMAT == BF16) {
      Ints both = int_load(at);
      u = as_floats(left32<16>(both)), v = as_floats(int_and(both, int_all(0xffff0000)));
    }
    fetch<STEP>(at);
    for (int b = 0; b < B; b++) {
      acc[0][b] = fma(u, all(a[b].f[i]), acc[0][b]);
      acc[SUMS - 1][b] = fma(v, all(a[b].f[i + 1]), acc[SUMS - 1][b]);
    }
  }
  for (int b = 0; b < B; b++) out[b] = SUMS > 1 ? add(acc[0][b], acc[1][b]) : acc[0][b];
}

template <int B>
inline void pairs_block(const uint8_t* block, int64_t k, const Activation* a, Floats* out) {
  Floats acc[B];
  for (int b = 0; b < B; b++) acc[b] = zeros();
  for (int64_t i = 0; i < k; i += 2) {
    const Ints both = int_load(block + 32 * i);
    fetch<64>(block + 32 * i);
    for (int b = 0; b < B; b++) acc[b] = pairs(acc[b], both, four(a[b].rounded + i));
  }
  for (int b = 0; b < B; b++) out[b] = acc[b];
}

constexpr int TOGETHER = MUXD_WIDE ? 8 : 4;  // tokens for which a row block is read once

template <int B> inline void some(const Matrix& m, const uint8_t* block, const Activation* a, Floats* out) {
  const int64_t k = padded(m.columns, GROUP);
  switch (m.format) {
    case F32: return float_block<F32, B>(block, k, a, out);
    case F16: return float_block<F16, B>(block, k, a, out);
    case BF16:
      if (PAIRS && B == TOGETHER) return pairs_block<B>(block, k, a, out);
      return float_block<BF16, B>(block, k, a, out);
    default:
      with_codes(m.format, [&](auto c) { coded_block<decltype(c), B>(block, k / GROUP, a, out); });
  }
}

// Row block ``j`` times ``n`` tokens: ``out`` gets a register a token.
inline void row_block(const Matrix& m, int64_t stride, int64_t j, const Activation* a, int n, Floats* out) {
  const uint8_t* block = m.w + j * stride;
  for (; n >= TOGETHER; n -= TOGETHER, a += TOGETHER, out += TOGETHER) some<TOGETHER>(m, block, a, out);
  if (TOGETHER > 4 && n >= 4) some<4>(m, block, a, out), n -= 4, a += 4, out += 4;
  if (n >= 2) some<2>(m, block, a, out), n -= 2, a += 2, out += 2;
  if (n) some<1>(m, block, a, out);
}

constexpr int TOKENS = 64;  // whose activations stay in the cache while weights pass

inline int blocks(const Matrix& m) { return padded(m.rows, LANES) / LANES; }

// How many tokens it takes until tiles are quicker; of codes, which become bfloat16 first, more.
constexpr int MANY = 9, MANY_CODED = 48;
constexpr int PAIRED_FOR = 4 * TOKENS;  // tokens for which a row block is made bfloat16 once
inline bool by_tiles(int format, int n) {
  return (format == BF16 && n >= MANY && tiles()) || (coded(format) && n >= MANY_CODED && tiles());
}

// A row block of codes as one of bfloat16.
template <class C> inline void paired(const uint8_t* block, int64_t groups, uint16_t* to) {
  const Places<C> at(block, groups);
  const Ints byte = int_all(255);
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t *codes = at.codes + g * C::CODES, *scales = at.scales + g * C::SCALE;
    const uint16_t* super = (const uint16_t*)(at.supers + g / SUPER * C::NEST);
    Floats scale[2], shift[2];  // of columns 0 to 15 and of those behind
    if constexpr (C::SCALES == EXPONENT) scale[0] = mul(as_floats(left32<23>(widened(scales))), all(0.5f));
    else if constexpr (C::SCALES == NESTED) scale[0] = mul(from_half(super), floats(widened(scales)));
    else if constexpr (C::SCALES == HALVES) scale[0] = mul(from_half(super), floats(widened((const int8_t*)scales)));
    else scale[0] = from_half((const uint16_t*)scales);
    scale[1] = scale[0];
    if constexpr (C::SCALES == HALVES)
      scale[1] = mul(from_half(super), floats(widened((const int8_t*)scales + 16)));
    for (int half = 0; half < 2; half++) shift[half] = mul(scale[half], all(-C::OFFSET));
    if constexpr (C::SCALES == MINIMUM) shift[0] = shift[1] = from_half((const uint16_t*)(scales + 32));
    if constexpr (C::SCALES == NESTED)
      shift[0] = shift[1] = sub(zeros(), mul(from_half(super + 16), floats(widened(scales + 16))));
    auto put = [&](Ints four_codes, int step) {  // columns 4 step ... of the group
      const int half = step / 4;
      const Ints parts[4] = {int_and(four_codes, byte), int_and(right32<8>(four_codes), byte),
                             int_and(right32<16>(four_codes), byte), right32<24>(four_codes)};
      Floats columns[4];
      for (int i = 0; i < 4; i++) columns[i] = fma(floats(parts[i]), scale[half], shift[half]);
      pair_up(columns, to + g * GROUP * LANES + step * 64);
    };
    if constexpr (C::BITS == 8) {
      for (int step = 0; step < 8; step++) put(int_load(codes + 64 * step), step);
    } else {
      Ints low, high;
      codes_of<C, 0>(codes, low, high), put(low, 0), put(high, 4);
      codes_of<C, 1>(codes, low, high), put(low, 1), put(high, 5);
      codes_of<C, 2>(codes, low, high), put(low, 2), put(high, 6);
      codes_of<C, 3>(codes, low, high), put(low, 3), put(high, 7);
    }
  }
}

inline const uint8_t* paired(const Matrix& m, const uint8_t* block, int64_t k) {
  if (m.format == BF16) return block;
  static thread_local std::vector<uint16_t> room;
  room.resize(k * LANES + 32);
  uint16_t* to = (uint16_t*)(((uintptr_t)room.data() + 63) / 64 * 64);
  with_codes(m.format, [&](auto c) { paired<decltype(c)>(block, k / GROUP, to); });
  return (const uint8_t*)to;
}

// sink(token, row block, register) for row blocks [first, stop). ``apart``: how far apart tokens' activations lie
// that are ready as bfloat16, with room for a tile of tokens behind the last; 0: they are not.
template <class Sink>
inline void product(const Matrix& m, int first, int stop, const Activation* a, int n, Sink sink, int64_t apart = 0) {
  const int64_t stride = block_bytes(m.format, m.columns), k = padded(m.columns, GROUP);
  alignas(64) Floats acc[TOKENS];
  if (apart && by_tiles(m.format, n)) {
    const TileRegisters registers;
    const int some = coded(m.format) ? PAIRED_FOR : TOKENS;
    for (int begin = 0; begin < n; begin += some)
      for (int j = first; j < stop; j++) {
        const uint8_t* block = paired(m, m.w + j * stride, k);
        for (int from = begin; from < n && from < begin + some; from += TOKENS) {
          const int count = n - from < TOKENS ? n - from : TOKENS;
          tiled(block, k, a[from].rounded, apart, count, acc);
          for (int i = 0; i < count; i++) sink(from + i, j, acc[i]);
        }
      }
    return;
  }
  for (int from = 0; from < n; from += TOKENS) {
    const int count = n - from < TOKENS ? n - from : TOKENS;
    for (int j = first; j < stop; j++) {
      row_block(m, stride, j, a + from, count, acc);
      for (int i = 0; i < count; i++) sink(from + i, j, acc[i]);
    }
  }
}
