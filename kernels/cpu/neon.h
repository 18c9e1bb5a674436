// Register tiles for the 32 vectors of ARM: as many rows as a panel has columns, so 8 x 2 accumulators of float32. The left
// operand is read as whole vectors, by whose lanes the instructions multiply: four loads for 16 products where broadcasts
// would take ten. Included by vector.h only.

template <class Op>
constexpr int kTileRows = kPanel<Op>;

// A vector in a vector register: GCC would load its lanes into general ones, and move each from there.
template <class Unit>
BARLOW_FAST_INLINE Vector<Unit> load_for_lanes(const Unit* p) {
  Vector<Unit> x = load(p);
  __asm__("" : "+w"(x));
  return x;
}

template <class Op, int Rows, int Vectors>
BARLOW_FAST_INLINE void multiply_lanes(int64_t depth, const Left<Op>& left, const typename Op::Unit* right,
                                       Vector<typename Op::Accumulator> (&sum)[Rows][Vectors]) {
  using Unit = typename Op::Unit;
  constexpr int lanes = kLanes<Unit>, parts = (Rows + lanes - 1) / lanes;
  BARLOW_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Vector<Unit>{};
  }
  Vector<Unit> y[Vectors];
  if (left.row == 1) {  // the rows' units of one step lie together
    for (int64_t k = 0; k < depth; ++k) {
      Vector<Unit> x[parts];
      BARLOW_FAST_UNROLL
      for (int part = 0; part < parts; ++part) x[part] = load_for_lanes(left.data + k * left.step + part * lanes);
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) y[v] = load(right + k * kPanel<Op> + v * lanes);
      BARLOW_FAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        BARLOW_FAST_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[r][v] = Op::fma(sum[r][v], x[r / lanes][r % lanes], y[v]);
      }
    }
    return;
  }
  // The units of a row lie together; `depth` is a multiple of kDepthStep.
  for (int64_t k = 0; k < depth; k += lanes) {
    Vector<Unit> x[Rows];
    BARLOW_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) x[r] = load_for_lanes(left.data + r * left.row + k);
    BARLOW_FAST_UNROLL
    for (int lane = 0; lane < lanes; ++lane) {
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) y[v] = load(right + (k + lane) * kPanel<Op> + v * lanes);
      BARLOW_FAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        BARLOW_FAST_UNROLL
        for (int v = 0; v < Vectors; ++v) sum[r][v] = Op::fma(sum[r][v], x[r][lane], y[v]);
      }
    }
  }
}

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// Products of bfloat16: an instruction multiplies two rows by two columns and adds up four values of each, so both
// operands keep two units of a column side by side (pair_units).
template <>
constexpr int kUnitStep<Pairs> = 2;

// [unit][column] of a panel becomes [unit / 2][column][unit % 2].
BARLOW_FAST_INLINE void pair_units(uint32_t* panel, int64_t units) {
  constexpr int width = kPanel<Pairs>;
  static_assert(width == 8);
  for (uint32_t* row = panel; row < panel + units * width; row += 2 * width) {
    const uint32x4x2_t left{{vld1q_u32(row), vld1q_u32(row + width)}};
    const uint32x4x2_t right{{vld1q_u32(row + 4), vld1q_u32(row + width + 4)}};
    vst2q_u32(row, left);
    vst2q_u32(row + width, right);
  }
}

template <int Rows, int Vectors>
BARLOW_FAST_INLINE void multiply_pairs(int64_t units, const Left<Pairs>& left, const uint32_t* right,
                                       Vector<float> (&sum)[Rows][Vectors]) {
  constexpr int squares = Rows / 2, columns = 2 * Vectors;
  // Of rows 2 i, 2 i + 1 and columns 2 j, 2 j + 1.
  float32x4_t square[squares][columns];
  BARLOW_FAST_UNROLL
  for (int i = 0; i < squares; ++i) {
    BARLOW_FAST_UNROLL
    for (int j = 0; j < columns; ++j) square[i][j] = vdupq_n_f32(0);
  }
  const auto step = [&](const uint32x4_t(&x)[squares], int64_t k) __attribute__((always_inline)) {
    BARLOW_FAST_UNROLL
    for (int j = 0; j < columns; ++j) {
      const bfloat16x8_t y = vreinterpretq_bf16_u32(vld1q_u32(right + k * kPanel<Pairs> + 4 * j));
      BARLOW_FAST_UNROLL
      for (int i = 0; i < squares; ++i) square[i][j] = vbfmmlaq_f32(square[i][j], vreinterpretq_bf16_u32(x[i]), y);
    }
  };
  uint32x4_t x[squares];
  if (left.row == 1) {
    for (int64_t k = 0; k < units; k += 2) {
      BARLOW_FAST_UNROLL
      for (int i = 0; i < squares; ++i) x[i] = vld1q_u32(left.data + k * left.step + 4 * i);
      step(x, k);
    }
  } else {
    for (int64_t k = 0; k < units; k += 4) {
      uint64x2_t next[squares];
      BARLOW_FAST_UNROLL
      for (int i = 0; i < squares; ++i) {
        const uint64x2_t upper = vreinterpretq_u64_u32(vld1q_u32(left.data + 2 * i * left.row + k));
        const uint64x2_t lower = vreinterpretq_u64_u32(vld1q_u32(left.data + (2 * i + 1) * left.row + k));
        x[i] = vreinterpretq_u32_u64(vzip1q_u64(upper, lower));
        next[i] = vzip2q_u64(upper, lower);
      }
      step(x, k);
      // Columns loaded before they are needed would not leave enough registers.
      __asm__ volatile("" ::: "memory");
      BARLOW_FAST_UNROLL
      for (int i = 0; i < squares; ++i) x[i] = vreinterpretq_u32_u64(next[i]);
      step(x, k + 2);
    }
  }
  BARLOW_FAST_UNROLL
  for (int i = 0; i < squares; ++i) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const float64x2_t first = vreinterpretq_f64_f32(square[i][2 * v]);
      const float64x2_t second = vreinterpretq_f64_f32(square[i][2 * v + 1]);
      sum[2 * i][v] = (Vector<float>)vzip1q_f64(first, second);
      sum[2 * i + 1][v] = (Vector<float>)vzip2q_f64(first, second);
    }
  }
}
#endif

template <class Op, int Rows, int Vectors>
BARLOW_FAST_INLINE void multiply(int64_t units, const Left<Op>& left, const typename Op::Unit* right,
                                 Vector<typename Op::Accumulator> (&sum)[Rows][Vectors]) {
  if constexpr (kUnitStep<Op> == 2) {
    multiply_pairs(units, left, right, sum);
  } else {
    multiply_lanes(units, left, right, sum);
  }
}
