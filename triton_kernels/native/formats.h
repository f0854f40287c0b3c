// How a matrix [rows, columns] lies in memory: sixteen rows side by side, so that one load has a number of
// each and no sum crosses lanes. Columns are padded to 32 and rows to 16 with zeros.
//
// Floats: [columns][16], bfloat16 by pairs of columns. Codes (GGUF's, to the bit): a row block is
//   codes  [groups of 32 columns][16 rows]: nibbles of columns i and i + 16 in one byte, higher bits behind
//   scales [groups][16]
//   supers [groups / 8][16], for the K formats, which scale the scales
// and a number is scale * (code - OFFSET), or scale * code + minimum.
#pragma once
#include <cmath>

#include "simd.h"

enum Format { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, MXFP4, FORMATS };
// PLAIN: a half a group. MINIMUM: and a half for the minimum. NESTED: a byte each, times halves a super-block.
// HALVES: a signed byte for each 16 columns, times a half a super-block.
// EXPONENT: a byte, the exponent of twice what the codes stand for (OCP Microscaling Formats 1.0, E2M1 and E8M0).
enum Scales { PLAIN, MINIMUM, NESTED, HALVES, EXPONENT };

constexpr int GROUP = 32, SUPER = 8;  // columns; groups

template <int FORMAT> struct Coded;
template <int BITS_, Scales SCALES_, int OFFSET_> struct Codes {
  static constexpr int BITS = BITS_, OFFSET = OFFSET_;
  static constexpr Scales SCALES = SCALES_;
  static constexpr int CODES = GROUP * LANES * BITS / 8;  // bytes of a group in a row block
  static constexpr int SCALE = SCALES == MINIMUM ? 64 : SCALES == EXPONENT ? 16 : 32;
  static constexpr int NEST = SCALES == NESTED ? 64 : SCALES == HALVES ? 32 : 0;
};
template <> struct Coded<Q8_0> : Codes<8, PLAIN, 128> {};
template <> struct Coded<Q4_0> : Codes<4, PLAIN, 8> {};
template <> struct Coded<Q4_1> : Codes<4, MINIMUM, 0> {};
template <> struct Coded<Q5_0> : Codes<5, PLAIN, 16> {};
template <> struct Coded<Q5_1> : Codes<5, MINIMUM, 0> {};
template <> struct Coded<Q4_K> : Codes<4, NESTED, 0> {};
template <> struct Coded<Q5_K> : Codes<5, NESTED, 0> {};
template <> struct Coded<Q6_K> : Codes<6, HALVES, 32> {};
template <> struct Coded<MXFP4> : Codes<4, EXPONENT, 12> {};

