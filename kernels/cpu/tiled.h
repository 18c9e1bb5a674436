// Products by matrix tiles (tiles.h). They take so little time that what surrounds them decides: sums stay in full
// tiles of scratch memory until they are complete, and z_hat is kept as operand only; where a gradient needs it in full
// precision, it is standardised once more from z or from a copy of its columns. Included by primitives.cpp only,
// instantiated for matrix tiles alone.

// kLanes elements, of which only `count` are there unless `Whole`: the other lanes are zero.
template <bool Whole, Element E>
BARLOW_FAST_INLINE Vector<float> load_lanes(const typename ElementOf<E>::type* p, int64_t count) {
  return Whole ? load_elements<float, E>(p) : load_some<float, E>(p, count);
}

// mean, rstd and shift of one vector of columns.
template <bool Whole>
struct ColumnNorm {
  Vector<float> mean, rstd, shift;

  BARLOW_FAST_INLINE ColumnNorm(const Norm& norm, int64_t column, int64_t count)
      : mean(load_lanes<Whole, Element::f32>(static_cast<const float*>(norm.mean) + column, count)),
        rstd(load_lanes<Whole, Element::f32>(static_cast<const float*>(norm.rstd) + column, count)),
        shift(load_lanes<Whole, Element::f32>(static_cast<const float*>(norm.shift) + column, count)) {}
  BARLOW_FAST_INLINE Vector<float> hat(Vector<float> x) const { return standardised<float>(x, mean, rstd, shift); }
};

// ---- operands -----------------------------------------------------------------------------------------------------

// kLanes rows (`rows` of them, unless `Whole`) of kDepthStep columns (`count` of them) as a left operand's block
// and, transposed, of a right operand's panel; either may be null.
template <bool Whole, class Op, Element E>
BARLOW_FAST_INLINE void pack_square(const View& z, const Norm& norm, int64_t row, int64_t rows, int64_t column,
                                    int64_t count, Unit<Op>* block, Unit<Op>* panel) {
  constexpr int lanes = kLanes<float>;
  const ColumnNorm<Whole> norms[2] = {{norm, column, count}, {norm, column + lanes, count - lanes}};
  Vector<Unit<Op>> squares[kPieces<Op>][lanes];
  BARLOW_FAST_UNROLL
  for (int r = 0; r < lanes; ++r) {
    Vector<float> hat[2] = {};
    if (Whole || r < rows) {
      const auto* from = row_of<E>(z, row + r) + column;
      __builtin_prefetch(from + 2 * lanes * z.stride);
      for (int v = 0; v < 2; ++v) hat[v] = norms[v].hat(load_lanes<Whole, E>(from + v * lanes, count - v * lanes));
    }
    for (int p = 0; p < kPieces<Op>; ++p) {
      squares[p][r] = units_of<Op>(piece_of<Op>(hat[0], p), piece_of<Op>(hat[1], p));
    }
  }
  for (int p = 0; p < kPieces<Op>; ++p) {
    if (block != nullptr) {
      BARLOW_FAST_UNROLL
      for (int r = 0; r < lanes; ++r) store(block + (p * lanes + r) * lanes, squares[p][r]);
    }
    if (panel == nullptr) continue;
    transpose<Unit<Op>>(squares[p]);
    BARLOW_FAST_UNROLL
    for (int r = 0; r < lanes; ++r) store(panel + (p * lanes + r) * kPanel<Op>, squares[p][r]);
  }
}

// Samples [row_begin, row_end) with `count` columns from `column` as summed index.
template <class Op, Element E>
void pack_tiled_samples(const View& z, const Norm& norm, int64_t row_begin, int64_t row_end, int64_t column,
                        int64_t count, Unit<Op>* left, Unit<Op>* right) {
  constexpr int lanes = kLanes<float>;
  const int64_t units = units_for<Op>(count);
  for (int64_t row = row_begin; row < row_begin + round_up(row_end - row_begin, kPanel<Op>); row += lanes) {
    const int64_t at = row - row_begin, rows = row_end - row;
    for (int64_t k = 0; k < count; k += kDepthStep<Op>) {
      const int64_t unit = units_of_whole<Op>(k);
      Unit<Op>* block = left == nullptr ? nullptr : left + at * units + unit * lanes;
      Unit<Op>* panel = right == nullptr ? nullptr
                                         : right + at / kPanel<Op> * kPanel<Op> * units + unit * kPanel<Op> +
                                               at % kPanel<Op>;
      if (rows >= lanes && count - k >= kDepthStep<Op>) {
        pack_square<true, Op, E>(z, norm, row, lanes, column + k, count - k, block, panel);
      } else {
        pack_square<false, Op, E>(z, norm, row, rows, column + k, count - k, block, panel);
      }
    }
  }
}

