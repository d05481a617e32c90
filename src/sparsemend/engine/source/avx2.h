// The kernel for AVX2 and FMA: 8 values are loaded and sent to their lanes by a table of the 256
// masks of 8 bits.

#define TARGET __attribute__((target("avx2,fma,popcnt")))

namespace avx2 {

constexpr int TOKENS = 2;  // 4 rows x 2 tokens and 4 vectors of weights: all 16 registers

// For every mask the value that a lane takes; a lane without one has its highest bit set.
struct Places {
  uint8_t of[256][8];

  constexpr Places() : of() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane)
        of[mask][lane] = uint8_t(mask >> lane & 1 ? next++ : 0x80);
  }
};

constexpr Places PLACES;

TARGET INLINE __m256 load(const float* values) { return _mm256_loadu_ps(values); }

TARGET INLINE __m256 load(const uint16_t* values) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}

TARGET INLINE __m256 load(const int8_t* values) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

struct Tile {
  __m256 part[4];
};

template <class T>
struct Numbers {
  using Value = T;
  using Input = float;
  using Weights = Tile;
  using Sum = __m256;
  static constexpr Order ORDER = PLAIN;

  TARGET static INLINE Weights read(const Value* values) {
    return {{load(values), load(values + 8), load(values + 16), load(values + 24)}};
  }

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    Tile tile;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = mask >> 8 * i & 0xff;
      const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(PLACES.of[bits]));
      const __m256i places = _mm256_cvtepi8_epi32(row);
      const __m256 spread = _mm256_permutevar8x32_ps(load(values), places);
      tile.part[i] = _mm256_blendv_ps(spread, _mm256_setzero_ps(), _mm256_castsi256_ps(places));
      values += __builtin_popcount(bits);
    }
    return tile;
  }

  TARGET static INLINE Sum zero() { return _mm256_setzero_ps(); }

  TARGET static INLINE void add(Sum& sum, const Weights& weights, const Input* x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      sum = _mm256_fmadd_ps(weights.part[i], _mm256_loadu_ps(x + 8 * i), sum);
  }

  TARGET static INLINE float total(Sum sum) {
    float lanes[8];
    _mm256_storeu_ps(lanes, sum);
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
  }

  TARGET static INLINE void write(const Weights& weights, float* output) {
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(output + 8 * i, weights.part[i]);
  }

  TARGET static INLINE void write(const Weights& weights, uint16_t* output) {  // of exact values
    for (int i = 0; i < 4; i += 2) {
      const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(weights.part[i]), 16);
      const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(weights.part[i + 1]), 16);
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + 8 * i), words);
    }
  }
};

using Float = Numbers<float>;
using Bfloat = Numbers<uint16_t>;
using Byte = Numbers<int8_t>;
using BfloatPairs = Bfloat;

#include "rows.h"

}  // namespace avx2

#undef TARGET
