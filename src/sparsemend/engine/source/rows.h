// The loops over groups, tiles and tokens, written once and included in the namespace of every form
// of the kernel, which defines TARGET (the instructions), TOKENS (how many tokens at a time keep
// their sums in registers) and the kinds of numbers: how 32 weights are read, multiplied and stored.

template <class Kind>
struct PackedRows {
  const uint32_t* mask;
  const typename Kind::Value* values;

  TARGET PackedRows(const Job& job, int64_t group)
      : mask(job.matrix->mask + group * job.tiles * ROWS),
        values(static_cast<const typename Kind::Value*>(job.matrix->values) +
               job.matrix->offsets[group]) {}

  TARGET INLINE typename Kind::Weights next(int64_t tile, int row) {
    if (row % 2 == 0) __builtin_prefetch(reinterpret_cast<const char*>(values) + AHEAD);
    return Kind::read_packed(mask[tile * ROWS + row], values);
  }
};

template <class Kind>
struct DenseRows {
  using Value = typename Kind::Value;
  const Value* row[ROWS];
  int64_t full;  // tiles
  Value rest[ROWS][COLUMNS];

  TARGET DenseRows(const Job& job, int64_t group) {
    const Matrix& matrix = *job.matrix;
    full = matrix.columns / COLUMNS;
    const int64_t left = matrix.columns % COLUMNS;
    for (int r = 0; r < ROWS; ++r) {
      int64_t place = group * ROWS + r;
      if (place >= matrix.rows) place = matrix.rows - 1;  // computed, and not written
      row[r] = static_cast<const Value*>(matrix.values) + place * matrix.columns;
      if (left == 0) continue;
      std::memset(rest[r], 0, sizeof rest[r]);
      std::memcpy(rest[r], row[r] + full * COLUMNS, left * sizeof(Value));
    }
  }

  TARGET INLINE typename Kind::Weights next(int64_t tile, int r) const {
    if (tile == full) return Kind::read(rest[r]);
    const Value* place = row[r] + tile * COLUMNS;
    __builtin_prefetch(reinterpret_cast<const char*>(place) + AHEAD / 2);
    return Kind::read(place);
  }
};

// The products of the rows of one group with T tokens.
template <class Kind, class Rows, int T>
TARGET static void multiply_group(const Job& job, int64_t group, int64_t token) {
  const int64_t stride = job.tiles * COLUMNS;
  auto x = static_cast<const typename Kind::Input*>(job.input) + token * stride;
  Rows rows(job, group);
  typename Kind::Sum sums[ROWS][T];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) sums[r][t] = Kind::zero();
  for (int64_t tile = 0; tile < job.tiles; ++tile, x += COLUMNS) {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const typename Kind::Weights weights = rows.next(tile, r);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) Kind::add(sums[r][t], weights, x + t * stride);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < T; ++t)
      finish(job, group * ROWS + r, token + t, Kind::total(sums[r][t]));
}

// All tokens of a group while its weights lie in the nearest cache.
template <class Kind, class Rows>
TARGET static void multiply(const Job& job, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    int64_t token = 0;
    for (; token + TOKENS <= job.tokens; token += TOKENS)
      multiply_group<Kind, Rows, TOKENS>(job, group, token);
    if (TOKENS > 2 && token + 2 <= job.tokens) {
      multiply_group<Kind, Rows, 2>(job, group, token);
      token += 2;
    }
    if (token < job.tokens) multiply_group<Kind, Rows, 1>(job, group, token);
  }
}

template <class Kind, class Number>
TARGET static void expand(const Job& job, int64_t begin, int64_t end) {
  const int64_t length = job.tiles * COLUMNS;
  for (int64_t group = begin; group < end; ++group) {
    PackedRows<Kind> rows(job, group);
    Number* output = static_cast<Number*>(job.output) + (group - job.first) * ROWS * length;
    for (int64_t tile = 0; tile < job.tiles; ++tile)
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r)
        Kind::write(rows.next(tile, r), output + r * length + tile * COLUMNS);
  }
}
