// The kernel for AVX2 and FMA: 8 values are loaded and sent to their lanes by a table of the 256
// masks of 8 bits.  bf16 values stay words until all 32 have their places.

#define TARGET __attribute__((target("avx2,fma,popcnt")))

namespace avx2 {

constexpr int TOKENS = 2;  // 4 rows x 2 tokens and 4 vectors of weights: all 16 registers
constexpr int PAIRED = 1;

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

// The same for words, as pairs of bytes.
struct WordPlaces {
  uint8_t of[256][16];

  constexpr WordPlaces() : of() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane) {
        const bool taken = mask >> lane & 1;
        of[mask][2 * lane] = uint8_t(taken ? 2 * next : 0x80);
        of[mask][2 * lane + 1] = uint8_t(taken ? 2 * next + 1 : 0x80);
        next += taken;
      }
  }
};

constexpr WordPlaces WORD_PLACES;

TARGET INLINE __m256 load(const float* values) { return _mm256_loadu_ps(values); }

TARGET INLINE __m256 load(const int8_t* values) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

struct Tile {
  __m256 part[4];
};

// Sums of floats: what all kinds share.
struct Sums {
  using Input = float;
  using Weights = Tile;
  using Sum = __m256;
  static constexpr bool PREFETCHED = true;

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
};

template <class T>
struct Numbers : Sums {
  using Value = T;
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

struct Words {
  __m256i low, high;  // columns 0 to 15, and 16 to 31
};

TARGET INLINE Words load_words(const uint16_t* values) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 16))};
}

TARGET INLINE Words spread_words(uint32_t mask, const uint16_t*& values) {
  __m128i part[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = mask >> 8 * i & 0xff;
    const auto places = reinterpret_cast<const __m128i*>(WORD_PLACES.of[bits]);
    part[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)),
                               _mm_loadu_si128(places));
    values += __builtin_popcount(bits);
  }
  return {_mm256_set_m128i(part[1], part[0]), _mm256_set_m128i(part[3], part[2])};
}

// Float inputs whose even columns come first in a tile: a bf16 is a float's upper half.
struct Bfloat : Sums {
  using Value = uint16_t;
  static constexpr Order ORDER = EVENS_FIRST;

  TARGET static INLINE __m256 evens(__m256i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }

  TARGET static INLINE __m256 odds(__m256i words) {
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000))));
  }

  TARGET static INLINE Weights floats(const Words& words) {
    return {{evens(words.low), evens(words.high), odds(words.low), odds(words.high)}};
  }

  TARGET static INLINE Weights read(const Value* values) { return floats(load_words(values)); }

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    return floats(spread_words(mask, values));
  }
};

// What an expansion writes.
struct BfloatPairs {
  using Value = uint16_t;
  using Weights = Words;

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    return spread_words(mask, values);
  }

  TARGET static INLINE void widen_half(__m256i words, float* output) {
    const __m128i half[2] = {_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)};
    for (int i = 0; i < 2; ++i) {
      const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(half[i]), 16);
      _mm256_storeu_ps(output + 8 * i, _mm256_castsi256_ps(wide));
    }
  }

  TARGET static INLINE void write(const Weights& weights, float* output) {
    widen_half(weights.low, output);
    widen_half(weights.high, output + 16);
  }

  TARGET static INLINE void write(const Weights& weights, uint16_t* output) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output), weights.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + 16), weights.high);
  }
};

using Float = Numbers<float>;
using Byte = Numbers<int8_t>;

#include "rows.h"

}  // namespace avx2

#undef TARGET