// Units of two rows (`rows` of them, unless `Whole`), one vector for each piece.
template <bool Whole, class Op, Element E>
BARLOW_FAST_INLINE void pack_across(const View& z, int64_t row, int64_t rows, int64_t column, int64_t count,
                                    const ColumnNorm<Whole>& norm, Vector<Unit<Op>> (&to)[kPieces<Op>]) {
  Vector<float> hat[2] = {};
  BARLOW_FAST_UNROLL
  for (int e = 0; e < 2; ++e) {
    if (!Whole && e >= rows) continue;
    hat[e] = norm.hat(load_lanes<Whole, E>(row_of<E>(z, row + e) + column, count));
  }
  for (int p = 0; p < kPieces<Op>; ++p) to[p] = units_across<Op>(piece_of<Op>(hat[0], p), piece_of<Op>(hat[1], p));
}

// The left operand's block of kDepthStep rows (`rows` of them) and kLanes columns (`count` of them).
template <bool Whole, class Op, Element E>
BARLOW_FAST_INLINE void pack_feature_block(const View& z, const Norm& norm, int64_t row, int64_t rows, int64_t column,
                                           int64_t count, Unit<Op>* block) {
  constexpr int lanes = kLanes<float>;
  const ColumnNorm<Whole> norms(norm, column, count);
  Vector<Unit<Op>> squares[kPieces<Op>][lanes];
  BARLOW_FAST_UNROLL
  for (int u = 0; u < lanes; ++u) {
    Vector<Unit<Op>> units[kPieces<Op>];
    pack_across<Whole, Op, E>(z, row + 2 * u, rows - 2 * u, column, count, norms, units);
    for (int p = 0; p < kPieces<Op>; ++p) squares[p][u] = units[p];
  }
  for (int p = 0; p < kPieces<Op>; ++p) {
    transpose<Unit<Op>>(squares[p]);
    BARLOW_FAST_UNROLL
    for (int r = 0; r < lanes; ++r) store(block + (p * lanes + r) * lanes, squares[p][r]);
  }
}

// Features [begin, end) with rows [row_begin, row_begin + rows) as summed index: the left operand.
template <class Op, Element E>
void pack_tiled_left_features(const View& z, const Norm& norm, int64_t row_begin, int64_t rows, int64_t begin,
                              int64_t end, Unit<Op>* out) {
  constexpr int lanes = kLanes<float>;
  const int64_t units = units_for<Op>(rows);
  for (int64_t c = begin; c < begin + round_up(end - begin, kPanel<Op>); c += kPanel<Op>) {
    for (int64_t k = 0; k < rows; k += kDepthStep<Op>) {
      for (int64_t column = c; column < c + kPanel<Op>; column += lanes) {
        Unit<Op>* block = out + (column - begin) * units + units_of_whole<Op>(k) * lanes;
        if (rows - k >= kDepthStep<Op> && column + lanes <= end) {
          pack_feature_block<true, Op, E>(z, norm, row_begin + k, rows - k, column, lanes, block);
        } else {
          pack_feature_block<false, Op, E>(z, norm, row_begin + k, rows - k, column, end - column, block);
        }
      }
    }
  }
}

