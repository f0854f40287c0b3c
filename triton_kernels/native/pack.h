// From rows as files have them to row blocks: floats as they are or made int8 and int4, GGUF's blocks as codes.
#pragma once
#include <cmath>
#include <vector>

#include "formats.h"

// ---- GGUF's blocks, one row's group of 32 at a time ------------------------------------------------

// Bytes of a row of so many columns in a file.
inline int64_t file_row_bytes(int format, int64_t columns) {
  switch (format) {
    case F32: return columns * 4;
    case F16: case BF16: return columns * 2;
    case Q8_0: return columns / 32 * 34;
    case Q4_0: return columns / 32 * 18;
    case Q4_1: return columns / 32 * 20;
    case Q5_0: return columns / 32 * 22;
    case Q5_1: return columns / 32 * 24;
    case Q4_K: return columns / 256 * 144;
    case Q5_K: return columns / 256 * 176;
    case Q6_K: return columns / 256 * 210;
    case MXFP4: return columns / 32 * 17;
  }
  return 0;
}

inline void nibbles(const uint8_t* q, Group& to) {
  for (int i = 0; i < 16; i++) to.code[i] = q[i] & 15, to.code[i + 16] = q[i] >> 4;
}

inline void fifth_bits(const uint8_t* at, Group& to) {
  uint32_t bits;
  memcpy(&bits, at, 4);
  for (int i = 0; i < GROUP; i++) to.code[i] |= ((bits >> i) & 1) << 4;
}

