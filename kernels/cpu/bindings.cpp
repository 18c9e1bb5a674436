// The native CPU kernels as torch operators: checks, cutting of the work, scheduling on torch's own thread pool.
//
// Built against torch's stable ABI only: one binary for torch >= 2.10 and every Python. Results do not depend on the
// order in which threads take tasks: each task writes memory of its own, and sums over tasks run in task order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "contract.h"

namespace barlow_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- instruction set ----------------------------------------------------------------------------------------------

// Best last; the order is part of the Python side (kernels/cpu/__init__.py).
std::vector<const Primitives*> supported_sets() {
  std::vector<const Primitives*> sets{primitives_baseline()};
#if defined(BARLOW_FAST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(primitives_avx2());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      sets.push_back(primitives_avx512());
      if (__builtin_cpu_supports("avx512bf16")) sets.push_back(primitives_avx512_bf16());
    }
  }
#endif
  return sets;
}

std::atomic<const Primitives*> active_set{nullptr};

const Primitives& primitives() {
  const Primitives* set = active_set.load(std::memory_order_relaxed);
  if (set == nullptr) {
    set = supported_sets().back();
    active_set.store(set, std::memory_order_relaxed);
  }
  return *set;
}

// Uses the set of that index from now on (negative: leaves it) and returns the active index, or -1 where it is not
// supported by this CPU.
int64_t instruction_set(int64_t index) {
  const std::vector<const Primitives*> sets = supported_sets();
  if (index >= static_cast<int64_t>(sets.size())) return -1;
  if (index >= 0) active_set.store(sets[static_cast<size_t>(index)]);
  const Primitives* active = &primitives();
  return std::find(sets.begin(), sets.end(), active) - sets.begin();
}

int64_t instruction_set_count() { return static_cast<int64_t>(supported_sets().size()); }

// ---- memory and threads -------------------------------------------------------------------------------------------

// Memory that a thread keeps between calls: fresh pages would cost more than what is computed in them.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(4096, size_);
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }
  void trim(size_t limit) {
    if (size_ <= limit) return;
    std::free(memory_);
    memory_ = nullptr;
    size_ = 0;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

thread_local Scratch task_scratch;  // of the thread that runs a task
thread_local Scratch call_scratch;  // of the thread that called the operator
constexpr size_t kKeptBytes = size_t{64} << 20;

// Gives back what a call needed beyond the limit; a task needs a few panels only.
struct TrimOnExit {
  ~TrimOnExit() { call_scratch.trim(kKeptBytes); }
};

int64_t threads() { return std::max<int64_t>(1, torch::stable::get_num_threads()); }

// Runs function(0..count-1), each once, on whichever thread is free next.
template <class Function>
void run_tasks(int64_t count, const Function& function) {
  const int64_t workers = std::min(threads(), count);
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) function(i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) function(i);
    }
  });
}

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
int64_t round_up(int64_t x, int64_t multiple) { return ceil_div(x, multiple) * multiple; }

// ---- tensors ------------------------------------------------------------------------------------------------------

Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Element::f64;
    case ScalarType::Float: return Element::f32;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Half: return Element::f16;
    default: STD_TORCH_CHECK(false, "barlow_fast: expected a floating point tensor");
  }
  return Element::f32;
}

View view_of(const Tensor& z, const char* name) {
  STD_TORCH_CHECK(z.is_cpu() && z.dim() == 2, "barlow_fast: ", name, " must be a CPU tensor of two dimensions");
  STD_TORCH_CHECK(z.size(1) <= 1 || z.stride(1) == 1, "barlow_fast: the columns of ", name, " must be contiguous");
  return View{z.const_data_ptr(), z.stride(0), element_of(z)};
}

void check_pair(const Tensor& z_a, const Tensor& z_b) {
  STD_TORCH_CHECK(z_a.size(0) == z_b.size(0) && z_a.size(1) == z_b.size(1), "barlow_fast: z_a and z_b differ in shape");
  STD_TORCH_CHECK(z_a.scalar_type() == z_b.scalar_type(), "barlow_fast: z_a and z_b differ in dtype");
}

// An output or intermediate: contiguous, with exactly these sizes.
void check_shape(const Tensor& x, const char* name, int64_t rows, int64_t columns) {
  const bool fits = x.dim() == 2 && x.size(0) == rows && x.size(1) == columns;
  STD_TORCH_CHECK(x.is_cpu() && fits && x.is_contiguous(), "barlow_fast: ", name, " must be a contiguous CPU tensor of ",
                  rows, " x ", columns);
}

Element operand_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 3, "barlow_fast: unknown operand type ", code);
  return static_cast<Element>(code);
}

Element accumulation_of(Element operand) { return operand == Element::f64 ? Element::f64 : Element::f32; }
size_t bytes_of(Element accumulation) { return accumulation == Element::f64 ? 8 : 4; }

// The mean, rstd and shift in the first rows of `statistics`, which has `rows` rows.
Norm norm_of(const Tensor& statistics, int64_t rows, int64_t d, Element accumulation) {
  check_shape(statistics, "statistics", rows, d);
  STD_TORCH_CHECK(element_of(statistics) == accumulation, "barlow_fast: statistics must have the accumulation type");
  const char* base = static_cast<const char*>(statistics.const_data_ptr());
  const size_t row = static_cast<size_t>(d) * bytes_of(accumulation);
  return Norm{base, base + row, base + 2 * row};
}

// Both views' rows and the diagonal of C.
struct Statistics {
  Norm norm_a, norm_b;
  const void* diagonal;

