// The Gram form: K = z_hat z_hat^T, its inner products, and the gradients through it.
//
// z_hat is never stored: a task standardises the rows it needs while packing them into cache-resident panels.

// ---- K ------------------------------------------------------------------------------------------------------------

template <class Op>
struct GramScratch : BlockScratch<Op> {
  GramScratch(Arena& arena, const GramTask& task)
      : BlockScratch<Op>(arena, task.caches, task.i_end - task.i_begin, task.j_end - task.j_begin,
                         kPanel<Op>, task.column_end - task.column_begin) {}
};

// Panels, Width rows wide, of samples [row_begin, row_end) with `count` columns from `column` as summed index.
template <class Op, Element E, int Width>
void pack_samples(const GramTask& task, int64_t row_begin, int64_t row_end, int64_t column, int64_t count,
                  Unit<Op>* out) {
  using A = Acc<Op>;
  constexpr int lanes = kLanes<A>;
  constexpr int64_t ahead = 128;  // elements: more rows are read side by side than the hardware reads ahead of
  const int64_t depth = round_up(count, kDepthStep<Op>);
  const A* mean = static_cast<const A*>(task.norm.mean) + column;
  const A* rstd = static_cast<const A*>(task.norm.rstd) + column;
  const A* shift = static_cast<const A*>(task.norm.shift) + column;
  for (int64_t row = row_begin; row < row_end; row += kPanel<Op>) {
    Unit<Op>* panel = out + (row - row_begin) * (depth / Op::kDepth);
    pack_transposed<Op, Width>(depth, panel, [&](int first, int64_t k, int, Vector<Unit<Op>>(&square)[lanes]) {
      Vector<A> m[2] = {}, s[2] = {}, t[2] = {};
      for (int v = 0; v < Op::kDepth; ++v) {
        m[v] = load_some(mean + k + v * lanes, count - k - v * lanes);
        s[v] = load_some(rstd + k + v * lanes, count - k - v * lanes);
        t[v] = load_some(shift + k + v * lanes, count - k - v * lanes);
      }
      BARLOW_FAST_UNROLL
      for (int r = 0; r < lanes; ++r) {
        if (row + first + r >= row_end) {
          square[r] = Vector<Unit<Op>>{};
          continue;
        }
        const auto* from = row_of<E>(task.z, row + first + r) + column + k;
        Vector<A> hat[2] = {};
        BARLOW_FAST_UNROLL
        for (int v = 0; v < Op::kDepth; ++v) {
          __builtin_prefetch(from + v * lanes + ahead, 0, 2);
          const Vector<A> x = load_some<A, E>(from + v * lanes, count - k - v * lanes);
          hat[v] = rounded<Op>(standardised<A>(x, m[v], s[v], t[v]), task.operand);
        }
        square[r] = units_of<Op>(hat[0], hat[1]);
      }
    });
  }
}

// Where K[row, column] lies in memory that is laid out in tiles of `side` (GramTask).
template <class A>
BARLOW_FAST_INLINE A* in_tiles(A* out, int64_t side, int64_t row, int64_t column) {
  const int64_t i = row / side, j = column / side;
  return out + (i * (i + 1) / 2 + j) * side * side + row % side * side + column % side;
}

template <class Op, Element E>
void gram_in(const GramTask& task, void* scratch) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>, tile_rows = kTileRows<Op>;
  Arena arena{static_cast<char*>(scratch)};
  const GramScratch<Op> s(arena, task);
  const int64_t rows = task.i_end - task.i_begin, columns = task.j_end - task.j_begin;
  const bool diagonal = task.i_begin == task.j_begin;
  A* out = static_cast<A*>(task.out);
  for (int64_t column = task.column_begin; column < task.column_end; column += s.depth) {
    const int64_t count = smaller(s.depth, task.column_end - column);
    const int64_t units = round_up(count, kDepthStep<Op>) / Op::kDepth;
    const bool first = column == task.column_begin, last = column + count == task.column_end;
    pack_samples<Op, E, tile_rows>(task, task.i_begin, task.i_end, column, count, s.left);
    for (int64_t j = 0; j < columns; j += panel) {
      if (diagonal) {
        right_from_left<Op>(s.left, j, units, s.right);
      } else {
        const int64_t row = task.j_begin + j;
        pack_samples<Op, E, panel>(task, row, smaller(row + panel, task.j_end), column, count, s.right);
      }
      for (int64_t i = diagonal ? j : 0; i < rows; i += tile_rows) {
        A* to = in_tiles(out, task.side, task.i_begin + i, task.j_begin + j);
        if (diagonal && i + tile_rows <= j + kLanes<A>) {
          // This tile's right half lies above the diagonal.
          s.template multiply<1>(units, i, j, s.right, rows - i, columns - j, first, last, to, task.side);
        } else {
          s.multiply(units, i, j, s.right, rows - i, columns - j, first, last, to, task.side);
        }
      }
    }
  }
}

