// Vectors of one instruction set: type, load and store of every element type, rounding, transposition, and the
// register tile of the matrix products. Included by primitives.cpp only, inside an anonymous namespace.
//
// Written with the vector extensions of GCC and Clang, so that one source serves SSE2, AVX2, AVX-512 and NEON;
// intrinsics appear only where an instruction has no expression in them (bf16 dot products, half conversions).

#if defined(__aarch64__) && !defined(BARLOW_FAST_AMX_EMULATED)
#define BARLOW_FAST_NEON
#endif

#if defined(__AVX512F__) || defined(BARLOW_FAST_AMX_EMULATED)
constexpr int kVectorBytes = 64;  // where no such vector exists, the compiler splits it
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#if defined(BARLOW_FAST_AMX_EMULATED)
#define BARLOW_FAST_UNROLL
#elif defined(__clang__)
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

#if defined(BARLOW_FAST_NEON)
BARLOW_FAST_INLINE uint16x4_t neon_bf16(float32x4_t x) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return vreinterpret_u16_bf16(vcvt_bf16_f32(x));
#else
  const uint32x4_t bits = vreinterpretq_u32_f32(x), high = vshrq_n_u32(bits, 16);
  const uint32x4_t even = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t nearest = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), even), 16);
  return vmovn_u32(vbslq_u32(vceqq_f32(x, x), nearest, vorrq_u32(high, vdupq_n_u32(0x40))));
#endif
}
#endif

// ---- vectors of any element type to the accumulation type and back --------------------------------------------------

template <class T, int Lanes>
struct NarrowVector {
  typedef T type __attribute__((vector_size(sizeof(T) * Lanes)));
};

template <Element E>
struct ElementOf;
template <>
struct ElementOf<Element::f64> { using type = double; };
template <>
struct ElementOf<Element::f32> { using type = float; };
template <>
struct ElementOf<Element::bf16> { using type = uint16_t; };
template <>
struct ElementOf<Element::f16> { using type = uint16_t; };

// kLanes<A> elements of type E at `p`, widened (or for f64 to float, narrowed) to A.
template <class A, Element E>
BARLOW_FAST_INLINE Vector<A> load_elements(const typename ElementOf<E>::type* p) {
  using From = typename NarrowVector<typename ElementOf<E>::type, kLanes<A>>::type;
  From from;
  __builtin_memcpy(&from, p, sizeof from);
  if constexpr (E == Element::f64 || E == Element::f32) {
    return __builtin_convertvector(from, Vector<A>);
  } else {
    using Bits = typename NarrowVector<uint32_t, kLanes<A>>::type;
    using Floats = typename NarrowVector<float, kLanes<A>>::type;
    if constexpr (E == Element::bf16) {
#if defined(__AVX512F__)
      if constexpr (kLanes<A> == 16) return (Vector<A>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)from), 16);
#endif
      const Bits bits = __builtin_convertvector(from, Bits) << 16;
      return __builtin_convertvector((Floats)bits, Vector<A>);
    }
    Floats wide;
#if defined(__AVX512F__)
    if constexpr (kLanes<A> == 16) {
      return __builtin_convertvector((Floats)_mm512_cvtph_ps((__m256i)from), Vector<A>);
    }
#elif defined(__F16C__)
    if constexpr (kLanes<A> == 8) {
      return __builtin_convertvector((Floats)_mm256_cvtph_ps((__m128i)from), Vector<A>);
    }
#elif defined(BARLOW_FAST_NEON)
    if constexpr (kLanes<A> == 4) return (Vector<A>)vcvt_f32_f16((float16x4_t)from);
#endif
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = half_to_float(from[i]);
    return __builtin_convertvector(wide, Vector<A>);
  }
}

// The same where only `count` elements are there (none for count <= 0): the other lanes are zero.
template <class A, Element E>
BARLOW_FAST_INLINE Vector<A> load_some(const typename ElementOf<E>::type* p, int64_t count) {
  if (count >= kLanes<A>) return load_elements<A, E>(p);
  typename ElementOf<E>::type buffer[kLanes<A>] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load_elements<A, E>(buffer);
}

template <class A>
BARLOW_FAST_INLINE Vector<A> load_some(const A* p, int64_t count) {
  return load_some<A, sizeof(A) == 8 ? Element::f64 : Element::f32>(p, count);
}

