// The primitives for one instruction set; compiled once for each with BARLOW_FAST_TABLE naming the table.
//
// Everything lives in an anonymous namespace and no standard-library function is called: an inline function that two
// of these objects share would be merged by the linker, possibly into the version that an older CPU cannot run.
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "contract.h"

namespace barlow_fast {
namespace {

#include "vector.h"
#if defined(BARLOW_FAST_AMX) || defined(BARLOW_FAST_AMX_EMULATED)
#include "tiles.h"
#else
struct TileRegisters {};
template <class Op>
void multiply_tiles(int64_t, const uint32_t*, const uint32_t*, bool, float*, int64_t);
#endif
#include "pack.h"
#include "moments.h"
#include "gram.h"
#include "correlation.h"
#include "tiled.h"
#if defined(BARLOW_FAST_AMX_EMULATED)
size_t photometric_scratch(const PhotometricTask& t) { return primitives_baseline()->photometric_scratch(t); }
void photometric(const PhotometricTask& t, void* scratch) { primitives_baseline()->photometric(t, scratch); }
size_t resize_scratch(const ResizeTask& t) { return primitives_baseline()->resize_scratch(t); }
void resize(const ResizeTask& t, void* scratch) { primitives_baseline()->resize(t, scratch); }
#else
#include "photometric.h"
#include "resize.h"
#endif

// Calls function<Op>(arguments) for the operand type: bf16 as tiles or pairs where the CPU multiplies them, else, like
// f16, as float32 values rounded to it; tf32 as two pieces of bf16 where there are tiles, else as float32.
#if defined(BARLOW_FAST_AMX) || defined(BARLOW_FAST_AMX_EMULATED)
#define BARLOW_FAST_PAIRS(operand, call) \
  if ((operand) == Element::bf16) { using Op = Tiles; return call; } \
  if ((operand) == Element::tf32) { using Op = SplitTiles; return call; }
#elif defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define BARLOW_FAST_PAIRS(operand, call) \
  if ((operand) == Element::bf16) { using Op = Pairs; return call; }
#else
#define BARLOW_FAST_PAIRS(operand, call)
#endif
#define BARLOW_FAST_DISPATCH(operand, call)                            \
  do {                                                                 \
    BARLOW_FAST_PAIRS(operand, call)                                   \
    if ((operand) == Element::f64) { using Op = Double; return call; } \
    { using Op = Single; return call; }                                \
  } while (false)

// Calls function<Op, E>(arguments) for the operand type and the element type of the embeddings.
#define BARLOW_FAST_DISPATCH_ELEMENT(element, operand, function, ...)                           \
  do {                                                                                          \
    switch (element) {                                                                          \
      case Element::f64: BARLOW_FAST_DISPATCH(operand, (function<Op, Element::f64>(__VA_ARGS__)));  \
      case Element::tf32:                                                                          \
      case Element::f32: BARLOW_FAST_DISPATCH(operand, (function<Op, Element::f32>(__VA_ARGS__)));  \
      case Element::bf16: BARLOW_FAST_DISPATCH(operand, (function<Op, Element::bf16>(__VA_ARGS__))); \
      case Element::f16: BARLOW_FAST_DISPATCH(operand, (function<Op, Element::f16>(__VA_ARGS__)));  \
    }                                                                                           \
  } while (false)

template <class Op>
Geometry geometry_in() {
  return Geometry{kPanel<Op>, kTileRows<Op>};
}
template <class Op>
size_t packed_gram_bytes_in(int64_t n) {
  return static_cast<size_t>(round_up(n, kTileRows<Op>) * units_for<Op>(n)) * sizeof(Unit<Op>);
}
template <class Scratch, class Task>
size_t bytes_of(const Task& task) {
  Arena arena{nullptr};
  Scratch scratch(arena, task);
  return arena.used;
}

size_t view_moments_scratch(const ViewMomentsTask& t) {
  return wide_moments(t.views->type, t.accumulation) ? bytes_of<ViewMomentsScratch<double>>(t)
                                                     : bytes_of<ViewMomentsScratch<float>>(t);
}

Geometry geometry(Element operand) { BARLOW_FAST_DISPATCH(operand, geometry_in<Op>()); }
template <class Op>
TiledCut tiled_cut_in(int64_t n, int64_t d, int64_t views) {
  return kTiled<Op> ? TiledCut{tiled_gram_columns(n, views), tiled_correlation_rows(d)} : TiledCut{};
}
TiledCut tiled_cut(int64_t n, int64_t d, int64_t views, Element operand) {
  BARLOW_FAST_DISPATCH(operand, tiled_cut_in<Op>(n, d, views));
}
size_t packed_gram_bytes(int64_t n, Element operand) { BARLOW_FAST_DISPATCH(operand, packed_gram_bytes_in<Op>(n)); }
size_t packed_matrix_bytes(int64_t d, Element operand) {
  BARLOW_FAST_DISPATCH(operand, packed_matrix_bytes_in<Op>(d));
}

// The scratch memory and the function of a task: by matrix tiles or by vectors.
#define BARLOW_FAST_TASK(Name, name)                                                                                 \
  template <class Op>                                                                                                \
  using Name##ScratchOf = typename std::conditional<kTiled<Op>, Tiled##Name##Scratch<Op>, Name##Scratch<Op>>::type;  \
  template <class Op, Element E>                                                                                     \
  void name##_of(const Name##Task& task, void* scratch) {                                                            \
    if constexpr (kTiled<Op>) {                                                                                      \
      tiled_##name<Op, E>(task, scratch);                                                                            \
    } else {                                                                                                         \
      name##_in<Op, E>(task, scratch);                                                                               \
    }                                                                                                                \
  }                                                                                                                  \
  size_t name##_scratch(const Name##Task& t) { BARLOW_FAST_DISPATCH(t.operand, bytes_of<Name##ScratchOf<Op>>(t)); }
BARLOW_FAST_TASK(Gram, gram)
BARLOW_FAST_TASK(GramGradient, gram_gradient)
BARLOW_FAST_TASK(Correlation, correlation)
BARLOW_FAST_TASK(CorrelationGradient, correlation_gradient)

void gram(const GramTask& t, void* scratch) { BARLOW_FAST_DISPATCH_ELEMENT(t.z.type, t.operand, gram_of, t, scratch); }
void pack_gram(const PackGramTask& t) { BARLOW_FAST_DISPATCH(t.operand, pack_gram_in<Op>(t)); }
void gram_gradient(const GramGradientTask& t, void* scratch) {
  BARLOW_FAST_DISPATCH_ELEMENT(t.views->z.type, t.operand, gram_gradient_of, t, scratch);
}
void correlation(const CorrelationTask& t, void* scratch) {
  BARLOW_FAST_DISPATCH_ELEMENT(t.a.type, t.operand, correlation_of, t, scratch);
}
void pack_matrix(const PackMatrixTask& t) { BARLOW_FAST_DISPATCH(t.operand, pack_matrix_in<Op>(t)); }
void correlation_gradient(const CorrelationGradientTask& t, void* scratch) {
  BARLOW_FAST_DISPATCH_ELEMENT(t.a.type, t.operand, correlation_gradient_of, t, scratch);
}

constexpr Primitives kTable = {
    geometry,
    packed_gram_bytes,
    packed_matrix_bytes,
    moments,
    view_moments_scratch,
    view_moments,
    standardisation,
    standardise,
    gram_scratch,
    gram,
    symmetrise,
    finish_tile,
    unpack_tile,
    inner,
    pack_gram,
    gram_gradient_scratch,
    gram_gradient,
    correlation_scratch,
    correlation,
    correlation_sum,
    pack_matrix,
    correlation_gradient_scratch,
    correlation_gradient,
    photometric_scratch,
    photometric,
    resize_scratch,
    resize,
    tiled_cut,
};

}  // namespace

const Primitives* BARLOW_FAST_TABLE() { return &kTable; }

}  // namespace barlow_fast