template <class A>
void symmetrise_in(const SymmetriseTask& task) {
  constexpr int lanes = kLanes<A>;
  A* out = static_cast<A*>(task.out);
  const int64_t n = task.n;
  for (int64_t i = task.row_begin; i < task.row_end; ++i) {
    A* __restrict to = out + i * n;
    const A* __restrict first = static_cast<const A*>(task.parts[0]) + i * n;
    if (first != to) {
      for (int64_t j = 0; j <= i; ++j) to[j] = first[j];
    }
    for (int64_t p = 1; p < task.part_count; ++p) {
      const A* __restrict part = static_cast<const A*>(task.parts[p]) + i * n;
      for (int64_t j = 0; j <= i; ++j) to[j] += part[j];
    }
  }
  for (int64_t i = task.row_begin; i < task.row_end; i += lanes) {
    const int64_t last = smaller(i + lanes, task.row_end);
    for (int64_t j = 0; j < last; j += lanes) {
      if (j + lanes <= i && i + lanes <= task.row_end) {
        Vector<A> square[lanes];
        BARLOW_FAST_UNROLL
        for (int r = 0; r < lanes; ++r) square[r] = load(out + (i + r) * n + j);
        transpose<A>(square);
        BARLOW_FAST_UNROLL
        for (int r = 0; r < lanes; ++r) store(out + (j + r) * n + i, square[r]);
        continue;
      }
      for (int64_t r = i; r < last; ++r) {
        for (int64_t c = j; c < smaller(j + lanes, r); ++c) out[c * n + r] = out[r * n + c];
      }
    }
  }
}

void symmetrise(const SymmetriseTask& task) {
  task.accumulation == Element::f64 ? symmetrise_in<double>(task) : symmetrise_in<float>(task);
}

// ---- K as tiles ---------------------------------------------------------------------------------------------------

template <class A>
void finish_tile_in(const FinishTileTask& task) {
  A* out = static_cast<A*>(task.out);
  const int64_t side = task.side, rows = task.rows;
  if (task.diagonal) {
    symmetrise_in<A>({task.parts, task.part_count, side, 0, rows, task.out, task.accumulation});
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = rows; c < side; ++c) out[r * side + c] = 0;
    }
  } else {
    for (int64_t p = 1; p < task.part_count; ++p) {
      const A* __restrict part = static_cast<const A*>(task.parts[p]);
      for (int64_t k = 0; k < rows * side; ++k) out[k] += part[k];
    }
  }
  for (int64_t k = rows * side; k < side * side; ++k) out[k] = 0;
}

void finish_tile(const FinishTileTask& task) {
  task.accumulation == Element::f64 ? finish_tile_in<double>(task) : finish_tile_in<float>(task);
}

