// What a product or an expansion reads and writes.  A matrix is stored in groups of 4 rows; along a
// group go tiles of 32 columns, and a tile of a group is 4 masks of 32 bits and the values of row 0,
// then of rows 1, 2 and 3.  So a kernel reads two streams from their beginnings to their ends.

#pragma once

#include <cstdint>
#include <cstring>

constexpr int ROWS = 4;
constexpr int COLUMNS = 32;
constexpr int PASSES = 3;  // up to which spreading weights again costs less than keeping them
constexpr int DEPTH = 32;  // tiles of columns whose weights are spread before many tokens meet them
constexpr int BATCH = 64;  // tokens whose sums are kept meanwhile
constexpr int AHEAD = 4096;  // bytes that values are asked for before they are used

enum Number { FLOAT = 0, BFLOAT = 1, BYTE = 2 };  // as in library.py

// In what order the columns of a tile of the input lie while a kernel runs.
enum Order { PLAIN, EVENS_FIRST, AS_BFLOAT };

struct Matrix {
  const uint32_t* mask;    // (groups, tiles, ROWS); null: the matrix is dense, (rows, columns)
  const void* values;      // followed by at least 64 bytes that may be read
  const int64_t* offsets;  // of the first value of a group
  const float* scale;      // of a row, or null
  const float* bias;       // of a row, or null
  int64_t rows;
  int64_t columns;
  int32_t number;  // of values
};

struct Job {
  const Matrix* matrix;
  const void* input;  // (tokens, tiles * COLUMNS), zero beyond the columns; of a product
  void* output;       // product: (tokens, rows); expansion: (rows, tiles * COLUMNS)
  int64_t tiles;
  int64_t tokens;
  int64_t first;  // group whose first row is row 0 of an expansion's output
  int32_t number;  // of output
};

using Kernel = void (*)(const Job&, int64_t begin, int64_t end);  // of groups

inline float widen(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// To nearest, ties to even; a NaN stays one.
inline uint16_t narrow(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if (value != value) return uint16_t((word >> 16) | 0x40);
  return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

// Writes the sums of one row of some tokens: times its scale, plus its bias, rounded once.
inline void finish(const Job& job, int64_t row, int64_t token, float sum) {
  const Matrix& matrix = *job.matrix;
  if (row >= matrix.rows) return;
  if (matrix.scale) sum *= matrix.scale[row];
  if (matrix.bias) sum += matrix.bias[row];
  const int64_t place = token * matrix.rows + row;
  if (job.number == BFLOAT)
    static_cast<uint16_t*>(job.output)[place] = narrow(sum);
  else
    static_cast<float*>(job.output)[place] = sum;
}
