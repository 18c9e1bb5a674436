// Operand panels: kPanel columns (or rows) wide, the summed index outermost, zero-padded to whole panels, so that a
// register tile reads its right side as whole vectors and its left side as broadcasts from the same layout.

template <class Op>
using Unit = typename Op::Unit;
template <class Op>
using Acc = typename Op::Accumulator;

// The summed index of a transposed panel is padded to this many values.
template <class Op>
constexpr int kDepthStep = kLanes<Unit<Op>> * Op::kDepth;

// panel[k][r] = value(r, k) for the kPanel rows r and `depth` values k, where value(r, k) yields the vector of values
// k, k + 1, ... of row r.
template <class Op, class Value>
BARLOW_FAST_INLINE void pack_transposed(int64_t depth, Unit<Op>* panel, const Value& value) {
  constexpr int lanes = kLanes<Unit<Op>>;
  for (int half = 0; half < 2; ++half) {
    for (int64_t k = 0; k < depth; k += kDepthStep<Op>) {
      Vector<Unit<Op>> square[lanes];
      value(half * lanes, k, square);
      transpose<Unit<Op>>(square);
      BARLOW_FAST_UNROLL
      for (int r = 0; r < lanes; ++r) store(panel + (k / Op::kDepth + r) * kPanel<Op> + half * lanes, square[r]);
    }
  }
}

// out (+)= tile, clipped to `rows` x `columns`.
template <class A, int Rows, int Vectors>
BARLOW_FAST_INLINE void store_tile(const Vector<A> (&tile)[Rows][Vectors], int64_t rows, int64_t columns,
                                   bool accumulate, A* out, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  if (rows >= Rows && columns >= Vectors * lanes) {
    BARLOW_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        A* to = out + r * stride + v * lanes;
        store(to, accumulate ? load(to) + tile[r][v] : tile[r][v]);
      }
    }
    return;
  }
  for (int r = 0; r < smaller(rows, Rows); ++r) {
    A buffer[Vectors * lanes];
    for (int v = 0; v < Vectors; ++v) store(buffer + v * lanes, tile[r][v]);
    A* to = out + r * stride;
    for (int c = 0; c < smaller(columns, Vectors * lanes); ++c) to[c] = accumulate ? to[c] + buffer[c] : buffer[c];
  }
}

// Hands out consecutive, 64-byte aligned pieces of a task's scratch memory; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
};
