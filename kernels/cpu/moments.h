// Column moments of both views, or of any number, in one read, and z_hat itself for those who need it in memory.
//
// Strips of two vectors of columns and 64 rows stay in the first-level cache while they are passed over twice: once for
// their mean, once for the squares about it, with the residual sum(x - mean) correcting the mean's rounding. Strips then
// merge in double (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
// 1979):  delta = mean' - mean,  mean += delta n' / (n + n'),  M2 += M2' + delta^2 n n' / (n + n').

constexpr int kMomentRows = 64;

template <class A, Element E>
void moments_in(const MomentsTask& task) {
  constexpr int lanes = kLanes<A>, strip = 2 * lanes;
  for (int64_t begin = task.row_begin; begin < task.row_end; begin += kMomentRows) {
    const int64_t end = smaller(begin + kMomentRows, task.row_end);
    const double count = static_cast<double>(end - begin), before = static_cast<double>(begin - task.row_begin);
    const double share = count / (before + count), both = before * share;
    const A inverse = static_cast<A>(1) / static_cast<A>(end - begin);
    for (int64_t column = task.column_begin; column < task.column_end; column += strip) {
      const int64_t width = smaller(strip, task.column_end - column);
      Vector<A> mean_a[2] = {}, mean_b[2] = {};
      for (int64_t row = begin; row < end; ++row) {
        const auto* a = row_of<E>(task.a, row) + column;
        const auto* b = row_of<E>(task.b, row) + column;
        // The next strip of this row: rows are too far apart for the hardware to foresee.
        __builtin_prefetch(a + strip);
        __builtin_prefetch(b + strip);
        __builtin_prefetch(a + strip + lanes);
        __builtin_prefetch(b + strip + lanes);
        BARLOW_FAST_UNROLL
        for (int v = 0; v < 2; ++v) {
          mean_a[v] += load_some<A, E>(a + v * lanes, width - v * lanes);
          mean_b[v] += load_some<A, E>(b + v * lanes, width - v * lanes);
        }
      }
      Vector<A> rest_a[2] = {}, rest_b[2] = {}, m2_a[2] = {}, m2_b[2] = {}, cross[2] = {};
      BARLOW_FAST_UNROLL
      for (int v = 0; v < 2; ++v) {
        mean_a[v] *= broadcast(inverse);
        mean_b[v] *= broadcast(inverse);
      }
      for (int64_t row = begin; row < end; ++row) {
        const auto* a = row_of<E>(task.a, row) + column;
        const auto* b = row_of<E>(task.b, row) + column;
        BARLOW_FAST_UNROLL
        for (int v = 0; v < 2; ++v) {
          const Vector<A> x = load_some<A, E>(a + v * lanes, width - v * lanes) - mean_a[v];
          const Vector<A> y = load_some<A, E>(b + v * lanes, width - v * lanes) - mean_b[v];
          rest_a[v] += x;
          rest_b[v] += y;
          m2_a[v] += x * x;
          m2_b[v] += y * y;
          cross[v] += x * y;
        }
      }
      double* out = task.out + column;
      const int64_t stride = task.out_stride;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t v = c / lanes, lane = c % lanes;
        double total[5] = {};
        if (before > 0) {
          for (int k = 0; k < 5; ++k) total[k] = out[k * stride + c];
        }
        // The squares are about the rounded mean: move them to the true one, which is off by rest / count.
        const double off_a = rest_a[v][lane] / count, off_b = rest_b[v][lane] / count;
        const double delta_a = mean_a[v][lane] + off_a - total[0], delta_b = mean_b[v][lane] + off_b - total[1];
        out[c] = total[0] + delta_a * share;
        out[stride + c] = total[1] + delta_b * share;
        out[2 * stride + c] = total[2] + m2_a[v][lane] - count * off_a * off_a + delta_a * delta_a * both;
        out[3 * stride + c] = total[3] + m2_b[v][lane] - count * off_b * off_b + delta_b * delta_b * both;
        out[4 * stride + c] = total[4] + cross[v][lane] - count * off_a * off_b + delta_a * delta_b * both;
      }
    }
  }
}

// Whether moments are taken in double: in the wider of the inputs' and the accumulation type.
BARLOW_FAST_INLINE bool wide_moments(Element type, Element accumulation) {
  return type == Element::f64 || accumulation == Element::f64;
}

