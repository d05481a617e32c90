// The loops over groups, tiles and tokens, written once and included in the namespace of every form
// of the kernel, which defines TARGET (the instructions), TOKENS (how many tokens at a time keep
// their sums in registers), PAIRED (how many keep those of two groups there) and the kinds of numbers: how 32 weights are read, multiplied and stored.

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

// The products of the rows of G groups, `apart` groups from one another, with T tokens.
template <class Kind, class Rows, int T, int G>
TARGET static void multiply_groups(const Job& job, int64_t group, int64_t apart, int64_t token) {
  const int64_t stride = job.tiles * COLUMNS;
  auto x = static_cast<const typename Kind::Input*>(job.input) + token * stride;
  Rows rows[2] = {Rows(job, group), Rows(job, group + (G - 1) * apart)};
  typename Kind::Sum sums[G][ROWS][T];
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[g][r][t] = Kind::zero();
  for (int64_t tile = 0; tile < job.tiles; ++tile, x += COLUMNS) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const typename Kind::Weights weights = rows[g].next(tile, r);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) Kind::add(sums[g][r][t], weights, x + t * stride);
      }
  }
  for (int g = 0; g < G; ++g)
    for (int r = 0; r < ROWS; ++r)
      for (int t = 0; t < T; ++t)
        finish(job, (group + g * apart) * ROWS + r, token + t, Kind::total(sums[g][r][t]));
}

// T tokens.  Few of them meet two groups at a time, each from its half of the groups: memory is read
// faster in two streams, and the second hides what the first waits for.
template <class Kind, class Rows, int T>
TARGET static void multiply_few(const Job& job, int64_t begin, int64_t end) {
  constexpr int G = T <= PAIRED ? 2 : 1;
  const int64_t apart = G == 2 ? (end - begin) / 2 : 0;
  const int64_t last = G == 2 ? begin + apart : end;
  for (int64_t group = begin; group < last; ++group)
    multiply_groups<Kind, Rows, T, G>(job, group, apart, 0);
  if (G == 2 && (end - begin) % 2) multiply_groups<Kind, Rows, T, 1>(job, end - 1, 0, 0);
}

// More: all of them with a group while its weights lie in the nearest cache.
template <class Kind, class Rows>
TARGET static void multiply_more(const Job& job, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    int64_t token = 0;
    for (; token + TOKENS <= job.tokens; token += TOKENS)
      multiply_groups<Kind, Rows, TOKENS, 1>(job, group, 0, token);
    const int64_t left = job.tokens - token;
    if (TOKENS > 3 && left == 3) multiply_groups<Kind, Rows, 3, 1>(job, group, 0, token);
    if (TOKENS > 2 && left == 2) multiply_groups<Kind, Rows, 2, 1>(job, group, 0, token);
    if (left == 1) multiply_groups<Kind, Rows, 1, 1>(job, group, 0, token);
  }
}

template <class Kind, class Rows>
TARGET static void multiply(const Job& job, int64_t begin, int64_t end) {
  if (job.tokens == 1) return multiply_few<Kind, Rows, 1>(job, begin, end);
  if (job.tokens == 2) return multiply_few<Kind, Rows, 2>(job, begin, end);
  multiply_more<Kind, Rows>(job, begin, end);
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
