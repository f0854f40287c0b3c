// Products of bfloat16 by AMX: a tile of sixteen tokens' activations times one of a row block's columns, as both
// lie in memory. A row block of bfloat16 is what the instruction wants of its second operand: pairs of columns,
// sixteen rows each. (Intel SDM, TDPBF16PS.)
#pragma once
#include "simd.h"

#if MUXD_WIDE && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include <sys/syscall.h>
#include <unistd.h>

constexpr int TILE = 16, TILES = 4;  // tokens of a tile; tiles of tokens for which a row block is read once

// Linux gives a process the registers when it asks, and not where it may not have them.
inline bool tiles() {
  static const bool given = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return given;
}

// Sixteen rows of 64 bytes in every register. Constant: gcc 12 drops stores into what only this instruction reads.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
alignas(64) constexpr TileShapes SHAPES;

// A thread's tile registers while it multiplies.
class TileRegisters {
 public:
  TileRegisters() { _tile_loadconfig(&SHAPES); }
  TileRegisters(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }
};

// Registers are named by constants: 0 to 3 sum, 4 has columns of the row block, 5 to 7 those of tokens.
#define MUXD_TILE(sum, tokens)                                        \
  if constexpr (COUNT > sum) {                                        \
    _tile_loadd(tokens, a + sum * TILE * stride + i, 2 * stride);     \
    _tile_dpbf16ps(sum, tokens, 4);                                   \
  }

template <int COUNT>
inline void tile_block(const uint8_t* block, int64_t k, const uint16_t* a, int64_t stride, Floats* out) {
  __asm__ volatile("" ::: "memory");  // the compiler does not know that loads of tiles read
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < k; i += 32) {
    _tile_loadd(4, block + 32 * i, 64);
    MUXD_TILE(0, 5)
    MUXD_TILE(1, 6)
    MUXD_TILE(2, 7)
    MUXD_TILE(3, 5)
  }
  _tile_stored(0, out, 64);
  if constexpr (COUNT > 1) { _tile_stored(1, out + TILE, 64); }
  if constexpr (COUNT > 2) { _tile_stored(2, out + 2 * TILE, 64); }
  if constexpr (COUNT > 3) { _tile_stored(3, out + 3 * TILE, 64); }
}
#undef MUXD_TILE

// A row block of ``k`` columns times ``n`` tokens, whose activations lie ``stride`` numbers apart. ``out`` and the
// activations have room for whole tiles: what is behind the last token is of no use and does no harm.
inline void tiled(const uint8_t* block, int64_t k, const uint16_t* a, int64_t stride, int n, Floats* out) {
  switch ((n + TILE - 1) / TILE) {
    case 1: return tile_block<1>(block, k, a, stride, out);
    case 2: return tile_block<2>(block, k, a, stride, out);
    case 3: return tile_block<3>(block, k, a, stride, out);
    default: return tile_block<TILES>(block, k, a, stride, out);
  }
}

// Sixteen rows times ROWS and thirty-two columns of what ``tiled_pairs`` says.
template <int ROWS>
inline void pair_block(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int k) {
  __asm__ volatile("" ::: "memory");
  _tile_loadd(0, c, 4 * ldc);
  _tile_loadd(1, c + TILE, 4 * ldc);
  if constexpr (ROWS > 1) {
    _tile_loadd(2, c + TILE * ldc, 4 * ldc);
    _tile_loadd(3, c + TILE * ldc + TILE, 4 * ldc);
  }
  for (int i = 0; i < k; i += TILE) {
    _tile_loadd(4, b + (int64_t)i * ldb, 4 * ldb);
    _tile_loadd(5, b + (int64_t)i * ldb + TILE, 4 * ldb);
    _tile_loadd(6, a + i, 4 * lda);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    if constexpr (ROWS > 1) {
      _tile_loadd(7, a + TILE * lda + i, 4 * lda);
      _tile_dpbf16ps(2, 7, 4);
      _tile_dpbf16ps(3, 7, 5);
    }
  }
  _tile_stored(0, c, 4 * ldc);
  _tile_stored(1, c + TILE, 4 * ldc);
  if constexpr (ROWS > 1) {
    _tile_stored(2, c + TILE * ldc, 4 * ldc);
    _tile_stored(3, c + TILE * ldc + TILE, 4 * ldc);
  }
  __asm__ volatile("" ::: "memory");
}

// C [rows, n] += A [rows, k] B [k, n], A's and B's numbers pairs of bfloat16. ``rows`` and ``k`` are whole tiles,
// ``n`` two of them.
inline void tiled_pairs(const float* a, int lda, const float* b, int ldb, float* c, int ldc, int rows, int k, int n) {
  for (int j = 0; j < n; j += 2 * TILE) {
    int r = 0;
    for (; r + 2 * TILE <= rows; r += 2 * TILE)
      pair_block<2>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, k);
    if (r < rows) pair_block<1>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, k);
  }
}

// Numbers of sixteen rows' columns 4 i ... 4 i + 3, as floats, to two lines of pairs.
inline void pair_up(const Floats* columns, uint16_t* to) {
  alignas(64) static constexpr uint16_t TURNS[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i turns = _mm512_load_si512(TURNS);
  for (int i = 0; i < 2; i++) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(columns[2 * i + 1], columns[2 * i]);
    _mm512_store_si512(to + 32 * i, _mm512_permutexvar_epi16(turns, both));
  }
}
#else
constexpr int TILE = 16;
inline bool tiles() { return false; }
struct TileRegisters {};
inline void tiled(const uint8_t*, int64_t, const uint16_t*, int64_t, int, Floats*) {}
inline void tiled_pairs(const float*, int, const float*, int, float*, int, int, int, int) {}
inline void pair_up(const Floats*, uint16_t*) {}
#endif
