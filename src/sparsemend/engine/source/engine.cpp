// Products of a sparse matrix, stored as bit masks and packed values, with a few vectors, and its
// expansion into a dense one.  A C interface: library.py loads it.  See README.md for the format.

#include <vector>

#include "job.h"

#define INLINE inline __attribute__((always_inline))

#include "portable.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "avx2.h"
#define X86 1
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#include "avx512.h"
#define PAIRS 1  // this compiler knows their instructions
#endif
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#include "amx.h"
#define TILES 1  // and those of tiles
#endif
#endif

namespace {

enum Form { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AVX512_PAIRS = 3, AMX = 4 };  // as in library.py

struct Choice {
  Kernel kernel;
  Order order;
};

template <class Kind>
Choice product_of(Kernel packed, Kernel dense, const Matrix& matrix) {
  return {matrix.mask ? packed : dense, Kind::ORDER};
}

#define PRODUCT(form, Kind)                                                  \
  product_of<form::Kind>(form::multiply<form::Kind, form::PackedRows<form::Kind>>, \
                         form::multiply<form::Kind, form::DenseRows<form::Kind>>, matrix)

#define PRODUCTS(form, Wide, Bytes)                                                    \
  switch (matrix.number) {                                                             \
    case FLOAT: return PRODUCT(form, Float);                                           \
    case BFLOAT: return PRODUCT(form, Wide);                                           \
    case BYTE:                                                                         \
      return product_of<form::Bytes>(                                                  \
          form::multiply<form::Bytes, form::PackedRows<form::Bytes>>, nullptr, matrix); \
  }                                                                                    \
  break

constexpr int64_t FEW_BYTES = 4;  // tokens up to which making pairs of int8 costs more than it saves

// pairs: whether the input is bf16, so that weights exact in bf16 may be multiplied in pairs with it
Choice product_kernel(int form, const Matrix& matrix, bool pairs, int64_t tokens) {
  switch (form) {
    case PORTABLE: PRODUCTS(portable, Bfloat, Byte);
#ifdef X86
    case AVX2: PRODUCTS(avx2, Bfloat, Byte);
#endif
#ifdef PAIRS
    case AVX512_PAIRS:
      if (pairs && (matrix.number != BYTE || tokens > FEW_BYTES)) {
        PRODUCTS(avx512, BfloatPairs, BytePairs);
      }
      [[fallthrough]];
    case AVX512:
    case AMX: PRODUCTS(avx512, Bfloat, Byte);  // where there are tiles, an instruction of pairs is slow
#endif
  }
  return {nullptr, PLAIN};
}

#define EXPANSIONS(form)                                                                 \
  switch (number) {                                                                      \
    case FLOAT: return narrow_output ? nullptr : form::expand<form::Float, float>;       \
    case BFLOAT:                                                                         \
      return narrow_output ? form::expand<form::BfloatPairs, uint16_t>                   \
                           : form::expand<form::BfloatPairs, float>;                     \
    case BYTE:                                                                           \
      return narrow_output ? form::expand<form::Byte, uint16_t> : form::expand<form::Byte, float>; \
  }                                                                                      \
  break

Kernel expansion_kernel(int form, int number, bool narrow_output) {
  switch (form) {
    case PORTABLE: EXPANSIONS(portable);
#ifdef X86
    case AVX2: EXPANSIONS(avx2);
#endif
#ifdef PAIRS
    case AVX512:
    case AVX512_PAIRS:
    case AMX: EXPANSIONS(avx512);
#endif
  }
  return nullptr;
}

int64_t ceiling(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// least: what a thread takes at a time, at least
void share_out(Kernel kernel, const Job& job, int64_t begin, int64_t end, int threads,
               int64_t least = 1) {
#ifdef _OPENMP
  if (threads > 1) {
    int64_t chunk = ceiling(end - begin, int64_t(threads) * 8);
    if (chunk < least) chunk = least;
    const int64_t chunks = ceiling(end - begin, chunk);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t from = begin + i * chunk;
      kernel(job, from, from + chunk < end ? from + chunk : end);
    }
    return;
  }
#endif
  kernel(job, begin, end);
}

// The tokens as a kernel reads them, every one zero from its columns to the end of its last tile.
void arrange(const void* input, bool bfloat, int64_t tokens, int64_t columns, int64_t length,
             Order order, char* output) {
  for (int64_t token = 0; token < tokens; ++token) {
    if (order == AS_BFLOAT) {
      uint16_t* row = reinterpret_cast<uint16_t*>(output) + token * length;
      std::memcpy(row, static_cast<const uint16_t*>(input) + token * columns, columns * 2);
      std::memset(row + columns, 0, (length - columns) * 2);
      continue;
    }
    float* row = reinterpret_cast<float*>(output) + token * length;
    std::vector<float> plain(order == PLAIN ? 0 : length);
    float* target = order == PLAIN ? row : plain.data();
    if (bfloat) {
      const uint16_t* words = static_cast<const uint16_t*>(input) + token * columns;
      for (int64_t i = 0; i < columns; ++i) target[i] = widen(words[i]);
    } else {
      std::memcpy(target, static_cast<const float*>(input) + token * columns, columns * 4);
    }
    std::memset(target + columns, 0, (length - columns) * 4);
    if (order == PLAIN) continue;
    for (int64_t tile = 0; tile < length; tile += COLUMNS)
      for (int i = 0; i < COLUMNS / 2; ++i) {
        row[tile + i] = target[tile + 2 * i];
        row[tile + COLUMNS / 2 + i] = target[tile + 2 * i + 1];
      }
  }
}

#ifdef TILES
void multiply_tiles(const Job& plain, int threads) {
  const Matrix& matrix = *plain.matrix;
  const int64_t token_tiles = ceiling(plain.tokens, amx::SIDE);
  static thread_local amx::Memory arranged;
  char* tokens = arranged.of(size_t(token_tiles * plain.tiles * amx::TILE));
  const auto input = static_cast<const uint16_t*>(plain.input);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1 && token_tiles > 1)
#endif
  for (int64_t tile = 0; tile < token_tiles; ++tile)
    amx::arrange(input, plain.tokens, matrix.columns, tile * amx::SIDE,
                 tokens + tile * plain.tiles * amx::TILE);
  Job job = plain;
  job.input = tokens;
  const Kernel kernel = matrix.number == BFLOAT ? amx::multiply<amx::BfloatPairs>
                                                : amx::multiply<amx::Byte>;
  share_out(kernel, job, 0, ceiling(matrix.rows, amx::STRIP), threads);
}
#endif

}  // namespace

