// Column moments of both views in one read.
//
// Blocks of rows small enough for the cache are passed over twice: once for their mean, once for the squares about it,
// with the residual sum(x - mean) correcting the mean's rounding. Blocks then merge in double (Chan, Golub and LeVeque,
// "Updating formulae and a pairwise algorithm for computing sample variances", 1979):
//   delta = mean' - mean,  mean += delta n' / (n + n'),  M2 += M2' + delta^2 n n' / (n + n').

constexpr int kMomentRows = 64;

template <class A>
struct MomentsScratch {
  A *row_a, *row_b, *mean_a, *mean_b, *rest_a, *rest_b, *m2_a, *m2_b, *cross;

  MomentsScratch(Arena& arena, int64_t width) {
    for (A** p : {&row_a, &row_b, &mean_a, &mean_b, &rest_a, &rest_b, &m2_a, &m2_b, &cross}) {
      *p = arena.template take<A>(width);
    }
  }
};

template <class A>
void moments_in(const MomentsTask& task, void* scratch) {
  const int64_t first = task.column_begin, width = task.column_end - first;
  Arena arena{static_cast<char*>(scratch)};
  MomentsScratch<A> s(arena, width);
  double* out[5];
  for (int k = 0; k < 5; ++k) {
    out[k] = task.out + k * task.out_stride + first;
    for (int64_t c = 0; c < width; ++c) out[k][c] = 0;
  }
  for (int64_t begin = task.row_begin; begin < task.row_end; begin += kMomentRows) {
    const int64_t end = smaller(begin + kMomentRows, task.row_end);
    const A inverse = static_cast<A>(1) / static_cast<A>(end - begin);
    for (A* sum : {s.mean_a, s.mean_b, s.rest_a, s.rest_b, s.m2_a, s.m2_b, s.cross}) {
      for (int64_t c = 0; c < width; ++c) sum[c] = 0;
    }
    for (int64_t row = begin; row < end; ++row) {
      const A* __restrict a = read_row(task.a, row, first, width, s.row_a);
      const A* __restrict b = read_row(task.b, row, first, width, s.row_b);
      A *__restrict mean_a = s.mean_a, *__restrict mean_b = s.mean_b;
      for (int64_t c = 0; c < width; ++c) {
        mean_a[c] += a[c];
        mean_b[c] += b[c];
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      s.mean_a[c] *= inverse;
      s.mean_b[c] *= inverse;
    }
    for (int64_t row = begin; row < end; ++row) {
      const A* __restrict a = read_row(task.a, row, first, width, s.row_a);
      const A* __restrict b = read_row(task.b, row, first, width, s.row_b);
      const A *__restrict mean_a = s.mean_a, *__restrict mean_b = s.mean_b;
      A *__restrict rest_a = s.rest_a, *__restrict rest_b = s.rest_b;
      A *__restrict m2_a = s.m2_a, *__restrict m2_b = s.m2_b, *__restrict cross = s.cross;
      for (int64_t c = 0; c < width; ++c) {
        const A x = a[c] - mean_a[c], y = b[c] - mean_b[c];
        rest_a[c] += x;
        rest_b[c] += y;
        m2_a[c] += x * x;
        m2_b[c] += y * y;
        cross[c] += x * y;
      }
    }
    const double count = static_cast<double>(end - begin), before = static_cast<double>(begin - task.row_begin);
    const double share = count / (before + count), both = before * share;
    for (int64_t c = 0; c < width; ++c) {
      // The squares are about the rounded mean: move them to the true one, which is off by rest / count.
      const double off_a = s.rest_a[c] / count, off_b = s.rest_b[c] / count;
      const double delta_a = s.mean_a[c] + off_a - out[0][c], delta_b = s.mean_b[c] + off_b - out[1][c];
      out[0][c] += delta_a * share;
      out[1][c] += delta_b * share;
      out[2][c] += s.m2_a[c] - count * off_a * off_a + delta_a * delta_a * both;
      out[3][c] += s.m2_b[c] - count * off_b * off_b + delta_b * delta_b * both;
      out[4][c] += s.cross[c] - count * off_a * off_b + delta_a * delta_b * both;
    }
  }
}

size_t moments_scratch(const MomentsTask& task) {
  Arena arena{nullptr};
  MomentsScratch<double>(arena, task.column_end - task.column_begin);
  return arena.used;
}

void moments(const MomentsTask& task, void* scratch) {
  const bool wide = task.a.type == Element::f64 || task.b.type == Element::f64;
  wide ? moments_in<double>(task, scratch) : moments_in<float>(task, scratch);
}

// ---- standardise and cast -----------------------------------------------------------------------------------------

template <class A>
void standardise_in(const StandardiseTask& task, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  A* buffer = arena.take<A>(task.d);
  A* hat = arena.take<A>(task.d);
  for (int64_t row = task.row_begin; row < task.row_end; ++row) {
    standardise_row(read_row(task.z, row, 0, task.d, buffer), static_cast<const A*>(task.norm.mean),
                    static_cast<const A*>(task.norm.rstd), task.d, task.d, Element::f32, hat);
    write_row(task.out, row, 0, task.d, hat);
  }
}

size_t standardise_scratch(const StandardiseTask& task) {
  Arena arena{nullptr};
  arena.take<double>(task.d);
  arena.take<double>(task.d);
  return arena.used;
}

void standardise(const StandardiseTask& task, void* scratch) {
  task.accumulation == Element::f64 ? standardise_in<double>(task, scratch) : standardise_in<float>(task, scratch);
}
