// The kernel for AVX-512 with VBMI2 (Ice Lake, Zen 4 and later): one instruction spreads the next
// values over the lanes of a mask.  Pairs of bf16 also need AVX512_BF16 (Cooper Lake, Zen 4).
//
// The instruction stands in assembler, on a register that was loaded before: as compiled from its
// intrinsic it waits on Zen 4 for the register's former content, or reads memory, which is slower.

#define TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,avx2,fma,popcnt")))

namespace avx512 {

constexpr int TOKENS = 4;
constexpr int PAIRED = 2;

TARGET INLINE __m512i spread_dwords(uint32_t mask, const void* values) {
  __m512i vector = _mm512_loadu_si512(values);
  asm("vpexpandd %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(__mmask16(mask)));
  return vector;
}

TARGET INLINE __m512i spread_words(uint32_t mask, const void* values) {
  __m512i vector = _mm512_loadu_si512(values);
  asm("vpexpandw %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(__mmask32(mask)));
  return vector;
}

TARGET INLINE __m256i spread_bytes(uint32_t mask, const void* values) {
  __m256i vector = _mm256_loadu_si256(static_cast<const __m256i*>(values));
  asm("vpexpandb %0, %0%{%1%}%{z%}" : "+v"(vector) : "Yk"(__mmask32(mask)));
  return vector;
}

TARGET INLINE __m512 widen_words(__m256i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

struct Tile {
  __m512 low, high;
};

// Sums of floats: what all kinds but pairs of bf16 share.
struct Sums {
  using Input = float;
  using Weights = Tile;
  using Sum = __m512;
  static constexpr bool PREFETCHED = true;

  TARGET static INLINE Sum zero() { return _mm512_setzero_ps(); }

  TARGET static INLINE void add(Sum& sum, const Weights& weights, const Input* x) {
    sum = _mm512_fmadd_ps(weights.low, _mm512_loadu_ps(x), sum);
    sum = _mm512_fmadd_ps(weights.high, _mm512_loadu_ps(x + 16), sum);
  }

  TARGET static INLINE float total(Sum sum) { return _mm512_reduce_add_ps(sum); }

  TARGET static INLINE void write(const Weights& weights, float* output) {
    _mm512_storeu_ps(output, weights.low);
    _mm512_storeu_ps(output + 16, weights.high);
  }

  TARGET static INLINE void write(const Weights& weights, uint16_t* output) {  // of exact values
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(weights.low), 16);
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(weights.high), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output), _mm512_cvtepi32_epi16(low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + 16), _mm512_cvtepi32_epi16(high));
  }
};

struct Float : Sums {
  using Value = float;
  static constexpr Order ORDER = PLAIN;

  TARGET static INLINE Weights read(const Value* values) {
    return {_mm512_loadu_ps(values), _mm512_loadu_ps(values + 16)};
  }

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    const __m512 low = _mm512_castsi512_ps(spread_dwords(mask & 0xffff, values));
    values += __builtin_popcount(mask & 0xffff);
    const __m512 high = _mm512_castsi512_ps(spread_dwords(mask >> 16, values));
    values += __builtin_popcount(mask >> 16);
    return {low, high};
  }
};

struct Byte : Sums {
  using Value = int8_t;
  static constexpr Order ORDER = PLAIN;

  TARGET static INLINE Weights floats(__m256i bytes) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes))),
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)))};
  }

  TARGET static INLINE Weights read(const Value* values) {
    return floats(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  }

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    const __m256i bytes = spread_bytes(mask, values);
    values += __builtin_popcount(mask);
    return floats(bytes);
  }
};

// bf16 weights, float inputs whose even columns come first in a tile: a bf16 is a float's upper half.
struct Bfloat : Sums {
  using Value = uint16_t;
  static constexpr Order ORDER = EVENS_FIRST;

  TARGET static INLINE Weights floats(__m512i words) {
    const __m512i odd = _mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(odd)};
  }

  TARGET static INLINE Weights read(const Value* values) {
    return floats(_mm512_loadu_si512(values));
  }

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    const __m512i words = spread_words(mask, values);
    values += __builtin_popcount(mask);
    return floats(words);
  }
};

// bf16 weights and inputs, multiplied in pairs; the products are exact, the sums are floats.
struct BfloatPairs {
  using Value = uint16_t;
  using Input = uint16_t;
  using Weights = __m512i;
  using Sum = __m512;
  static constexpr Order ORDER = AS_BFLOAT;
  static constexpr bool PREFETCHED = false;  // Zen 4 reads a dense matrix slower so: 2.0 ms, not 1.6

  TARGET static INLINE Weights read(const Value* values) { return _mm512_loadu_si512(values); }

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    const __m512i words = spread_words(mask, values);
    values += __builtin_popcount(mask);
    return words;
  }

  TARGET static INLINE Sum zero() { return _mm512_setzero_ps(); }

  TARGET static INLINE void add(Sum& sum, const Weights& weights, const Input* x) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(x));
  }

  TARGET static INLINE float total(Sum sum) { return _mm512_reduce_add_ps(sum); }

  TARGET static INLINE void write(const Weights& weights, float* output) {
    _mm512_storeu_ps(output, widen_words(_mm512_castsi512_si256(weights)));
    _mm512_storeu_ps(output + 16, widen_words(_mm512_extracti64x4_epi64(weights, 1)));
  }

  TARGET static INLINE void write(const Weights& weights, uint16_t* output) {
    _mm512_storeu_si512(output, weights);
  }
};

// int8 codes as bf16, which has them exactly, for inputs in pairs.
struct BytePairs : BfloatPairs {
  using Value = int8_t;

  TARGET static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    const Tile tile = Byte::read_packed(mask, values);
    return (__m512i)_mm512_cvtne2ps_pbh(tile.high, tile.low);
  }
};

#include "rows.h"

}  // namespace avx512

#undef TARGET
