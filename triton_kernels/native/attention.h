// Attention over the pool where K and V lie (head blocks: K [T, head_dim], then V [T, head_dim]; of heads twice as
// wide as others a block each, side by side), with the softmax kept running over pieces of the context (Milakov and
// Gimelshein 2018; Dao et al. 2022).
#pragma once
#include <algorithm>
#include <cmath>

#include "tiles.h"

enum Kept { KEPT_F32, KEPT_F16, KEPT_BF16, KEPT_FLOAT8 };  // how numbers lie in the pool

struct Pool {
  uint8_t* base;
  int64_t block_bytes;
  const int32_t* table;  // [rows, row_blocks]: head blocks
  int32_t tokens;        // T
  int32_t kept;
};

constexpr int KEPT_BYTES[] = {4, 2, 2, 1};

// What one layer's KV head of one sequence has.
struct Blocks {
  const Pool* pool;
  const int32_t* rows;  // of the sequence
  int row_blocks, column;  // of a row; where in it the head's keys are
  int per_head, head_dim;  // per_head: blocks of a head
  float softcap;       // of scores; 0: none
  const float* sinks;  // of the group's heads; null: none

  // What the sink of head ``h`` adds to the total of a softmax whose largest score is ``top``.
  float sunk(int h, float top) const { return sinks ? expf(sinks[h] - top) : 0.f; }

  uint8_t* of(int64_t row) const { return block(row, 0); }
  // Where the values of a row begin.
  uint8_t* values_of(int64_t row) const {
    return per_head == 1 ? block(row, 0) + pool->tokens * token_bytes() : block(row, 1);
  }
  uint8_t* block(int64_t row, int next) const {
    return pool->base + pool->block_bytes * pool->table[(int64_t)rows[row] * row_blocks + column + next];
  }
  int64_t token_bytes() const { return (int64_t)head_dim * KEPT_BYTES[pool->kept]; }
};

// Without scales; 127 of the seven lower bits is NaN (Micikevicius et al. 2022).
inline Floats from_float8(const uint8_t* p) {
  Ints bits = widened(p);
  Floats size = mul(as_floats(left32<20>(int_and(bits, int_all(0x7f)))), all(0x1p120f));
  Floats beyond = mul(size, all(7.5e35f));  // infinite above 448
  Floats sign = as_floats(int_or(left32<24>(int_and(bits, int_all(0x80))), int_all(0x3f800000)));
  return mul(sign, add(size, sub(beyond, beyond)));
}

inline uint8_t float8_of(float v) {
  if (v != v) return 0x7f;
  uint32_t bits;
  memcpy(&bits, &v, 4);
  const uint8_t sign = bits >> 24 & 0x80;
  const float size = fminf(fabsf(v), 448.f);
  if (size < 0x1p-6f) return sign | (uint8_t)nearbyintf(size * 512.f);  // subnormal, or the least normal
  memcpy(&bits, &size, 4);
  bits += 0x7ffff + ((bits >> 20) & 1);
  return sign | (uint8_t)((bits >> 20) - (120 << 3));
}

template <int KEPT> inline Floats kept16(const uint8_t* token, int d) {
  if constexpr (KEPT == KEPT_F32) return load((const float*)token + d);
  if constexpr (KEPT == KEPT_F16) return from_half((const uint16_t*)token + d);
  if constexpr (KEPT == KEPT_BF16) return as_floats(left32<16>(widened((const uint16_t*)token + d)));
  if constexpr (KEPT == KEPT_FLOAT8) return from_float8(token + d);
}

// Numbers d ... d + 15 of a token's K or V, zeros from head_dim on.
template <int KEPT, bool WHOLE> inline Floats head16(const uint8_t* token, int d, int head_dim) {
  if (WHOLE || d + LANES <= head_dim) return kept16<KEPT>(token, d);
  alignas(64) uint8_t part[64] = {};
  memcpy(part, token + (int64_t)d * KEPT_BYTES[KEPT], (int64_t)(head_dim - d) * KEPT_BYTES[KEPT]);
  return kept16<KEPT>(part, 0);
}

