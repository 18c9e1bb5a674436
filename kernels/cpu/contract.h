// The interface between the scheduler (bindings.cpp) and the instruction-set builds (primitives.cpp).
//
// primitives.cpp is compiled once per instruction set and offers one table of functions. Each function does one
// independent piece of work on raw memory, without allocation, threads or torch: bindings.cpp cuts the pieces, provides
// scratch memory and runs them on torch's own thread pool. Only plain types are used here, so that no inline function
// compiled for a newer instruction set can be picked by the linker for an older machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace barlow_fast {

// tf32 is a type of operands alone: float32 values whose products may lose what lies below 2^-11 of them.
enum class Element : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3, tf32 = 4 };

// Bytes of an element in memory.
inline int64_t element_bytes(Element type) {
  constexpr int64_t sizes[] = {8, 4, 2, 2, 4};
  return sizes[static_cast<int>(type)];
}

// An (N, D) matrix in memory; both views of a task have the same element type: rows `stride` elements apart, columns contiguous.
struct View {
  const void* data;
  int64_t stride;
  Element type;
};

struct Output {
  void* data;
  int64_t stride;
  Element type;
};

// (D,) vectors in the accumulation type: double for f64 operands, float for all others.
struct Norm {
  const void* mean;
  const void* rstd;
  const void* shift;
};

// Bytes of a core's own caches: what products are cut for.
struct Caches {
  int64_t first, second;
};

// Moments of rows [row_begin, row_end) and columns [column_begin, column_end) of both views, in double, each (D,):
// mean_a, mean_b, m2_a, m2_b, comoment.
struct MomentsTask {
  View a, b;
  int64_t row_begin, row_end, column_begin, column_end;
  double* out[5];
  Element accumulation;
};

// Moments of rows [row_begin, row_end) and columns [column_begin, column_end) of any number of views, in double:
// means[v * stride + column], comoments[(v * views + u) * stride + column] for u <= v.
struct ViewMomentsTask {
  const View* views;
  int64_t view_count, row_begin, row_end, column_begin, column_end;
  double *means, *comoments;
  int64_t stride;
  Element accumulation;
};

// Columns [column_begin, column_end) of (5, D) moments to (7, D) statistics: mean_a, rstd_a, shift_a, mean_b, rstd_b,
// shift_b, C_ii, where shift is what rounding the mean to the accumulation type lost, times rstd;
// sums[0] = sum (C_ii - 1)^2, sums[1] = sum C_ii^2 of these columns.
struct StandardisationTask {
  const double* moments;
  void* statistics;
  double* sums;
  int64_t d, column_begin, column_end;
  double count, eps;
  Element accumulation;
};

// z_hat of rows [row_begin, row_end), all D columns, rounded to the type of `out`.
struct StandardiseTask {
  View z;
  Norm norm;
  Output out;  // its type decides the accumulation type of `norm`
  int64_t d, row_begin, row_end;
};

// K[i, j] = sum over columns [column_begin, column_end) of z_hat[i, .] z_hat[j, .] for i in [i_begin, i_end),
// j in [j_begin, j_end); where both ranges are the same only j <= i (rounded up to whole register tiles) is computed.
// out: K by the tiles of tiles.py with `side` rows each, a multiple of a panel that divides where ranges begin; or with
// side = N its one tile, the whole matrix row by row.
struct GramTask {
  View z;
  Norm norm;
  int64_t i_begin, i_end, j_begin, j_end, column_begin, column_end;
  void* out;
  int64_t side;
  Element operand;
  Caches caches;
};

// Sums `parts` lower triangles into the full symmetric matrix, for one block of rows.
struct SymmetriseTask {
  const void* const* parts;
  int64_t part_count, n, row_begin, row_end;
  void* out;
  Element accumulation;
};

// <K_a, K_b> of rows [row_begin, row_end) and of the columns that mirror them: their lower triangles are read.
struct InnerTask {
  const void *a, *b;
  int64_t n, row_begin, row_end;
  Element accumulation;
};

