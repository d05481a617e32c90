// The kernel in plain C++, for every processor: 32 weights at a time as floats in memory.

#define TARGET

namespace portable {

constexpr int TOKENS = 2;
constexpr int PAIRED = 0;
constexpr int LANES = 8;  // sums that a compiler can keep in vectors

struct Tile {
  float value[COLUMNS];
};

struct Lanes {
  float value[LANES];
};

inline float number(float value) { return value; }
inline float number(uint16_t value) { return widen(value); }
inline float number(int8_t value) { return value; }

template <class T>
struct Numbers {
  using Value = T;
  using Input = float;
  using Weights = Tile;
  using Sum = Lanes;
  static constexpr bool PREFETCHED = true;
  static constexpr Order ORDER = PLAIN;

  static INLINE Weights read(const Value* values) {
    Tile tile;
    for (int i = 0; i < COLUMNS; ++i) tile.value[i] = number(values[i]);
    return tile;
  }

  static INLINE Weights read_packed(uint32_t mask, const Value*& values) {
    Tile tile{};
    for (; mask; mask &= mask - 1) tile.value[__builtin_ctz(mask)] = number(*values++);
    return tile;
  }

  static INLINE Sum zero() { return Lanes{}; }

  static INLINE void add(Sum& sum, const Weights& weights, const Input* x) {
    for (int i = 0; i < COLUMNS; i += LANES)
      for (int lane = 0; lane < LANES; ++lane)
        sum.value[lane] += weights.value[i + lane] * x[i + lane];
  }

  static INLINE float total(const Sum& sum) {
    float total = 0;
    for (float value : sum.value) total += value;
    return total;
  }

  static INLINE void write(const Weights& weights, float* output) {
    std::memcpy(output, weights.value, sizeof weights.value);
  }

  static INLINE void write(const Weights& weights, uint16_t* output) {  // of exact values alone
    for (int i = 0; i < COLUMNS; ++i) output[i] = narrow(weights.value[i]);
  }
};

using Float = Numbers<float>;
using Bfloat = Numbers<uint16_t>;
using Byte = Numbers<int8_t>;
using BfloatPairs = Bfloat;

#include "rows.h"

}  // namespace portable

#undef TARGET