inline void keep(int kept, uint8_t* token, const float* v, int n) {
  if (kept == KEPT_F32) memcpy(token, v, 4 * n);
  if (kept == KEPT_F16) for (int i = 0; i < n; i++) ((uint16_t*)token)[i] = half_of(v[i]);
  if (kept == KEPT_BF16) for (int i = 0; i < n; i++) ((uint16_t*)token)[i] = bfloat_of(v[i]);
  if (kept == KEPT_FLOAT8) for (int i = 0; i < n; i++) token[i] = float8_of(v[i]);
}

constexpr float LOWEST = -1e30f;

// c tanh(s / c) of scores s, where there is a cap c (Gemma Team 2024). tanh(y) = 1 - 2 / (1 + exp(2 y)).
inline void cap(float* scores, int n, float softcap) {
  if (softcap == 0) return;
  const Floats most = all(softcap), twice = all(2 / softcap), one = all(1.f);
  for (int i = 0; i < n; i += LANES) {
    const Floats e = exponential(mul(load(scores + i), twice));
    store(scores + i, mul(most, sub(one, div(all(2.f), add(one, e)))));
  }
}

// Scores in place become weights of the running softmax; returns what earlier sums are to be multiplied by.
inline float weigh(float* scores, int n, float& top, float& total) {
  for (int i = n; i < (n + 15) / 16 * 16; i++) scores[i] = LOWEST;
  Floats most = all(LOWEST);
  for (int i = 0; i < n; i += LANES) most = larger(most, load(scores + i));
  const float now = fmaxf(top, largest(most));
  Floats weights = zeros(), at = all(now);
  for (int i = 0; i < n; i += LANES) {
    Floats e = exponential(sub(load(scores + i), at));
    store(scores + i, e);
    weights = add(weights, e);
  }
  const float factor = top <= LOWEST ? 0.f : expf(top - now);
  top = now, total = total * factor + sum(weights);
  return factor;
}

// ---- few queries: K and V go through registers once for all heads of a group ---------------------------

constexpr int PIECE = 256;               // tokens of context at a time
constexpr int HEADS = MUXD_WIDE ? 4 : 1;  // at a time

struct Partial { float top, total; };

template <int KEPT, int H, bool WHOLE>
inline void scores_of(const Blocks& in, int first, int stop, const float* q, int stride, float* scores) {
  const int T = in.pool->tokens, hd = in.head_dim;
  const int64_t step = in.token_bytes();
  for (int p = first; p < stop;) {
    const int end = std::min(stop, (p / T + 1) * T);
    const uint8_t* k = in.of(p / T) + p % T * step;
    for (; p + 4 <= end; p += 4, k += 4 * step) {
      Floats s[H][4];
      for (int h = 0; h < H; h++)
        for (int j = 0; j < 4; j++) s[h][j] = zeros();
      for (int d = 0; d < hd; d += LANES)
        for (int j = 0; j < 4; j++) {
          Floats x = head16<KEPT, WHOLE>(k + j * step, d, hd);
          for (int h = 0; h < H; h++) s[h][j] = fma(x, load(q + h * stride + d), s[h][j]);
        }
      for (int h = 0; h < H; h++)
        _mm_storeu_ps(scores + h * PIECE + p - first, sums(s[h][0], s[h][1], s[h][2], s[h][3]));
    }
    for (; p < end; p++, k += step)
      for (int h = 0; h < H; h++) {
        Floats s = zeros();
        for (int d = 0; d < hd; d += LANES) s = fma(head16<KEPT, WHOLE>(k, d, hd), load(q + h * stride + d), s);
        scores[h * PIECE + p - first] = sum(s);
      }
  }
}

