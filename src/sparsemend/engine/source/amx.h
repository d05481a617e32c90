// Products of many bf16 tokens by the tiles of AMX (Sapphire Rapids and later): weights are expanded
// to where a tile is loaded from, a few columns at a time, while the tiles multiply what was expanded
// before.  So no dense copy of the weights leaves the near caches.
//
// A tile of weights is 16 rows of 32 columns, a tile of tokens 16 pairs of columns of 16 tokens; their
// product is added to 16 x 16 floats.  In a tile of 32 columns the products of even and of odd columns
// are summed apart, from zero; so a sum of n columns has n / 32 + 17 roundings.

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TARGET                                                                                     \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,avx2,fma,popcnt," \
                        "amx-tile,amx-bf16")))

namespace amx {

using avx512::BfloatPairs;
using avx512::Byte;

constexpr int64_t FEW = 4;           // tokens up to which the vectors of avx512.h are faster
constexpr int SIDE = 16;             // rows or tokens of a tile
constexpr int64_t LINE = 64;         // bytes of a row of a tile
constexpr int64_t TILE = SIDE * LINE;
constexpr int64_t STRIP = 2 * SIDE;  // rows that are multiplied at a time
constexpr int64_t DEPTH = 8;         // tiles of columns that are expanded at a time
constexpr int64_t BATCH = 256;       // tokens that are multiplied by weights expanded once
constexpr int64_t STRIPS = 8;        // that share the same columns of many tokens
constexpr int64_t NEAR = 1024;       // bytes that each of the four streams of values is ahead

// Whether this processor has the tiles, and the system lets this process use them.
inline bool ask() {
  constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24, SAVED = 3u << 17;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILES)) != (BF16 | TILES)) return false;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & SAVED) != SAVED) return false;
#if defined(__linux__)
  constexpr long REQUEST = 0x1023, DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST, DATA) == 0;
#else
  return false;
#endif
}

static bool usable() {
  static const bool answer = ask();
  return answer;
}

// All tiles of 16 lines of 64 bytes; what was set before is set again at the end.
class Settings {
  struct alignas(64) Bytes {
    uint8_t palette, first_row, none[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
  } former;

  // in assembler: gcc 12's intrinsic names only the first bytes of what it reads
  static void load(const Bytes& bytes) { asm volatile("ldtilecfg %0" : : "m"(bytes)); }

 public:
  TARGET Settings() {
    asm volatile("sttilecfg %0" : "=m"(former));
    Bytes wanted{};
    wanted.palette = 1;
    for (int i = 0; i < 8; ++i) {
      wanted.line_bytes[i] = LINE;
      wanted.lines[i] = SIDE;
    }
    load(wanted);
  }

  TARGET ~Settings() {
    if (former.palette)
      load(former);
    else
      _tile_release();
  }
};

// Memory of a thread that is kept, on a line of the cache.
struct Memory {
  std::vector<char> bytes;

