// Column moments of both views, or of any number, in one read, and z_hat itself for those who need it in memory.
//
// Sums are about a shift, the mean of the rows before: products of what is left lose no digits to it, as what they exceed
// those about the mean by is in the merged moments as well. Blocks of kMomentRows rows, whose sums are of the accumulation
// type, merge in double (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979):  delta = mean' - mean,  mean += delta n' / (n + n'),  M2 += M2' + delta^2 n n' / (n + n').

// kShiftRows: the rows, spread over the first block, whose mean is its shift. With k of n rows, n times the square of what
// it is off by is at most (n - k) / k of M2: two bits are lost at worst.
constexpr int kMomentRows = 64, kShiftRows = 16;

// Vectors of columns that are read together: rows may lie so far apart that their parts fall into few cache sets, where
// what is not read at once would be evicted. As many as have their sums in registers.
#if defined(__AVX512F__) || defined(BARLOW_FAST_NEON)
constexpr int kPairVectors = 4;
#else
constexpr int kPairVectors = 2;
#endif

// By column of a block: its shifts, and the sums of both views' rows less these, of their squares and products.
template <class A>
struct PairSums {
  static constexpr int kColumns = kPairVectors * kLanes<A>;
  A shift[2][kColumns] = {}, rest[2][kColumns], squares[2][kColumns], products[kColumns];

  // Of every `step`-th of rows [begin, end) and columns [column, column + width).
  template <Element E, bool Whole>
  void sum(const MomentsTask& task, int64_t begin, int64_t end, int64_t step, int64_t column, int64_t width) {
    constexpr int lanes = kLanes<A>, vectors = kPairVectors;
    Vector<A> s[2][vectors], first[2][vectors] = {}, second[2][vectors] = {}, both[vectors] = {};
    for (int view = 0; view < 2; ++view) {
      for (int v = 0; v < vectors; ++v) s[view][v] = load(shift[view] + v * lanes);
    }
    for (int64_t row = begin; row < end; row += step) {
      const auto *a = row_of<E>(task.a, row) + column, *b = row_of<E>(task.b, row) + column;
      BARLOW_FAST_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const int64_t at = v * lanes, left = Whole ? lanes : width - at;
        read_below(task.a, a + at);
        read_below(task.b, b + at);
        const Vector<A> x = load_some<A, E>(a + at, left) - s[0][v], y = load_some<A, E>(b + at, left) - s[1][v];
        first[0][v] += x;
        first[1][v] += y;
        second[0][v] += x * x;
        second[1][v] += y * y;
        both[v] += x * y;
      }
    }
    for (int v = 0; v < vectors; ++v) {
      for (int view = 0; view < 2; ++view) {
        store(rest[view] + v * lanes, first[view][v]);
        store(squares[view] + v * lanes, second[view][v]);
      }
      store(products + v * lanes, both[v]);
    }
  }
};

template <class A, Element E>
void moments_in(const MomentsTask& task) {
  constexpr int columns = PairSums<A>::kColumns;
  PairSums<A> s;
  for (int64_t begin = task.row_begin; begin < task.row_end; begin += kMomentRows) {
    const int64_t end = smaller(begin + kMomentRows, task.row_end);
    const double count = static_cast<double>(end - begin), before = static_cast<double>(begin - task.row_begin);
    const double share = count / (before + count), both = before * share;
    for (int64_t column = task.column_begin; column < task.column_end; column += columns) {
      const int64_t width = smaller(columns, task.column_end - column);
      const auto sum = [&](int64_t step) {
        if (width == columns) {
          s.template sum<E, true>(task, begin, end, step, column, width);
        } else {
          s.template sum<E, false>(task, begin, end, step, column, width);
        }
      };
      double* __restrict mean[2] = {task.out[0] + column, task.out[1] + column};
      double* __restrict m2[2] = {task.out[2] + column, task.out[3] + column};
      double* __restrict comoment = task.out[4] + column;
      if (before == 0) {
        for (int view = 0; view < 2; ++view) {
          for (int c = 0; c < columns; ++c) s.shift[view][c] = 0;
        }
        const int64_t step = larger((end - begin) / kShiftRows, 1), summed = (end - begin + step - 1) / step;
        sum(step);
        for (int view = 0; view < 2; ++view) {
          for (int c = 0; c < columns; ++c) s.shift[view][c] = s.rest[view][c] / static_cast<A>(summed);
          for (int64_t c = 0; c < width; ++c) mean[view][c] = m2[view][c] = 0;
        }
        for (int64_t c = 0; c < width; ++c) comoment[c] = 0;
      } else {
        for (int view = 0; view < 2; ++view) {
          for (int64_t c = 0; c < width; ++c) s.shift[view][c] = static_cast<A>(mean[view][c]);
        }
      }
      sum(1);
      // The products are about the shifts: move them to the block's means, and these to those of the rows before.
      for (int64_t c = 0; c < width; ++c) {
        double off[2], delta[2];
        for (int view = 0; view < 2; ++view) {
          off[view] = s.rest[view][c] / count;
          delta[view] = s.shift[view][c] + off[view] - mean[view][c];
          mean[view][c] += delta[view] * share;
          m2[view][c] += s.squares[view][c] - count * off[view] * off[view] + delta[view] * delta[view] * both;
        }
        comoment[c] += s.products[c] - count * off[0] * off[1] + delta[0] * delta[1] * both;
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

// Views whose co-moments with as many others are summed in registers; vectors of columns that are read together, for the
// reason of kPairVectors.
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
      read_below(z, from + v * lanes);
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