template <class A, Element E>
BARLOW_FAST_INLINE void store_elements(typename ElementOf<E>::type* p, Vector<A> x) {
  using To = typename NarrowVector<typename ElementOf<E>::type, kLanes<A>>::type;
  using Floats = typename NarrowVector<float, kLanes<A>>::type;
  To to;
  if constexpr (E == Element::f64 || E == Element::f32) {
    to = __builtin_convertvector(x, To);
  } else if constexpr (E == Element::bf16) {
#if defined(__AVX512BF16__)
    if constexpr (kLanes<A> == 16) {
      to = (To)_mm512_cvtneps_pbh((__m512)x);
    } else
#elif defined(BARLOW_FAST_NEON)
    if constexpr (kLanes<A> == 4) {
      to = (To)neon_bf16((float32x4_t)x);
    } else
#endif
    {
      const Floats wide = __builtin_convertvector(x, Floats);
      for (int i = 0; i < kLanes<A>; ++i) to[i] = float_to_bf16(wide[i]);
    }
  } else {
    const Floats wide = __builtin_convertvector(x, Floats);
#if defined(__AVX512F__)
    if constexpr (kLanes<A> == 16) {
      to = (To)_mm512_cvtps_ph((__m512)wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else
#elif defined(__F16C__)
    if constexpr (kLanes<A> == 8) {
      to = (To)_mm256_cvtps_ph((__m256)wide, _MM_FROUND_TO_NEAREST_INT);
    } else
#elif defined(BARLOW_FAST_NEON)
    if constexpr (kLanes<A> == 4) {
      to = (To)vcvt_f16_f32((float32x4_t)wide);
    } else
#endif
    {
      for (int i = 0; i < kLanes<A>; ++i) to[i] = float_to_half(wide[i]);
    }
  }
  __builtin_memcpy(p, &to, sizeof to);
}

// Stores the first `count` lanes.
template <class A, Element E>
BARLOW_FAST_INLINE void store_some(typename ElementOf<E>::type* p, Vector<A> x, int64_t count) {
  if (count >= kLanes<A>) {
    store_elements<A, E>(p, x);
    return;
  }
  typename ElementOf<E>::type buffer[kLanes<A>];
  store_elements<A, E>(buffer, x);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// As store_some; with `stream`, past the caches where whole vectors are stored: no line is read just to be overwritten.
template <class A, Element E>
BARLOW_FAST_INLINE void write_out(typename ElementOf<E>::type* p, Vector<A> x, int64_t count, bool stream) {
#if defined(__AVX512F__)
  constexpr size_t size = kLanes<A> * sizeof(typename ElementOf<E>::type);
  if constexpr (size == 64 || size == 32) {
    if (stream && count >= kLanes<A> && reinterpret_cast<uintptr_t>(p) % size == 0) {
      alignas(64) typename ElementOf<E>::type buffer[kLanes<A>];
      store_elements<A, E>(buffer, x);
      if constexpr (size == 64) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), *reinterpret_cast<const __m512i*>(buffer));
      } else {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), *reinterpret_cast<const __m256i*>(buffer));
      }
      return;
    }
  }
#else
  (void)stream;
#endif
  store_some<A, E>(p, x, count);
}

// Streamed stores are seen by other threads after this.
BARLOW_FAST_INLINE void finish_streams(bool stream) {
#if defined(__AVX512F__)
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

// A row of a view or an output, as its elements.
template <Element E>
BARLOW_FAST_INLINE const typename ElementOf<E>::type* row_of(const View& z, int64_t row) {
  return static_cast<const typename ElementOf<E>::type*>(z.data) + row * z.stride;
}
template <Element E>
BARLOW_FAST_INLINE typename ElementOf<E>::type* row_of(const Output& out, int64_t row) {
  return static_cast<typename ElementOf<E>::type*>(out.data) + row * out.stride;
}

// Reads what lies a few rows below into the second-level cache. The hardware foresees the next lines of a row and not the
// next row; in the first-level cache rows that lie powers of two apart would evict each other.
constexpr int64_t kAhead = 16;
template <class T>
BARLOW_FAST_INLINE void read_below(const View& z, const T* p) {
  __builtin_prefetch(p + kAhead * z.stride, 0, 2);
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

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(BARLOW_FAST_NEON)
struct Pairs {
  using Accumulator = float;
  using Unit = uint32_t;
  static constexpr int kDepth = 2;
};
#elif defined(__AVX512BF16__)
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
// Whether products are those of matrix tiles (tiles.h), and the rows of what one product yields.
template <class Op>
constexpr bool kTiled = false;
// Units that a value is spread over: one, or of matrix tiles two.
template <class Op>
constexpr int kPieces = 1;
// Units of the summed index that a product takes at a time.
template <class Op>
constexpr int kUnitStep = 1;

// Where the left operand of a product lies: its first unit, the distance of rows and that of units along the summed
// index.
template <class Op>
struct Left {
  const typename Op::Unit* data;
  int64_t row, step;
};

// sum[r][v] = over k of left[r][k] * right[k * kPanel + v * lanes + lane].
#if defined(BARLOW_FAST_NEON)
#include "neon.h"
#else
template <class Op>
#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // 8 x 2 accumulators; 32 registers, two loads and eight broadcasts per 16 products
#else
constexpr int kTileRows = 4;  // 16 registers
#endif

template <class Op, int Rows, int Vectors>
BARLOW_FAST_INLINE void multiply(int64_t depth, const Left<Op>& left, const typename Op::Unit* right,
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
      const Unit x = left.data[r * left.row + k * left.step];
      BARLOW_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) sum[r][v] = Op::fma(sum[r][v], x, y[v]);
    }
  }
}
#endif