// One tile of K with `rows` rows within N: sums `parts` into it, completes it where it lies on the diagonal, and writes
// the zeros beyond N.
struct FinishTileTask {
  const void* const* parts;
  int64_t part_count, side, rows;
  bool diagonal;
  void* out;
  Element accumulation;
};

// A tile of K - centre * identity, of any type, to its place at (row, column) of the whole matrix and to its mirror
// image.
struct UnpackTileTask {
  const void* tile;
  Element type;
  int64_t side, n, row, column;
  double centre;
  void* out;
  Element accumulation;
};

// One matrix packed for the left side of a product: (K - centre * identity), operand type, panels of `tile_rows`.
struct PackGramTask {
  const void* gram;
  int64_t n, panel_begin, panel_end;
  double centre;
  float half_scale;  // a power of two that keeps elements within float16 while they are rounded to it
  void* out;
  Element operand;
};

// The arguments of both operators that make the gradients of two views.
struct GradientTask {
  View a, b;
  Norm norm_a, norm_b;
  const void* diagonal;
  Output grad_a, grad_b;  // data == nullptr: not wanted
  double coefficient, slope, offset, grad_scale;
  Element operand;
  bool stream;  // write the gradients past the caches
  Caches caches;
};

// A view of a gradient task in the Gram form.
struct GramView {
  View z;
  Norm norm;
  bool staged;      // its z_hat enters one of the task's gradients
  bool multiplied;  // in a product with a matrix
};

// A term of a gradient: (slope * values + offset) * z_hat of a view; values (D,) in the accumulation type.
struct Link {
  int64_t view;
  const void* values;
  double slope, offset;
};

// G = product * K z_hat + the links + added; `packed` is K less `centre` times the identity, as pack_gram makes it.
struct GramGradient {
  int64_t view;
  Output out;
  const void* packed;  // null: no matrix
  double product, centre;
  const Link* links;
  int64_t link_count;
  const void* added;  // (D,) in the accumulation type, to every row; null: none
};

// Gradients in the Gram form, for columns [column_begin, column_end).
struct GramGradientTask {
  const GramView* views;
  int64_t view_count;
  const GramGradient* gradients;
  int64_t gradient_count;
  int64_t n, column_begin, column_end;
  double eps, grad_scale;
  bool projected;  // through the norm's backward
  Element operand;
  bool stream;  // write the gradients past the caches
  Caches caches;
};

// out[i, j] = sum over rows [row_begin, row_end) of z_hat_a[., i] z_hat_b[., j], for i and j in their ranges.
struct CorrelationTask {
  View a, b;
  Norm norm_a, norm_b;
  int64_t row_begin, row_end, i_begin, i_end, j_begin, j_end;
  void* out;
  int64_t out_stride;
  Element operand;
  Caches caches;
};

// C = (sum of parts) / n with a zeroed diagonal, for one block of rows; squares of each row to row_squares, of each
// column to this task's own (D,) column_squares.
struct CorrelationSumTask {
  const void* const* parts;
  int64_t part_count, n, d, row_begin, row_end;
  void* out;
  double* row_squares;
  double* column_squares;
  Element accumulation;
};

// The (D, D) matrix packed for the right side of a product; transposed for the gradient of view a.
struct PackMatrixTask {
  const void* matrix;
  int64_t d, panel_begin, panel_end;
  bool transpose;
  void* out;
  Element operand;
};

// Both gradients in the correlation form, for rows [row_begin, row_end) of n.
struct CorrelationGradientTask : GradientTask {
  const double* squares_a;
  const double* squares_b;
  const void* packed_a;  // the transposed matrix, for the gradient of a
  const void* packed_b;
  int64_t n, d, row_begin, row_end;
};

enum class Jitter : int { brightness = 0, contrast = 1, saturation = 2, hue = 3 };

