// The loops over groups, tiles and tokens, written once and included in the namespace of every form
// of the kernel, which defines TARGET (the instructions), TOKENS (how many tokens at a time keep
// their sums in registers), PAIRED (how many keep those of two groups there) and the kinds of
// numbers: how 32 weights are read, multiplied and stored.

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
    if (Kind::PREFETCHED) __builtin_prefetch(reinterpret_cast<const char*>(place) + AHEAD / 2);
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

// More: TOKENS at a time with a group while what is stored of it lies in the nearest cache.
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

// Adds the products of some tiles of four rows with T tokens to their sums.
template <class Kind, int T>
TARGET static void multiply_spread(const typename Kind::Weights (*weights)[ROWS], int64_t tiles,
                                   const typename Kind::Input* x, int64_t stride,
                                   typename Kind::Sum (*sums)[ROWS]) {
  typename Kind::Sum near[T][ROWS];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) near[t][r] = sums[t][r];
  for (int64_t tile = 0; tile < tiles; ++tile, x += COLUMNS)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) Kind::add(near[t][r], weights[tile][r], x + t * stride);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) sums[t][r] = near[t][r];
}

// Many, up to BATCH: a group's weights are spread once, DEPTH tiles at a time, and meet all of them in
// the nearest cache.  A sum takes its products in the order in which it takes them alone.
template <class Kind, class Rows>
TARGET static void multiply_many(const Job& job, int64_t group, int64_t first, int64_t count) {
  const int64_t stride = job.tiles * COLUMNS;
  auto x = static_cast<const typename Kind::Input*>(job.input) + first * stride;
  Rows rows(job, group);
  typename Kind::Weights weights[DEPTH][ROWS];
  typename Kind::Sum sums[BATCH][ROWS];
  for (int64_t t = 0; t < count; ++t)
    for (int r = 0; r < ROWS; ++r) sums[t][r] = Kind::zero();
  for (int64_t begin = 0; begin < job.tiles; begin += DEPTH, x += DEPTH * COLUMNS) {
    const int64_t tiles = job.tiles - begin < DEPTH ? job.tiles - begin : DEPTH;
    for (int64_t tile = 0; tile < tiles; ++tile)
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) weights[tile][r] = rows.next(begin + tile, r);
    int64_t t = 0;
    for (; t + TOKENS <= count; t += TOKENS)
      multiply_spread<Kind, TOKENS>(weights, tiles, x + t * stride, stride, sums + t);
    if (TOKENS > 3 && count - t == 3)
      multiply_spread<Kind, 3>(weights, tiles, x + t * stride, stride, sums + t);
    if (TOKENS > 2 && count - t == 2)
      multiply_spread<Kind, 2>(weights, tiles, x + t * stride, stride, sums + t);
    if (count - t == 1)
      multiply_spread<Kind, 1>(weights, tiles, x + t * stride, stride, sums + t);
  }
  for (int64_t t = 0; t < count; ++t)
    for (int r = 0; r < ROWS; ++r)
      finish(job, group * ROWS + r, first + t, Kind::total(sums[t][r]));
}

template <class Kind, class Rows>
TARGET static void multiply(const Job& job, int64_t begin, int64_t end) {
  if (job.tokens == 1) return multiply_few<Kind, Rows, 1>(job, begin, end);
  if (job.tokens == 2) return multiply_few<Kind, Rows, 2>(job, begin, end);
  if (job.tokens <= PASSES * TOKENS) return multiply_more<Kind, Rows>(job, begin, end);
  for (int64_t group = begin; group < end; ++group)
    for (int64_t token = 0; token < job.tokens; token += BATCH) {
      const int64_t left = job.tokens - token;
      multiply_many<Kind, Rows>(job, group, token, left < BATCH ? left : BATCH);
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