template <class A, Element E>
void unpack_tile_in(const UnpackTileTask& task) {
  constexpr int lanes = kLanes<A>;
  const auto* tile = static_cast<const typename ElementOf<E>::type*>(task.tile);
  A* out = static_cast<A*>(task.out);
  const int64_t n = task.n, rows = smaller(task.side, n - task.row), columns = smaller(task.side, n - task.column);
  for (int64_t r = 0; r < rows; r += lanes) {
    for (int64_t c = 0; c < columns; c += lanes) {
      Vector<A> square[lanes];
      BARLOW_FAST_UNROLL
      for (int k = 0; k < lanes; ++k) square[k] = load_elements<A, E>(tile + (r + k) * task.side + c);
      const auto put = [&](int64_t row, int64_t column, int64_t height, int64_t width) {
        for (int k = 0; k < smaller(lanes, height); ++k) {
          store_some<A, sizeof(A) == 8 ? Element::f64 : Element::f32>(out + (row + k) * n + column, square[k], width);
        }
      };
      put(task.row + r, task.column + c, rows - r, columns - c);
      if (task.row == task.column) continue;
      transpose<A>(square);
      put(task.column + c, task.row + r, columns - c, rows - r);
    }
  }
  if (task.row != task.column) return;
  for (int64_t i = task.row; i < task.row + rows; ++i) out[i * n + i] += static_cast<A>(task.centre);
}

template <Element E>
void unpack_tile_from(const UnpackTileTask& task) {
  task.accumulation == Element::f64 ? unpack_tile_in<double, E>(task) : unpack_tile_in<float, E>(task);
}

void unpack_tile(const UnpackTileTask& task) {
  switch (task.type) {
    case Element::f64: return unpack_tile_from<Element::f64>(task);
    case Element::tf32:
    case Element::f32: return unpack_tile_from<Element::f32>(task);
    case Element::bf16: return unpack_tile_from<Element::bf16>(task);
    case Element::f16: return unpack_tile_from<Element::f16>(task);
  }
}

// ---- <K_a, K_b> ---------------------------------------------------------------------------------------------------

