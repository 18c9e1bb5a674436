// Vectors of one instruction set: type, load and store of every element type, rounding, transposition, and the
// register tile of the matrix products. Included by primitives.cpp only, inside an anonymous namespace.
//
// Written with the vector extensions of GCC and Clang, so that one source serves SSE2, AVX2, AVX-512 and NEON;
// intrinsics appear only where an instruction has no expression in them (bf16 dot products, half conversions).

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#if defined(__clang__)
#define BARLOW_FAST_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BARLOW_FAST_UNROLL _Pragma("GCC unroll 16")
#endif
#define BARLOW_FAST_INLINE inline __attribute__((always_inline))

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
BARLOW_FAST_INLINE Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
BARLOW_FAST_INLINE void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class T>
BARLOW_FAST_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

BARLOW_FAST_INLINE int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}
BARLOW_FAST_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
BARLOW_FAST_INLINE int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }

template <class T>
BARLOW_FAST_INLINE double sum_lanes(Vector<T> v) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += v[lane];
  return sum;
}

// ---- half-precision scalars -------------------------------------------------------------------------------------

BARLOW_FAST_INLINE float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
BARLOW_FAST_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

BARLOW_FAST_INLINE uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);  // stay NaN whatever the payload
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

BARLOW_FAST_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
  // The exponent is rebased by a multiplication, which also makes subnormals right.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

BARLOW_FAST_INLINE uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {
    // Subnormal result: adding 0.5 aligns the mantissa so that the hardware rounds to even for us.
    return sign | static_cast<uint16_t>(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13);
}

// ---- rows of any element type to the accumulation type and back ---------------------------------------------------

template <class A>
BARLOW_FAST_INLINE void widen_bf16(const uint16_t* from, int64_t count, A* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = bits_to_float(static_cast<uint32_t>(from[i]) << 16);
}

template <class A>
BARLOW_FAST_INLINE void widen_half(const uint16_t* from, int64_t count, A* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    float wide[8];
    _mm256_storeu_ps(wide, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    for (int k = 0; k < 8; ++k) to[i + k] = wide[k];
  }
#endif
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}

template <class A>
BARLOW_FAST_INLINE void narrow_half(const A* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    float wide[8];
    for (int k = 0; k < 8; ++k) wide[k] = static_cast<float>(from[i + k]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(wide), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < count; ++i) to[i] = float_to_half(static_cast<float>(from[i]));
}

// Elements [column, column + count) of row `row`, in the accumulation type: the row itself where it has that type,
// else a converted copy in `buffer`.
template <class A>
BARLOW_FAST_INLINE const A* read_row(const View& z, int64_t row, int64_t column, int64_t count, A* buffer) {
  const int64_t at = row * z.stride + column;
  switch (z.type) {
    case Element::f64: {
      const double* from = static_cast<const double*>(z.data) + at;
      if constexpr (sizeof(A) == 8) return from;
      for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<A>(from[i]);
      break;
    }
    case Element::f32: {
      const float* from = static_cast<const float*>(z.data) + at;
      if constexpr (sizeof(A) == 4) return from;
      for (int64_t i = 0; i < count; ++i) buffer[i] = from[i];
      break;
    }
    case Element::bf16:
      widen_bf16(static_cast<const uint16_t*>(z.data) + at, count, buffer);
      break;
    case Element::f16:
      widen_half(static_cast<const uint16_t*>(z.data) + at, count, buffer);
      break;
  }
  return buffer;
}

template <class A>
BARLOW_FAST_INLINE void write_row(const Output& out, int64_t row, int64_t column, int64_t count, const A* from) {
  const int64_t at = row * out.stride + column;
  switch (out.type) {
    case Element::f64: {
      double* to = static_cast<double*>(out.data) + at;
      for (int64_t i = 0; i < count; ++i) to[i] = from[i];
      break;
    }
    case Element::f32: {
      float* to = static_cast<float*>(out.data) + at;
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
      break;
    }
    case Element::bf16: {
      uint16_t* to = static_cast<uint16_t*>(out.data) + at;
      for (int64_t i = 0; i < count; ++i) to[i] = float_to_bf16(static_cast<float>(from[i]));
      break;
    }
    case Element::f16:
      narrow_half(from, count, static_cast<uint16_t*>(out.data) + at);
      break;
  }
}

// ---- operand types of the matrix products -------------------------------------------------------------------------
// A `Unit` is what one lane holds: one value, or for bf16 a pair of neighbours along the summed index, which is what
// the dot-product instruction multiplies.

struct Double {
  using Accumulator = double;
  using Unit = double;
  static constexpr int kDepth = 1;
  static BARLOW_FAST_INLINE Vector<double> fma(Vector<double> sum, double x, Vector<double> y) {
    return sum + x * y;
  }
};

struct Single {
  using Accumulator = float;
  using Unit = float;
  static constexpr int kDepth = 1;
  static BARLOW_FAST_INLINE Vector<float> fma(Vector<float> sum, float x, Vector<float> y) {
    return sum + x * y;
  }
};