// The same as the right operand.
template <class Op, Element E>
void pack_tiled_right_features(const View& z, const Norm& norm, int64_t row_begin, int64_t rows, int64_t begin,
                               int64_t end, Unit<Op>* out) {
  constexpr int panel = kPanel<Op>, lanes = kLanes<float>;
  const int64_t units = units_for<Op>(rows);
  for (int64_t k = 0; k < units_of_whole<Op>(round_up(rows, kDepthStep<Op>)) / kPieces<Op>; ++k) {
    for (int64_t c = 0; c < round_up(end - begin, panel); c += lanes) {
      const int64_t column = begin + c, count = end - column, row = row_begin + 2 * k, left = rows - 2 * k;
      Vector<Unit<Op>> pieces[kPieces<Op>];
      if (left >= 2 && count >= lanes) {
        pack_across<true, Op, E>(z, row, left, column, count, {norm, column, count}, pieces);
      } else {
        pack_across<false, Op, E>(z, row, left, column, count, {norm, column, count}, pieces);
      }
      Unit<Op>* to = out + c / panel * panel * units + place_of<Op>(k) * panel + c % panel;
      for (int p = 0; p < kPieces<Op>; ++p) store(to + p * lanes * panel, pieces[p]);
    }
  }
}

// ---- products with sums in full tiles ------------------------------------------------------------------------------

template <class Op>
struct TiledScratch {
  int64_t depth, height, width;  // values of the summed index per step; rows and columns in full tiles
  Unit<Op>*left, *right;
  float* sums;  // [panel][tile][row][column]

  template <class Task>
  TiledScratch(Arena& arena, const Task& task)
      : height(round_up(task.i_end - task.i_begin, kTileRows<Op>)),
        width(round_up(task.j_end - task.j_begin, kPanel<Op>)) {
    // Both operands of a step within half a mebibyte, a panel of one piece within a third of 48 KiB of first-level cache.
    const int64_t fitting = (512 << 10) / ((height + width) * kPieces<Op> * 2);
    depth = smaller(larger(fitting / kDepthStep<Op>, 4), 8) * kDepthStep<Op>;
    left = arena.template take<Unit<Op>>(height * units_of_whole<Op>(depth));
    right = arena.template take<Unit<Op>>(width * units_of_whole<Op>(depth));
    sums = arena.template take<float>(height * width);
  }
  float* tile(int64_t row, int64_t column) const { return sums + column * height + row * kPanel<Op>; }

  int64_t tiles() const { return height / kTileRows<Op> * (width / kPanel<Op>); }

  // Adds the products of one step; with `lower` those of tiles above the diagonal are left out.
  void multiply(int64_t units, bool accumulate, bool lower, ReadAhead* ahead) const {
    for (int64_t j = 0; j < width; j += kPanel<Op>) {
      for (int64_t i = lower ? j : 0; i < height; i += kTileRows<Op>) {
        if (ahead != nullptr) ahead->next();
        multiply_tiles<Op>(units, left + i * units, right + j * units, accumulate, tile(i, j), kPanel<Op>);
      }
    }
  }
};

// One tile of sums to `out`, clipped to `rows` x `columns`.
template <class Op>
void put_tile(const float* sums, int64_t rows, int64_t columns, float* out, int64_t stride) {
  constexpr int lanes = kLanes<float>;
  for (int64_t r = 0; r < smaller(rows, kTileRows<Op>); ++r, out += stride, sums += kPanel<Op>) {
    for (int v = 0; v < 2; ++v) {
      store_some<float, Element::f32>(out + v * lanes, load(sums + v * lanes), columns - v * lanes);
    }
  }
}

template <class Op>
using TiledGramScratch = TiledScratch<Op>;

template <class Op, Element E>
void tiled_gram(const GramTask& task, void* scratch) {
  [[maybe_unused]] const Registers<Op> registers{};
  Arena arena{static_cast<char*>(scratch)};
  const TiledGramScratch<Op> s(arena, task);
  const int64_t rows = task.i_end - task.i_begin, columns = task.j_end - task.j_begin;
  const bool diagonal = task.i_begin == task.j_begin;
  for (int64_t column = task.column_begin; column < task.column_end; column += s.depth) {
    const int64_t count = smaller(s.depth, task.column_end - column);
    pack_tiled_samples<Op, E>(task.z, task.norm, task.i_begin, task.i_end, column, count, s.left,
                              diagonal ? s.right : nullptr);
    if (!diagonal) {
      pack_tiled_samples<Op, E>(task.z, task.norm, task.j_begin, task.j_end, column, count, nullptr, s.right);
    }
    s.multiply(units_for<Op>(count), column > task.column_begin, diagonal, nullptr);
  }
  for (int64_t i = 0; i < rows; i += kTileRows<Op>) {
    for (int64_t j = 0; j < (diagonal ? i + kPanel<Op> : columns); j += kPanel<Op>) {
      float* out = in_tiles(static_cast<float*>(task.out), task.side, task.i_begin + i, task.j_begin + j);
      put_tile<Op>(s.tile(i, j), rows - i, columns - j, out, task.side);
    }
  }
}