template <Element E>
void moments_from(const MomentsTask& task) {
  if (wide_moments(E, task.accumulation)) return moments_in<double, E>(task);
  moments_in<float, E>(task);
}

void moments(const MomentsTask& task) {
  switch (task.a.type) {
    case Element::f64: return moments_from<Element::f64>(task);
    case Element::tf32:
    case Element::f32: return moments_from<Element::f32>(task);
    case Element::bf16: return moments_from<Element::bf16>(task);
    case Element::f16: return moments_from<Element::f16>(task);
  }
}

// ---- moments of any number of views --------------------------------------------------------------------------------

// Views whose co-moments with as many others are summed in registers; vectors of columns that are read together: rows may
// lie so far apart that their parts fall into few cache sets, where what is not read at once would be evicted, and the
// hardware reads ahead only within a row.
#if defined(__AVX512F__) || defined(BARLOW_FAST_NEON)
constexpr int kMomentViews = 4, kMomentVectors = 8;
#else
constexpr int kMomentViews = 2, kMomentVectors = 4;
#endif

// What is known of kMomentVectors of columns of a block of rows, by view and vector.
template <class A>
struct ViewMomentsScratch {
  static constexpr int64_t kVector = (kMomentRows + 1) * kLanes<A>;  // not a power of two apart, either
  static constexpr int64_t kView = kMomentVectors * kVector, kColumns = kMomentVectors * kLanes<A>;
  A* shifted;     // [view][vector][row][lane]: z less a shift; zero for views that fill the last group
  double* off;    // [view][column]: the mean of the block less the shift
  double* delta;  // the mean of the block less that of the rows before

  ViewMomentsScratch(Arena& arena, const ViewMomentsTask& task) {
    const int64_t views = round_up(task.view_count, kMomentViews);
    shifted = arena.template take<A>(views * kView);
    off = arena.template take<double>(views * kColumns);
    delta = arena.template take<double>(views * kColumns);
  }
};

// Shifts `width` columns of rows [begin, end) of one view and merges their mean. The shift is the mean of the rows
// before, and of the first block its own. A second pass over each block for its own would take as long as the co-moments:
// what the squares about the shift exceed those about the mean by is in the merged co-moments as well, so they lose no
// digits to it.
template <class A, Element E>
void shift_block(const ViewMomentsTask& task, const ViewMomentsScratch<A>& s, int64_t view, int64_t begin, int64_t end,
                 int64_t column, int64_t width) {
  constexpr int lanes = kLanes<A>, vectors = kMomentVectors;
  constexpr int64_t ahead = 8;  // rows of lead for prefetching: the hardware does not foresee the next one
  const View& z = task.views[view];
  const double count = static_cast<double>(end - begin), before = static_cast<double>(begin - task.row_begin);
  double* means = task.means + view * task.stride + column;
  Vector<A> shift[vectors] = {}, rest[vectors] = {};
  if (before > 0) {
    A known[kMomentVectors * lanes] = {};
    for (int64_t c = 0; c < width; ++c) known[c] = static_cast<A>(means[c]);
    for (int v = 0; v < vectors; ++v) shift[v] = load(known + v * lanes);
  }
  A* to = s.shifted + view * s.kView;
  for (int64_t row = begin; row < end; ++row, to += lanes) {
    const auto* from = row_of<E>(z, row) + column;
    BARLOW_FAST_UNROLL
    for (int v = 0; v < vectors; ++v) {
      __builtin_prefetch(from + ahead * z.stride + v * lanes);
      const Vector<A> x = load_some<A, E>(from + v * lanes, width - v * lanes) - shift[v];
      rest[v] += x;
      store(to + v * s.kVector, x);
    }
  }
  if (before == 0) {
    for (int v = 0; v < vectors; ++v) {
      shift[v] = rest[v] * broadcast(static_cast<A>(1) / static_cast<A>(end - begin));
      rest[v] = Vector<A>{};
    }
    to = s.shifted + view * s.kView;
    for (int64_t row = begin; row < end; ++row, to += lanes) {
      BARLOW_FAST_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const Vector<A> x = load(to + v * s.kVector) - shift[v];
        rest[v] += x;
        store(to + v * s.kVector, x);
      }
    }
  }
  for (int v = 0; v < vectors; ++v) {
    for (int64_t c = 0; c < smaller(lanes, width - v * lanes); ++c) {
      const int64_t at = v * lanes + c;
      const double off = rest[v][c] / count, total = before > 0 ? means[at] : 0, delta = shift[v][c] + off - total;
      s.off[view * s.kColumns + at] = off;
      s.delta[view * s.kColumns + at] = delta;
      means[at] = total + delta * (count / (before + count));
    }
  }
}

