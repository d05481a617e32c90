// The kernel, for one kind of vectors: included once in the namespace of each, which defines TARGET,
// LANES, Vector, Mask, ROWS and VECTORS, and what is done to a vector.
//
// A tile is ROWS rows and WIDTH columns of the output.  Its sums over the rank stay in registers, in
// the order of the rank and by fused multiply-adds; then W is read, added, and the tile written.

constexpr int WIDTH = VECTORS * LANES;

// sums (count, WIDTH) = b (count, rank) panel (rank, WIDTH)
template <int COUNT>
TARGET INLINE void multiply(const float* panel, const float* b, int64_t rank, float* sums) {
  Vector sum[COUNT][VECTORS];
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sum[row][v] = zero();
  for (int64_t k = 0; k < rank; ++k) {
    Vector a[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) a[v] = load(panel + k * WIDTH + v * LANES);
#pragma GCC unroll 8
    for (int row = 0; row < COUNT; ++row) {
      const Vector factor = spread(b[row * rank + k]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[row][v] = add_product(factor, a[v], sum[row][v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(sums + row * WIDTH + v * LANES, sum[row][v]);
}

TARGET INLINE void multiply_any(int count, const float* panel, const float* b, int64_t rank,
                                float* sums) {
  if (count == ROWS) return multiply<ROWS>(panel, b, rank, sums);
  for (int row = 0; row < count; ++row)
    multiply<1>(panel, b + row * rank, rank, sums + row * WIDTH);
}

// One row of a tile: WIDTH of its weights, bits and outputs.
template <class In, class Out>
TARGET INLINE void finish(const Job& job, const float* sums, const In* weight, const uint8_t* keep,
                          Out* output) {
  Vector values[VECTORS];
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) {
    const Vector base = load(weight + v * LANES);
    const Mask mask = keep ? mask_of(keep + v * LANES / 8) : nonzero(base);
    values[v] = job.base ? add(mask, load(sums + v * LANES), base) : take(mask, load(sums + v * LANES));
  }
  store_all(output, values);
}

// The same where the matrix ends before WIDTH columns.
template <class In, class Out>
TARGET INLINE void finish_short(const Job& job, const float* sums, const In* weight,
                                const uint8_t* keep, Out* output, int count) {
  In weights[WIDTH] = {};
  uint8_t bits[WIDTH / 8] = {};
  Out outputs[WIDTH];
  std::memcpy(weights, weight, count * sizeof(In));
  if (keep) std::memcpy(bits, keep, (count + 7) / 8);
  finish<In, Out>(job, sums, weights, keep ? bits : nullptr, outputs);
  std::memcpy(output, outputs, count * sizeof(Out));
}

template <class In, class Out>
TARGET void fuse(const Job& job, const float* panels, int64_t begin, int64_t end) {
  const int64_t bytes = (job.columns + 7) / 8;
  alignas(64) float sums[ROWS * WIDTH];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * ROWS;
    const int count = int(job.rows - first < ROWS ? job.rows - first : ROWS);
    for (int64_t column = 0; column < job.columns; column += WIDTH) {
      multiply_any(count, panels + column * job.rank, job.b + first * job.rank, job.rank, sums);
      const int64_t left = job.columns - column;
      for (int row = 0; row < count; ++row) {
        const int64_t place = (first + row) * job.columns + column;
        const In* weight = static_cast<const In*>(job.weight) + place;
        Out* output = static_cast<Out*>(job.output) + place;
        const uint8_t* keep = job.keep ? job.keep + (first + row) * bytes + column / 8 : nullptr;
        if (left >= WIDTH)
          finish<In, Out>(job, sums + row * WIDTH, weight, keep, output);
        else
          finish_short<In, Out>(job, sums + row * WIDTH, weight, keep, output, int(left));
      }
    }
  }
}