template <class A>
double inner_in(const A* x, const A* y, int64_t count) {
  constexpr int lanes = kLanes<A>;
  double total = 0;
  int64_t i = 0;
  while (i + 4 * lanes <= count) {
    Vector<A> sum[4] = {};
    const int64_t end = smaller(count - 4 * lanes, i + 64 * lanes);
    for (; i <= end; i += 4 * lanes) {
      BARLOW_FAST_UNROLL
      for (int v = 0; v < 4; ++v) sum[v] += load(x + i + v * lanes) * load(y + i + v * lanes);
    }
    total += sum_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  Vector<A> sum{};
  for (; i + lanes <= count; i += lanes) sum += load(x + i) * load(y + i);
  total += sum_lanes<A>(sum);
  for (; i < count; ++i) total += static_cast<double>(x[i]) * y[i];
  return total;
}

template <class A>
double inner_of_rows(const InnerTask& task) {
  double below = 0, diagonal = 0;
  for (int64_t i = task.row_begin; i < task.row_end; ++i) {
    const A *x = static_cast<const A*>(task.a) + i * task.n, *y = static_cast<const A*>(task.b) + i * task.n;
    below += inner_in(x, y, i);
    diagonal += static_cast<double>(x[i]) * y[i];
  }
  return 2 * below + diagonal;
}

double inner(const InnerTask& task) {
  return task.accumulation == Element::f64 ? inner_of_rows<double>(task) : inner_of_rows<float>(task);
}

// ---- the left operand of the gradient product ---------------------------------------------------------------------

// kTileRows<Op> units of one step from rows x and (for pairs) y of K.
template <class Op>
BARLOW_FAST_INLINE void store_left(const Acc<Op>* x, const Acc<Op>* y, Element operand, float half_scale,
                                   Unit<Op>* to) {
  BARLOW_FAST_UNROLL
  for (int r = 0; r < kTileRows<Op>; ++r) {
    if constexpr (Op::kDepth == 2) {
      to[r] = float_to_bf16(x[r]) | static_cast<uint32_t>(float_to_bf16(y[r])) << 16;
    } else if (operand == Element::bf16) {
      to[r] = bits_to_float(static_cast<uint32_t>(float_to_bf16(static_cast<float>(x[r]))) << 16);
    } else if (operand == Element::f16) {
      // The product is taken in float32, so the scale can be undone at once.
      to[r] = half_to_float(float_to_half(static_cast<float>(x[r]) * half_scale)) / half_scale;
    } else {
      to[r] = x[r];
    }
  }
  (void)y;
}

// The same for matrix tiles: the units of a row of K' together, in blocks (tiles.h).
template <class Op>
void pack_gram_blocks(const PackGramTask& task) {
  constexpr int lanes = kLanes<float>, rows = kTileRows<Op>;
  const float* gram = static_cast<const float*>(task.gram);
  const int64_t n = task.n, units = units_for<Op>(n);
  for (int64_t p = task.panel_begin; p < task.panel_end; ++p) {
    Unit<Op>* panel = static_cast<Unit<Op>*>(task.out) + p * units * rows;
    for (int r = 0; r < rows; ++r) {
      const int64_t row = p * rows + r;
      Unit<Op>* to = panel + r / lanes * units * lanes + r % lanes * lanes;
      for (int64_t k = 0; k < n; k += kDepthStep<Op>) {
        Vector<float> x[2] = {};
        for (int v = 0; v < 2 && row < n; ++v) x[v] = load_some(gram + row * n + k + v * lanes, n - k - v * lanes);
        const int64_t at = row - k;
        if (row < n && at >= 0 && at < 2 * lanes) x[at / lanes][at % lanes] -= static_cast<float>(task.centre);
        for (int piece = 0; piece < kPieces<Op>; ++piece, to += lanes * lanes) {
          store(to, units_of<Op>(piece_of<Op>(x[0], piece), piece_of<Op>(x[1], piece)));
        }
      }
    }
  }
}

// packed[panel][k][r] = K'[panel * kTileRows + r][k], K' = K - centre * identity. K is symmetric, so row k of K is read.
template <class Op>
void pack_gram_in(const PackGramTask& task) {
  using A = Acc<Op>;
  if constexpr (kTiled<Op>) return pack_gram_blocks<Op>(task);
  const A* gram = static_cast<const A*>(task.gram);
  const int64_t n = task.n, units = units_for<Op>(n);
  const A centre = static_cast<A>(task.centre);
  for (int64_t p = task.panel_begin; p < task.panel_end; ++p) {
    Unit<Op>* to = static_cast<Unit<Op>*>(task.out) + p * units * kTileRows<Op>;
    const int64_t first = p * kTileRows<Op>, count = smaller(kTileRows<Op>, n - first);
    for (int64_t k = 0; k < units; ++k, to += kTileRows<Op>) {
      const int64_t row = k * Op::kDepth;
      const bool plain = count == kTileRows<Op> && row + Op::kDepth <= n && (row + Op::kDepth <= first || row >= first + count);
      if (plain) {
        const A *upper = gram + row * n + first, *lower = upper + (Op::kDepth - 1) * n;
        store_left<Op>(upper, lower, task.operand, task.half_scale, to);
        continue;
      }
      A value[2][kTileRows<Op>] = {};
      for (int d = 0; d < Op::kDepth && row + d < n; ++d) {
        for (int64_t r = 0; r < count; ++r) {
          value[d][r] = gram[(row + d) * n + first + r] - (row + d == first + r ? centre : 0);
        }
      }
      store_left<Op>(value[0], value[1], task.operand, task.half_scale, to);
    }
    finish_panels<Op>(to - units * kTileRows<Op>, kTileRows<Op>, units);
  }
}

// ---- gradients ----------------------------------------------------------------------------------------------------

inline int64_t most_links(const GramGradientTask& task) {
  int64_t most = 0;
  for (int64_t i = 0; i < task.gradient_count; ++i) most = larger(most, task.gradients[i].link_count);
  return most;
}

template <class Op>
struct GramGradientScratch {
  int64_t panels, samples;  // samples: rows padded to tiles and units
  int64_t units;            // of one column as right operand
  int64_t values;           // of one view: [panel][sample][kPanel]
  bool separate;            // the product's operand is not the full-precision z_hat itself
  Acc<Op>*hats, *product, *weights;
  Unit<Op>* rights;
  const Acc<Op>** linked;  // z_hat of each link

  GramGradientScratch(Arena& arena, const GramGradientTask& task) {
    const int64_t width = round_up(task.column_end - task.column_begin, kPanel<Op>);
    panels = width / kPanel<Op>;
    samples = round_up(task.n, larger(kTileRows<Op>, Op::kDepth));
    values = samples * width;
    units = units_of_whole<Op>(samples);
    separate = rounds_operand<Op>(task.operand);
    product = arena.template take<Acc<Op>>(values);
    hats = arena.template take<Acc<Op>>(values * task.view_count);
    rights = separate ? arena.template take<Unit<Op>>(units * width * task.view_count)
                      : reinterpret_cast<Unit<Op>*>(hats);
    const int64_t links = larger(most_links(task), 1);
    weights = arena.template take<Acc<Op>>(links * kPanel<Op>);
    linked = arena.template take<const Acc<Op>*>(links);
  }
  Acc<Op>* hat(int64_t view, int64_t panel) const { return hats + view * values + panel * samples * kPanel<Op>; }
  Unit<Op>* right(int64_t view, int64_t panel) const {
    return rights + (view * panels + panel) * units * kPanel<Op>;
  }
};

// Standardises one view's columns into panels, in full precision and as the product's right operand. A few rows of all
// panels at a time: what the hardware reads ahead of a row is then what comes next.
template <class Op, Element E>
void stage_columns(const GramGradientTask& task, const GramGradientScratch<Op>& s, int64_t view) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>, lanes = kLanes<A>;
  const View& z = task.views[view].z;
  const Norm& norm = task.views[view].norm;
  const bool separate = s.separate && task.views[view].multiplied;
  for (int64_t begin = 0; begin < s.samples; begin += kAhead) {
    for (int64_t p = 0; p < s.panels; ++p) {
      const int64_t column = task.column_begin + p * panel, count = task.column_end - column;
      Vector<A> mean[2], rstd[2], shift[2];
      for (int v = 0; v < 2; ++v) {
        mean[v] = load_some(static_cast<const A*>(norm.mean) + column + v * lanes, count - v * lanes);
        rstd[v] = load_some(static_cast<const A*>(norm.rstd) + column + v * lanes, count - v * lanes);
        shift[v] = load_some(static_cast<const A*>(norm.shift) + column + v * lanes, count - v * lanes);
      }
      A* to = s.hat(view, p);
      Unit<Op>* right = s.right(view, p);
      for (int64_t n = begin; n < smaller(begin + kAhead, s.samples); n += Op::kDepth) {
        Vector<A> hat[2][2] = {};
        BARLOW_FAST_UNROLL
        for (int e = 0; e < Op::kDepth; ++e) {
          BARLOW_FAST_UNROLL
          for (int v = 0; v < 2; ++v) {
            if (n + e < task.n) {
              const auto* from = row_of<E>(z, n + e) + column + v * lanes;
              read_below(z, from);
              hat[e][v] = standardised<A>(load_some<A, E>(from, count - v * lanes), mean[v], rstd[v], shift[v]);
            }
            store(to + (n + e) * panel + v * lanes, hat[e][v]);
          }
        }
        if (!separate) continue;
        for (int v = 0; v < 2; ++v) {
          const Vector<A> x = rounded<Op>(hat[0][v], task.operand), y = rounded<Op>(hat[1][v], task.operand);
          for (int piece = 0; piece < kPieces<Op>; ++piece) {
            store(right + (place_of<Op>(n / Op::kDepth) + piece * lanes) * panel + v * lanes,
                  units_across<Op>(piece_of<Op>(x, piece), piece_of<Op>(y, piece)));
          }
        }
      }
    }
  }
  if (separate) finish_panels<Op>(s.right(view, 0), s.panels * panel, s.units);
}