  Statistics(const Tensor& statistics, int64_t d, Element accumulation) {
    norm_a = norm_of(statistics, 7, d, accumulation);
    const size_t row = static_cast<size_t>(d) * bytes_of(accumulation);
    const char* base = static_cast<const char*>(norm_a.mean);
    norm_b = Norm{base + 3 * row, base + 4 * row, base + 5 * row};
    diagonal = base + 6 * row;
  }
};

Output output_of(const Tensor& out, const char* name, int64_t n, int64_t d) {
  if (out.numel() == 0 && n * d != 0) return Output{nullptr, 0, Element::f32};
  check_shape(out, name, n, d);
  return Output{out.mutable_data_ptr(), d, element_of(out)};
}

// Outputs larger than a core's own cache are written past it: they would not be there any more when somebody reads them,
// and a plain store first reads the line that it overwrites.
bool too_large_to_keep(const Output& out, int64_t count) {
  constexpr int64_t bytes[] = {8, 4, 2, 2};
  return count * bytes[static_cast<int>(out.type)] >= (int64_t{1} << 20);
}

double scalar_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.numel() == 1, "barlow_fast: grad_scale must hold one element on the CPU");
  switch (x.scalar_type()) {
    case ScalarType::Double: return *static_cast<const double*>(x.const_data_ptr());
    case ScalarType::Float: return *static_cast<const float*>(x.const_data_ptr());
    default: STD_TORCH_CHECK(false, "barlow_fast: grad_scale must be float32 or float64");
  }
  return 0;
}

// ---- moments and standardisation ----------------------------------------------------------------------------------