// Merges the co-moments of a group of views, beginning with view v, with another one, beginning with u <= v, for vector
// `k` of the block's columns, `width` of which there are; of the same group (`Diagonal`) half of them.
template <class A, bool Diagonal>
void merge_block(const ViewMomentsTask& task, const ViewMomentsScratch<A>& s, int64_t v, int64_t u, int64_t begin,
                 int64_t end, int64_t column, int64_t k, int64_t width) {
  constexpr int lanes = kLanes<A>, group = kMomentViews;
  Vector<A> sum[group][group] = {};
  const A *x = s.shifted + v * s.kView + k * s.kVector, *y = s.shifted + u * s.kView + k * s.kVector;
  for (int64_t row = 0; row < end - begin; ++row, x += lanes, y += lanes) {
    Vector<A> other[group];
    BARLOW_FAST_UNROLL
    for (int j = 0; j < group; ++j) other[j] = load(y + j * s.kView);
    BARLOW_FAST_UNROLL
    for (int i = 0; i < group; ++i) {
      const Vector<A> own = Diagonal ? other[i] : load(x + i * s.kView);
      BARLOW_FAST_UNROLL
      for (int j = 0; j < (Diagonal ? i + 1 : group); ++j) sum[i][j] += own * other[j];
    }
  }
  const double count = static_cast<double>(end - begin), before = static_cast<double>(begin - task.row_begin);
  const double both = before * (count / (before + count));
  for (int i = 0; i < group && v + i < task.view_count; ++i) {
    for (int j = 0; j < (Diagonal ? i + 1 : group); ++j) {
      double* __restrict out = task.comoments + ((v + i) * task.view_count + u + j) * task.stride + column + k * lanes;
      const int64_t at_v = (v + i) * s.kColumns + k * lanes, at_u = (u + j) * s.kColumns + k * lanes;
      A block[lanes];
      store(block, sum[i][j]);
      // The products are about the shifts: move them to the means.
      for (int64_t c = 0; c < smaller(lanes, width); ++c) {
        const double own = static_cast<double>(block[c]) - count * s.off[at_v + c] * s.off[at_u + c];
        out[c] = before > 0 ? out[c] + own + s.delta[at_v + c] * s.delta[at_u + c] * both : own;
      }
    }
  }
}

template <class A, Element E>
void view_moments_in(const ViewMomentsTask& task, void* scratch) {
  constexpr int lanes = kLanes<A>, group = kMomentViews;
  Arena arena{static_cast<char*>(scratch)};
  const ViewMomentsScratch<A> s(arena, task);
  const int64_t views = task.view_count;
  for (int64_t k = views * s.kView; k < round_up(views, group) * s.kView; k += lanes) {
    store(s.shifted + k, Vector<A>{});
  }
  for (int64_t begin = task.row_begin; begin < task.row_end; begin += kMomentRows) {
    const int64_t end = smaller(begin + kMomentRows, task.row_end);
    for (int64_t column = task.column_begin; column < task.column_end; column += s.kColumns) {
      const int64_t width = smaller(s.kColumns, task.column_end - column);
      for (int64_t view = 0; view < views; ++view) shift_block<A, E>(task, s, view, begin, end, column, width);
      for (int64_t k = 0; k * lanes < width; ++k) {
        const int64_t left = width - k * lanes;
        for (int64_t v = 0; v < views; v += group) {
          for (int64_t u = 0; u < v; u += group) merge_block<A, false>(task, s, v, u, begin, end, column, k, left);
          merge_block<A, true>(task, s, v, v, begin, end, column, k, left);
        }
      }
    }
  }
}

template <Element E>
void view_moments_from(const ViewMomentsTask& task, void* scratch) {
  if (wide_moments(E, task.accumulation)) return view_moments_in<double, E>(task, scratch);
  view_moments_in<float, E>(task, scratch);
}