// One image of photometry.py: (height, width, channels) bytes to as many values of `type`.
struct PhotometricTask {
  const uint8_t* crop;
  void* out;
  Element type;
  int64_t height, width, channels;
  const float* mean;   // of each channel
  const float* scale;  // one over the standard deviation of each channel
  bool flip, gray, solarize;
  int operation_count;  // in this order, without those that change nothing
  Jitter operations[4];
  float factors[4];      // of these operations; of the hue the turns, from 1/6 to 7/6
  const float* weights;  // of the blur: the middle one and those to one side of it
  int64_t radius;        // 0: no blur
  float threshold;
  int64_t erase_top, erase_left, erase_bottom, erase_right;
  bool stream;  // write past the caches
};

enum class Filter : int { bilinear = 0, bicubic = 1 };

// A window of `height` x `width` pixels that begins at `image`, resized as resizing.py defines it.
struct ResizeTask {
  const uint8_t* image;
  const uint8_t* image_end;  // behind the last byte of the whole image
  int64_t image_stride;      // bytes from a row to the next
  int64_t height, width, channels;
  uint8_t* out;
  int64_t out_stride, out_height, out_width;
  Filter filter;
  bool permutes_bytes;  // the CPU has AVX-512 VBMI; looked at by sets with VNNI alone
};

// Sizes the scheduler needs to cut work and hand out memory; all in elements unless named bytes.
struct Geometry {
  int64_t panel;      // columns (or rows) of a packed panel
  int64_t tile_rows;  // rows of a register tile
};

// By matrix tiles: columns of a task of gram_gradient, rows of one of correlation_gradient; else zeros.
struct TiledCut {
  int64_t columns, rows;
};

struct Primitives {
  Geometry (*geometry)(Element operand);
  size_t (*packed_gram_bytes)(int64_t n, Element operand);
  size_t (*packed_matrix_bytes)(int64_t d, Element operand);

  // Scratch memory is 64-byte aligned and at least as large as the function beside answers.
  void (*moments)(const MomentsTask&);
  size_t (*view_moments_scratch)(const ViewMomentsTask&);
  void (*view_moments)(const ViewMomentsTask&, void* scratch);
  void (*standardisation)(const StandardisationTask&);
  void (*standardise)(const StandardiseTask&);
  size_t (*gram_scratch)(const GramTask&);
  void (*gram)(const GramTask&, void* scratch);
  void (*symmetrise)(const SymmetriseTask&);
  void (*finish_tile)(const FinishTileTask&);
  void (*unpack_tile)(const UnpackTileTask&);
  double (*inner)(const InnerTask&);
  void (*pack_gram)(const PackGramTask&);
  size_t (*gram_gradient_scratch)(const GramGradientTask&);
  void (*gram_gradient)(const GramGradientTask&, void* scratch);
  size_t (*correlation_scratch)(const CorrelationTask&);
  void (*correlation)(const CorrelationTask&, void* scratch);
  void (*correlation_sum)(const CorrelationSumTask&);
  void (*pack_matrix)(const PackMatrixTask&);
  size_t (*correlation_gradient_scratch)(const CorrelationGradientTask&);
  void (*correlation_gradient)(const CorrelationGradientTask&, void* scratch);
  size_t (*photometric_scratch)(const PhotometricTask&);
  void (*photometric)(const PhotometricTask&, void* scratch);
  size_t (*resize_scratch)(const ResizeTask&);
  void (*resize)(const ResizeTask&, void* scratch);
  TiledCut (*tiled_cut)(int64_t n, int64_t d, int64_t views, Element operand);
};

const Primitives* primitives_baseline();
const Primitives* primitives_amx_bf16_emulated();
#if defined(BARLOW_FAST_X86)
const Primitives* primitives_avx2();
const Primitives* primitives_avx512();
const Primitives* primitives_avx512_bf16();
#endif
#if defined(BARLOW_FAST_AMX_BUILT)
const Primitives* primitives_amx_bf16();
#endif
#if defined(BARLOW_FAST_NEON_BF16_BUILT)
const Primitives* primitives_neon_bf16();
#endif

}  // namespace barlow_fast
