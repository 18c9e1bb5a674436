// Operand panels: the summed index outermost, zero-padded to whole panels. The right side's are kPanel columns wide, which
// a register tile reads as whole vectors; the left side's kTileRows, which it reads as broadcasts, so that the lines in the
// first-level cache hold nothing else. The left side of matrix tiles has a layout of its own (tiles.h).

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

// The same for a left operand of `rows` rows, which is to stay in half of the second-level cache.
template <class Op>
int64_t depth_of_blocks(const Caches& caches, int64_t rows) {
  const int64_t units = caches.second / 2 / (larger(rows, 1) * static_cast<int64_t>(sizeof(Unit<Op>)));
  return smaller(larger(units * Op::kDepth / kDepthStep<Op>, 1) * kDepthStep<Op>, depth_within<Op>(caches));
}

// Rows i, i + 1, ... of a left operand packed as panels of `units` units; i is a multiple of kTileRows.
template <class Op>
BARLOW_FAST_INLINE Left<Op> left_of_panels(const Unit<Op>* packed, int64_t i, int64_t units) {
  return {packed + i * units, 1, kTileRows<Op>};
}

// Unit k of kLanes columns from `column` on, to panels of `units` units that are Width columns wide.
template <class Op, int Width>
BARLOW_FAST_INLINE void store_in_panels(Vector<Unit<Op>> x, Unit<Op>* out, int64_t column, int64_t k, int64_t units) {
  constexpr int lanes = kLanes<Unit<Op>>, part = lanes < Width ? lanes : Width;
  const auto place = [&](int64_t c) { return out + c / Width * Width * units + k * Width + c % Width; };
  if constexpr (part == lanes) {
    store(place(column), x);
    return;
  }
#if defined(__AVX512F__)
  if constexpr (part * 2 == lanes) {  // GCC would take the halves from memory
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(place(column)), _mm512_castsi512_si256((__m512i)x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(place(column + part)), _mm512_extracti64x4_epi64((__m512i)x, 1));
    return;
  }
#endif
  Unit<Op> values[lanes];
  store(values, x);
  BARLOW_FAST_UNROLL
  for (int p = 0; p < lanes; p += part) __builtin_memcpy(place(column + p), values + p, part * sizeof(Unit<Op>));
}

// panel[k][r] = value(r, k) for kPanel rows r and `depth` values k, in panels Width rows wide, where value(r, k, piece)
// yields the vector of values k, k + 1, ... of row r.
template <class Op, int Width, class Value>
BARLOW_FAST_INLINE void pack_transposed(int64_t depth, Unit<Op>* panel, const Value& value) {
  constexpr int lanes = kLanes<Unit<Op>>;
  const int64_t units = units_of_whole<Op>(depth);
  for (int half = 0; half < 2; ++half) {
    for (int64_t k = 0; k < depth; k += kDepthStep<Op>) {
      for (int piece = 0; piece < kPieces<Op>; ++piece) {
        Vector<Unit<Op>> square[lanes];
        value(half * lanes, k, piece, square);
        transpose<Unit<Op>>(square);
        const int64_t at = units_of_whole<Op>(k) + piece * lanes;
        BARLOW_FAST_UNROLL
        for (int r = 0; r < lanes; ++r) store_in_panels<Op, Width>(square[r], panel, half * lanes, at + r, units);
      }
    }
  }
  finish_panels<Op>(panel, kPanel<Op>, units);
}

// A right panel from the rows [row, row + kPanel) of a left operand.
template <class Op>
BARLOW_FAST_INLINE void right_from_left(const Unit<Op>* left, int64_t row, int64_t units, Unit<Op>* right) {
  constexpr int width = kTileRows<Op>;
  for (int part = 0; part < kPanel<Op>; part += width) {
    const Unit<Op>* from = left + (row + part) * units;
    for (int64_t k = 0; k < units; ++k) {
      __builtin_memcpy(right + k * kPanel<Op> + part, from + k * width, width * sizeof(Unit<Op>));
    }
  }
}

// Rows [row, row + rows) of columns [column, column + columns) of a view; none for rows <= 0.
struct Window {
  View z;
  int64_t row, rows, column, columns;
};