// (5, D) moments of the pair in the calling thread's scratch memory: until its next use.
double* moments_in_scratch(const Tensor& z_a, const Tensor& z_b, int64_t operand_code) {
  const Element accumulation = accumulation_of(operand_of(operand_code));
  check_pair(z_a, z_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  // The cuts depend on the shape alone where they change the sums.
  const int64_t rows = n >= 4096 && d <= 4096 ? 2048 : std::max<int64_t>(n, 1);
  const int64_t row_parts = ceil_div(n, rows);
  const int64_t columns = std::min<int64_t>(512, std::max<int64_t>(64, round_up(ceil_div(d, 4 * threads()), 64)));
  const int64_t column_parts = ceil_div(d, columns);
  double* parts = static_cast<double*>(call_scratch.get(static_cast<size_t>(row_parts * 5 * d) * sizeof(double)));
  const View a = view_of(z_a, "z_a"), b = view_of(z_b, "z_b");
  run_tasks(row_parts * column_parts, [&](int64_t i) {
    const int64_t part = i / column_parts, column = i % column_parts * columns;
    const MomentsTask task{a, b, part * rows, std::min(n, (part + 1) * rows), column, std::min(d, column + columns),
                           parts + part * 5 * d, d, accumulation};
    primitives().moments(task);
  });
  double* total = parts;
  for (int64_t part = 1; part < row_parts; ++part) {
    const double* next = parts + part * 5 * d;
    const double before = static_cast<double>(part * rows);
    const double count = static_cast<double>(std::min(n, (part + 1) * rows) - part * rows);
    const double share = count / (before + count), both = before * share;
    for (int64_t c = 0; c < d; ++c) {
      const double delta_a = next[c] - total[c], delta_b = next[d + c] - total[d + c];
      total[c] += delta_a * share;
      total[d + c] += delta_b * share;
      total[2 * d + c] += next[2 * d + c] + delta_a * delta_a * both;
      total[3 * d + c] += next[3 * d + c] + delta_b * delta_b * both;
      total[4 * d + c] += next[4 * d + c] + delta_a * delta_b * both;
    }
  }
  return total;
}

void column_moments(const Tensor& z_a, const Tensor& z_b, int64_t operand_code, Tensor out) {
  const int64_t d = z_a.size(1);
  check_shape(out, "moments", 5, d);
  STD_TORCH_CHECK(element_of(out) == Element::f64, "barlow_fast: moments must be float64");
  TrimOnExit trim;
  const double* moments = moments_in_scratch(z_a, z_b, operand_code);
  std::memcpy(out.mutable_data_ptr(), moments, static_cast<size_t>(5 * d) * sizeof(double));
}

void standardise_moments(const double* moments, int64_t d, int64_t count, double eps, Tensor& statistics, Tensor& sums) {
  const int64_t columns = 2048, parts = ceil_div(d, columns);
  check_shape(statistics, "statistics", 7, d);
  STD_TORCH_CHECK(sums.is_cpu() && sums.numel() == 2 && sums.is_contiguous() && element_of(sums) == Element::f64,
                  "barlow_fast: sums must be two float64 elements on the CPU");
  std::vector<double> partial(static_cast<size_t>(2 * parts));
  run_tasks(parts, [&](int64_t i) {
    primitives().standardisation({moments, statistics.mutable_data_ptr(), &partial[static_cast<size_t>(2 * i)], d,
                                  i * columns, std::min(d, (i + 1) * columns), static_cast<double>(count), eps,
                                  element_of(statistics)});
  });
  double* to = static_cast<double*>(sums.mutable_data_ptr());
  to[0] = to[1] = 0;
  for (size_t i = 0; i < partial.size(); ++i) to[i % 2] += partial[i];
}

void standardisation(const Tensor& moments, int64_t count, double eps, Tensor statistics, Tensor sums) {
  const int64_t d = moments.size(1);
  check_shape(moments, "moments", 5, d);
  STD_TORCH_CHECK(element_of(moments) == Element::f64, "barlow_fast: moments must be float64");
  standardise_moments(static_cast<const double*>(moments.const_data_ptr()), d, count, eps, statistics, sums);
}

// Both of the above for rows that are all here, without a tensor between them.
void statistics(const Tensor& z_a, const Tensor& z_b, int64_t operand_code, double eps, Tensor statistics,
                Tensor sums) {
  TrimOnExit trim;
  const double* moments = moments_in_scratch(z_a, z_b, operand_code);
  standardise_moments(moments, z_a.size(1), z_a.size(0), eps, statistics, sums);
}

void standardise(const Tensor& z, const Tensor& mean, const Tensor& rstd, const Tensor& shift, Tensor out) {
  const int64_t n = z.size(0), d = z.size(1), rows = std::max<int64_t>(1, 65536 / std::max<int64_t>(d, 1));
  const Output to = output_of(out, "out", n, d);
  const Norm norm{mean.const_data_ptr(), rstd.const_data_ptr(), shift.const_data_ptr()};
  const StandardiseTask base{view_of(z, "z"), norm, to, d, 0, n};
  run_tasks(ceil_div(n, rows), [&](int64_t i) {
    StandardiseTask task = base;
    task.row_begin = i * rows;
    task.row_end = std::min(n, task.row_begin + rows);
    primitives().standardise(task);
  });
}

// The gradients that one pass over the inputs makes: both, or, where two packed matrices would be large beside the
// inputs, one after the other with one packed matrix at a time.
struct Turn {
  int64_t first, count;  // view 0 or 1; how many views
};

std::vector<Turn> turns(const Output& out_a, const Output& out_b, bool one_at_a_time) {
  if (out_a.data == nullptr && out_b.data == nullptr) return {};
  if (out_a.data == nullptr) return {{1, 1}};
  if (out_b.data == nullptr) return {{0, 1}};
  if (one_at_a_time) return {{0, 1}, {1, 1}};
  return {{0, 2}};
}

// ---- Gram form ----------------------------------------------------------------------------------------------------

// How the triangle of each view's K is cut: square blocks of rows, and parts of the summed columns with a partial K
// each.
struct GramCut {
  int64_t block, blocks, pairs, parts, columns;

  GramCut(int64_t views, int64_t n, int64_t d) {
    // Partial matrices stay within the size of the inputs.
    const int64_t wanted = threads() == 1 ? 1 : 4 * threads(), most_parts = std::max<int64_t>(1, std::min(d / n, d / 256));
    for (block = 512; block > 128; block /= 2) {
      if (views * pairs_of(n) * most_parts >= wanted) break;
    }
    blocks = ceil_div(n, block);
    pairs = pairs_of(n);
    parts = std::clamp<int64_t>(ceil_div(wanted, views * pairs), 1, most_parts);
    columns = round_up(ceil_div(d, parts), 64);
    parts = ceil_div(d, columns);
  }
  int64_t pairs_of(int64_t n) const { return ceil_div(n, block) * (ceil_div(n, block) + 1) / 2; }
};

// K of one view: the memory of its parts, the first of which is the output.
struct PartialGram {
  View z;
  Norm norm;
  std::vector<void*> parts;
};

// The lower triangles of every view's K, in parts still to be added up: `elements` values each, in tiles of `side`
// (contract.h, GramTask). Parts beyond the first live in call_scratch.
void multiply_grams(std::vector<PartialGram>& grams, int64_t n, int64_t d, int64_t side, int64_t elements,
                    Element operand) {
  const int64_t views = static_cast<int64_t>(grams.size());
  const GramCut cut(views, n, d);
  const size_t bytes = static_cast<size_t>(elements) * bytes_of(accumulation_of(operand));
  char* extra = static_cast<char*>(call_scratch.get(static_cast<size_t>(views * (cut.parts - 1)) * bytes + 64));
  for (PartialGram& gram : grams) {
    for (int64_t p = 1; p < cut.parts; ++p, extra += bytes) gram.parts.push_back(extra);
  }
  // Pairs off the diagonal are twice the work: they go first.
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t i = 0; i < cut.blocks; ++i) {
    for (int64_t j = 0; j < i; ++j) pairs.emplace_back(i, j);
  }
  for (int64_t i = 0; i < cut.blocks; ++i) pairs.emplace_back(i, i);
  run_tasks(cut.pairs * views * cut.parts, [&](int64_t index) {
    const auto [i, j] = pairs[static_cast<size_t>(index / (views * cut.parts))];
    const PartialGram& gram = grams[static_cast<size_t>(index / cut.parts % views)];
    const int64_t part = index % cut.parts;
    const GramTask task{gram.z,
                        gram.norm,
                        i * cut.block,
                        std::min(n, (i + 1) * cut.block),
                        j * cut.block,
                        std::min(n, (j + 1) * cut.block),
                        part * cut.columns,
                        std::min(d, (part + 1) * cut.columns),
                        gram.parts[static_cast<size_t>(part)],
                        side,
                        operand};
    primitives().gram(task, task_scratch.get(primitives().gram_scratch(task)));
  });
}

