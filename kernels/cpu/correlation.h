// The correlation form: C = z_hat_a^T z_hat_b / N with a zeroed diagonal, and the gradients through it.

// ---- C ------------------------------------------------------------------------------------------------------------

template <class Op>
struct CorrelationScratch {
  int64_t depth;
  Acc<Op>*buffer, *rows;
  Unit<Op>*left, *right;

  CorrelationScratch(Arena& arena, const CorrelationTask& task) {
    const int64_t i_width = round_up(task.i_end - task.i_begin, kPanel<Op>);
    const int64_t j_width = round_up(task.j_end - task.j_begin, kPanel<Op>);
    const int64_t widest = larger(i_width, j_width);
    const int64_t bytes = (i_width + j_width) * static_cast<int64_t>(sizeof(Unit<Op>));
    depth = smaller(larger((512 << 10) / bytes * Op::kDepth / 2 * 2, 32), 512);
    buffer = arena.template take<Acc<Op>>(widest);
    rows = arena.template take<Acc<Op>>(2 * widest);
    left = arena.template take<Unit<Op>>(i_width * depth / Op::kDepth);
    right = arena.template take<Unit<Op>>(j_width * depth / Op::kDepth);
  }
};

// Panels of columns [begin, end) with the rows as summed index; `rows` is padded to whole units with zeros.
template <class Op>
void pack_features(const View& z, const Norm& norm, Element operand, const CorrelationScratch<Op>& s, int64_t row_begin,
                   int64_t rows, int64_t begin, int64_t end, Unit<Op>* out) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>;
  const int64_t width = round_up(end - begin, panel), units = (rows + Op::kDepth - 1) / Op::kDepth;
  const A* mean = static_cast<const A*>(norm.mean) + begin;
  const A* rstd = static_cast<const A*>(norm.rstd) + begin;
  for (int64_t k = 0; k < units; ++k) {
    for (int d = 0; d < Op::kDepth; ++d) {
      const int64_t row = k * Op::kDepth + d;
      A* to = s.rows + d * width;
      if (row < rows) {
        standardise_row(read_row(z, row_begin + row, begin, end - begin, s.buffer), mean, rstd, end - begin, width,
                        operand, to);
      } else {
        for (int64_t c = 0; c < width; ++c) to[c] = 0;
      }
    }
    for (int64_t c = 0; c < width; c += panel) {
      pack_across<Op>(s.rows + c, s.rows + (Op::kDepth - 1) * width + c, out + c * units + k * panel);
    }
  }
}