// Reads what comes next of both views into the second-level cache, a few lines with each of `products` products, while
// memory is idle: what fits into a quarter of that cache, as more would evict what is multiplied.
class ReadAhead {
 public:
  ReadAhead(const Window (&windows)[2], int64_t products, const Caches& caches) {
    int64_t lines = 0;
    for (const Window& w : windows) {
      if (w.rows <= 0) continue;
      const int64_t size = element_bytes(w.z.type), width = w.columns * size;
      const char* from = static_cast<const char*>(w.z.data) + (w.row * w.z.stride + w.column) * size;
      parts_[count_++] = {from, w.z.stride * size, width, w.rows};
      lines += w.rows * ((width + kLine - 1) / kLine);
    }
    left_ = smaller(lines, caches.second / 4 / kLine);
    each_ = (left_ + products - 1) / products;
  }
  BARLOW_FAST_INLINE void next() {
    for (int64_t line = 0; line < each_ && left_ > 0; ++line, --left_) {
      Part& part = parts_[part_];
      __builtin_prefetch(part.row + at_, 0, 2);
      at_ += kLine;
      if (at_ < part.width) continue;
      at_ = 0;
      part.row += part.stride;
      if (--part.rows == 0) ++part_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Part {
    const char* row;
    int64_t stride, width, rows;  // bytes; rows that are left
  };
  Part parts_[2];
  int64_t count_ = 0, part_ = 0, at_ = 0, each_ = 0, left_ = 0;
};

// Adds the sums of a full tile.
template <class A, int Rows, int Vectors>
BARLOW_FAST_INLINE void add_tile(const A* sums, Vector<A> (&tile)[Rows][Vectors]) {
  constexpr int lanes = kLanes<A>;
  BARLOW_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) tile[r][v] += load(sums + (2 * r + v) * lanes);
  }
}

// out = tile, clipped to `rows` x `columns`.
template <class A, int Rows, int Vectors>
BARLOW_FAST_INLINE void store_tile(const Vector<A> (&tile)[Rows][Vectors], int64_t rows, int64_t columns, A* out,
                                   int64_t stride) {
  constexpr int lanes = kLanes<A>;
  if (rows >= Rows && columns >= Vectors * lanes) {
    BARLOW_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) store(out + r * stride + v * lanes, tile[r][v]);
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
    for (int c = 0; c < smaller(columns, Vectors * lanes); ++c) out[r * stride + c] = buffer[r][c];
  }
}

// left * right + `sums` of a full tile, where these are not null.
template <class Op, int Vectors>
BARLOW_FAST_INLINE void multiply_add(int64_t units, const Left<Op>& left, const Unit<Op>* right, const Acc<Op>* sums,
                                     Vector<Acc<Op>> (&tile)[kTileRows<Op>][Vectors]) {
  constexpr int line = 64 / static_cast<int>(sizeof(Acc<Op>));
  // They are needed all at once.
  for (int c = 0; sums != nullptr && c < kTileRows<Op> * kPanel<Op>; c += line) __builtin_prefetch(sums + c, 1);
  multiply<Op, kTileRows<Op>, Vectors>(units, left, right, tile);
  if (sums != nullptr) add_tile(sums, tile);
}

// `out` = left * right + `sums`, clipped to `rows` x `columns`.
template <class Op, int Vectors = 2>
void multiply_to(int64_t units, const Left<Op>& left, const Unit<Op>* right, const Acc<Op>* sums, int64_t rows,
                 int64_t columns, Acc<Op>* out, int64_t stride) {
  Vector<Acc<Op>> tile[kTileRows<Op>][Vectors];
  multiply_add<Op, Vectors>(units, left, right, sums, tile);
  store_tile<Acc<Op>>(tile, rows, columns, out, stride);
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

// A block of a product, in steps of the summed index: all rows of the left operand, `packed` columns of the right one at
// a time. Sums stay in full tiles until the last step: rows of the output may lie powers of two apart, and would evict
// each other.
template <class Op>
struct BlockScratch {
  int64_t depth, height;  // values of the summed index per step; rows
  Unit<Op>*left, *right;
  Acc<Op>* sums;  // [panel][tile][row][column]

  BlockScratch(Arena& arena, const Caches& caches, int64_t rows, int64_t columns, int64_t packed,
               int64_t summed)
      : height(round_up(rows, kPanel<Op>)) {
    depth = smaller(depth_of_blocks<Op>(caches, height), round_up(summed, kDepthStep<Op>));
    left = arena.template take<Unit<Op>>(height * depth / Op::kDepth);
    right = arena.template take<Unit<Op>>(round_up(packed, kPanel<Op>) * depth / Op::kDepth);
    sums = arena.template take<Acc<Op>>(summed > depth ? height * round_up(columns, kPanel<Op>) : 0);
  }
  // One step of the tile of rows from i and columns from j, of which `rows` and `columns` are there; `panel` holds the
  // columns.
  template <int Vectors = 2>
  BARLOW_FAST_INLINE void multiply(int64_t units, int64_t i, int64_t j, const Unit<Op>* panel, int64_t rows,
                                   int64_t columns, bool first, bool last, Acc<Op>* out, int64_t stride) const {
    const Left<Op> from = left_of_panels<Op>(left, i, units);
    Acc<Op>* tile = sums + j * height + i * kPanel<Op>;
    const Acc<Op>* before = first ? nullptr : tile;
    if (last) {
      multiply_to<Op, Vectors>(units, from, panel, before, rows, columns, out, stride);
    } else {
      multiply_to<Op, Vectors>(units, from, panel, before, kTileRows<Op>, kPanel<Op>, tile, kPanel<Op>);
    }
  }
};
