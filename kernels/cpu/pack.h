// Operand panels: kPanel columns (or rows) wide, the summed index outermost, zero-padded to whole panels, so that a
// register tile reads its right side as whole vectors and its left side as broadcasts from the same layout. The left
// side of matrix tiles has a layout of its own (tiles.h).

template <class Op>
using Unit = typename Op::Unit;
template <class Op>
using Acc = typename Op::Accumulator;

// The summed index of a transposed panel is padded to this many values.
template <class Op>
constexpr int kDepthStep = kLanes<Unit<Op>> * Op::kDepth;

// Units that hold `depth` values of the summed index; whole matrix tiles of them.
template <class Op>
BARLOW_FAST_INLINE int64_t units_for(int64_t depth) {
  return round_up(depth, kTiled<Op> ? kDepthStep<Op> : kUnitStep<Op> * Op::kDepth) / Op::kDepth;
}

// Panels of `units` units that hold `columns` columns, from the order that they are packed in to that of the products.
template <class Op>
BARLOW_FAST_INLINE void finish_panels(Unit<Op>* packed, int64_t columns, int64_t units) {
  if constexpr (kUnitStep<Op> == 2) pair_units(packed, round_up(columns, kPanel<Op>) / kPanel<Op> * units);
}

// Registers of the matrix tiles that a task uses, if any.
template <class Op>
using Registers = typename std::conditional<kTiled<Op>, TileRegisters, int>::type;

// Rows i, i + 1, ... of a left operand packed as panels of `units` units; i is a multiple of kTileRows.
template <class Op>
BARLOW_FAST_INLINE Left<Op> left_of_panels(const Unit<Op>* packed, int64_t i, int64_t units) {
  constexpr int panel = kPanel<Op>;
  if constexpr (kTiled<Op>) {
    return {packed + i * units, kLanes<Unit<Op>>, kLanes<Unit<Op>> * kLanes<Unit<Op>>, kLanes<Unit<Op>> * units};
  }
  return {packed + i / panel * panel * units + i % panel, 1, panel};
}

// panel[k][r] = value(r, k) for the kPanel rows r and `depth` values k, where value(r, k) yields the vector of values
// k, k + 1, ... of row r. `blocks`: the same as the left operand of matrix tiles. Either may be null.
template <class Op, class Value>
BARLOW_FAST_INLINE void pack_transposed(int64_t depth, Unit<Op>* panel, Unit<Op>* blocks, const Value& value) {
  constexpr int lanes = kLanes<Unit<Op>>;
  for (int half = 0; half < 2; ++half) {
    for (int64_t k = 0; k < depth; k += kDepthStep<Op>) {
      Vector<Unit<Op>> square[lanes];
      value(half * lanes, k, square);
      if (blocks != nullptr) {
        Unit<Op>* block = blocks + (half * depth + k) / kDepthStep<Op> * lanes * lanes;
        BARLOW_FAST_UNROLL
        for (int r = 0; r < lanes; ++r) store(block + r * lanes, square[r]);
      }
      if (panel == nullptr) continue;
      transpose<Unit<Op>>(square);
      BARLOW_FAST_UNROLL
      for (int r = 0; r < lanes; ++r) store(panel + (k / Op::kDepth + r) * kPanel<Op> + half * lanes, square[r]);
    }
  }
  finish_panels<Op>(panel, kPanel<Op>, depth / Op::kDepth);
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

// out (+)= left * right, clipped to `rows` x `columns`.
template <class Op>
BARLOW_FAST_INLINE void multiply_to(int64_t units, const Left<Op>& left, const Unit<Op>* right, int64_t rows,
                                    int64_t columns, bool accumulate, Acc<Op>* out, int64_t stride) {
  if constexpr (kTiled<Op>) {
    if (rows >= kTileRows<Op> && columns >= kPanel<Op>) {
      multiply_tiles(units, left, right, accumulate, out, stride);
      return;
    }
  }
  Vector<Acc<Op>> tile[kTileRows<Op>][2];
  multiply<Op, kTileRows<Op>, 2>(units, left, right, tile);
  store_tile<Acc<Op>>(tile, rows, columns, accumulate, out, stride);
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