  char* of(size_t size) {
    if (bytes.size() < size + LINE) bytes.resize(size + LINE);
    return bytes.data() + (-reinterpret_cast<uintptr_t>(bytes.data()) & (LINE - 1));
  }
};

TARGET INLINE void transpose(__m512i (&line)[SIDE]) {
  __m512i half[SIDE];
#pragma GCC unroll 16
  for (int i = 0; i < SIDE; i += 2) {
    half[i] = _mm512_unpacklo_epi32(line[i], line[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(line[i], line[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < SIDE; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      line[i + 2 * j] = _mm512_unpacklo_epi64(half[i + j], half[i + 2 + j]);
      line[i + 2 * j + 1] = _mm512_unpackhi_epi64(half[i + j], half[i + 2 + j]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(line[j], line[4 + j], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(line[8 + j], line[12 + j], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(line[j], line[4 + j], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(line[8 + j], line[12 + j], 0xee);
    half[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    half[4 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    half[8 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
    half[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < SIDE; ++i) line[i] = half[i];
}

// Tiles of 16 tokens from `begin` on, tile of columns after tile; zero beyond tokens and columns.
TARGET static void arrange(const uint16_t* input, int64_t tokens, int64_t columns, int64_t begin,
                           char* output) {
  for (int64_t column = 0; column < columns; column += COLUMNS, output += TILE) {
    const int64_t left = columns - column;
    const __mmask32 there = left < COLUMNS ? (1u << left) - 1 : ~0u;
    __m512i line[SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; ++i)
      line[i] = begin + i < tokens
                    ? _mm512_maskz_loadu_epi16(there, input + (begin + i) * columns + column)
                    : _mm512_setzero_si512();
    transpose(line);
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; ++i) _mm512_store_si512(output + i * LINE, line[i]);
  }
}

// Four groups, whose rows are one tile of weights, and where their next values lie.
template <class Kind>
struct Rows16 {
  static constexpr int GROUPS = SIDE / ROWS;
  const uint32_t* mask[GROUPS];
  const typename Kind::Value* values[GROUPS];

  // Beyond the last group stands the last, whose products nobody reads there.
  Rows16(const Job& job, int64_t first) {
    const Matrix& matrix = *job.matrix;
    const int64_t last = (matrix.rows + ROWS - 1) / ROWS - 1;
    const auto start = static_cast<const typename Kind::Value*>(matrix.values);
    for (int g = 0; g < GROUPS; ++g) {
      const int64_t group = first + g < last ? first + g : last;
      mask[g] = matrix.mask + group * job.tiles * ROWS;
      values[g] = start + matrix.offsets[group];
    }
  }

  // Tiles of columns begin to end - 1, each `stride` bytes after the one before.
  TARGET INLINE void expand(int64_t begin, int64_t end, char* output, int64_t stride) {
    const typename Kind::Value* next[GROUPS];
    for (int g = 0; g < GROUPS; ++g) next[g] = values[g];
    for (int64_t tile = begin; tile < end; ++tile, output += stride)
#pragma GCC unroll 4
      for (int g = 0; g < GROUPS; ++g) {
        __builtin_prefetch(reinterpret_cast<const char*>(next[g]) + NEAR);
        const uint32_t* words = mask[g] + tile * ROWS;
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
          Kind::write(Kind::read_packed(words[r], next[g]),
                      reinterpret_cast<uint16_t*>(output + (g * ROWS + r) * LINE));
      }
    for (int g = 0; g < GROUPS; ++g) values[g] = next[g];
  }
};

// 16 rows with one or two tiles of tokens: while a tile is multiplied, the next is expanded.
template <class Kind, int T>
TARGET static void multiply_short(const Job& job, const char* x, int64_t group, char* weights,
                                  char* sums) {
  constexpr int64_t RING = 4, LAG = 2;  // tiles of weights that are kept, and expanded ahead
  Rows16<Kind> rows(job, group);
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t step = -LAG; step < job.tiles; ++step) {
    const int64_t ahead = step + LAG;
    if (ahead < job.tiles) rows.expand(ahead, ahead + 1, weights + ahead % RING * TILE, TILE);
    if (step < 0) continue;
    _tile_loadd(4, weights + step % RING * TILE, LINE);
    _tile_loadd(6, x, LINE);
    _tile_dpbf16ps(0, 4, 6);
    if (T == 2) {
      _tile_loadd(7, x + job.tiles * TILE, LINE);
      _tile_dpbf16ps(1, 4, 7);
    }
    x += TILE;
  }
  _tile_stored(0, sums, LINE);
  if (T == 2) _tile_stored(1, sums + TILE, LINE);
}

// 32 rows and DEPTH tiles of columns with one or two tiles of tokens.
template <int T>
TARGET INLINE void multiply_block(const char* weights, const char* x, int64_t tiles, int64_t depth,
                                  char* low, char* high, bool first) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, low, LINE);
    _tile_loadd(1, high, LINE);
    if (T == 2) _tile_loadd(2, low + TILE, LINE);
    if (T == 2) _tile_loadd(3, high + TILE, LINE);
  }
  for (int64_t step = 0; step < depth; ++step, x += TILE, weights += 2 * TILE) {
    _tile_loadd(4, weights, LINE);
    _tile_loadd(6, x, LINE);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, weights + TILE, LINE);
    _tile_dpbf16ps(1, 5, 6);
    if (T == 2) {
      _tile_loadd(7, x + tiles * TILE, LINE);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, low, LINE);
  _tile_stored(1, high, LINE);
  if (T == 2) _tile_stored(2, low + TILE, LINE);
  if (T == 2) _tile_stored(3, high + TILE, LINE);
}

// Some strips of 32 rows with up to BATCH tokens; strips share the same columns of the tokens while
// those are near.  sums: (strip, half, tile of tokens).
template <class Kind>
TARGET static void multiply_long(const Job& job, const char* tokens, int64_t token_tiles,
                                 int64_t strip, int64_t strips, char* weights, char* sums) {
  std::vector<Rows16<Kind>> rows;
  for (int64_t half = 0; half < 2 * strips; ++half)
    rows.emplace_back(job, (2 * strip + half) * Rows16<Kind>::GROUPS);
  for (int64_t begin = 0; begin < job.tiles; begin += DEPTH) {
    const int64_t end = begin + DEPTH < job.tiles ? begin + DEPTH : job.tiles;
    for (int64_t i = 0; i < strips; ++i) {
      rows[2 * i].expand(begin, end, weights, 2 * TILE);
      rows[2 * i + 1].expand(begin, end, weights + TILE, 2 * TILE);
      for (int64_t tile = 0; tile < token_tiles; tile += 2) {
        char* low = sums + (2 * i * token_tiles + tile) * TILE;
        char* high = low + token_tiles * TILE;
        const char* x = tokens + (tile * job.tiles + begin) * TILE;
        if (tile + 1 < token_tiles)
          multiply_block<2>(weights, x, job.tiles, end - begin, low, high, begin == 0);
        else
          multiply_block<1>(weights, x, job.tiles, end - begin, low, high, begin == 0);
      }
    }
  }
}

// To nearest bf16, ties to even; a NaN stays one.  As `narrow`, 16 at a time.
TARGET INLINE __m256i narrow(__m512 values) {
  const __m512i words = _mm512_castps_si512(values);
  const __m512i upper = _mm512_srli_epi32(words, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(words, bias), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
}

// Writes the products of 16 rows with 16 tokens: times scales, plus biases, rounded once.
TARGET static void finish(const Job& job, const char* sums, int64_t row, int64_t token) {
  const Matrix& matrix = *job.matrix;
  const int64_t rows = matrix.rows - row;
  if (rows <= 0) return;
  const __mmask16 there = rows < SIDE ? (1u << rows) - 1 : 0xffff;
  __m512i line[SIDE];
#pragma GCC unroll 16
  for (int i = 0; i < SIDE; ++i) line[i] = _mm512_load_si512(sums + i * LINE);
  transpose(line);
  const __m512 scale = matrix.scale ? _mm512_maskz_loadu_ps(there, matrix.scale + row)
                                    : _mm512_set1_ps(1);
  const __m512 bias = matrix.bias ? _mm512_maskz_loadu_ps(there, matrix.bias + row)
                                  : _mm512_set1_ps(-0.0f);
  uint16_t* output = static_cast<uint16_t*>(job.output) + token * matrix.rows + row;
  for (int i = 0; i < SIDE && token + i < job.tokens; ++i, output += matrix.rows) {
    const __m512 sum = _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(line[i]), scale), bias);
    _mm256_mask_storeu_epi16(output, there, narrow(sum));
  }
}

// Strips begin to end - 1 with all tokens.
template <class Kind>
TARGET static void multiply(const Job& job, int64_t begin, int64_t end) {
  static thread_local Memory memory;
  const Settings settings;
  const int64_t all = (job.tokens + SIDE - 1) / SIDE, most = BATCH / SIDE;
  const int64_t wide = all < most ? all : most;
  char* const weights = memory.of(DEPTH * 2 * TILE + STRIPS * 2 * wide * TILE);
  char* const sums = weights + DEPTH * 2 * TILE;
  const auto tokens = static_cast<const char*>(job.input);
  if (all <= 2) {
    for (int64_t half = 2 * begin; half < 2 * end && half * SIDE < job.matrix->rows; ++half) {
      const auto run = all == 2 ? multiply_short<Kind, 2> : multiply_short<Kind, 1>;
      run(job, tokens, half * (SIDE / ROWS), weights, sums);
      for (int64_t tile = 0; tile < all; ++tile)
        finish(job, sums + tile * TILE, half * SIDE, tile * SIDE);
    }
    return;
  }
  const int64_t together = all > 8 ? STRIPS : 1;
  for (int64_t first = 0; first < all; first += most)
    for (int64_t strip = begin; strip < end; strip += together) {
      const int64_t strips = end - strip < together ? end - strip : together;
      const int64_t count = all - first < most ? all - first : most;
      multiply_long<Kind>(job, tokens + first * job.tiles * TILE, count, strip, strips, weights,
                          sums);
      for (int64_t half = 0; half < 2 * strips; ++half)
        for (int64_t tile = 0; tile < count; ++tile)
          finish(job, sums + (half * count + tile) * TILE, strip * 2 * SIDE + half * SIDE,
                 (first + tile) * SIDE);
    }
}

}  // namespace amx

#undef TARGET