template <int KEPT, int H, int V, bool WHOLE>
inline void values_of(const Blocks& in, int first, int stop, int d, const float* weights, const float* factor,
                      float* out, int stride) {
  const int T = in.pool->tokens, hd = in.head_dim;
  const int64_t step = in.token_bytes();
  Floats acc[H][V];
  for (int h = 0; h < H; h++)
    for (int i = 0; i < V; i++) acc[h][i] = mul(load(out + h * stride + d + 16 * i), all(factor[h]));
  for (int p = first; p < stop;) {
    const int end = std::min(stop, (p / T + 1) * T);
    const uint8_t* v = in.values_of(p / T) + p % T * step;
    for (; p < end; p++, v += step) {
      Floats x[V];
      for (int i = 0; i < V; i++) x[i] = head16<KEPT, WHOLE>(v, d + 16 * i, hd);
      for (int h = 0; h < H; h++) {
        Floats w = all(weights[h * PIECE + p - first]);
        for (int i = 0; i < V; i++) acc[h][i] = fma(w, x[i], acc[h][i]);
      }
    }
  }
  for (int h = 0; h < H; h++)
    for (int i = 0; i < V; i++) store(out + h * stride + d + 16 * i, acc[h][i]);
}

// H heads of one query, ``apart`` floats from each other, over positions [first, stop). ``out``: rows of
// ``stride``, to be divided by the totals.
template <int KEPT, int H, bool WHOLE>
inline void attend_heads(const Blocks& in, int first, int stop, const float* q, int apart, int stride, float* out,
                         Partial* state) {
  const int width = (in.head_dim + 15) / 16 * 16;
  alignas(64) float scores[H * PIECE];
  float factor[H];
  for (int h = 0; h < H; h++) {
    state[h] = {LOWEST, 0};
    for (int d = 0; d < width; d += LANES) store(out + h * stride + d, zeros());
  }
  for (int at = first; at < stop; at += PIECE) {
    const int end = std::min(stop, at + PIECE);
    scores_of<KEPT, H, WHOLE>(in, at, end, q, apart, scores);
    for (int h = 0; h < H; h++) cap(scores + h * PIECE, end - at, in.softcap);
    for (int h = 0; h < H; h++) factor[h] = weigh(scores + h * PIECE, end - at, state[h].top, state[h].total);
    int d = 0;
    for (; d + 64 <= width; d += 64) values_of<KEPT, H, 4, WHOLE>(in, at, end, d, scores, factor, out, stride);
    for (; d < width; d += 16) values_of<KEPT, H, 1, WHOLE>(in, at, end, d, scores, factor, out, stride);
  }
}

template <int KEPT, bool WHOLE>
inline void attend_group(const Blocks& in, int first, int stop, const float* q, int group, int apart, int stride,
                         float* out, Partial* state) {
  for (int h = 0; h < group;) {
    const int n = std::min(HEADS, group - h);
    const float* from = q + h * apart;
    float* to = out + h * stride;
    if (n == 1) attend_heads<KEPT, 1, WHOLE>(in, first, stop, from, apart, stride, to, state + h);
    if constexpr (HEADS > 1) {
      if (n == 2) attend_heads<KEPT, 2, WHOLE>(in, first, stop, from, apart, stride, to, state + h);
      if (n == 3) attend_heads<KEPT, 3, WHOLE>(in, first, stop, from, apart, stride, to, state + h);
      if (n == 4) attend_heads<KEPT, 4, WHOLE>(in, first, stop, from, apart, stride, to, state + h);
    }
    h += n;
  }
}

// ---- many queries: tiles ---------------------------------------------------------------------------------

constexpr int KEYS = 64;  // of a tile

