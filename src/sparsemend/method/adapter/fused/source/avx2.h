// Vectors of 8 floats: AVX2, FMA and F16C.

#define TARGET __attribute__((target("avx2,fma,f16c")))

namespace avx2 {

constexpr int LANES = 8;
constexpr int ROWS = 4;  // 12 registers of sums, 3 of A, one of B
constexpr int VECTORS = 3;
using Vector = __m256;
using Mask = __m256;  // all bits of a lane, or none

TARGET INLINE Vector zero() { return _mm256_setzero_ps(); }
TARGET INLINE Vector spread(float value) { return _mm256_set1_ps(value); }
TARGET INLINE Vector take(Mask mask, Vector value) { return _mm256_and_ps(value, mask); }
TARGET INLINE Vector add(Mask mask, Vector left, Vector right) {
  return take(mask, _mm256_add_ps(left, right));
}
TARGET INLINE Vector add_product(Vector left, Vector right, Vector sum) {
  return _mm256_fmadd_ps(left, right, sum);
}

TARGET INLINE Vector load(const float* values) { return _mm256_loadu_ps(values); }

TARGET INLINE Vector load(const Bfloat* values) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

TARGET INLINE Vector load(const Half* values) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

TARGET INLINE void store(float* output, Vector value) { _mm256_storeu_ps(output, value); }

// To nearest, ties to even; a NaN stays one.
TARGET INLINE void store(Bfloat* output, Vector value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i more = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 broken = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  const __m256i narrow = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_add_epi32(bits, more)),
                       _mm256_castsi256_ps(quiet), broken));
  const __m256i words = _mm256_srli_epi32(narrow, 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(output),
                   _mm_packus_epi32(_mm256_castsi256_si128(words),
                                    _mm256_extracti128_si256(words, 1)));
}

TARGET INLINE void store(Half* output, Vector value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(output),
                   _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <class Out>
TARGET INLINE void store_all(Out* output, const Vector (&values)[VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) store(output + v * LANES, values[v]);
}

TARGET INLINE Mask mask_of(const uint8_t* bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i held = _mm256_and_si256(_mm256_set1_epi32(*bits), lane);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(held, lane));
}

TARGET INLINE Mask nonzero(Vector value) { return _mm256_cmp_ps(value, zero(), _CMP_NEQ_UQ); }

#include "tile.h"

}  // namespace avx2

#undef TARGET