// What a code of MXFP4 stands for, doubled, and 12 more: no byte is below 0.
alignas(16) constexpr uint8_t FOURS[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// Calls f with an object of the format's type.
template <class F> inline void with_codes(int format, F f) {
  switch (format) {
    case Q8_0: return f(Coded<Q8_0>());
    case Q4_0: return f(Coded<Q4_0>());
    case Q4_1: return f(Coded<Q4_1>());
    case Q5_0: return f(Coded<Q5_0>());
    case Q5_1: return f(Coded<Q5_1>());
    case Q4_K: return f(Coded<Q4_K>());
    case Q5_K: return f(Coded<Q5_K>());
    case Q6_K: return f(Coded<Q6_K>());
    case MXFP4: return f(Coded<MXFP4>());
  }
}

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline bool coded(int format) { return format >= Q8_0; }

// Bytes of a row block.
inline int64_t block_bytes(int format, int64_t columns) {
  const int64_t k = padded(columns, GROUP), groups = k / GROUP;
  if (!coded(format)) return k * LANES * (format == F32 ? 4 : 2);
  int64_t bytes = 0;
  with_codes(format, [&](auto c) {
    using C = decltype(c);
    bytes = groups * (C::CODES + C::SCALE) + padded(groups, SUPER) / SUPER * C::NEST;
  });
  return padded(bytes, 64);
}

// Where things lie in a row block.
template <class C> struct Places {
  const uint8_t *codes, *scales, *supers;
  Places(const uint8_t* block, int64_t groups)
      : codes(block), scales(block + groups * C::CODES), supers(scales + groups * C::SCALE) {}
};

// One row's group of 32 with its scales, on its way in or out.
struct Group {
  uint8_t code[GROUP];
  uint16_t scale, minimum;          // PLAIN, MINIMUM: halves
  uint8_t nested_scale[2];          // NESTED: scale and minimum; HALVES: of each half, as signed bytes; EXPONENT
  uint16_t super_scale, super_minimum;
};

template <class C> inline void put(uint8_t* block, int64_t groups, int64_t g, int lane, const Group& from) {
  Places<C> at(block, groups);
  uint8_t* codes = (uint8_t*)at.codes + g * C::CODES;
  if (C::BITS == 8) {
    for (int i = 0; i < GROUP; i++) codes[((i / 4) * LANES + lane) * 4 + i % 4] = from.code[i];
  } else {
    for (int i = 0; i < 16; i++) {
      const int byte = ((i / 4) * LANES + lane) * 4 + i % 4;
      codes[byte] = (from.code[i] & 15) | (from.code[i + 16] << 4);
      for (int half = 0; half < 2 && C::BITS > 4; half++) {
        const int high = from.code[i + 16 * half] >> 4, field = (i / 4) * 2 + half;  // field 0 to 7
        const int wide = C::BITS - 4, per = 8 / wide;
        uint8_t* more = codes + 256 + field / per * 64 + lane * 4 + i % 4;
        const int shift = field % per * wide, mask = ((1 << wide) - 1) << shift;
        *more = (*more & ~mask) | (high << shift);
      }
    }
  }
  uint8_t* scales = (uint8_t*)at.scales + g * C::SCALE;
  uint8_t* supers = (uint8_t*)at.supers + g / SUPER * C::NEST;
  if (C::SCALES == PLAIN || C::SCALES == MINIMUM) {
    memcpy(scales + 2 * lane, &from.scale, 2);
    if (C::SCALES == MINIMUM) memcpy(scales + 32 + 2 * lane, &from.minimum, 2);
  } else if (C::SCALES == EXPONENT) {
    scales[lane] = from.nested_scale[0];
  } else {
    scales[lane] = from.nested_scale[0];
    scales[16 + lane] = from.nested_scale[1];
    memcpy(supers + 2 * lane, &from.super_scale, 2);
    if (C::SCALES == NESTED) memcpy(supers + 32 + 2 * lane, &from.super_minimum, 2);
  }
}

// The 32 numbers of one lane's group.
template <class C> inline void numbers(const uint8_t* block, int64_t groups, int64_t g, int lane, float* out) {
  Places<C> at(block, groups);
  const uint8_t* codes = at.codes + g * C::CODES;
  const uint8_t* scales = at.scales + g * C::SCALE;
  const uint8_t* supers = at.supers + g / SUPER * C::NEST;
  auto half = [&](const uint8_t* p) {
    uint16_t v;
    memcpy(&v, p + 2 * lane, 2);
    return half_float(v);
  };
  for (int i = 0; i < GROUP; i++) {
    int code;
    if (C::BITS == 8) {
      code = codes[((i / 4) * LANES + lane) * 4 + i % 4];
    } else {
      const int j = i % 16, part = i / 16, field = (j / 4) * 2 + part;
      code = (codes[((j / 4) * LANES + lane) * 4 + j % 4] >> (4 * part)) & 15;
      if (C::BITS > 4) {
        constexpr int wide = C::BITS > 4 ? C::BITS - 4 : 1, per = 8 / wide;
        const uint8_t more = codes[256 + field / per * 64 + lane * 4 + j % 4];
        code |= ((more >> (field % per * wide)) & ((1 << wide) - 1)) << 4;
      }
    }
    if (C::SCALES == EXPONENT) code = FOURS[code];
    const float number = code - C::OFFSET;
    if (C::SCALES == EXPONENT) out[i] = ldexpf(number, scales[lane] - 128);
    if (C::SCALES == PLAIN) out[i] = half(scales) * number;
    if (C::SCALES == MINIMUM) out[i] = half(scales) * number + half(scales + 32);
    if (C::SCALES == NESTED)
      out[i] = half(supers) * scales[lane] * number - half(supers + 32) * scales[16 + lane];
    if (C::SCALES == HALVES) out[i] = half(supers) * (int8_t)scales[i / 16 * 16 + lane] * number;
  }
}

// Row ``row`` of a matrix as floats; ``out`` has room for the padded columns.
inline void unpack_row(const uint8_t* w, int format, int64_t row, int64_t columns, float* out) {
  const uint8_t* block = w + row / LANES * block_bytes(format, columns);
  const int lane = row % LANES;
  const int64_t k = padded(columns, GROUP), groups = k / GROUP;
  if (format == F32) {
    for (int64_t i = 0; i < k; i++) out[i] = ((const float*)block)[i * LANES + lane];
  } else if (format == F16) {
    for (int64_t i = 0; i < k; i++) out[i] = half_float(((const uint16_t*)block)[i * LANES + lane]);
  } else if (format == BF16) {
    for (int64_t i = 0; i < k; i++)
      out[i] = bfloat_float(((const uint16_t*)block)[(i / 2 * LANES + lane) * 2 + i % 2]);
  } else {
    with_codes(format, [&](auto c) {
      for (int64_t g = 0; g < groups; g++) numbers<decltype(c)>(block, groups, g, lane, out + g * GROUP);
    });
  }
}