// C [rows, 16 V] += A [rows, k] B [k, ...]; with P, A's and B's numbers are pairs of bfloat16.
template <bool P, int ROWS, int V>
inline void tile(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int k) {
  Floats acc[ROWS][V];
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < V; i++) acc[r][i] = load(c + r * ldc + 16 * i);
  for (int j = 0; j < k; j++) {
    if constexpr (P) {
      Ints x[V];
      for (int i = 0; i < V; i++) x[i] = int_load(b + (int64_t)j * ldb + 16 * i);
      for (int r = 0; r < ROWS; r++) {
        const Ints y = four(a + r * lda + j);
        for (int i = 0; i < V; i++) acc[r][i] = pairs(acc[r][i], x[i], y);
      }
    } else {
      Floats x[V];
      for (int i = 0; i < V; i++) x[i] = load(b + (int64_t)j * ldb + 16 * i);
      for (int r = 0; r < ROWS; r++) {
        const Floats y = all(a[r * lda + j]);
        for (int i = 0; i < V; i++) acc[r][i] = fma(y, x[i], acc[r][i]);
      }
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < V; i++) store(c + r * ldc + 16 * i, acc[r][i]);
}

template <bool P, int V>
inline void tile_rows(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int k) {
  constexpr int MANY = MUXD_WIDE ? 6 : 2;
  int r = 0;
  for (; r + MANY <= rows; r += MANY) tile<P, MANY, V>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, k);
  for (; r < rows; r++) tile<P, 1, V>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, k);
}

template <bool P>
inline void multiply(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int k, int n) {
  constexpr int V = MUXD_WIDE ? 4 : 2;
  int i = 0;
  for (; i + 16 * V <= n; i += 16 * V) tile_rows<P, V>(a, lda, b + i, ldb, c + i, ldc, rows, k);
  for (; i < n; i += 16) tile_rows<P, 1>(a, lda, b + i, ldb, c + i, ldc, rows, k);
}

// Keys of a tile as [width, KEYS], values as [KEYS, width]; ``count`` tokens from ``first`` on, then zeros.
template <int KEPT>
inline void load_tile(const Blocks& in, int first, int count, int width, float* keys, float* values) {
  const int T = in.pool->tokens, hd = in.head_dim;
  alignas(64) float turned[LANES];
  for (int j = 0; j < KEYS; j++) {
    const int p = first + j;
    const int64_t slot = p % T * in.token_bytes();
    const uint8_t* k = j < count ? in.of(p / T) + slot : nullptr;
    const uint8_t* v = j < count ? in.values_of(p / T) + slot : nullptr;
    for (int d = 0; d < width; d += LANES) {
      store(turned, k ? head16<KEPT, false>(k, d, hd) : zeros());
      for (int i = 0; i < LANES; i++) keys[(d + i) * KEYS + j] = turned[i];
      store(values + j * width + d, v ? head16<KEPT, false>(v, d, hd) : zeros());
    }
  }
}

// The same in pairs: keys [head_dim / 2, KEYS], each of two numbers of a token; values [KEYS / 2, head_dim],
// each of two tokens.
inline void load_pairs(const Blocks& in, int first, int count, float* keys, float* values) {
  const int T = in.pool->tokens, hd = in.head_dim;
  const Ints nothing = int_zeros();
  for (int j = 0; j < KEYS; j += 2) {
    const uint8_t *token[2], *value[2];
    for (int i = 0; i < 2; i++) {
      const int p = first + j + i;
      const int64_t slot = p % T * in.token_bytes();
      token[i] = j + i < count ? in.of(p / T) + slot : nullptr;
      value[i] = token[i] ? in.values_of(p / T) + slot : nullptr;
      for (int d = 0; d < hd / 2; d++) {
        if (token[i]) memcpy(keys + d * KEYS + j + i, token[i] + 4 * d, 4);
        else keys[d * KEYS + j + i] = 0;
      }
    }
    auto part = [&](int i, int d) { return value[i] ? widened((const uint16_t*)value[i] + d) : nothing; };
    for (int d = 0; d < hd; d += LANES) {
      const Ints both = int_or(part(0, d), left32<16>(part(1, d)));
      memcpy((void*)(values + j / 2 * hd + d), &both, sizeof both);
    }
  }
}