void gram_pair(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, int64_t operand_code, Tensor gram_a,
               Tensor gram_b, Tensor inner) {
  check_pair(z_a, z_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Element operand = operand_of(operand_code), accumulation = accumulation_of(operand);
  const Statistics s(statistics, d, accumulation);
  check_shape(gram_a, "gram_a", n, n);
  check_shape(gram_b, "gram_b", n, n);
  std::vector<PartialGram> grams{{view_of(z_a, "z_a"), s.norm_a, {gram_a.mutable_data_ptr()}},
                                 {view_of(z_b, "z_b"), s.norm_b, {gram_b.mutable_data_ptr()}}};
  TrimOnExit trim;
  multiply_grams(grams, n, d, n, n * n, operand);
  const int64_t rows = 64, row_blocks = ceil_div(n, rows);
  run_tasks(2 * row_blocks, [&](int64_t index) {
    const int64_t view = index % 2, row = (row_blocks - 1 - index / 2) * rows;  // the long rows first
    const std::vector<void*>& parts = grams[static_cast<size_t>(view)].parts;
    primitives().symmetrise({parts.data(), static_cast<int64_t>(parts.size()), n, row, std::min(n, row + rows), parts[0],
                             accumulation});
  });
  std::vector<double> sums(static_cast<size_t>(row_blocks));
  run_tasks(row_blocks, [&](int64_t i) {
    const int64_t row = i * rows, count = (std::min(n, row + rows) - row) * n;
    const size_t at = static_cast<size_t>(row * n) * bytes_of(accumulation);
    sums[static_cast<size_t>(i)] = primitives().inner(static_cast<const char*>(grams[0].parts[0]) + at,
                                                      static_cast<const char*>(grams[1].parts[0]) + at, count,
                                                      accumulation);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  *static_cast<double*>(inner.mutable_data_ptr()) = total;
}

// Rows of a tile of one view's K, or of both (tiles.py).
int64_t side_of(const Tensor& tiles, int64_t views, int64_t n, Element operand) {
  const int64_t dims = tiles.dim(), side = tiles.size(dims - 1), blocks = ceil_div(n, std::max<int64_t>(side, 1));
  const bool fits = dims == (views == 1 ? 3 : 4) && (views == 1 || tiles.size(0) == views) &&
                    tiles.size(dims - 3) == blocks * (blocks + 1) / 2 && tiles.size(dims - 2) == side;
  STD_TORCH_CHECK(tiles.is_cpu() && fits && tiles.is_contiguous(),
                  "barlow_fast: tiles must be a contiguous CPU tensor as tiles.py lays it out");
  STD_TORCH_CHECK(side % primitives().geometry(operand).panel == 0 && 128 % side == 0,
                  "barlow_fast: tiles of ", side, " rows do not divide the blocks of a product");
  return side;
}

// function(number over all views, view, first row, first column) for every tile.
template <class Function>
void run_tiles(int64_t views, int64_t n, int64_t side, const Function& function) {
  const int64_t blocks = ceil_div(n, side), count = blocks * (blocks + 1) / 2;
  std::vector<std::pair<int64_t, int64_t>> places;
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t j = 0; j <= i; ++j) places.emplace_back(i * side, j * side);
  }
  run_tasks(views * count, [&](int64_t index) {
    const auto [row, column] = places[static_cast<size_t>(index % count)];
    function(index, index / count, row, column);
  });
}

void gram_tiles(const Tensor& z, const Tensor& statistics, int64_t operand_code, Tensor tiles) {
  const int64_t n = z.size(0), d = z.size(1);
  const Element operand = operand_of(operand_code), accumulation = accumulation_of(operand);
  const int64_t side = side_of(tiles, 1, n, operand);
  STD_TORCH_CHECK(element_of(tiles) == accumulation, "barlow_fast: tiles must have the accumulation type");
  std::vector<PartialGram> grams{
      {view_of(z, "z"), norm_of(statistics, 3, d, accumulation), {tiles.mutable_data_ptr()}}};
  TrimOnExit trim;
  multiply_grams(grams, n, d, side, tiles.numel(), operand);
  const std::vector<void*>& parts = grams[0].parts;
  const size_t bytes = static_cast<size_t>(side * side) * bytes_of(accumulation);
  run_tiles(1, n, side, [&](int64_t index, int64_t, int64_t row, int64_t column) {
    std::vector<const void*> tile;
    for (const void* part : parts) tile.push_back(static_cast<const char*>(part) + static_cast<size_t>(index) * bytes);
    char* out = static_cast<char*>(parts[0]) + static_cast<size_t>(index) * bytes;
    primitives().finish_tile({tile.data(), static_cast<int64_t>(tile.size()), side, std::min(side, n - row),
                              row == column, out, accumulation});
  });
}

void gram_from_tiles(const Tensor& packed, const Tensor& centres, int64_t operand_code, Tensor grams) {
  const Element operand = operand_of(operand_code), accumulation = accumulation_of(operand);
  STD_TORCH_CHECK(grams.is_cpu() && grams.dim() == 3 && grams.size(0) == 2 && grams.size(1) == grams.size(2) &&
                      grams.is_contiguous() && element_of(grams) == accumulation,
                  "barlow_fast: grams must be a contiguous CPU tensor of 2 x N x N in the accumulation type");
  STD_TORCH_CHECK(centres.is_cpu() && centres.numel() == 2 && centres.is_contiguous() &&
                      element_of(centres) == accumulation,
                  "barlow_fast: centres must be two contiguous values in the accumulation type");
  const int64_t n = grams.size(1), side = side_of(packed, 2, n, operand);
  const Element type = element_of(packed);
  constexpr size_t sizes[] = {8, 4, 2, 2};
  const size_t tile_bytes = static_cast<size_t>(side * side) * sizes[static_cast<int>(type)];
  const size_t gram_bytes = static_cast<size_t>(n * n) * bytes_of(accumulation);
  const void* from = centres.const_data_ptr();
  const double centre[2] = {accumulation == Element::f64 ? static_cast<const double*>(from)[0]
                                                         : static_cast<const float*>(from)[0],
                            accumulation == Element::f64 ? static_cast<const double*>(from)[1]
                                                         : static_cast<const float*>(from)[1]};
  const char* tiles = static_cast<const char*>(packed.const_data_ptr());
  char* out = static_cast<char*>(grams.mutable_data_ptr());
  run_tiles(2, n, side, [&](int64_t index, int64_t view, int64_t row, int64_t column) {
    primitives().unpack_tile({tiles + static_cast<size_t>(index) * tile_bytes, type, side, n, row, column, centre[view],
                              out + static_cast<size_t>(view) * gram_bytes, accumulation});
  });
}

template <class A>
double mean_of_diagonal(const void* matrix, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<const A*>(matrix)[i * n + i];
  return sum / static_cast<double>(n);
}

double centre_of(const Tensor& gram, Element accumulation) {
  const double centre = accumulation == Element::f64 ? mean_of_diagonal<double>(gram.const_data_ptr(), gram.size(0))
                                                     : mean_of_diagonal<float>(gram.const_data_ptr(), gram.size(0));
  // What is subtracted is rounded to the accumulation type: the correction must speak of the same number.
  return accumulation == Element::f64 ? centre : static_cast<double>(static_cast<float>(centre));
}

void gram_gradients(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, const Tensor& gram_a,
                    const Tensor& gram_b, const Tensor& grad_scale, double coefficient, double slope, double offset,
                    double eps, int64_t operand_code, int64_t dimensions, bool projected, Tensor grad_a,
                    Tensor grad_b) {
  check_pair(z_a, z_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Element operand = operand_of(operand_code), accumulation = accumulation_of(operand);
  const Statistics s(statistics, d, accumulation);
  check_shape(gram_a, "gram_a", n, n);
  check_shape(gram_b, "gram_b", n, n);
  const Geometry geometry = primitives().geometry(operand);
  const size_t bytes = primitives().packed_gram_bytes(n, operand);
  const Output out_a = output_of(grad_a, "grad_a", n, d), out_b = output_of(grad_b, "grad_b", n, d);
  const double centre[2] = {centre_of(gram_a, accumulation), centre_of(gram_b, accumulation)};
  // No element of K exceeds N times the columns that it was summed over (precision.py, gram_scale).
  float half_scale = 1;
  for (double largest = static_cast<double>(n) * dimensions; largest > 32768; largest /= 2) half_scale /= 2;
  const int64_t panels = ceil_div(n, geometry.tile_rows), chunk = 4, chunks = ceil_div(panels, chunk);
  int64_t columns = 2 * geometry.panel;
  if (ceil_div(d, columns) < 4 * threads()) columns = geometry.panel;
  const GramGradientTask base{view_of(z_a, "z_a"), view_of(z_b, "z_b"), s.norm_a, s.norm_b, s.diagonal, nullptr,
                              nullptr, {}, {}, n, 0, 0, coefficient, slope, offset, eps, centre[0], centre[1],
                              scalar_of(grad_scale), operand, too_large_to_keep(out_a, n * d), projected};
  TrimOnExit trim;
  for (const Turn& turn : turns(out_a, out_b, 2 * n > d)) {
    char* packed = static_cast<char*>(call_scratch.get(static_cast<size_t>(turn.count) * bytes));
    // K_b serves the gradient of a, and K_a that of b.
    run_tasks(turn.count * chunks, [&](int64_t index) {
      const int64_t which = turn.first + index / chunks, first = index % chunks * chunk;
      const void* gram = (which ? gram_a : gram_b).const_data_ptr();
      char* to = packed + static_cast<size_t>(index / chunks) * bytes;
      const int64_t last = std::min(panels, first + chunk);
      primitives().pack_gram({gram, n, first, last, centre[1 - which], half_scale, to, operand});
    });
    run_tasks(ceil_div(d, columns), [&](int64_t i) {
      GramGradientTask task = base;
      task.column_begin = i * columns;
      task.column_end = std::min(d, task.column_begin + columns);
      if (turn.first == 0) task.grad_a = out_a, task.packed_b = packed;
      if (turn.first + turn.count == 2) task.grad_b = out_b, task.packed_a = packed + (turn.count - 1) * bytes;
      primitives().gram_gradient(task, task_scratch.get(primitives().gram_gradient_scratch(task)));
    });
  }
}

// ---- correlation form ---------------------------------------------------------------------------------------------

void correlation(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, int64_t operand_code, Tensor matrix,
                 Tensor squares) {
  check_pair(z_a, z_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Element operand = operand_of(operand_code), accumulation = accumulation_of(operand);
  const Statistics s(statistics, d, accumulation);
  check_shape(matrix, "matrix", d, d);
  check_shape(squares, "squares", 2, d);
  // Partial matrices stay within the size of one input.
  const int64_t wanted = threads() == 1 ? 1 : 4 * threads(), most_parts = std::max<int64_t>(1, std::min(n / d, n / 256));
  int64_t block = 512;
  for (; block > 128; block /= 2) {
    if (ceil_div(d, block) * ceil_div(d, block) * most_parts >= wanted) break;
  }
  const int64_t blocks = ceil_div(d, block);
  int64_t part_count = std::clamp<int64_t>(ceil_div(wanted, blocks * blocks), 1, most_parts);
  const int64_t rows = round_up(ceil_div(n, part_count), 2);
  part_count = ceil_div(n, rows);
  const size_t bytes = static_cast<size_t>(d * d) * bytes_of(accumulation);
  const int64_t sum_rows = 64, sums = ceil_div(d, sum_rows);
  TrimOnExit trim;
  char* extra = static_cast<char*>(call_scratch.get(static_cast<size_t>(part_count - 1) * bytes +
                                                    static_cast<size_t>(sums * d) * sizeof(double) + 64));
  double* column_sums = reinterpret_cast<double*>(extra);
  extra += static_cast<size_t>(sums * d) * sizeof(double);
  std::vector<void*> parts{matrix.mutable_data_ptr()};
  for (int64_t p = 1; p < part_count; ++p) parts.push_back(extra + static_cast<size_t>(p - 1) * bytes);
  const View a = view_of(z_a, "z_a"), b = view_of(z_b, "z_b");
  run_tasks(part_count * blocks * blocks, [&](int64_t index) {
    const int64_t part = index / (blocks * blocks), i = index / blocks % blocks * block, j = index % blocks * block;
    const CorrelationTask task{a, b, s.norm_a, s.norm_b, part * rows, std::min(n, (part + 1) * rows), i,
                               std::min(d, i + block), j, std::min(d, j + block), parts[static_cast<size_t>(part)], d,
                               operand};
    primitives().correlation(task, task_scratch.get(primitives().correlation_scratch(task)));
  });
  double* row_squares = static_cast<double*>(squares.mutable_data_ptr());
  run_tasks(sums, [&](int64_t i) {
    primitives().correlation_sum({parts.data(), part_count, n, d, i * sum_rows, std::min(d, (i + 1) * sum_rows),
                                  matrix.mutable_data_ptr(), row_squares, column_sums + i * d, accumulation});
  });
  double* column_squares = row_squares + d;
  std::fill(column_squares, column_squares + d, 0.0);
  for (int64_t i = 0; i < sums; ++i) {
    for (int64_t c = 0; c < d; ++c) column_squares[c] += column_sums[i * d + c];
  }
}

void correlation_gradients(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, const Tensor& matrix,
                           const Tensor& squares, const Tensor& grad_scale, double coefficient, double slope,
                           double offset, int64_t operand_code, Tensor grad_a, Tensor grad_b) {
  check_pair(z_a, z_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Element operand = operand_of(operand_code), accumulation = accumulation_of(operand);
  const Statistics s(statistics, d, accumulation);
  check_shape(matrix, "matrix", d, d);
  check_shape(squares, "squares", 2, d);
  const Geometry geometry = primitives().geometry(operand);
  const size_t bytes = primitives().packed_matrix_bytes(d, operand);
  const Output out_a = output_of(grad_a, "grad_a", n, d), out_b = output_of(grad_b, "grad_b", n, d);
  const int64_t panels = ceil_div(d, geometry.panel);
  const double* row_squares = static_cast<const double*>(squares.const_data_ptr());
  const CorrelationGradientTask base{view_of(z_a, "z_a"), view_of(z_b, "z_b"), s.norm_a, s.norm_b, s.diagonal,
                                     row_squares, row_squares + d, nullptr, nullptr, {}, {}, d, 0, 0,
                                     coefficient, slope, offset, scalar_of(grad_scale), operand,
                                     too_large_to_keep(out_a, n * d)};
  // Rows whose standardised copies of both views fit the second-level cache.
  const int64_t rows = std::clamp<int64_t>((512 << 10) / (8 * d) / 32 * 32, 32, 128);
  TrimOnExit trim;
  for (const Turn& turn : turns(out_a, out_b, 2 * d > n)) {
    char* packed = static_cast<char*>(call_scratch.get(static_cast<size_t>(turn.count) * bytes));
    run_tasks(turn.count * panels, [&](int64_t index) {
      const int64_t which = turn.first + index / panels, panel = index % panels;
      char* to = packed + static_cast<size_t>(index / panels) * bytes;
      primitives().pack_matrix({matrix.const_data_ptr(), d, panel, panel + 1, which == 0, to, operand});
    });
    run_tasks(ceil_div(n, rows), [&](int64_t i) {
      CorrelationGradientTask task = base;
      task.row_begin = i * rows;
      task.row_end = std::min(n, task.row_begin + rows);
      if (turn.first == 0) task.grad_a = out_a, task.packed_a = packed;
      if (turn.first + turn.count == 2) task.grad_b = out_b, task.packed_b = packed + (turn.count - 1) * bytes;
      primitives().correlation_gradient(task, task_scratch.get(primitives().correlation_gradient_scratch(task)));
    });
  }
}

// ---- views ----------------------------------------------------------------------------------------------------------

// Columns of `parameters`: the enumeration of photometry.py.
enum Parameter {
  kFlip, kOrder, kBrightness, kContrast, kSaturation, kHue, kGray, kBlurSigma, kSolarize, kEraseTop, kEraseLeft,
  kEraseBottom, kEraseRight, kParameters
};
constexpr float kLargestSigma = 8;
constexpr int64_t kLargestRadius = 32;

int64_t blur_radius(float sigma) { return static_cast<int64_t>(std::ceil(4 * static_cast<double>(sigma))); }

// The permutation of that number among those of four operations in lexicographic order.
std::array<int, 4> order_of(int number) {
  std::array<int, 4> order{0, 1, 2, 3};
  while (number-- > 0) std::next_permutation(order.begin(), order.end());
  return order;
}

void check_parameters(const float* row, int64_t index) {
  const auto refuse = [&](const char* what, float value) {
    STD_TORCH_CHECK(false, "barlow_fast: row ", index, " of parameters: ", what, ", got ", value);
  };
  for (int k : {kFlip, kGray, kSolarize, kEraseTop, kEraseLeft, kEraseBottom, kEraseRight}) {
    if (std::isnan(row[k])) refuse("no column may be NaN", row[k]);
  }
  if (!(row[kOrder] >= -1 && row[kOrder] < 24) || row[kOrder] != std::floor(row[kOrder])) {
    refuse("the order must be a whole number from -1 to 23", row[kOrder]);
  }
  if (!(row[kBlurSigma] >= 0 && row[kBlurSigma] <= kLargestSigma)) {
    refuse("the blur's sigma must be 0 to 8", row[kBlurSigma]);
  }
  if (row[kOrder] < 0) return;
  for (int k : {kBrightness, kContrast, kSaturation}) {
    if (!std::isfinite(row[k])) refuse("factors of brightness, contrast and saturation must be finite", row[k]);
  }
  if (!(std::fabs(row[kHue]) <= 0.5f)) refuse("hue must be -0.5 to 0.5 turns", row[kHue]);
}

// The first whole pixel at or behind a border.
int64_t pixel_of(float border, int64_t size) {
  return static_cast<int64_t>(std::ceil(std::clamp(border, 0.0f, static_cast<float>(size))));
}

// The task of an image that has these parameters; what depends on the weights' address is left to the caller.
PhotometricTask photometric_task(const float* row, int64_t height, int64_t width, int64_t channels) {
  PhotometricTask task{};
  task.height = height;
  task.width = width;
  task.channels = channels;
  task.flip = row[kFlip] > 0.5f;
  task.gray = row[kGray] > 0.5f;
  if (row[kOrder] >= 0) {
    for (int operation : order_of(static_cast<int>(row[kOrder]))) {
      const Jitter jitter = static_cast<Jitter>(operation);
      const bool colour = jitter == Jitter::saturation || jitter == Jitter::hue;
      float factor = row[kBrightness + operation];
      if ((colour && channels == 1) || factor == (jitter == Jitter::hue ? 0.0f : 1.0f)) continue;
      if (jitter == Jitter::hue && factor < 1.0f / 6) factor += 1;
      task.operations[task.operation_count] = jitter;
      task.factors[task.operation_count++] = factor;
    }
  }
  task.radius = blur_radius(row[kBlurSigma]);
  task.threshold = row[kSolarize] / 255;
  task.solarize = task.threshold < 1.001f;  // rounding in the blur may leave slightly more than white
  task.erase_top = pixel_of(row[kEraseTop], height);
  task.erase_bottom = pixel_of(row[kEraseBottom], height);
  task.erase_left = pixel_of(row[kEraseLeft], width);
  task.erase_right = pixel_of(row[kEraseRight], width);
  return task;
}

// The Gaussian's weights from its middle to one end; both sides together sum to 1.
void blur_weights(float sigma, int64_t radius, float* weights) {
  double whole[kLargestRadius + 1], sum = 0;
  for (int64_t k = 0; k <= radius; ++k) {
    const double at = static_cast<double>(k) / static_cast<double>(sigma);
    whole[k] = std::exp(-0.5 * at * at);
    sum += k == 0 ? whole[k] : 2 * whole[k];
  }
  for (int64_t k = 0; k <= radius; ++k) weights[k] = static_cast<float>(whole[k] / sum);
}

void photometric(const Tensor& crops, const Tensor& parameters, const Tensor& mean, const Tensor& std, Tensor out) {
  STD_TORCH_CHECK(crops.is_cpu() && crops.dim() == 4 && crops.scalar_type() == ScalarType::Byte &&
                      crops.is_contiguous() && (crops.size(3) == 1 || crops.size(3) == 3),
                  "barlow_fast: crops must be a contiguous uint8 CPU tensor of B x H x W x 1 or 3");
  const int64_t count = crops.size(0), height = crops.size(1), width = crops.size(2), channels = crops.size(3);
  check_shape(parameters, "parameters", count, kParameters);
  STD_TORCH_CHECK(parameters.scalar_type() == ScalarType::Float, "barlow_fast: parameters must be float32");
  for (const Tensor* x : {&mean, &std}) {
    STD_TORCH_CHECK(x->is_cpu() && x->dim() == 1 && x->size(0) == channels && x->is_contiguous() &&
                        x->scalar_type() == ScalarType::Float,
                    "barlow_fast: mean and std must be contiguous float32 CPU tensors of ", channels);
  }
  STD_TORCH_CHECK(out.is_cpu() && out.dim() == 4 && out.is_contiguous() && out.size(0) == count &&
                      out.size(1) == height && out.size(2) == width && out.size(3) == channels &&
                      element_of(out) != Element::f64,
                  "barlow_fast: out must be a contiguous CPU tensor of the shape of crops, of 32 or 16 bits");
  STD_TORCH_CHECK(width <= INT32_MAX && height <= INT32_MAX, "barlow_fast: crops are too large");
  const float* rows = static_cast<const float*>(parameters.const_data_ptr());
  for (int64_t i = 0; i < count; ++i) check_parameters(rows + i * kParameters, i);
  const int64_t values = height * width * channels;
  if (count * values == 0) return;
  const float* deviation = static_cast<const float*>(std.const_data_ptr());
  const Element type = element_of(out);
  float scale[3];
  for (int64_t c = 0; c < channels; ++c) scale[c] = 1 / deviation[c];
  const uint8_t* from = static_cast<const uint8_t*>(crops.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const bool stream = too_large_to_keep({to, 0, type}, count * values);
  run_tasks(count, [&](int64_t i) {
    const float* row = rows + i * kParameters;
    PhotometricTask task = photometric_task(row, height, width, channels);
    task.crop = from + i * values;
    task.out = to + i * values * (type == Element::f32 ? 4 : 2);
    task.type = type;
    task.mean = static_cast<const float*>(mean.const_data_ptr());
    task.scale = scale;
    task.stream = stream;
    float weights[kLargestRadius + 1];
    if (task.radius > 0) blur_weights(row[kBlurSigma], task.radius, weights);
    task.weights = weights;
    primitives().photometric(task, task_scratch.get(primitives().photometric_scratch(task)));
  });
}

// ---- terms --------------------------------------------------------------------------------------------------------

const double* doubles_of(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && element_of(x) == Element::f64, "barlow_fast: ", name,
                  " must be a contiguous float64 tensor on the CPU");
  return static_cast<const double*>(x.const_data_ptr());
}

void set_scalar(Tensor& out, double value) {
  STD_TORCH_CHECK(out.is_cpu() && out.numel() == 1, "barlow_fast: a term must be one element on the CPU");
  switch (out.scalar_type()) {
    case ScalarType::Double: *static_cast<double*>(out.mutable_data_ptr()) = value; break;
    case ScalarType::Float: *static_cast<float*>(out.mutable_data_ptr()) = static_cast<float>(value); break;
    default: STD_TORCH_CHECK(false, "barlow_fast: a term must be float32 or float64");
  }
}

// One call for what would be ten small ones: where embeddings are small, calls are what a step takes.
void terms(const Tensor& sums, const Tensor& parts, int64_t divisor, bool diagonal_included, double lambd, Tensor loss,
           Tensor on_diagonal, Tensor off_diagonal) {
  STD_TORCH_CHECK(sums.dim() == 2 && sums.size(1) == 2, "barlow_fast: sums must be (R, 2)");
  const double *pairs = doubles_of(sums, "sums"), *part = doubles_of(parts, "parts");
  double on = 0, squares = 0;
  for (int64_t i = 0; i < sums.size(0); ++i) {
    on += pairs[2 * i];
    squares += pairs[2 * i + 1];
  }
  std::array<double, 8> lanes{};  // independent sums; their order depends on the count alone
  const int64_t count = parts.numel();
  for (int64_t i = 0; i < count; ++i) lanes[static_cast<size_t>(i % 8)] += part[i];
  double off = 0;
  for (const double lane : lanes) off += lane;
  off /= static_cast<double>(divisor);
  if (diagonal_included) off -= squares;
  set_scalar(loss, on + lambd * off);
  set_scalar(on_diagonal, on);
  set_scalar(off_diagonal, off);
}

}  // namespace
}  // namespace barlow_fast

STABLE_TORCH_LIBRARY(barlow_fast_cpu, m) {
  m.def("instruction_set(int index) -> int");
  m.def("instruction_set_count() -> int");
  m.def("column_moments(Tensor z_a, Tensor z_b, int operand, Tensor(a!) out) -> ()");
  m.def("standardisation(Tensor moments, int count, float eps, Tensor(a!) statistics, Tensor(b!) sums) -> ()");
  m.def(
      "statistics(Tensor z_a, Tensor z_b, int operand, float eps, Tensor(a!) statistics, Tensor(b!) sums) -> ()");
  m.def("standardise(Tensor z, Tensor mean, Tensor rstd, Tensor shift, Tensor(a!) out) -> ()");
  m.def(
      "gram_pair(Tensor z_a, Tensor z_b, Tensor statistics, int operand, Tensor(a!) gram_a, Tensor(b!) gram_b, "
      "Tensor(c!) inner) -> ()");
  m.def("gram_tiles(Tensor z, Tensor statistics, int operand, Tensor(a!) tiles) -> ()");
  m.def("gram_from_tiles(Tensor packed, Tensor centres, int operand, Tensor(a!) grams) -> ()");
  m.def(
      "gram_gradients(Tensor z_a, Tensor z_b, Tensor statistics, Tensor gram_a, Tensor gram_b, Tensor grad_scale, "
      "float coefficient, float slope, float offset, float eps, int operand, int dimensions, bool projected, "
      "Tensor(a!) grad_a, Tensor(b!) grad_b) -> ()");
  m.def(
      "correlation(Tensor z_a, Tensor z_b, Tensor statistics, int operand, Tensor(a!) matrix, Tensor(b!) squares) "
      "-> ()");
  m.def(
      "correlation_gradients(Tensor z_a, Tensor z_b, Tensor statistics, Tensor matrix, Tensor squares, "
      "Tensor grad_scale, float coefficient, float slope, float offset, int operand, Tensor(a!) grad_a, "
      "Tensor(b!) grad_b) -> ()");
  m.def(
      "terms(Tensor sums, Tensor parts, int divisor, bool diagonal_included, float lambd, Tensor(a!) loss, "
      "Tensor(b!) on_diagonal, Tensor(c!) off_diagonal) -> ()");
  m.def("photometric(Tensor crops, Tensor parameters, Tensor mean, Tensor std, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(barlow_fast_cpu, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&barlow_fast::instruction_set));
  m.impl("instruction_set_count", TORCH_BOX(&barlow_fast::instruction_set_count));
}

STABLE_TORCH_LIBRARY_IMPL(barlow_fast_cpu, CPU, m) {
  m.impl("column_moments", TORCH_BOX(&barlow_fast::column_moments));
  m.impl("standardisation", TORCH_BOX(&barlow_fast::standardisation));
  m.impl("statistics", TORCH_BOX(&barlow_fast::statistics));
  m.impl("standardise", TORCH_BOX(&barlow_fast::standardise));
  m.impl("gram_pair", TORCH_BOX(&barlow_fast::gram_pair));
  m.impl("gram_tiles", TORCH_BOX(&barlow_fast::gram_tiles));
  m.impl("gram_from_tiles", TORCH_BOX(&barlow_fast::gram_from_tiles));
  m.impl("gram_gradients", TORCH_BOX(&barlow_fast::gram_gradients));
  m.impl("correlation", TORCH_BOX(&barlow_fast::correlation));
  m.impl("correlation_gradients", TORCH_BOX(&barlow_fast::correlation_gradients));
  m.impl("terms", TORCH_BOX(&barlow_fast::terms));
  m.impl("photometric", TORCH_BOX(&barlow_fast::photometric));
}