extern "C" {

// The best form that this processor can run.
int sparsemend_best_form(void) {
#ifdef X86
  __builtin_cpu_init();
#ifdef PAIRS
  const bool vectors = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vbmi2");
  const bool pairs = vectors && __builtin_cpu_supports("avx512bf16");
#ifdef TILES
  if (pairs && amx::usable()) return AMX;
#endif
  if (vectors) return pairs ? AVX512_PAIRS : AVX512;
#endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return PORTABLE;
}

// output (tokens, rows) = input (tokens, columns) W^T * scale + bias, both of one number, FLOAT or
// BFLOAT.  Returns 0; 1 where there is no such kernel.
int sparsemend_multiply(int form, const Matrix* matrix, const void* input, int number,
                        int64_t tokens, void* output, int threads) {
  const Choice choice = product_kernel(form, *matrix, number == BFLOAT, tokens);
  if (!choice.kernel) return 1;
  const int64_t tiles = ceiling(matrix->columns, COLUMNS);
#ifdef TILES
  if (form == AMX && number == BFLOAT && matrix->mask && matrix->number != FLOAT &&
      tokens > amx::FEW) {
    if (!amx::usable()) return 1;
    multiply_tiles({matrix, input, output, tiles, tokens, 0, number}, threads);
    return 0;
  }
#endif
  const int64_t length = tiles * COLUMNS;
  static thread_local std::vector<char> arranged;
  arranged.resize(size_t(tokens * length) * sizeof(float));
  arrange(input, number == BFLOAT, tokens, matrix->columns, length, choice.order, arranged.data());
  const Job job{matrix, arranged.data(), output, tiles, tokens, 0, number};
  share_out(choice.kernel, job, 0, ceiling(matrix->rows, ROWS), threads);
  return 0;
}

// output (ROWS * (end - begin), tiles * COLUMNS) = the stored values of groups begin to end - 1,
// without their scales.  Returns 0; 1 where there is no such kernel.
int sparsemend_expand(int form, const Matrix* matrix, int64_t begin, int64_t end, void* output,
                      int number, int threads) {
  const Kernel kernel = expansion_kernel(form, matrix->number, number == BFLOAT);
  if (!kernel) return 1;
  const Job job{matrix, nullptr, output, ceiling(matrix->columns, COLUMNS), 0, begin, number};
  share_out(kernel, job, begin, end, threads);
  return 0;
}

// The sum of whole words of memory: how fast bytes can be read at all, to compare products with.
// In several streams, each from its own place: one alone is read slower.
uint64_t sparsemend_read(const uint64_t* words, int64_t count, int threads) {
  constexpr int64_t CHUNK = 1 << 18, STREAMS = 8, LENGTH = CHUNK / STREAMS;
  const int64_t chunks = count / CHUNK;
  uint64_t sum = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : sum)
#endif
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    uint64_t part[8] = {};
    for (int64_t i = 0; i < LENGTH; i += 8)
      for (int stream = 0; stream < STREAMS; ++stream) {
        const uint64_t* line = words + chunk * CHUNK + stream * LENGTH + i;
        for (int lane = 0; lane < 8; ++lane) part[lane] += line[lane];
      }
    for (uint64_t lane : part) sum += lane;
  }
  for (int64_t i = chunks * CHUNK; i < count; ++i) sum += words[i];
  return sum;
}

}  // extern "C"
