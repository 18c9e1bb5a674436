// The correlation form: C = z_hat_a^T z_hat_b / N with a zeroed diagonal, and the gradients through it.

// ---- C ------------------------------------------------------------------------------------------------------------

template <class Op>
struct CorrelationScratch : BlockScratch<Op> {
  CorrelationScratch(Arena& arena, const CorrelationTask& task)
      : BlockScratch<Op>(arena, task.caches, task.i_end - task.i_begin, task.j_end - task.j_begin,
                         task.j_end - task.j_begin, task.row_end - task.row_begin) {}
};

// Panels, Width columns wide, of columns [begin, end) with `rows` rows from `row_begin` as summed index, padded to whole
// units with zeros.
template <class Op, Element E, int Width>
void pack_features(const View& z, const Norm& norm, Element operand, int64_t row_begin, int64_t rows, int64_t begin,
                   int64_t end, Unit<Op>* out) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>, lanes = kLanes<A>;
  const int64_t units = units_for<Op>(rows);
  const A* mean = static_cast<const A*>(norm.mean);
  const A* rstd = static_cast<const A*>(norm.rstd);
  const A* shift = static_cast<const A*>(norm.shift);
  // Rows of z are read side by side, so that what is written of a panel are whole lines: panels may lie powers of two
  // apart, and would evict each other.
  constexpr int64_t together = 16;
  const int64_t used = round_up(end - begin, lanes);
  for (int64_t first = 0; first < units; first += together) {
    const int64_t last = smaller(first + together, units);
    for (int64_t c = begin; c < begin + used; c += lanes) {
      const int64_t count = end - c;
      const Vector<A> m = load_some(mean + c, count), s = load_some(rstd + c, count), t = load_some(shift + c, count);
      for (int64_t k = first; k < last; ++k) {
        Vector<A> hat[2] = {};
        BARLOW_FAST_UNROLL
        for (int e = 0; e < Op::kDepth; ++e) {
          const int64_t row = k * Op::kDepth + e;
          if (row >= rows) continue;
          const Vector<A> x = load_some<A, E>(row_of<E>(z, row_begin + row) + c, count);
          hat[e] = rounded<Op>(standardised<A>(x, m, s, t), operand);
        }
        store_in_panels<Op, Width>(units_across<Op>(hat[0], hat[1]), out, c - begin, k, units);
      }
    }
    // The last panel's second half, where no column reaches it.
    for (int64_t k = first; used % panel != 0 && k < last; ++k) {
      store_in_panels<Op, Width>(Vector<Unit<Op>>{}, out, used, k, units);
    }
  }
  finish_panels<Op>(out, end - begin, units);
}

// What the next step packs, of at most `depth` rows from `row` on.
inline ReadAhead read_ahead(const CorrelationTask& task, int64_t row, int64_t depth, int64_t products) {
  const int64_t rows = smaller(depth, task.row_end - row);
  return {{{task.a, row, rows, task.i_begin, task.i_end - task.i_begin},
           {task.b, row, rows, task.j_begin, task.j_end - task.j_begin}}, products, task.caches};
}

template <class Op, Element E>
void correlation_in(const CorrelationTask& task, void* scratch) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>;
  Arena arena{static_cast<char*>(scratch)};
  const CorrelationScratch<Op> s(arena, task);
  const int64_t height = task.i_end - task.i_begin, width = task.j_end - task.j_begin;
  A* out = static_cast<A*>(task.out) + task.i_begin * task.out_stride + task.j_begin;
  for (int64_t row = task.row_begin; row < task.row_end; row += s.depth) {
    const int64_t rows = smaller(s.depth, task.row_end - row), units = units_for<Op>(rows);
    const bool first = row == task.row_begin, last = row + rows == task.row_end;
    pack_features<Op, E, kTileRows<Op>>(task.a, task.norm_a, task.operand, row, rows, task.i_begin, task.i_end, s.left);
    pack_features<Op, E, panel>(task.b, task.norm_b, task.operand, row, rows, task.j_begin, task.j_end, s.right);
    ReadAhead ahead = read_ahead(task, row + rows, s.depth, s.height / kTileRows<Op> * (round_up(width, panel) / panel));
    for (int64_t j = 0; j < width; j += panel) {
      for (int64_t i = 0; i < height; i += kTileRows<Op>) {
        ahead.next();
        s.multiply(units, i, j, s.right + j * units, height - i, width - j, first, last,
                   out + i * task.out_stride + j, task.out_stride);
      }
    }
  }
}