// Links whose weights stay in registers.
#if defined(__AVX512F__) || defined(BARLOW_FAST_NEON)
constexpr int kMostLinks = 8;
#else
constexpr int kMostLinks = 4;
#endif

// product = coefficient * product + `Count` links, for rows [begin, end) of one panel; adds what it becomes times z_hat
// to `sum`.
template <class A, int Count>
BARLOW_FAST_INLINE void add_links(const A* const* linked, const A* weights, A coefficient, int64_t begin, int64_t end,
                                  A* product, const A* hat, Vector<A> (&sum)[2]) {
  constexpr int lanes = kLanes<A>, panel = 2 * lanes;
  Vector<A> w[Count][2];
  const A* other[Count];
  for (int l = 0; l < Count; ++l) {
    other[l] = linked[l];
    for (int v = 0; v < 2; ++v) w[l][v] = load(weights + l * panel + v * lanes);
  }
  for (int64_t n = begin; n < end; ++n) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < 2; ++v) {
      const int64_t at = n * panel + v * lanes;
      Vector<A> g = broadcast(coefficient) * load(product + at) + w[0][v] * load(other[0] + at);
      BARLOW_FAST_UNROLL
      for (int l = 1; l < Count; ++l) g += w[l][v] * load(other[l] + at);
      store(product + at, g);
      sum[v] += g * load(hat + at);
    }
  }
}

