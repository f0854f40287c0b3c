// Sixteen lanes, whatever the CPU has for them: one register with AVX-512, two with AVX2 (the least).
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

constexpr int LANES = 16;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MUXD_WIDE 1
using Floats = __m512;
using Ints = __m512i;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float v) { return _mm512_set1_ps(v); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// Where one of the two is NaN: the second, as the CPU's instructions have it.
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats magnitude(Floats a) { return _mm512_abs_ps(a); }
inline float sum(Floats a) { return _mm512_reduce_add_ps(a); }
inline float largest(Floats a) { return _mm512_reduce_max_ps(a); }
inline bool has_nan(Floats a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
inline unsigned above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Ints nearest(Floats a) { return _mm512_cvtps_epi32(a); }
inline Floats floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats as_floats(Ints a) { return _mm512_castsi512_ps(a); }

inline Ints int_zeros() { return _mm512_setzero_si512(); }
inline Ints int_all(int32_t v) { return _mm512_set1_epi32(v); }
inline Ints byte_all(int8_t v) { return _mm512_set1_epi8(v); }
inline Ints int_load(const void* p) { return _mm512_loadu_si512(p); }
inline Ints int_add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints int_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints int_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int N> inline Ints left32(Ints a) { return _mm512_slli_epi32(a, N); }
template <int N> inline Ints right32(Ints a) { return _mm512_srli_epi32(a, N); }
template <int N> inline Ints left16(Ints a) { return _mm512_slli_epi16(a, N); }
template <int N> inline Ints right16(Ints a) { return _mm512_srli_epi16(a, N); }
// Each byte below 16 becomes the one at that place of ``table``.
inline Ints looked_up(const uint8_t* table, Ints at) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)table)), at);
}
inline int32_t int_sum(Ints a) { return _mm512_reduce_add_epi32(a); }
// The lower bytes of sixteen numbers that fit.
inline void store_bytes(int8_t* p, Ints v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v)); }

inline Floats from_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline Ints widened(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
inline Ints widened(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline Ints widened(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }

// Lane i of acc gets sum of four unsigned bytes of ``w`` times four signed ones of ``a``; exact.
inline Ints dot(Ints acc, Ints w, Ints a) {
#ifdef __AVX512VNNI__
  return _mm512_dpbusd_epi32(acc, w, a);
#else
  const Ints even = _mm512_set1_epi16(0xff);
  Ints low = _mm512_madd_epi16(_mm512_and_si512(w, even), _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8));
  Ints high = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(a, 8));
  return _mm512_add_epi32(acc, _mm512_add_epi32(low, high));
#endif
}

inline __m128 quarters(Floats a) {
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define MUXD_WIDE 0
struct Floats { __m256 a, b; };
struct Ints { __m256i a, b; };

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats all(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
// Where one of the two is NaN: the second.
inline Floats larger(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Floats smaller(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Floats magnitude(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline __m128 quarters(Floats x) {
  __m256 half = _mm256_add_ps(x.a, x.b);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float sum(Floats x) {
  __m128 four = quarters(x);
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float largest(Floats x) {
  __m256 half = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline bool has_nan(Floats x) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)) |
         _mm256_movemask_ps(_mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
}
inline unsigned above(Floats x, Floats y) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)) |
         _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)) << 8;
}
inline Ints nearest(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline Floats floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

inline Ints int_zeros() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints int_all(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
inline Ints byte_all(int8_t v) { return {_mm256_set1_epi8(v), _mm256_set1_epi8(v)}; }
inline Ints int_load(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
inline Ints int_add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Ints int_and(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline Ints int_or(Ints x, Ints y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int N> inline Ints left32(Ints x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N> inline Ints right32(Ints x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
template <int N> inline Ints left16(Ints x) { return {_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N)}; }
template <int N> inline Ints right16(Ints x) { return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)}; }
inline Ints looked_up(const uint8_t* table, Ints at) {
  const __m256i both = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(both, at.a), _mm256_shuffle_epi8(both, at.b)};
}
inline int32_t int_sum(Ints x) {
  __m256i half = _mm256_add_epi32(x.a, x.b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline void store_bytes(int8_t* p, Ints v) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8);
  _mm_storeu_si128((__m128i*)p,
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline Floats from_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
inline Ints widened(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + 1))};
}
inline Ints widened(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
inline Ints widened(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}

inline __m256i dot8(__m256i acc, __m256i w, __m256i a) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(acc, w, a);
#else
  const __m256i even = _mm256_set1_epi16(0xff);
  __m256i low = _mm256_madd_epi16(_mm256_and_si256(w, even), _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
  __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(low, high));
#endif
}
// Lane i of acc gets sum of four unsigned bytes of ``w`` times four signed ones of ``a``; exact.
inline Ints dot(Ints acc, Ints w, Ints a) { return {dot8(acc.a, w.a, a.a), dot8(acc.b, w.b, a.b)}; }
#else
#error "the native step needs AVX2, FMA and F16C"
#endif

// The sums of four registers at once.
inline __m128 sums(Floats a, Floats b, Floats c, Floats d) {
  __m128 w = quarters(a), x = quarters(b), y = quarters(c), z = quarters(d);
  _MM_TRANSPOSE4_PS(w, x, y, z);
  return _mm_add_ps(_mm_add_ps(w, x), _mm_add_ps(y, z));
}

// Four bytes, in every lane.
inline Ints four(const void* p) {
  int32_t v;
  memcpy(&v, p, 4);
  return int_all(v);
}

// Whether products of numbers that are bfloat16, or are rounded to it as torch's are, go by pairs.
#if MUXD_WIDE && defined(__AVX512BF16__)
constexpr bool PAIRS = true;
inline Floats pairs(Floats acc, Ints w, Ints a) { return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)a); }
// ``n``: a multiple of 32; ``to`` may be where ``from`` is.
inline void round_pairs(const float* from, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 2 * LANES) {
    const Floats low = load(from + i), high = load(from + i + LANES);
    _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}
#else
constexpr bool PAIRS = false;
inline Floats pairs(Floats acc, Ints, Ints) { return acc; }
inline void round_pairs(const float*, uint16_t*, int64_t) {}
#endif

// e^x to two units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf). NaN stays
// NaN, or what the pool could not hold would look like a number.
inline Floats exponential(Floats x) {
  x = smaller(all(88.f), larger(all(-87.33f), x));
  Ints n = nearest(mul(x, all(1.44269504f)));
  Floats whole = floats(n);
  Floats r = fma(whole, all(-0.693359375f), x);
  r = fma(whole, all(2.12194440e-4f), r);
  Floats p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, all(1.f)));
  return mul(p, as_floats(left32<23>(int_add(n, int_all(127)))));
}

inline Floats sigmoid(Floats x) { return div(all(1.f), add(all(1.f), exponential(sub(zeros(), x)))); }

// The first ``n`` numbers of a register, zeros behind them.
inline Floats load_some(const float* p, int n) {
  if (n == LANES) return load(p);
  alignas(64) float part[LANES] = {};
  memcpy(part, p, sizeof(float) * n);
  return load(part);
}
inline void store_some(float* p, Floats v, int n) {
  if (n == LANES) return store(p, v);
  alignas(64) float part[LANES];
  store(part, v);
  memcpy(p, part, sizeof(float) * n);
}

// ---- numbers in memory that are no float32 -------------------------------------------------------

inline float half_float(uint16_t v) { return _cvtsh_ss(v); }
inline uint16_t half_of(float v) { return _cvtss_sh(v, 0); }
inline float bfloat_float(uint16_t v) {
  uint32_t bits = (uint32_t)v << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t bfloat_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;  // a NaN stays one
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