#if defined(__AVX512BF16__)
struct Pairs {
  using Accumulator = float;
  using Unit = uint32_t;
  static constexpr int kDepth = 2;
  static BARLOW_FAST_INLINE Vector<float> fma(Vector<float> sum, uint32_t x, Vector<uint32_t> y) {
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(x)), (__m512bh)y);
  }
};
#endif

template <class Op>
constexpr int kPanel = 2 * kLanes<typename Op::Accumulator>;
#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // 8 x 2 accumulators; 32 registers, two loads and eight broadcasts per 16 products
#else
constexpr int kTileRows = 4;  // 16 registers
#endif

// sum[r][v] += over k of left[r * left_row + k * left_step] * right[k * kPanel + v * lanes + lane].
template <class Op, int Rows, int Vectors>
BARLOW_FAST_INLINE void multiply(int64_t depth, const typename Op::Unit* left, int64_t left_row, int64_t left_step,
                                 const typename Op::Unit* right,
                                 Vector<typename Op::Accumulator> (&sum)[Rows][Vectors]) {
  using Unit = typename Op::Unit;
  BARLOW_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    BARLOW_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Vector<typename Op::Accumulator>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector<Unit> y[Vectors];
    BARLOW_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) y[v] = load(right + k * kPanel<Op> + v * kLanes<Unit>);
    BARLOW_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Unit x = left[r * left_row + k * left_step];
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) sum[r][v] = Op::fma(sum[r][v], x, y[v]);
    }
  }
}

// ---- rounding of float32 to the precision of a narrower operand -----------------------------------------------------

BARLOW_FAST_INLINE void round_in_place(float* x, int64_t count, Element operand) {
  if (operand == Element::bf16) {
    for (int64_t i = 0; i < count; ++i) x[i] = bits_to_float(static_cast<uint32_t>(float_to_bf16(x[i])) << 16);
  } else if (operand == Element::f16) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
      const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
      _mm256_storeu_ps(x + i, _mm256_cvtph_ps(half));
    }
#endif
    for (; i < count; ++i) x[i] = half_to_float(float_to_half(x[i]));
  }
}
BARLOW_FAST_INLINE void round_in_place(double*, int64_t, Element) {}

// (x - mean) * rstd, rounded; exact zeros up to `padded`.
template <class A>
BARLOW_FAST_INLINE void standardise_row(const A* __restrict x, const A* __restrict mean, const A* __restrict rstd,
                                        int64_t count, int64_t padded, Element operand, A* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = (x[i] - mean[i]) * rstd[i];
  round_in_place(out, count, operand);
  for (int64_t i = count; i < padded; ++i) out[i] = 0;
}

// Units of an operand from a row of values: the values themselves, or pairs of neighbours.
template <class Op>
BARLOW_FAST_INLINE Vector<typename Op::Unit> units_of(const typename Op::Accumulator* x) {
#if defined(__AVX512BF16__)
  if constexpr (Op::kDepth == 2) {
    return (Vector<uint32_t>)_mm512_cvtne2ps_pbh((__m512)load(x + 16), (__m512)load(x));
  } else
#endif
  {
    return load(x);
  }
}

// The same from two rows: lane i holds (x[i], y[i]). For one-value units y is not looked at.
template <class Op>
BARLOW_FAST_INLINE Vector<typename Op::Unit> units_across(const typename Op::Accumulator* x,
                                                          const typename Op::Accumulator* y) {
#if defined(__AVX512BF16__)
  if constexpr (Op::kDepth == 2) {
    const __m256i low = (__m256i)_mm512_cvtneps_pbh((__m512)load(x));
    const __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)load(y));
    return (Vector<uint32_t>)_mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                             _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  } else
#endif
  {
    (void)y;
    return load(x);
  }
}

// The lower (Part = 0) or upper (Part = 1) halves of two vectors, interleaved lane by lane.
template <class U, int Part, int... Lane>
BARLOW_FAST_INLINE Vector<U> interleave(Vector<U> x, Vector<U> y, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = kLanes<U>;
#if defined(__clang__)
  return __builtin_shufflevector(x, y, (Lane % 2 * lanes + Part * lanes / 2 + Lane / 2)...);
#else
  using Index = Vector<typename std::conditional<sizeof(U) == 8, int64_t, int32_t>::type>;
  return __builtin_shuffle(x, y, Index{(Lane % 2 * lanes + Part * lanes / 2 + Lane / 2)...});
#endif
}

// In-register transposition of a square of lanes: log2(lanes) rounds of perfect shuffles.
template <class U>
BARLOW_FAST_INLINE void transpose(Vector<U> (&rows)[kLanes<U>]) {
  constexpr int lanes = kLanes<U>;
  using Lanes = std::make_integer_sequence<int, lanes>;
  BARLOW_FAST_UNROLL
  for (int round = 1; round < lanes; round *= 2) {
    Vector<U> next[lanes];
    BARLOW_FAST_UNROLL
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave<U, 0>(rows[i], rows[i + lanes / 2], Lanes{});
      next[2 * i + 1] = interleave<U, 1>(rows[i], rows[i + lanes / 2], Lanes{});
    }
    BARLOW_FAST_UNROLL
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}