// All links of rows [begin, end), as many as possible at a time.
template <class Op>
void add_all_links(const GramGradientScratch<Op>& s, int64_t count, Acc<Op> coefficient, int64_t begin, int64_t end,
                   Acc<Op>* product, const Acc<Op>* hat, Vector<Acc<Op>> (&sum)[2]) {
  using A = Acc<Op>;
  for (int64_t l = 0; l < count;) {
    const A *const* linked = s.linked + l, *weights = s.weights + l * kPanel<Op>;
    const int64_t left = count - l, step = left >= kMostLinks ? kMostLinks : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    Vector<A> partial[2] = {sum[0], sum[1]};
    if (step == 8) add_links<A, kMostLinks>(linked, weights, coefficient, begin, end, product, hat, partial);
    if (step == 4) add_links<A, 4>(linked, weights, coefficient, begin, end, product, hat, partial);
    if (step == 2) add_links<A, 2>(linked, weights, coefficient, begin, end, product, hat, partial);
    if (step == 1) add_links<A, 1>(linked, weights, coefficient, begin, end, product, hat, partial);
    l += step;
    coefficient = 1;
    if (l < count) continue;
    sum[0] = partial[0];  // of the whole gradient
    sum[1] = partial[1];
  }
}

// From product = K' z_hat of one panel to dL/dz: G = coefficient * product + links, its projection, the norm's
// backward (kernels/README.md, equation 6; the term of the centre puts back what centring took out: all of it, or with
// the norm's backward what that would not have removed).
template <class Op, Element E>
void finish_gram_panel(const GramGradientTask& task, const GramGradientScratch<Op>& s, const GramGradient& gradient,
                       int64_t p) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>, lanes = kLanes<A>;
  constexpr int64_t block = 256, part = 64;  // rows whose sums are of type A; rows of which all views stay in cache
  const int64_t column = task.column_begin + p * panel, count = smaller(panel, task.column_end - column);
  A* product = s.product + p * s.samples * panel;
  const A* hat = s.hat(gradient.view, p);
  for (int64_t l = 0; l < larger(gradient.link_count, 1); ++l) {
    const Link* link = l < gradient.link_count ? gradient.links + l : nullptr;
    s.linked[l] = link == nullptr ? hat : s.hat(link->view, p);
    for (int64_t c = 0; c < panel; ++c) {
      const bool there = link != nullptr && c < count;
      s.weights[l * panel + c] =
          there ? static_cast<A>(link->slope * static_cast<const A*>(link->values)[column + c] + link->offset) : 0;
    }
  }
  A factor[panel] = {}, projection[panel] = {}, rstd[panel] = {}, added[panel] = {};
  for (int64_t c = 0; c < count; ++c) {
    rstd[c] = static_cast<const A*>(task.views[gradient.view].norm.rstd)[column + c];
    factor[c] = static_cast<A>(rstd[c] * task.grad_scale);
    if (gradient.added != nullptr) added[c] = static_cast<const A*>(gradient.added)[column + c];
  }
  if (gradient.packed == nullptr) {
    for (int64_t n = 0; n < task.n * panel; n += lanes) store(product + n, Vector<A>{});
  }
  double total[panel] = {};
  for (int64_t begin = 0; begin < task.n; begin += block) {
    Vector<A> sum[2] = {};
    const int64_t end = smaller(begin + block, task.n);
    for (int64_t n = begin; n < end; n += part) {
      add_all_links(s, larger(gradient.link_count, 1), static_cast<A>(gradient.product), n, smaller(n + part, end),
                    product, hat, sum);
    }
    for (int c = 0; c < panel; ++c) total[c] += sum[c / lanes][c % lanes];
  }
  for (int64_t c = 0; c < count; ++c) {
    const double square = static_cast<double>(rstd[c]) * rstd[c];
    const double taken = gradient.product * gradient.centre;
    projection[c] = static_cast<A>(task.projected ? total[c] / task.n - taken * task.eps * square : -taken);
  }
  Vector<A> f[2], t[2], a[2];
  for (int v = 0; v < 2; ++v) {
    f[v] = load(factor + v * lanes);
    t[v] = load(projection + v * lanes);
    a[v] = load(added + v * lanes);
  }
  for (int64_t n = 0; n < task.n; ++n) {
    auto* to = row_of<E>(gradient.out, n) + column;
    BARLOW_FAST_UNROLL
    for (int v = 0; v < 2; ++v) {
      const int64_t at = n * panel + v * lanes;
      const Vector<A> g = load(product + at) - load(hat + at) * t[v] + a[v];
      write_out<A, E>(to + v * lanes, g * f[v], count - v * lanes, task.stream);
    }
  }
}