template <class A>
void correlation_sum_in(const CorrelationSumTask& task) {
  const int64_t d = task.d;
  const A inverse = static_cast<A>(1.0 / static_cast<double>(task.n));
  for (int64_t c = 0; c < d; ++c) task.column_squares[c] = 0;
  for (int64_t i = task.row_begin; i < task.row_end; ++i) {
    A* to = static_cast<A*>(task.out) + i * d;
    const A* first = static_cast<const A*>(task.parts[0]) + i * d;
    for (int64_t j = 0; j < d; ++j) to[j] = first[j];
    for (int64_t p = 1; p < task.part_count; ++p) {
      const A* __restrict part = static_cast<const A*>(task.parts[p]) + i * d;
      for (int64_t j = 0; j < d; ++j) to[j] += part[j];
    }
    to[i] = 0;
    for (int64_t j = 0; j < d; ++j) to[j] *= inverse;
    task.row_squares[i] = inner_in(to, to, d);
    double* __restrict columns = task.column_squares;
    for (int64_t j = 0; j < d; ++j) columns[j] += static_cast<double>(to[j]) * to[j];
  }
}

void correlation_sum(const CorrelationSumTask& task) {
  task.accumulation == Element::f64 ? correlation_sum_in<double>(task) : correlation_sum_in<float>(task);
}

// ---- the right operand of the gradient products -------------------------------------------------------------------

template <class Op>
int64_t matrix_depth(int64_t d) {
  return round_up(d, kDepthStep<Op>);
}

template <class Op>
size_t packed_matrix_bytes_in(int64_t d) {
  return static_cast<size_t>(round_up(d, kPanel<Op>) * units_of_whole<Op>(matrix_depth<Op>(d))) * sizeof(Unit<Op>);
}

// Transposed: panel[k][c] = C[column + c][k]; otherwise panel[k][c] = C[k][column + c].
template <class Op>
void pack_matrix_in(const PackMatrixTask& task) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>, lanes = kLanes<A>;
  const A* matrix = static_cast<const A*>(task.matrix);
  const int64_t d = task.d, depth = matrix_depth<Op>(d);
  for (int64_t p = task.panel_begin; p < task.panel_end; ++p) {
    Unit<Op>* out = static_cast<Unit<Op>*>(task.out) + p * units_of_whole<Op>(depth) * panel;
    const int64_t column = p * panel;
    if (task.transpose) {
      pack_transposed<Op, panel>(depth, out, [&](int first, int64_t k, int piece, Vector<Unit<Op>>(&square)[lanes]) {
        BARLOW_FAST_UNROLL
        for (int r = 0; r < lanes; ++r) {
          const int64_t row = column + first + r;
          Vector<A> x[2] = {};
          for (int v = 0; v < Op::kDepth && row < d; ++v) {
            x[v] = rounded<Op>(load_some(matrix + row * d + k + v * lanes, d - k - v * lanes), task.operand);
          }
          square[r] = units_of<Op>(piece_of<Op>(x[0], piece), piece_of<Op>(x[1], piece));
        }
      });
      continue;
    }
    for (int64_t k = 0; k < depth; k += Op::kDepth) {
      for (int v = 0; v < 2; ++v) {
        Vector<A> x[2] = {};
        for (int e = 0; e < Op::kDepth && k + e < d; ++e) {
          const int64_t at = column + v * lanes;
          x[e] = rounded<Op>(load_some(matrix + (k + e) * d + at, d - at), task.operand);
        }
        for (int piece = 0; piece < kPieces<Op>; ++piece) {
          store(out + (place_of<Op>(k / Op::kDepth) + piece * lanes) * panel + v * lanes,
                units_across<Op>(piece_of<Op>(x[0], piece), piece_of<Op>(x[1], piece)));
        }
      }
    }
    finish_panels<Op>(out, panel, depth / Op::kDepth);
  }
}

// ---- gradients ----------------------------------------------------------------------------------------------------

template <class Op>
struct CorrelationGradientScratch {
  int64_t rows, width, stride, left_stride;
  bool separate;
  Acc<Op>*hat[2], *weight, *projection[2], *factor[2], *sums;  // sums: of one panel, in full tiles
  Unit<Op>* left[2];

  CorrelationGradientScratch(Arena& arena, const CorrelationGradientTask& task) {
    rows = round_up(task.row_end - task.row_begin, kTileRows<Op>);
    width = round_up(task.d, larger(kPanel<Op>, kDepthStep<Op>));
    // Rows a power of two apart would fall into the same cache sets.
    stride = width + kLanes<Acc<Op>>;
    left_stride = stride / Op::kDepth;
    separate = rounds_operand<Op>(task.operand);
    weight = arena.template take<Acc<Op>>(width);
    sums = arena.template take<Acc<Op>>(rows * kPanel<Op>);
    for (int view = 0; view < 2; ++view) {
      projection[view] = arena.template take<Acc<Op>>(width);
      factor[view] = arena.template take<Acc<Op>>(width);
      hat[view] = arena.template take<Acc<Op>>(rows * stride);
      left[view] = separate ? arena.template take<Unit<Op>>(rows * left_stride)
                            : reinterpret_cast<Unit<Op>*>(hat[view]);
    }
  }
};

// The rows behind a task's own, which are most likely those of this thread's next task. `products` are those of one view.
inline ReadAhead read_ahead(const CorrelationGradientTask& task, int64_t products) {
  const int64_t rows = smaller(task.row_end - task.row_begin, task.n - task.row_end);
  const int64_t views = (task.grad_a.data != nullptr) + (task.grad_b.data != nullptr);
  return {{{task.a, task.row_end, rows, 0, task.d}, {task.b, task.row_end, rows, 0, task.d}}, views * products,
          task.caches};
}