// Floats of scratch for a tile of ``rows`` (query, head) pairs, of which tile registers take sixteen together.
inline int64_t tile_floats(int rows, int width) {
  rows = (rows + TILE - 1) / TILE * TILE;
  return (int64_t)rows * (2 * width + KEYS + 3) + 2 * (int64_t)KEYS * width;
}

// ``n`` queries at positions [at, at + n), all heads of a group: rows of q and out are so many floats apart,
// heads side by side in them.
template <int KEPT, bool P>
inline void attend_tile(const Blocks& in, int at, int n, int window, const float* q, int group, int64_t q_apart,
                        float* out, int64_t out_apart, float* scratch) {
  const int hd = in.head_dim, width = (hd + 15) / 16 * 16, rows = n * group, room = (rows + TILE - 1) / TILE * TILE;
  float *queries = scratch, *sums = queries + room * width, *scores = sums + room * width;
  float *keys = scores + room * KEYS, *values = keys + KEYS * width;
  float *top = values + KEYS * width, *total = top + rows, *factor = total + rows;
  for (int r = 0; r < rows; r++) {
    float* row = queries + r * width;
    memcpy(row, q + r / group * q_apart + r % group * hd, 4 * hd);
    for (int d = hd; d < width; d++) row[d] = 0;
    if (P) round_pairs(row, (uint16_t*)row, width);
    for (int d = 0; d < width; d++) sums[r * width + d] = 0;
    top[r] = LOWEST, total[r] = 0;
  }
  // Scores and values by tile registers where there are some: whole tiles, behind the last row and key as well.
  auto times = [&](const float* a, int lda, const float* b, float* c, int ldc, int k, int whole) {
    if (!P || !tiles()) return multiply<P>(a, lda, b, ldc, c, ldc, rows, k, ldc);
    const TileRegisters registers;
    tiled_pairs(a, lda, b, ldc, c, ldc, room, whole, ldc);
  };
  const int stop = at + n, low = window > 0 ? std::max(0, at + 1 - window) : 0;
  // From ``low`` on and not from a tile's edge: what lies before may be gone, and another model's by now.
  for (int first = low; first < stop; first += KEYS) {
    const int count = std::min(KEYS, stop - first);
    if constexpr (P) load_pairs(in, first, count, keys, values);
    else load_tile<KEPT>(in, first, count, width, keys, values);
    memset(scores, 0, sizeof(float) * rows * KEYS);
    times(queries, width, keys, scores, KEYS, P ? hd / 2 : hd, hd / 2);
    for (int r = 0; r < rows; r++) {
      const int p = at + r / group;
      float* line = scores + r * KEYS;
      cap(line, KEYS, in.softcap);
      const int hidden = window > 0 ? std::clamp(p + 1 - window - first, 0, KEYS) : 0;
      const int seen = std::clamp(p + 1 - first, hidden, KEYS);
      for (int j = 0; j < hidden; j++) line[j] = LOWEST;
      for (int j = seen; j < KEYS; j++) line[j] = LOWEST;
      if (seen == hidden) {
        memset(line, 0, sizeof(float) * KEYS), factor[r] = 1;
        continue;
      }
      factor[r] = weigh(line, KEYS, top[r], total[r]);
      for (int d = 0; d < width && factor[r] != 1; d += LANES)
        store(sums + r * width + d, mul(load(sums + r * width + d), all(factor[r])));
      if (P) round_pairs(line, (uint16_t*)line, KEYS);
    }
    times(scores, KEYS, values, sums, width, P ? (count + 1) / 2 : count, KEYS / 2);
  }
  for (int r = 0; r < rows; r++) {
    const float inverse = 1 / (total[r] + in.sunk(r % group, top[r]));
    float* to = out + r / group * out_apart + r % group * hd;
    for (int d = 0; d < hd; d++) to[d] = sums[r * width + d] * inverse;
  }
}