// product = K' z_hat: blocks of K' that stay in the second-level cache, times all panels.
template <class Op>
void multiply_gram(const GramGradientTask& task, const GramGradientScratch<Op>& s, const GramGradient& gradient) {
  constexpr int panel = kPanel<Op>, tile_rows = kTileRows<Op>;
  const Unit<Op>* packed = static_cast<const Unit<Op>*>(gradient.packed);
  if constexpr (kTiled<Op>) {
    for (int64_t n = 0; n < task.n; n += tile_rows) {
      for (int64_t p = 0; p < s.panels; ++p) {
        multiply_tiles<Op>(s.units, packed + n * s.units, s.right(gradient.view, p), false,
                           s.product + (p * s.samples + n) * panel, panel);
      }
    }
  } else {
    const int64_t units = units_for<Op>(task.n), step = depth_within<Op>(task.caches) / Op::kDepth;
    const int64_t bytes = step * static_cast<int64_t>(sizeof(Unit<Op>));
    const int64_t rows = larger(task.caches.second / 4 / bytes / tile_rows, 1) * tile_rows;
    for (int64_t k = 0; k < units; k += step) {
      for (int64_t begin = 0; begin < task.n; begin += rows) {
        for (int64_t p = 0; p < s.panels; ++p) {
          const Unit<Op>* right = s.right(gradient.view, p) + k * panel;
          for (int64_t n = begin; n < smaller(begin + rows, task.n); n += tile_rows) {
            Acc<Op>* product = s.product + (p * s.samples + n) * panel;
            multiply_to<Op>(smaller(step, units - k), {packed + n * units + k * tile_rows, 1, tile_rows}, right,
                            k > 0 ? product : nullptr, tile_rows, panel, product, panel);
          }
        }
      }
    }
  }
}

template <class Op, Element E>
void gram_gradient_in(const GramGradientTask& task, void* scratch) {
  [[maybe_unused]] const Registers<Op> registers{};
  Arena arena{static_cast<char*>(scratch)};
  const GramGradientScratch<Op> s(arena, task);
  for (int64_t view = 0; view < task.view_count; ++view) {
    if (task.views[view].staged) stage_columns<Op, E>(task, s, view);
  }
  for (int64_t i = 0; i < task.gradient_count; ++i) {
    const GramGradient& gradient = task.gradients[i];
    if (gradient.packed != nullptr) multiply_gram(task, s, gradient);
    for (int64_t p = 0; p < s.panels; ++p) finish_gram_panel<Op, E>(task, s, gradient, p);
  }
  finish_streams(task.stream);
}