template <class Op>
using TiledCorrelationScratch = TiledScratch<Op>;

template <class Op, Element E>
void tiled_correlation(const CorrelationTask& task, void* scratch) {
  [[maybe_unused]] const Registers<Op> registers{};
  Arena arena{static_cast<char*>(scratch)};
  const TiledCorrelationScratch<Op> s(arena, task);
  for (int64_t row = task.row_begin; row < task.row_end; row += s.depth) {
    const int64_t rows = smaller(s.depth, task.row_end - row);
    pack_tiled_left_features<Op, E>(task.a, task.norm_a, row, rows, task.i_begin, task.i_end, s.left);
    pack_tiled_right_features<Op, E>(task.b, task.norm_b, row, rows, task.j_begin, task.j_end, s.right);
    ReadAhead ahead = read_ahead(task, row + rows, s.depth, s.tiles());
    s.multiply(units_for<Op>(rows), row > task.row_begin, false, &ahead);
  }
  for (int64_t i = task.i_begin; i < task.i_end; i += kTileRows<Op>) {
    for (int64_t j = task.j_begin; j < task.j_end; j += kPanel<Op>) {
      put_tile<Op>(s.tile(i - task.i_begin, j - task.j_begin), task.i_end - i, task.j_end - j,
                   static_cast<float*>(task.out) + i * task.out_stride + j, task.out_stride);
    }
  }
}

// ---- gradients ----------------------------------------------------------------------------------------------------

// dL/dz = product * g + (z_link - mean_link) * factor_link + (z_own - mean_own) * own + constant, by column.
struct GradientColumns {
  float *mean_own, *product, *own, *constant, *mean_link, *factor_link;

  GradientColumns(Arena& arena, int64_t columns) {
    for (float** column : {&mean_own, &product, &own, &constant, &mean_link, &factor_link}) {
      *column = arena.take<float>(columns);
    }
  }
  static double value(const void* values, int64_t c) {
    return static_cast<double>(static_cast<const float*>(values)[c]);
  }
  // Column c, put in place `at`, of the link: weight * z_hat in G, `factor` = rstd * grad_scale of its gradient. Returns
  // what that takes out of G's constant.
  double set_link(int64_t at, const Norm& norm, int64_t c, double weight, double factor) {
    mean_link[at] = static_cast<const float*>(norm.mean)[c];
    factor_link[at] = static_cast<float>(weight * value(norm.rstd, c) * factor);
    return weight * value(norm.shift, c);
  }
  // The same of the rest: G = coefficient * product - projection * z_hat - shift.
  void set(int64_t at, const Norm& norm, int64_t c, double coefficient, double projection, double shift,
           double factor) {
    mean_own[at] = static_cast<const float*>(norm.mean)[c];
    product[at] = static_cast<float>(coefficient * factor);
    own[at] = static_cast<float>(-projection * value(norm.rstd, c) * factor);
    constant[at] = static_cast<float>((projection * value(norm.shift, c) - shift) * factor);
  }
};

// Two vectors of one row, of which only `count` elements are written unless `Whole`.
template <bool Whole, Element E>
BARLOW_FAST_INLINE void write_lanes(typename ElementOf<E>::type* to, const Vector<float> (&x)[2], int64_t count,
                                    bool stream) {
  constexpr int lanes = kLanes<float>;
#if defined(__AVX512BF16__)
  if constexpr (Whole && E == Element::bf16) {
    const __m512i line = (__m512i)_mm512_cvtne2ps_pbh((__m512)x[1], (__m512)x[0]);
    if (stream && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
    } else {
      _mm512_storeu_si512(to, line);
    }
    return;
  }
#endif
  for (int v = 0; v < 2; ++v) write_out<float, E>(to + v * lanes, x[v], Whole ? lanes : count - v * lanes, stream);
}