template <class Op, Element E>
void stage_rows(const CorrelationGradientTask& task, const CorrelationGradientScratch<Op>& s, int view) {
  using A = Acc<Op>;
  constexpr int lanes = kLanes<A>;
  const Norm& norm = view ? task.norm_b : task.norm_a;
  const A* mean = static_cast<const A*>(norm.mean);
  const A* rstd = static_cast<const A*>(norm.rstd);
  const A* shift = static_cast<const A*>(norm.shift);
  for (int64_t r = 0; r < s.rows; ++r) {
    A* to = s.hat[view] + r * s.stride;
    Unit<Op>* units = s.left[view] + r * s.left_stride;
    const bool inside = task.row_begin + r < task.row_end;
    const auto* from = row_of<E>(view ? task.b : task.a, inside ? task.row_begin + r : task.row_begin);
    for (int64_t c = 0; c < s.width; c += kDepthStep<Op>) {
      Vector<A> hat[2] = {};
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Op::kDepth; ++v) {
        const int64_t column = c + v * lanes, count = inside ? task.d - column : 0;
        const Vector<A> x = load_some<A, E>(from + column, count);
        hat[v] = standardised<A>(x, load_some(mean + column, count), load_some(rstd + column, count),
                                 load_some(shift + column, count));
        store(to + column, hat[v]);
      }
      if (s.separate) {
        store(units + c / Op::kDepth,
              units_of<Op>(rounded<Op>(hat[0], task.operand), rounded<Op>(hat[1], task.operand)));
      }
    }
  }
}

template <class Op, Element E>
void correlation_gradient_in(const CorrelationGradientTask& task, void* scratch) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>, lanes = kLanes<A>;
  Arena arena{static_cast<char*>(scratch)};
  const CorrelationGradientScratch<Op> s(arena, task);
  for (int64_t c = 0; c < s.width; ++c) {
    const bool inside = c < task.d;
    const double diagonal = inside ? static_cast<const A*>(task.diagonal)[c] : 0;
    const double weight = inside ? task.slope * diagonal + task.offset : 0;
    s.weight[c] = static_cast<A>(weight);
    for (int view = 0; view < 2; ++view) {
      const double square = inside ? (view ? task.squares_b : task.squares_a)[c] : 0;
      const double rstd = inside ? static_cast<const A*>((view ? task.norm_b : task.norm_a).rstd)[c] : 0;
      s.projection[view][c] = static_cast<A>(task.coefficient * square + weight * diagonal);
      s.factor[view][c] = static_cast<A>(rstd * task.grad_scale);
    }
  }
  stage_rows<Op, E>(task, s, 0);
  stage_rows<Op, E>(task, s, 1);
  const int64_t units = matrix_depth<Op>(task.d) / Op::kDepth, step = depth_within<Op>(task.caches) / Op::kDepth;
  const A coefficient = static_cast<A>(task.coefficient);
  ReadAhead ahead = read_ahead(task, round_up(task.d, panel) / panel * (round_up(units, step) / step) *
                                         (s.rows / kTileRows<Op>));
  for (int view = 0; view < 2; ++view) {
    const Output& out = view ? task.grad_b : task.grad_a;
    if (out.data == nullptr) continue;
    const Unit<Op>* packed = static_cast<const Unit<Op>*>(view ? task.packed_b : task.packed_a);
    const A* hat = s.hat[view];
    const A* other = s.hat[1 - view];
    for (int64_t c = 0; c < task.d; c += panel) {
      for (int64_t k = 0; k < units; k += step) {
        for (int64_t r = 0; r < s.rows; r += kTileRows<Op>) {
          ahead.next();
          Vector<A> tile[kTileRows<Op>][2];
          const Left<Op> left{s.left[1 - view] + r * s.left_stride + k, s.left_stride, 1};
          A* sums = s.sums + r * panel;
          multiply_add<Op, 2>(smaller(step, units - k), left, packed + c * units + k * panel, k > 0 ? sums : nullptr,
                              tile);
          if (k + step < units) {
            store_tile<A>(tile, kTileRows<Op>, panel, sums, panel);
            continue;
          }
          for (int64_t i = 0; i < smaller(kTileRows<Op>, task.row_end - task.row_begin - r); ++i) {
            auto* to = row_of<E>(out, task.row_begin + r + i);
            BARLOW_FAST_UNROLL
            for (int v = 0; v < 2; ++v) {
              const int64_t column = c + v * lanes, at = (r + i) * s.stride + column;
              const Vector<A> g = broadcast(coefficient) * tile[i][v] + load(s.weight + column) * load(other + at) -
                                  load(hat + at) * load(s.projection[view] + column);
              write_out<A, E>(to + column, g * load(s.factor[view] + column), task.d - column, task.stream);
            }
          }
        }
      }
    }
  }
  finish_streams(task.stream);
}
