// What one call reads and writes: output = keep * (base W + B A), W (rows, columns), A (rank,
// columns) and B (rows, rank) contiguous, B with the scale in it.

#pragma once

#include <cstdint>
#include <cstring>

enum Number { FLOAT = 0, BFLOAT = 1, HALF = 2 };  // as in kernels.py

struct Job {
  const void* weight;
  const uint8_t* keep;  // (rows, ceil(columns / 8)), lowest bit first; null: where W is not 0
  const float* a;
  const float* b;
  void* output;
  int64_t rows;
  int64_t columns;
  int64_t rank;
  int32_t number;         // of weight
  int32_t output_number;  // of output
  int32_t base;           // 1 or 0
};

// 16-bit words that are bfloat16 or float16.
struct Bfloat {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Writes groups begin to end - 1 of the output's rows; panels: A as `arrange` laid it.
using Kernel = void (*)(const Job&, const float* panels, int64_t begin, int64_t end);