// Two vectors of columns of one row, their first at place `at` of `columns`.
template <bool Whole, Element E>
BARLOW_FAST_INLINE void write_gradient(const GradientColumns& columns, int64_t at, const float* product,
                                       const typename ElementOf<E>::type* own,
                                       const typename ElementOf<E>::type* linked, typename ElementOf<E>::type* to,
                                       int64_t count, bool stream) {
  constexpr int lanes = kLanes<float>;
  Vector<float> g[2];
  BARLOW_FAST_UNROLL
  for (int v = 0; v < 2; ++v) {
    const int64_t c = at + v * lanes, left = count - v * lanes;
    const Vector<float> x = load_lanes<Whole, E>(own + v * lanes, left) - load(columns.mean_own + c);
    const Vector<float> y = load_lanes<Whole, E>(linked + v * lanes, left) - load(columns.mean_link + c);
    g[v] = load(product + v * lanes) * load(columns.product + c) + load(columns.constant + c);
    g[v] += y * load(columns.factor_link + c) + x * load(columns.own + c);
  }
  write_lanes<Whole, E>(to, g, count, stream);
}

// ---- Gram form, two views -----------------------------------------------------------------------------------------
// Any number of views share code with the products by vectors (gram.h).

// Whether a task is that of gram_gradients: both views enter each gradient, which has a matrix.
inline bool of_pair(const GramGradientTask& task) {
  for (int64_t i = 0; i < task.gradient_count; ++i) {
    const GramGradient& gradient = task.gradients[i];
    if (gradient.packed == nullptr || gradient.added != nullptr || gradient.link_count != 1) return false;
    if (gradient.view + gradient.links->view != 1) return false;
  }
  return task.view_count == 2;
}

// Columns of a task of `views` views: the product, their operands and their copies stay near the second-level cache.
inline int64_t tiled_gram_columns(int64_t n, int64_t views) {
  return smaller(larger((3 << 20) / ((4 + 6 * views) * larger(n, 1)) / 32, 2), 6) * 32;
}

template <class Op>
struct TiledGramGradientScratch {
  int64_t width, samples, stride;  // columns and rows, padded to tiles; floats of a row of products and copies
  int64_t units, bytes;            // of one view
  Unit<Op>* rights = nullptr;      // [view][panel][unit][column]
  float* product = nullptr;        // [sample][stride]
  char* copies = nullptr;          // [view][sample][stride]: the views' own rows may share few cache sets
  float* cross = nullptr;          // sums of z_hat_a * z_hat_b
  double* total = nullptr;         // sums of product * z_hat
  GradientColumns columns;

  TiledGramGradientScratch(Arena& arena, const GramGradientTask& task)
      : width(round_up(task.column_end - task.column_begin, kPanel<Op>)),
        samples(round_up(task.n, kTileRows<Op>)),
        stride(width + kLanes<float>),  // rows a power of two apart would fall into the same cache sets
        units(units_of_whole<Op>(samples) * width),
        bytes(round_up(samples * stride * element_bytes(task.views->z.type), 64)),
        columns(arena, width) {
    if (!of_pair(task)) {
      GramGradientScratch<Op>(arena, task);
      return;
    }
    rights = arena.template take<Unit<Op>>(units * 2);
    product = arena.template take<float>(samples * stride);
    copies = arena.template take<char>(bytes * 2);
    cross = arena.template take<float>(width);
    total = arena.template take<double>(width);
  }
  Unit<Op>* right(int64_t view) const { return rights + view * units; }
  View copy(const GramGradientTask& task, int64_t view) const {
    return {copies + view * bytes, stride, task.views->z.type};
  }
};

