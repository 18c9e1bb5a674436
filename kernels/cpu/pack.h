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

// Units that hold `depth` values of the summed index, which is a multiple of what a unit holds.
template <class Op>
BARLOW_FAST_INLINE int64_t units_of_whole(int64_t depth) {
  return depth / Op::kDepth * kPieces<Op>;
}
// The same of any depth; whole matrix tiles of them.
template <class Op>
BARLOW_FAST_INLINE int64_t units_for(int64_t depth) {
  return units_of_whole<Op>(round_up(depth, kTiled<Op> ? kDepthStep<Op> : kUnitStep<Op> * Op::kDepth));
}

// Where unit k of panels lies; its piece p lies p * kLanes units behind.
template <class Op>
BARLOW_FAST_INLINE int64_t place_of(int64_t k) {
  constexpr int lanes = kLanes<Unit<Op>>;
  return kPieces<Op> == 1 ? k : k / lanes * lanes * kPieces<Op> + k % lanes;
}

// Panels of `units` units that hold `columns` columns, from the order that they are packed in to that of the products.
template <class Op>
BARLOW_FAST_INLINE void finish_panels(Unit<Op>* packed, int64_t columns, int64_t units) {
  if constexpr (kUnitStep<Op> == 2) pair_units(packed, round_up(columns, kPanel<Op>) / kPanel<Op> * units);
}

// Registers of the matrix tiles that a task uses, if any.
template <class Op>
using Registers = typename std::conditional<kTiled<Op>, TileRegisters, int>::type;

// Values of the summed index whose right panel takes two thirds of the first-level cache, rounded to `kDepthStep`:
// while it is multiplied with many left panels it stays there.
template <class Op>
int64_t depth_within(const Caches& caches) {
  const int64_t units = caches.first * 2 / 3 / (kPanel<Op> * static_cast<int64_t>(sizeof(Unit<Op>)));
  return larger(units * Op::kDepth / kDepthStep<Op>, 1) * kDepthStep<Op>;
}

// The same for blocks of both operands with `rows` rows and columns together, which are to stay in half of the
// second-level cache.
template <class Op>
int64_t depth_of_blocks(const Caches& caches, int64_t rows) {
  const int64_t units = caches.second / 2 / (larger(rows, 1) * static_cast<int64_t>(sizeof(Unit<Op>)));
  return smaller(larger(units * Op::kDepth / kDepthStep<Op>, 1) * kDepthStep<Op>, depth_within<Op>(caches));
}

// Rows i, i + 1, ... of a left operand packed as panels of `units` units; i is a multiple of kTileRows.
template <class Op>
BARLOW_FAST_INLINE Left<Op> left_of_panels(const Unit<Op>* packed, int64_t i, int64_t units) {
  constexpr int panel = kPanel<Op>;
  return {packed + i / panel * panel * units + i % panel, 1, panel};
}

// panel[k][r] = value(r, k) for the kPanel rows r and `depth` values k, where value(r, k, piece) yields the vector of
// values k, k + 1, ... of row r.
template <class Op, class Value>
BARLOW_FAST_INLINE void pack_transposed(int64_t depth, Unit<Op>* panel, const Value& value) {
  constexpr int lanes = kLanes<Unit<Op>>;
  for (int half = 0; half < 2; ++half) {
    for (int64_t k = 0; k < depth; k += kDepthStep<Op>) {
      for (int piece = 0; piece < kPieces<Op>; ++piece) {
        Vector<Unit<Op>> square[lanes];
        value(half * lanes, k, piece, square);
        transpose<Unit<Op>>(square);
        Unit<Op>* to = panel + (units_of_whole<Op>(k) + piece * lanes) * kPanel<Op> + half * lanes;
        BARLOW_FAST_UNROLL
        for (int r = 0; r < lanes; ++r) store(to + r * kPanel<Op>, square[r]);
      }
    }
  }
  finish_panels<Op>(panel, kPanel<Op>, units_of_whole<Op>(depth));
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
  // A tile that is indexed by variables would not stay in registers.
  A buffer[Rows][Vectors * lanes];
  BARLOW_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) store(buffer[r] + v * lanes, tile[r][v]);
  }
  for (int r = 0; r < smaller(rows, Rows); ++r) {
    A* to = out + r * stride;
    for (int c = 0; c < smaller(columns, Vectors * lanes); ++c) to[c] = buffer[r][c] + (accumulate ? to[c] : 0);
  }
}

// out (+)= left * right, clipped to `rows` x `columns`.
template <class Op>
void multiply_to(int64_t units, const Left<Op>& left, const Unit<Op>* right, int64_t rows, int64_t columns,
                 bool accumulate, Acc<Op>* out, int64_t stride) {
  if (accumulate) {
    // The hardware does not foresee them, and they are needed all at once.
    for (int64_t r = 0; r < smaller(kTileRows<Op>, rows); ++r) {
      __builtin_prefetch(out + r * stride, 1);
      __builtin_prefetch(out + r * stride + kLanes<Acc<Op>>, 1);
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
