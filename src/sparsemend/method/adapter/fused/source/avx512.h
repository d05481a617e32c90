// Vectors of 16 floats: AVX-512 F, BW, VL, DQ.

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))

namespace avx512 {

constexpr int LANES = 16;
constexpr int ROWS = 6;  // 24 registers of sums, 4 of A, one of B
constexpr int VECTORS = 4;
using Vector = __m512;
using Mask = __mmask16;

TARGET INLINE Vector zero() { return _mm512_setzero_ps(); }
TARGET INLINE Vector spread(float value) { return _mm512_set1_ps(value); }
TARGET INLINE Vector add(Mask mask, Vector left, Vector right) {
  return _mm512_maskz_add_ps(mask, left, right);
}
TARGET INLINE Vector take(Mask mask, Vector value) { return _mm512_maskz_mov_ps(mask, value); }
TARGET INLINE Vector add_product(Vector left, Vector right, Vector sum) {
  return _mm512_fmadd_ps(left, right, sum);
}

TARGET INLINE Vector load(const float* values) { return _mm512_loadu_ps(values); }

TARGET INLINE Vector load(const Bfloat* values) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

TARGET INLINE Vector load(const Half* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

TARGET INLINE void store(float* output, Vector value) { _mm512_storeu_ps(output, value); }

TARGET INLINE void store_all(float* output, const Vector (&values)[VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) store(output + v * LANES, values[v]);
}

TARGET INLINE void store_all(Half* output, const Vector (&values)[VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v)
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(output + v * LANES),
        _mm512_cvtps_ph(values[v], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// To nearest, ties to even, in the upper halves.
TARGET INLINE __m512i narrow(Vector value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i more = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_sub_epi32(more, odd, more, _mm512_set1_epi32(-1));
}

// The same where rounding would carry a NaN into another number: its upper half, and quiet.
TARGET INLINE __m512i narrow_broken(Vector value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __mmask16 broken = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(narrow(value), broken, bits, _mm512_set1_epi32(0x400000));
}

TARGET INLINE void store_all(Bfloat* output, const Vector (&values)[VECTORS]) {
  alignas(64) static constexpr uint16_t UPPER[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                     23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                     45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(UPPER);
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; v += 2) {
    __m512i low = narrow(values[v]), high = narrow(values[v + 1]);
    if (__builtin_expect(_mm512_cmp_ps_mask(values[v], values[v + 1], _CMP_UNORD_Q), 0)) {
      low = narrow_broken(values[v]);
      high = narrow_broken(values[v + 1]);
    }
    _mm512_storeu_si512(output + v * LANES, _mm512_permutex2var_epi16(low, upper, high));
  }
}

TARGET INLINE Mask mask_of(const uint8_t* bits) {
  uint16_t word;
  std::memcpy(&word, bits, sizeof word);
  return word;
}

TARGET INLINE Mask nonzero(Vector value) {
  return _mm512_cmp_ps_mask(value, zero(), _CMP_NEQ_UQ);
}

#include "tile.h"

}  // namespace avx512

#undef TARGET