// One vector of columns of two rows of a view (the second row may be missing), and these as right operand at `place`.
template <bool Whole, class Op, Element E>
BARLOW_FAST_INLINE void pack_view(const GramGradientTask& task, const TiledGramGradientScratch<Op>& s, int64_t view,
                                  int64_t n, int64_t c, int64_t count, int64_t place, Vector<float> (&hat)[2]) {
  constexpr int lanes = kLanes<float>;
  const GramView& from = task.views[view];
  const View copy = s.copy(task, view);
  const ColumnNorm<Whole> norm(from.norm, task.column_begin + c, count);
  BARLOW_FAST_UNROLL
  for (int e = 0; e < 2; ++e) {
    if (Whole || n + e < task.n) hat[e] = norm.hat(load_lanes<Whole, E>(row_of<E>(copy, n + e) + c, count));
  }
  if (!from.multiplied) return;
  BARLOW_FAST_UNROLL
  for (int p = 0; p < kPieces<Op>; ++p) {
    store(s.right(view) + place + p * lanes * kPanel<Op>,
          units_across<Op>(piece_of<Op>(hat[0], p), piece_of<Op>(hat[1], p)));
  }
}

// The same of both views, and what their products add to `cross`.
template <bool Whole, class Op, Element E>
BARLOW_FAST_INLINE void pack_views(const GramGradientTask& task, const TiledGramGradientScratch<Op>& s, int64_t n,
                                   int64_t c, int64_t count, int64_t place) {
  Vector<float> x[2] = {}, y[2] = {};
  pack_view<Whole, Op, E>(task, s, 0, n, c, count, place, x);
  pack_view<Whole, Op, E>(task, s, 1, n, c, count, place, y);
  store(s.cross + c, load(s.cross + c) + x[0] * y[0] + x[1] * y[1]);
}

// Copies the columns of a task of one row.
template <Element E>
BARLOW_FAST_INLINE void copy_row(const GramGradientTask& task, const View& z, const View& copy, int64_t n) {
  using Value = typename ElementOf<E>::type;
  constexpr int64_t ahead = 8;  // rows of lead for prefetching: they are too far apart for the hardware to foresee
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(Value));
  const Value* from = row_of<E>(z, n) + task.column_begin;
  const int64_t count = task.column_end - task.column_begin;
  for (int64_t c = 0; c < count; c += line) __builtin_prefetch(from + ahead * z.stride + c);
  __builtin_memcpy(const_cast<Value*>(row_of<E>(copy, n)), from, static_cast<size_t>(count) * sizeof(Value));
}

// Both views' columns as right operands and as copies, and the sums of their products.
template <class Op, Element E>
void pack_columns(const GramGradientTask& task, const TiledGramGradientScratch<Op>& s) {
  constexpr int panel = kPanel<Op>, lanes = kLanes<float>;
  const int64_t columns = task.column_end - task.column_begin, units = units_of_whole<Op>(s.samples);
  for (int64_t c = 0; c < s.width; c += lanes) store(s.cross + c, Vector<float>{});
  for (int64_t n = 0; n < s.samples; n += 2) {
    for (int64_t row = n; row < smaller(n + 2, task.n); ++row) {
      for (int64_t view = 0; view < 2; ++view) copy_row<E>(task, task.views[view].z, s.copy(task, view), row);
    }
    for (int64_t c = 0; c < s.width; c += lanes) {
      const int64_t count = columns - c, place = c / panel * units * panel + place_of<Op>(n / 2) * panel + c % panel;
      if (count >= lanes && n + 1 < task.n) {
        pack_views<true, Op, E>(task, s, n, c, count, place);
      } else {
        pack_views<false, Op, E>(task, s, n, c, count, place);
      }
    }
  }
}

// Adds product * z_hat of one tile, two vectors wide, to the sums of its columns.
template <bool Whole, Element E>
BARLOW_FAST_INLINE void add_to_total(const typename ElementOf<E>::type* from, const Norm& norm, int64_t rows,
                                     int64_t column, int64_t count, const float* product, int64_t stride,
                                     double* total) {
  constexpr int lanes = kLanes<float>;
  const ColumnNorm<Whole> norms[2] = {{norm, column, count}, {norm, column + lanes, count - lanes}};
  Vector<float> sum[2] = {};
  for (int64_t r = 0; r < rows; ++r, from += stride, product += stride) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < 2; ++v) {
      sum[v] += load(product + v * lanes) * norms[v].hat(load_lanes<Whole, E>(from + v * lanes, count - v * lanes));
    }
  }
  for (int c = 0; c < 2 * lanes; ++c) total[c] += sum[c / lanes][c % lanes];
}

