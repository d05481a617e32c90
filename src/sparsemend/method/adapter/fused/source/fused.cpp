// keep * (base W + B A) in one pass over W: nothing of its size lies in memory in between.
// A C interface: kernels.py loads it.

#include "job.h"

#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>

#include "avx2.h"
#include "avx512.h"
#define X86 1
#endif

namespace {

enum Form { NONE = 0, AVX2 = 1, AVX512 = 2 };  // as in kernels.py

struct Choice {
  Kernel kernel;
  int rows;   // of a tile
  int width;  // of a tile
};

#define CHOICES(form)                                                        \
  do {                                                                       \
    if (output == number) {                                                  \
      if (number == FLOAT) return {form::fuse<float, float>, form::ROWS, form::WIDTH};   \
      if (number == BFLOAT) return {form::fuse<Bfloat, Bfloat>, form::ROWS, form::WIDTH}; \
      return {form::fuse<Half, Half>, form::ROWS, form::WIDTH};              \
    }                                                                        \
    if (number == FLOAT && output == BFLOAT)                                 \
      return {form::fuse<float, Bfloat>, form::ROWS, form::WIDTH};           \
    if (number == FLOAT && output == HALF)                                   \
      return {form::fuse<float, Half>, form::ROWS, form::WIDTH};             \
  } while (0)

Choice choose(int form, int number, int output) {
#ifdef X86
  if (form == AVX512) CHOICES(avx512);
  if (form == AVX2) CHOICES(avx2);
#endif
  return {nullptr, 0, 0};
}

int64_t ceiling(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// A in panels of `width` columns, each (rank, width), zero beyond the columns.
void arrange(const Job& job, int width, float* panels) {
  for (int64_t column = 0; column < job.columns; column += width) {
    const int64_t count = job.columns - column < width ? job.columns - column : width;
    for (int64_t k = 0; k < job.rank; ++k, panels += width) {
      std::memcpy(panels, job.a + k * job.columns + column, count * sizeof(float));
      std::memset(panels + count, 0, (width - count) * sizeof(float));
    }
  }
}

// Large memory is fresh from the system at every call, and most of a call would be its page faults:
// ask for pages of 2 MiB, of which there are 512 times fewer.  Where there are none, nothing changes.
void ask_for_large_pages(void* output, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr size_t PAGE = size_t(1) << 21;
  if (bytes < (size_t(1) << 25)) return;  // malloc keeps smaller memory
  const size_t from = (reinterpret_cast<size_t>(output) + PAGE - 1) / PAGE * PAGE;
  const size_t to = (reinterpret_cast<size_t>(output) + bytes) / PAGE * PAGE;
  madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

}  // namespace

extern "C" {

// The best form that this processor can run.
int sparsemend_fuse_form(void) {
#ifdef X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return NONE;
}

// Returns 0; 1 where there is no such kernel, 2 where there is no memory.
int sparsemend_fuse(int form, const Job* job, int threads) {
  const Choice choice = choose(form, job->number, job->output_number);
  if (!choice.kernel) return 1;
  const int64_t columns = ceiling(job->columns, choice.width) * choice.width;
  const size_t bytes = size_t(columns * job->rank) * sizeof(float);
  float* panels = static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (!panels) return 2;
  arrange(*job, choice.width, panels);
  const size_t size = job->output_number == FLOAT ? 4 : 2;
  ask_for_large_pages(job->output, size_t(job->rows * job->columns) * size);
  const int64_t groups = ceiling(job->rows, choice.rows);
  const int64_t chunk = ceiling(groups, int64_t(threads) * 8);
  const int64_t chunks = ceiling(groups, chunk);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
#endif
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t from = i * chunk;
    choice.kernel(*job, panels, from, from + chunk < groups ? from + chunk : groups);
  }
  std::free(panels);
  return 0;
}

}  // extern "C"