// Six-bit scale and minimum of a K block's group, twelve bytes for eight groups.
inline void nested(const uint8_t* packed, int j, uint8_t* out) {
  if (j < 4) {
    out[0] = packed[j] & 63, out[1] = packed[j + 4] & 63;
  } else {
    out[0] = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    out[1] = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

inline Group file_group(int format, const uint8_t* row, int64_t g) {
  Group to = {};
  const int j = g % SUPER;
  switch (format) {
    case Q8_0: {
      const uint8_t* b = row + g * 34;
      memcpy(&to.scale, b, 2);
      for (int i = 0; i < GROUP; i++) to.code[i] = (uint8_t)((int8_t)b[2 + i] + 128);
      break;
    }
    case Q4_0: case Q5_0: {
      const uint8_t* b = row + g * (format == Q4_0 ? 18 : 22);
      memcpy(&to.scale, b, 2);
      nibbles(b + (format == Q4_0 ? 2 : 6), to);
      if (format == Q5_0) fifth_bits(b + 2, to);
      break;
    }
    case MXFP4: {
      const uint8_t* b = row + g * 17;
      to.nested_scale[0] = b[0];
      nibbles(b + 1, to);
      break;
    }
    case Q4_1: case Q5_1: {
      const uint8_t* b = row + g * (format == Q4_1 ? 20 : 24);
      memcpy(&to.scale, b, 2), memcpy(&to.minimum, b + 2, 2);
      nibbles(b + (format == Q4_1 ? 4 : 8), to);
      if (format == Q5_1) fifth_bits(b + 4, to);
      break;
    }
    case Q4_K: case Q5_K: {
      const uint8_t* b = row + g / SUPER * (format == Q4_K ? 144 : 176);
      const uint8_t* q = b + (format == Q4_K ? 16 : 48) + j / 2 * 32;
      memcpy(&to.super_scale, b, 2), memcpy(&to.super_minimum, b + 2, 2);
      nested(b + 4, j, to.nested_scale);
      for (int i = 0; i < GROUP; i++) {
        to.code[i] = j % 2 ? q[i] >> 4 : q[i] & 15;
        if (format == Q5_K) to.code[i] |= ((b[16 + i] >> j) & 1) << 4;
      }
      break;
    }
    case Q6_K: {
      const uint8_t* b = row + g / SUPER * 210;
      const int part = j / 4, at = j % 4;  // halves of 128; in one, four groups share bytes
      const uint8_t *low = b + part * 64 + at % 2 * 32, *high = b + 128 + part * 32;
      memcpy(&to.super_scale, b + 208, 2);
      memcpy(to.nested_scale, b + 192 + part * 8 + at * 2, 2);
      for (int i = 0; i < GROUP; i++)
        to.code[i] = (at < 2 ? low[i] & 15 : low[i] >> 4) | ((high[i] >> (2 * at)) & 3) << 4;
      break;
    }
  }
  return to;
}

// ---- floats to codes ---------------------------------------------------------------------------------

inline Group int8_group(const float* v) {
  Group to = {};
  float most = 0, whole = 0;
  for (int i = 0; i < GROUP; i++) most = fmaxf(most, fabsf(v[i])), whole += v[i] * 0;
  most += whole;  // what is not finite stays so
  to.scale = half_of(most / 127);
  const float scale = half_float(to.scale), inverse = scale > 0 ? 1 / scale : 0;
  for (int i = 0; i < GROUP; i++)
    to.code[i] = (uint8_t)(128 + (int)fminf(127, fmaxf(-127, nearbyintf(v[i] * inverse))));
  return to;
}

// Scale and minimum that leave the least squared error: the range is narrowed step by step, and for the codes
// of each step the best line through them is taken.
inline Group int4_group(const float* v) {
  float low = v[0], high = v[0];
  float whole = v[0] * 0;
  for (int i = 1; i < GROUP; i++) low = fminf(low, v[i]), high = fmaxf(high, v[i]), whole += v[i] * 0;
  Group best = {};
  best.scale = half_of(whole);  // what is not finite stays so
  float least = INFINITY;
  for (int narrower = 0; narrower < 8; narrower++) {
    float scale = (high - low) * (1 - 0.04f * narrower) / 15, minimum = low + (high - low) * 0.02f * narrower;
    for (int fit = 0; fit < 2; fit++) {
      Group one = {};
      one.scale = half_of(scale), one.minimum = half_of(minimum);
      const float s = half_float(one.scale), m = half_float(one.minimum), inverse = s > 0 ? 1 / s : 0;
      float error = 0, q1 = 0, q2 = 0, x1 = 0, xq = 0;
      for (int i = 0; i < GROUP; i++) {
        const float q = fminf(15, fmaxf(0, nearbyintf((v[i] - m) * inverse)));
        one.code[i] = (uint8_t)q;
        error += (s * q + m - v[i]) * (s * q + m - v[i]);
        q1 += q, q2 += q * q, x1 += v[i], xq += v[i] * q;
      }
      if (error < least) least = error, best = one;
      const float spread = GROUP * q2 - q1 * q1;
      if (spread <= 0) break;
      scale = (GROUP * xq - q1 * x1) / spread, minimum = (x1 - scale * q1) / GROUP;
    }
  }
  return best;
}

inline void to_floats(int kind, const uint8_t* row, int64_t columns, float* out) {
  for (int64_t i = 0; i < columns; i++) {
    if (kind == F32) memcpy(out + i, row + 4 * i, 4);
    else {
      uint16_t v;
      memcpy(&v, row + 2 * i, 2);
      out[i] = kind == F16 ? half_float(v) : bfloat_float(v);
    }
  }
}

// Row ``row`` of a matrix of ``format`` from a row of a file of ``kind``: floats to any of PLAIN's and
// MINIMUM's formats that are made here (int8: Q8_0, int4: Q4_1) or to floats; blocks to their own format or to
// floats. ``scratch``: room for the padded columns.
inline void pack_row(uint8_t* w, int format, int64_t row, int64_t columns, const uint8_t* from, int kind,
                     float* scratch) {
  const int64_t k = padded(columns, GROUP), groups = k / GROUP;
  uint8_t* block = w + row / LANES * block_bytes(format, columns);
  const int lane = row % LANES;
  if (coded(kind) && kind == format) {
    with_codes(format, [&](auto c) {
      for (int64_t g = 0; g < groups; g++) put<decltype(c)>(block, groups, g, lane, file_group(kind, from, g));
    });
    return;
  }
  if (coded(kind)) {
    std::vector<uint8_t> one(block_bytes(kind, columns));
    pack_row(one.data(), kind, 0, columns, from, kind, scratch);
    unpack_row(one.data(), kind, 0, columns, scratch);
  } else {
    to_floats(kind, from, columns, scratch);
  }
  for (int64_t i = columns; i < k; i++) scratch[i] = 0;
  if (format == Q8_0) {
    for (int64_t g = 0; g < groups; g++) put<Coded<Q8_0>>(block, groups, g, lane, int8_group(scratch + g * GROUP));
  } else if (format == Q4_1) {
    for (int64_t g = 0; g < groups; g++) put<Coded<Q4_1>>(block, groups, g, lane, int4_group(scratch + g * GROUP));
  } else if (format == F32) {
    for (int64_t i = 0; i < k; i++) ((float*)block)[i * LANES + lane] = scratch[i];
  } else if (format == F16) {
    for (int64_t i = 0; i < k; i++) ((uint16_t*)block)[i * LANES + lane] = half_of(scratch[i]);
  } else {
    for (int64_t i = 0; i < k; i++)
      ((uint16_t*)block)[(i / 2 * LANES + lane) * 2 + i % 2] = bfloat_of(scratch[i]);
  }
}

// Eight words of eight rows, ``bytes`` apart, to eight rows of a block.
inline void transpose_tile(uint32_t* to, const uint8_t* from, int64_t bytes) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps((const float*)(from + i * bytes));
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
    }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps((float*)(to + i * LANES), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps((float*)(to + (i + 4) * LANES), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// Sixteen rows of floats that stay as they are: words change places, [16, words] to [words, 16].
inline void transpose_rows(uint32_t* block, const uint8_t* from, int64_t bytes, int64_t words) {
  int64_t i = 0;
  for (; i + 8 <= words; i += 8)
    for (int lane = 0; lane < LANES; lane += 8)
      transpose_tile(block + i * LANES + lane, from + lane * bytes + 4 * i, bytes);
  for (; i < words; i++)
    for (int lane = 0; lane < LANES; lane++) memcpy(block + i * LANES + lane, from + lane * bytes + 4 * i, 4);
}

// Whether that has done it: other formats are packed row by row. Columns beyond the last must be zero.
inline bool pack_rows(uint8_t* block, int format, int64_t columns, const uint8_t* from, int kind) {
  const int64_t bytes = file_row_bytes(kind, columns);
  if (kind != format || (format == BF16 && columns % 2)) return false;
  if (format == F32) transpose_rows((uint32_t*)block, from, bytes, columns);
  else if (format == BF16) transpose_rows((uint32_t*)block, from, bytes, columns / 2);  // two are a word
  else return false;
  return true;
}
