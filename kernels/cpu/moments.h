// Column moments of both views in one read, and z_hat itself for those who need it in memory.
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

void moments(const MomentsTask& task) {
  switch (task.a.type) {
    case Element::f64: return moments_in<double, Element::f64>(task);
    case Element::f32: return moments_in<float, Element::f32>(task);
    case Element::bf16: return moments_in<float, Element::bf16>(task);
    case Element::f16: return moments_in<float, Element::f16>(task);
  }
}

// ---- from moments to what standardises ----------------------------------------------------------------------------

template <class A>
void standardisation_in(const StandardisationTask& task) {
  const A* moments = static_cast<const A*>(task.moments);
  A* __restrict statistics = static_cast<A*>(task.statistics);
  const int64_t d = task.d;
  const double count = task.count, eps = task.eps;
  double on_diagonal = 0, squares = 0;
  for (int64_t begin = task.column_begin; begin < task.column_end; begin += 64) {
    const int64_t width = smaller(64, task.column_end - begin);
    double rstd_a[64], rstd_b[64], diagonal[64];
    for (int64_t c = 0; c < width; ++c) {
      rstd_a[c] = 1 / __builtin_sqrt(moments[2 * d + begin + c] / count + eps);
      rstd_b[c] = 1 / __builtin_sqrt(moments[3 * d + begin + c] / count + eps);
      diagonal[c] = moments[4 * d + begin + c] / count * rstd_a[c] * rstd_b[c];
    }
    for (int64_t c = 0; c < width; ++c) {
      statistics[begin + c] = moments[begin + c];
      statistics[d + begin + c] = static_cast<A>(rstd_a[c]);
      statistics[2 * d + begin + c] = moments[d + begin + c];
      statistics[3 * d + begin + c] = static_cast<A>(rstd_b[c]);
      statistics[4 * d + begin + c] = static_cast<A>(diagonal[c]);
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
  for (int64_t row = task.row_begin; row < task.row_end; ++row) {
    const auto* from = row_of<E>(task.z, row);
    auto* to = row_of<To>(task.out, row);
    for (int64_t c = 0; c < task.d; c += lanes) {
      const int64_t left = task.d - c;
      const Vector<A> x = load_some<A, E>(from + c, left);
      store_some<A, To>(to + c, standardised<A>(x, load_some(mean + c, left), load_some(rstd + c, left)), left);
    }
  }
}

template <Element E>
void standardise_from(const StandardiseTask& task) {
  switch (task.out.type) {
    case Element::f64: return standardise_in<double, E, Element::f64>(task);
    case Element::f32: return standardise_in<float, E, Element::f32>(task);
    case Element::bf16: return standardise_in<float, E, Element::bf16>(task);
    case Element::f16: return standardise_in<float, E, Element::f16>(task);
  }
}

void standardise(const StandardiseTask& task) {
  switch (task.z.type) {
    case Element::f64: return standardise_from<Element::f64>(task);
    case Element::f32: return standardise_from<Element::f32>(task);
    case Element::bf16: return standardise_from<Element::bf16>(task);
    case Element::f16: return standardise_from<Element::f16>(task);
  }
}