void view_moments(const ViewMomentsTask& task, void* scratch) {
  switch (task.views->type) {
    case Element::f64: return view_moments_from<Element::f64>(task, scratch);
    case Element::tf32:
    case Element::f32: return view_moments_from<Element::f32>(task, scratch);
    case Element::bf16: return view_moments_from<Element::bf16>(task, scratch);
    case Element::f16: return view_moments_from<Element::f16>(task, scratch);
  }
}

// ---- from moments to what standardises ----------------------------------------------------------------------------

template <class A>
void standardisation_in(const StandardisationTask& task) {
  const double count = task.count, eps = task.eps;
  const int64_t d = task.d;
  // A reciprocal that A has no normal number for: the variance, or a square on the way to it, was too large.
  constexpr double smallest = sizeof(A) == 4 ? __FLT_MIN__ : __DBL_MIN__;
  double on_diagonal = 0, squares = 0;
  for (int64_t begin = task.column_begin; begin < task.column_end; begin += 64) {
    const int64_t width = smaller(64, task.column_end - begin);
    const double* in = task.moments + begin;
    A* out = static_cast<A*>(task.statistics) + begin;
    double rstd[2][64], diagonal[64];
    for (int view = 0; view < 2; ++view) {
      const double *mean = in + view * d, *m2 = in + (2 + view) * d;
      A *to_mean = out + view * 3 * d, *to_rstd = to_mean + d, *to_shift = to_rstd + d;
      for (int64_t c = 0; c < width; ++c) {
        const double value = 1 / __builtin_sqrt(m2[c] / count + eps);
        rstd[view][c] = value >= smallest ? value : __builtin_nan("");
      }
      for (int64_t c = 0; c < width; ++c) {
        to_mean[c] = static_cast<A>(mean[c]);
        to_rstd[c] = static_cast<A>(rstd[view][c]);
        to_shift[c] = static_cast<A>((mean[c] - static_cast<double>(to_mean[c])) * rstd[view][c]);
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      diagonal[c] = in[4 * d + c] / count * rstd[0][c] * rstd[1][c];
      out[6 * d + c] = static_cast<A>(diagonal[c]);
    }
    for (int64_t c = 0; c < width; ++c) {
      on_diagonal += (diagonal[c] - 1) * (diagonal[c] - 1);
      squares += diagonal[c] * diagonal[c];
    }
  }
  task.sums[0] = on_diagonal;
  task.sums[1] = squares;
}

void standardisation(const StandardisationTask& task) {
  task.accumulation == Element::f64 ? standardisation_in<double>(task) : standardisation_in<float>(task);
}

// ---- standardise and cast -----------------------------------------------------------------------------------------

template <class A, Element E, Element To>
void standardise_in(const StandardiseTask& task) {
  constexpr int lanes = kLanes<A>;
  const A* mean = static_cast<const A*>(task.norm.mean);
  const A* rstd = static_cast<const A*>(task.norm.rstd);
  const A* shift = static_cast<const A*>(task.norm.shift);
  for (int64_t row = task.row_begin; row < task.row_end; ++row) {
    const auto* from = row_of<E>(task.z, row);
    auto* to = row_of<To>(task.out, row);
    for (int64_t c = 0; c < task.d; c += lanes) {
      const int64_t left = task.d - c;
      const Vector<A> hat = standardised<A>(load_some<A, E>(from + c, left), load_some(mean + c, left),
                                            load_some(rstd + c, left), load_some(shift + c, left));
      store_some<A, To>(to + c, hat, left);
    }
  }
}

template <Element E>
void standardise_from(const StandardiseTask& task) {
  switch (task.out.type) {
    case Element::f64: return standardise_in<double, E, Element::f64>(task);
    case Element::tf32:
    case Element::f32: return standardise_in<float, E, Element::f32>(task);
    case Element::bf16: return standardise_in<float, E, Element::bf16>(task);
    case Element::f16: return standardise_in<float, E, Element::f16>(task);
  }
}

void standardise(const StandardiseTask& task) {
  switch (task.z.type) {
    case Element::f64: return standardise_from<Element::f64>(task);
    case Element::tf32:
    case Element::f32: return standardise_from<Element::f32>(task);
    case Element::bf16: return standardise_from<Element::bf16>(task);
    case Element::f16: return standardise_from<Element::f16>(task);
  }
}