// K' z_hat of one gradient, and the sums of its products with z_hat.
template <class Op, Element E>
void multiply_tiled_gram(const GramGradientTask& task, const TiledGramGradientScratch<Op>& s,
                         const GramGradient& gradient) {
  constexpr int panel = kPanel<Op>;
  const View own = s.copy(task, gradient.view);
  const Norm& norm = task.views[gradient.view].norm;
  const int64_t units = units_of_whole<Op>(s.samples), count = task.column_end - task.column_begin;
  for (int64_t c = 0; c < s.width; ++c) s.total[c] = 0;
  for (int64_t n = 0; n < task.n; n += kTileRows<Op>) {
    const Unit<Op>* left = static_cast<const Unit<Op>*>(gradient.packed) + n * units;
    for (int64_t c = 0; c < s.width; c += panel) {
      float* product = s.product + n * s.stride + c;
      multiply_tiles<Op>(units, left, s.right(gradient.view) + c * units, false, product, s.stride);
      if (!task.projected) continue;
      const int64_t rows = smaller(kTileRows<Op>, task.n - n), column = task.column_begin + c;
      const auto add = count - c >= panel ? add_to_total<true, E> : add_to_total<false, E>;
      add(row_of<E>(own, n) + c, norm, rows, column, count - c, product, s.stride, s.total + c);
    }
  }
}

// Writes one gradient from its product.
template <class Op, Element E>
void write_tiled_gradient(const GramGradientTask& task, const TiledGramGradientScratch<Op>& s,
                          const GramGradient& gradient) {
  constexpr int panel = kPanel<Op>;
  const View own = s.copy(task, gradient.view), other = s.copy(task, 1 - gradient.view);
  const int64_t count = task.column_end - task.column_begin;
  for (int64_t n = 0; n < task.n; ++n) {
    const auto *x = row_of<E>(own, n), *y = row_of<E>(other, n);
    auto* to = row_of<E>(gradient.out, n) + task.column_begin;
    const float* product = s.product + n * s.stride;
    int64_t c = 0;
    for (; c + panel <= count; c += panel) {
      write_gradient<true, E>(s.columns, c, product + c, x + c, y + c, to + c, panel, task.stream);
    }
    if (c < count) {
      write_gradient<false, E>(s.columns, c, product + c, x + c, y + c, to + c, count - c, task.stream);
    }
  }
}

// kernels/README.md, equation 6; the term of the centre puts back what centring took out: all of it, or with the norm's
// backward what that would not have removed.
template <class Op, Element E>
void tiled_gram_gradient(const GramGradientTask& task, void* scratch) {
  if (!of_pair(task)) return gram_gradient_in<Op, E>(task, scratch);
  [[maybe_unused]] const Registers<Op> registers{};
  Arena arena{static_cast<char*>(scratch)};
  const TiledGramGradientScratch<Op> s(arena, task);
  GradientColumns columns = s.columns;
  pack_columns<Op, E>(task, s);
  const int64_t count = task.column_end - task.column_begin;
  for (int64_t i = 0; i < task.gradient_count; ++i) {
    const GramGradient& gradient = task.gradients[i];
    const Link& link = *gradient.links;
    const Norm &norm = task.views[gradient.view].norm, &beside = task.views[link.view].norm;
    multiply_tiled_gram<Op, E>(task, s, gradient);
    for (int64_t c = 0; c < count; ++c) {
      const int64_t column = task.column_begin + c;
      const double rstd = columns.value(norm.rstd, column), factor = rstd * task.grad_scale;
      const double weight = link.slope * columns.value(link.values, column) + link.offset;
      const double taken = gradient.product * gradient.centre;
      const double whole = (gradient.product * s.total[c] + weight * s.cross[c]) / static_cast<double>(task.n);
      const double projection = task.projected ? whole - taken * task.eps * rstd * rstd : -taken;
      const double shift = columns.set_link(c, beside, column, weight, factor);
      columns.set(c, norm, column, gradient.product, projection, shift, factor);
    }
    write_tiled_gradient<Op, E>(task, s, gradient);
  }
  finish_streams(task.stream);
}