template <class Op>
void correlation_in(const CorrelationTask& task, void* scratch) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>;
  Arena arena{static_cast<char*>(scratch)};
  const CorrelationScratch<Op> s(arena, task);
  const int64_t height = task.i_end - task.i_begin, width = task.j_end - task.j_begin;
  A* out = static_cast<A*>(task.out) + task.i_begin * task.out_stride + task.j_begin;
  for (int64_t row = task.row_begin; row < task.row_end; row += s.depth) {
    const int64_t rows = smaller(s.depth, task.row_end - row), units = (rows + Op::kDepth - 1) / Op::kDepth;
    pack_features<Op>(task.a, task.norm_a, task.operand, s, row, rows, task.i_begin, task.i_end, s.left);
    pack_features<Op>(task.b, task.norm_b, task.operand, s, row, rows, task.j_begin, task.j_end, s.right);
    for (int64_t j = 0; j < width; j += panel) {
      for (int64_t i = 0; i < height; i += kTileRows) {
        Vector<A> tile[kTileRows][2];
        multiply<Op, kTileRows, 2>(units, s.left + i / panel * panel * units + i % panel, 1, panel, s.right + j * units,
                                   tile);
        store_tile<A>(tile, height - i, width - j, row > task.row_begin, out + i * task.out_stride + j,
                      task.out_stride);
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
  return static_cast<size_t>(round_up(d, kPanel<Op>) * (matrix_depth<Op>(d) / Op::kDepth)) * sizeof(Unit<Op>);
}

template <class Op>
struct PackMatrixScratch {
  int64_t stride;
  Acc<Op>* rows;

  PackMatrixScratch(Arena& arena, const PackMatrixTask& task) {
    stride = matrix_depth<Op>(task.d) + kLanes<Acc<Op>>;
    rows = arena.template take<Acc<Op>>(kPanel<Op> * stride);
  }
};

// Transposed: panel[k][c] = C[column + c][k]; otherwise panel[k][c] = C[k][column + c].
template <class Op>
void pack_matrix_in(const PackMatrixTask& task, void* scratch) {
  using A = Acc<Op>;
  constexpr int panel = kPanel<Op>;
  Arena arena{static_cast<char*>(scratch)};
  const PackMatrixScratch<Op> s(arena, task);
  const A* matrix = static_cast<const A*>(task.matrix);
  const int64_t d = task.d, depth = matrix_depth<Op>(d);
  for (int64_t p = task.panel_begin; p < task.panel_end; ++p) {
    Unit<Op>* out = static_cast<Unit<Op>*>(task.out) + p * (depth / Op::kDepth) * panel;
    const int64_t first = p * panel, count = smaller(panel, d - first);
    if (task.transpose) {
      for (int64_t c = 0; c < panel; ++c) {
        A* to = s.rows + c * s.stride;
        for (int64_t k = 0; k < depth; ++k) to[k] = c < count && k < d ? matrix[(first + c) * d + k] : 0;
        round_in_place(to, depth, Op::kDepth == 1 ? task.operand : Element::f32);
      }
      pack_transposed<Op>(s.rows, s.stride, depth, out);
      continue;
    }
    for (int64_t k = 0; k < depth; k += Op::kDepth) {
      for (int e = 0; e < Op::kDepth; ++e) {
        A* to = s.rows + e * panel;
        for (int64_t c = 0; c < panel; ++c) to[c] = c < count && k + e < d ? matrix[(k + e) * d + first + c] : 0;
        round_in_place(to, panel, Op::kDepth == 1 ? task.operand : Element::f32);
      }
      pack_across<Op>(s.rows, s.rows + (Op::kDepth - 1) * panel, out + k / Op::kDepth * panel);
    }
  }
}

// ---- gradients ----------------------------------------------------------------------------------------------------

template <class Op>
struct CorrelationGradientScratch {
  int64_t rows, width, stride, left_stride;
  bool separate;
  Acc<Op>*buffer, *hat[2], *weight, *projection[2], *factor[2];
  Unit<Op>* left[2];

  CorrelationGradientScratch(Arena& arena, const CorrelationGradientTask& task) {
    rows = round_up(task.row_end - task.row_begin, kTileRows);
    width = round_up(task.d, larger(kPanel<Op>, kDepthStep<Op>));
    // Rows a power of two apart would fall into the same cache sets.
    stride = width + kLanes<Acc<Op>>;
    left_stride = stride / Op::kDepth;
    separate = Op::kDepth > 1 || task.operand == Element::bf16 || task.operand == Element::f16;
    buffer = arena.template take<Acc<Op>>(width);
    weight = arena.template take<Acc<Op>>(width);
    for (int view = 0; view < 2; ++view) {
      projection[view] = arena.template take<Acc<Op>>(width);
      factor[view] = arena.template take<Acc<Op>>(width);
      hat[view] = arena.template take<Acc<Op>>(rows * stride);
      left[view] = separate ? arena.template take<Unit<Op>>(rows * left_stride)
                            : reinterpret_cast<Unit<Op>*>(hat[view]);
    }
  }
};

template <class Op>
void stage_rows(const CorrelationGradientTask& task, const CorrelationGradientScratch<Op>& s, int view) {
  using A = Acc<Op>;
  const Norm& norm = view ? task.norm_b : task.norm_a;
  for (int64_t r = 0; r < s.rows; ++r) {
    A* to = s.hat[view] + r * s.stride;
    if (task.row_begin + r < task.row_end) {
      const A* from = read_row(view ? task.b : task.a, task.row_begin + r, 0, task.d, s.buffer);
      standardise_row(from, static_cast<const A*>(norm.mean), static_cast<const A*>(norm.rstd), task.d, s.width,
                      Element::f32, to);
    } else {
      for (int64_t c = 0; c < s.width; ++c) to[c] = 0;
    }
    if (!s.separate) continue;
    Unit<Op>* units = s.left[view] + r * s.left_stride;
    for (int64_t c = 0; c < s.width; c += kDepthStep<Op>) store(units + c / Op::kDepth, units_of<Op>(to + c));
    if constexpr (Op::kDepth == 1) round_in_place(units, s.width, task.operand);
  }
}

template <class Op>
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
  stage_rows<Op>(task, s, 0);
  stage_rows<Op>(task, s, 1);
  const int64_t units = matrix_depth<Op>(task.d) / Op::kDepth;
  const A coefficient = static_cast<A>(task.coefficient);
  for (int view = 0; view < 2; ++view) {
    const Output& out = view ? task.grad_b : task.grad_a;
    if (out.data == nullptr) continue;
    const Unit<Op>* packed = static_cast<const Unit<Op>*>(view ? task.packed_b : task.packed_a);
    const A* hat = s.hat[view];
    const A* other = s.hat[1 - view];
    for (int64_t c = 0; c < task.d; c += panel) {
      for (int64_t r = 0; r < s.rows; r += kTileRows) {
        Vector<A> tile[kTileRows][2];
        multiply<Op, kTileRows, 2>(units, s.left[1 - view] + r * s.left_stride, s.left_stride, 1, packed + c * units,
                                   tile);
        A row[panel];
        for (int64_t i = 0; i < smaller(kTileRows, task.row_end - task.row_begin - r); ++i) {
          for (int v = 0; v < 2; ++v) {
            const int64_t at = (r + i) * s.stride + c + v * lanes, column = c + v * lanes;
            const Vector<A> g = broadcast(coefficient) * tile[i][v] + load(s.weight + column) * load(other + at) -
                                load(hat + at) * load(s.projection[view] + column);
            store(row + v * lanes, g * load(s.factor[view] + column));
          }
          write_row(out, task.row_begin + r + i, c, smaller(panel, task.d - c), row);
        }
      }
    }
  }
}