// ---- standardised values as operands ----------------------------------------------------------------------------------

// Whether a product's operand differs from the full-precision value, so that both must be kept.
template <class Op>
BARLOW_FAST_INLINE bool rounds_operand(Element operand) {
  return Op::kDepth > 1 || operand == Element::bf16 || operand == Element::f16;
}

// A piece of values: themselves, or what the upper 16 bits hold of them, rounded, and the rest.
template <class Op>
BARLOW_FAST_INLINE Vector<typename Op::Accumulator> piece_of(Vector<typename Op::Accumulator> x, int piece) {
  if constexpr (kPieces<Op> == 2) {
    const Vector<float> upper = (Vector<float>)(((Vector<uint32_t>)x + 0x8000) & 0xffff0000);
    return piece == 0 ? upper : x - upper;
  }
  (void)piece;
  return x;
}

// A value as the operand type would hold it; what is a unit of its own (Pairs) is rounded when the unit is made.
template <class Op>
BARLOW_FAST_INLINE Vector<typename Op::Accumulator> rounded(Vector<typename Op::Accumulator> x, Element operand) {
  if constexpr (sizeof(typename Op::Accumulator) == 4 && Op::kDepth == 1) {
    uint16_t buffer[kLanes<float>];
    if (operand == Element::bf16) {
      store_elements<float, Element::bf16>(buffer, x);
      return load_elements<float, Element::bf16>(buffer);
    }
    if (operand == Element::f16) {
      store_elements<float, Element::f16>(buffer, x);
      return load_elements<float, Element::f16>(buffer);
    }
  }
  return x;
}

// Units of an operand from kLanes * kDepth values of one row: the values themselves, or pairs of neighbours.
template <class Op>
BARLOW_FAST_INLINE Vector<typename Op::Unit> units_of(Vector<typename Op::Accumulator> x,
                                                      Vector<typename Op::Accumulator> y) {
  if constexpr (Op::kDepth == 2) {
#if defined(__AVX512BF16__)
    return (Vector<uint32_t>)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
#elif defined(BARLOW_FAST_NEON)
    return (Vector<uint32_t>)vcombine_u16(neon_bf16((float32x4_t)x), neon_bf16((float32x4_t)y));
#else
    constexpr int lanes = kLanes<float>;
    uint16_t values[2 * lanes];
    store_elements<float, Element::bf16>(values, x);
    store_elements<float, Element::bf16>(values + lanes, y);
    return load(reinterpret_cast<const uint32_t*>(values));
#endif
  } else {
    (void)y;
    return x;
  }
}

// Units from two rows: lane i holds (x[i], y[i]). For one-value units y is not looked at.
template <class Op>
BARLOW_FAST_INLINE Vector<typename Op::Unit> units_across(Vector<typename Op::Accumulator> x,
                                                          Vector<typename Op::Accumulator> y) {
  if constexpr (Op::kDepth == 2) {
#if defined(__AVX512BF16__)
    // Word 2 i is x[i], word 2 i + 1 is y[i].
    const __m512i order = _mm512_add_epi32(_mm512_set1_epi32(0x00100000), (__m512i)(Vector<uint32_t>{
        0, 0x10001, 0x20002, 0x30003, 0x40004, 0x50005, 0x60006, 0x70007, 0x80008, 0x90009, 0xa000a, 0xb000b, 0xc000c,
        0xd000d, 0xe000e, 0xf000f}));
    return (Vector<uint32_t>)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x));
#elif defined(BARLOW_FAST_NEON)
    const uint16x4_t low = neon_bf16((float32x4_t)x), high = neon_bf16((float32x4_t)y);
    return (Vector<uint32_t>)vcombine_u16(vzip1_u16(low, high), vzip2_u16(low, high));
#else
    Vector<uint32_t> units;
    for (int i = 0; i < kLanes<float>; ++i) {
      units[i] = float_to_bf16(x[i]) | static_cast<uint32_t>(float_to_bf16(y[i])) << 16;
    }
    return units;
#endif
  } else {
    (void)y;
    return x;
  }
}

// z_hat of one vector of columns: the statistics are zero beyond the last column, and so is the result.
template <class A>
BARLOW_FAST_INLINE Vector<A> standardised(Vector<A> x, Vector<A> mean, Vector<A> rstd, Vector<A> shift) {
  return (x - mean) * rstd - shift;
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