// ---- correlation form ---------------------------------------------------------------------------------------------

// Rows of a task: its left operand stays in the second-level cache.
inline int64_t tiled_correlation_rows(int64_t d) {
  return smaller(larger((512 << 10) / (2 * larger(d, 1)) / 32, 1), 4) * 32;
}

template <class Op>
struct TiledCorrelationGradientScratch {
  int64_t units;
  Unit<Op>* left;
  GradientColumns columns;

  TiledCorrelationGradientScratch(Arena& arena, const CorrelationGradientTask& task)
      : units(units_for<Op>(task.d)), columns(arena, round_up(task.d, kPanel<Op>)) {
    left = arena.template take<Unit<Op>>(round_up(task.row_end - task.row_begin, kTileRows<Op>) * units);
  }
};

// write_gradient for one panel of columns of rows [row, row_end).
template <bool Whole, Element E>
void write_gradients(const GradientColumns& columns, int64_t c, const float* product, const View& own,
                     const View& other, const Output& out, int64_t row, int64_t row_end, int64_t count, bool stream) {
  for (; row < row_end; ++row, product += 2 * kLanes<float>) {
    write_gradient<Whole, E>(columns, c, product, row_of<E>(own, row) + c, row_of<E>(other, row) + c,
                             row_of<E>(out, row) + c, count, stream);
  }
}

template <class Op, Element E>
void tiled_correlation_gradient(const CorrelationGradientTask& task, void* scratch) {
  constexpr int panel = kPanel<Op>, side = kTileRows<Op>;
  [[maybe_unused]] const Registers<Op> registers{};
  Arena arena{static_cast<char*>(scratch)};
  const TiledCorrelationGradientScratch<Op> s(arena, task);
  GradientColumns columns = s.columns;
  ReadAhead ahead = read_ahead(task, round_up(task.d, panel) / panel *
                                         (round_up(task.row_end - task.row_begin, side) / side));
  for (int view = 0; view < 2; ++view) {
    const Output& out = view ? task.grad_b : task.grad_a;
    if (out.data == nullptr) continue;
    const View &own = view ? task.b : task.a, &other = view ? task.a : task.b;
    for (int64_t c = 0; c < task.d; ++c) {
      const double diagonal = static_cast<const float*>(task.diagonal)[c];
      const double weight = task.slope * diagonal + task.offset;
      const double square = (view ? task.squares_b : task.squares_a)[c];
      const Norm &norm = view ? task.norm_b : task.norm_a, &beside = view ? task.norm_a : task.norm_b;
      const double factor = columns.value(norm.rstd, c) * task.grad_scale;
      const double shift = columns.set_link(c, beside, c, weight, factor);
      columns.set(c, norm, c, task.coefficient, task.coefficient * square + weight * diagonal, shift, factor);
    }
    pack_tiled_samples<Op, E>(other, view ? task.norm_a : task.norm_b, task.row_begin, task.row_end, 0, task.d, s.left,
                              nullptr);
    const Unit<Op>* packed = static_cast<const Unit<Op>*>(view ? task.packed_b : task.packed_a);
    for (int64_t c = 0; c < task.d; c += panel) {
      for (int64_t row = task.row_begin; row < task.row_end; row += side) {
        ahead.next();
        alignas(64) float product[side * panel];
        multiply_tiles<Op>(s.units, s.left + (row - task.row_begin) * s.units, packed + c * s.units, false,
                       product, panel);
        const auto write = task.d - c >= panel ? write_gradients<true, E> : write_gradients<false, E>;
        write(columns, c, product, own, other, out, row, smaller(row + side, task.row_end), task.d - c, task.stream);
      }
    }
  }
  finish_streams(task.stream);
}
