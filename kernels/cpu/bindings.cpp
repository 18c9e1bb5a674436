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
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arguments.h"
#include "contract.h"

#if defined(BARLOW_FAST_AMX_BUILT)
#include <cpuid.h>
#include <sys/syscall.h>
#endif
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif
#if defined(BARLOW_FAST_NEON_BF16_BUILT)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

namespace barlow_fast {
namespace {

// ---- instruction set ----------------------------------------------------------------------------------------------

#if defined(BARLOW_FAST_AMX_BUILT)
// Whether the CPU multiplies tiles of bfloat16, and the system lets this process use their registers.
bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if ((d & kBf16) == 0 || (d & kTile) == 0) return false;
  // Linux saves the registers' 8 KiB only for processes that request them (arch_prctl(2)); threads and forks inherit it.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#if defined(BARLOW_FAST_NEON_BF16_BUILT)
// Whether the CPU multiplies bfloat16, and the system says so.
bool has_neon_bf16() {
#if defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found != 0;
#else
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
#endif
}
#endif

// Best last; the order is part of the Python side (kernels/cpu/__init__.py). The first is for tests.
std::vector<const Primitives*> find_sets() {
  std::vector<const Primitives*> sets{primitives_amx_bf16_emulated(), primitives_baseline()};
#if defined(BARLOW_FAST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(primitives_avx2());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      sets.push_back(primitives_avx512());
      if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
        sets.push_back(primitives_avx512_bf16());
#if defined(BARLOW_FAST_AMX_BUILT)
        if (may_use_amx()) sets.push_back(primitives_amx_bf16());
#endif
      }
    }
  }
#endif
#if defined(BARLOW_FAST_NEON_BF16_BUILT)
  if (has_neon_bf16()) sets.push_back(primitives_neon_bf16());
#endif
  return sets;
}

const std::vector<const Primitives*>& supported_sets() {
  static const std::vector<const Primitives*> sets = find_sets();
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
  const std::vector<const Primitives*>& sets = supported_sets();
  if (index >= static_cast<int64_t>(sets.size())) return -1;
  if (index >= 0) active_set.store(sets[static_cast<size_t>(index)]);
  const Primitives* active = &primitives();
  return std::find(sets.begin(), sets.end(), active) - sets.begin();
}

int64_t instruction_set_count() { return static_cast<int64_t>(supported_sets().size()); }

// ---- caches -------------------------------------------------------------------------------------------------------

// As the system reports them; those of small cores where it does not.
Caches find_caches() {
  Caches caches{32 << 10, 512 << 10};
#if defined(_SC_LEVEL1_DCACHE_SIZE) && defined(_SC_LEVEL2_CACHE_SIZE)
  if (const long size = sysconf(_SC_LEVEL1_DCACHE_SIZE); size > 0) caches.first = size;
  if (const long size = sysconf(_SC_LEVEL2_CACHE_SIZE); size > 0) caches.second = size;
#endif
  return caches;
}

const Caches& caches() {
  static const Caches found = find_caches();
  return found;
}

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

int64_t nanoseconds() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

// That this thread has run, where the system counts them.
int64_t thread_nanoseconds() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec time;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
#endif
  return nanoseconds();
}

// Steps of independent tasks; a step begins when all tasks of the one before it are done. A thread takes the tasks of
// its share, as in the steps before, so that what it read is in its cache, then those that are left of other shares. All
// steps together are one parallel region, which costs a wait for the last thread to arrive: where another process runs
// on its core, until the system gives it a turn. Within the region nobody waits for threads, but for tasks that have
// been begun.
class Steps {
 public:
  // function(0..count-1), each once.
  template <class Function>
  void add(int64_t count, const Function& function) {
    steps_.emplace_back(count, function);
  }

  // `operations`: floating-point operations of all steps, roughly. Few of them do not pay for a second thread.
  void run(double operations) {
    int64_t most = 1;
    for (const Step& step : steps_) most = std::max(most, step.count);
    const double worth = std::min<double>(1 + operations / kOperationsPerThread, static_cast<double>(threads()));
    const int64_t workers = std::min(most, static_cast<int64_t>(worth));
    const bool alone = workers == 1 || (operations < kOperationsOfShort && runs_alone());
    for (Step& step : steps_) step.share(alone ? 1 : workers);
    if (alone) {
      work(0);
    } else {
      run_on(workers);
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  // What a thread does in about 20 microseconds.
  static constexpr double kOperationsPerThread = 2e6, kOperationsOfShort = 4e8;
  // Where a short region took longer, by this, than all its tasks take one thread, it waited for a thread that another
  // process kept from its core: the caller computes the next regions alone, one at first, twice as many each time that it
  // happens again. Long ones gain from every thread that gets a share of a core. Bits do not depend on who computes.
  static constexpr int64_t kLongWait = 1000000, kShort = 4000000;  // nanoseconds; a turn of the scheduler takes that
  static constexpr int kMostAlone = 32;
  static inline std::atomic<int> regions_alone{0}, next_alone{1};

  static bool runs_alone() {
    const int left = regions_alone.load(std::memory_order_relaxed);
    if (left > 0) regions_alone.store(left - 1, std::memory_order_relaxed);
    return left > 0;
  }

  void run_on(int64_t workers) {
    timed_ = true;
    const int64_t begin = nanoseconds();
    torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
      for (int64_t worker = first; worker < last; ++worker) work(worker);
    });
    const int64_t busy = busy_, waited = nanoseconds() - begin - busy;
    if (busy >= kShort) return;
    const int next = next_alone.load(std::memory_order_relaxed);
    if (waited > kLongWait) regions_alone.store(next, std::memory_order_relaxed);
    next_alone.store(waited > kLongWait ? std::min(2 * next, kMostAlone) : 1, std::memory_order_relaxed);
  }

  struct Step {
    Step(int64_t tasks, std::function<void(int64_t)> task) : count(tasks), function(std::move(task)) {}
    void share(int64_t workers) {
      shares = std::vector<Share>(static_cast<size_t>(workers));
      for (int64_t w = 0; w < workers; ++w) {
        shares[static_cast<size_t>(w)].next = count * w / workers;
        shares[static_cast<size_t>(w)].end = count * (w + 1) / workers;
      }
    }

    struct alignas(64) Share {
      std::atomic<int64_t> next{0};
      int64_t end = 0;
    };
    const int64_t count;
    const std::function<void(int64_t)> function;
    std::vector<Share> shares;
    std::atomic<int64_t> done{0};
  };

  void work(int64_t worker) {
    for (Step& step : steps_) {
      const int64_t begin = timed_ ? thread_nanoseconds() : 0;
      const size_t workers = step.shares.size();
      for (size_t w = 0; w < workers; ++w) {
        Step::Share& share = step.shares[(static_cast<size_t>(worker) + w) % workers];
        for (int64_t i = share.next.fetch_add(1); i < share.end; i = share.next.fetch_add(1)) {
          perform(step, i);
          step.done.fetch_add(1, std::memory_order_release);
        }
      }
      if (timed_) busy_.fetch_add(thread_nanoseconds() - begin, std::memory_order_relaxed);
      for (int64_t tries = 0; step.done.load(std::memory_order_acquire) < step.count; ++tries) {
        if (tries >= 1000) std::this_thread::yield();
      }
    }
  }

  // Whatever a task throws, it counts as done: the other threads wait for it.
  void perform(const Step& step, int64_t i) {
    try {
      step.function(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  std::deque<Step> steps_;  // its elements stay where they are
  bool timed_ = false;
  std::atomic<int64_t> busy_{0};  // nanoseconds that all threads have worked on tasks
  std::mutex mutex_;
  std::exception_ptr failure_;
};

// function(0..count-1), each once and of any cost, as one step.
template <class Function>
void run_tasks(int64_t count, const Function& function) {
  Steps steps;
  steps.add(count, function);
  steps.run(HUGE_VAL);
}

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
int64_t round_up(int64_t x, int64_t multiple) { return ceil_div(x, multiple) * multiple; }

// ---- tensors ------------------------------------------------------------------------------------------------------

Element accumulation_of(Element operand) { return operand == Element::f64 ? Element::f64 : Element::f32; }
size_t bytes_of(Element type) { return static_cast<size_t>(element_bytes(type)); }

double number_at(const void* values, int64_t i, Element type) {
  return type == Element::f64 ? static_cast<const double*>(values)[i] : static_cast<const float*>(values)[i];
}

// mean, rstd and shift in the first rows of statistics of D columns.
Norm norm_of(const void* statistics, int64_t d, Element accumulation) {
  const char* base = static_cast<const char*>(statistics);
  const size_t row = static_cast<size_t>(d) * bytes_of(accumulation);
  return Norm{base, base + row, base + 2 * row};
}

// Both views' rows and the diagonal of C.
struct Statistics {
  Norm norm_a, norm_b;
  const void* diagonal;

  Statistics(const void* statistics, int64_t d, Element accumulation) {
    const char* base = static_cast<const char*>(statistics);
    const size_t row = static_cast<size_t>(d) * bytes_of(accumulation);
    norm_a = norm_of(base, d, accumulation);
    norm_b = norm_of(base + 3 * row, d, accumulation);
    diagonal = base + 6 * row;
  }
};

// Outputs larger than a core's own cache are written past it: they would be evicted before they are read, and a plain
// store first reads the line that it overwrites.
bool too_large_to_keep(const Output& out, int64_t count) {
  return count * element_bytes(out.type) >= (int64_t{1} << 20);
}

// ---- moments and standardisation ----------------------------------------------------------------------------------

// Adds up the moments of parts of `rows` rows, one (5, D) after the other, of columns [begin, end) in the first.
void merge_moments(double* parts, int64_t rows, int64_t n, int64_t d, int64_t begin, int64_t end) {
  for (int64_t row = rows; row < n; row += rows) {
    const double* next = parts + row / rows * 5 * d;
    const double before = static_cast<double>(row), count = static_cast<double>(std::min(n - row, rows));
    const double share = count / (before + count), both = before * share;
    for (int64_t c = begin; c < end; ++c) {
      const double delta_a = next[c] - parts[c], delta_b = next[d + c] - parts[d + c];
      parts[c] += delta_a * share;
      parts[d + c] += delta_b * share;
      parts[2 * d + c] += next[2 * d + c] + delta_a * delta_a * both;
      parts[3 * d + c] += next[3 * d + c] + delta_b * delta_b * both;
      parts[4 * d + c] += next[4 * d + c] + delta_a * delta_b * both;
    }
  }
}

constexpr int64_t kMergedColumns = 512;

// Rows and columns of a task of moments. They depend on the shape alone where they change the sums.
struct MomentsCut {
  int64_t rows, columns;
};

MomentsCut moments_cut(int64_t n, int64_t d) {
  const int64_t columns = round_up(ceil_div(d, 4 * threads()), 64);
  return {n >= 4096 && d <= 4096 ? 2048 : std::max<int64_t>(n, 1), std::clamp<int64_t>(columns, 64, 512)};
}

// Steps to the (5, D) moments of the pair, in the calling thread's scratch memory; `finish(moments, begin, end)`
// follows for each kMergedColumns of them.
template <class Finish>
void add_moments(Steps& steps, const View& a, const View& b, int64_t n, int64_t d, Element accumulation,
                 const Finish& finish) {
  const auto [rows, columns] = moments_cut(n, d);
  const int64_t row_parts = ceil_div(n, rows), column_parts = ceil_div(d, columns);
  double* parts = static_cast<double*>(call_scratch.get(static_cast<size_t>(row_parts * 5 * d) * sizeof(double)));
  steps.add(row_parts * column_parts, [=, rows = rows, columns = columns](int64_t i) {
    const int64_t part = i / column_parts, column = i % column_parts * columns;
    double* to = parts + part * 5 * d;
    primitives().moments({a, b, part * rows, std::min(n, (part + 1) * rows), column, std::min(d, column + columns),
                          {to, to + d, to + 2 * d, to + 3 * d, to + 4 * d}, accumulation});
  });
  steps.add(ceil_div(d, kMergedColumns), [=, rows = rows](int64_t i) {
    const int64_t begin = i * kMergedColumns, end = std::min(d, begin + kMergedColumns);
    merge_moments(parts, rows, n, d, begin, end);
    finish(parts, begin, end);
  });
}

double operations_of_moments(int64_t n, int64_t d) { return 16 * static_cast<double>(n) * static_cast<double>(d); }

void column_moments(const Tensor& z_a, const Tensor& z_b, int64_t operand_code, Tensor out) {
  const Element accumulation = accumulation_of(Arguments::operand(operand_code));
  Arguments arguments;
  const std::array<View, 2> views = arguments.pair(z_a, z_b);
  const View &a = views[0], &b = views[1];
  const int64_t n = z_a.size(0), d = z_a.size(1);
  void* to = arguments.output(out, "out", {5, d}, Element::f64);
  arguments.done();
  TrimOnExit trim;
  Steps steps;
  add_moments(steps, a, b, n, d, accumulation, [to, d](const double* moments, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < 5; ++row) {
      std::copy(moments + row * d + begin, moments + row * d + end, static_cast<double*>(to) + row * d + begin);
    }
  });
  steps.run(operations_of_moments(n, d));
}

// Means and co-moments of a part of the rows: of views and of their pairs, one below the other.
struct MomentsPart {
  double *means, *comoments;
};

// Adds up those of parts of `rows` rows for columns [begin, end) in the first, and completes its co-moments.
void merge_view_moments(const std::vector<MomentsPart>& parts, int64_t views, int64_t rows, int64_t n, int64_t d,
                        int64_t begin, int64_t end) {
  const MomentsPart& sum = parts[0];
  for (size_t p = 1; p < parts.size(); ++p) {
    const MomentsPart& next = parts[p];
    const int64_t row = static_cast<int64_t>(p) * rows;
    const double before = static_cast<double>(row), count = static_cast<double>(std::min(n - row, rows));
    const double share = count / (before + count);
    for (int64_t v = 0; v < views; ++v) {
      for (int64_t u = 0; u <= v; ++u) {
        const int64_t at = (v * views + u) * d;
        for (int64_t c = begin; c < end; ++c) {
          const double delta_v = next.means[v * d + c] - sum.means[v * d + c];
          const double delta_u = next.means[u * d + c] - sum.means[u * d + c];
          sum.comoments[at + c] += next.comoments[at + c] + delta_v * delta_u * before * share;
        }
      }
    }
    for (int64_t v = 0; v < views; ++v) {
      for (int64_t c = v * d + begin; c < v * d + end; ++c) sum.means[c] += (next.means[c] - sum.means[c]) * share;
    }
  }
  for (int64_t v = 0; v < views; ++v) {
    for (int64_t u = 0; u < v; ++u) {
      const double* from = sum.comoments + (v * views + u) * d;
      std::copy(from + begin, from + end, sum.comoments + (u * views + v) * d + begin);
    }
  }
}

void view_moments(const std::vector<Tensor>& z, int64_t operand_code, Tensor means, Tensor comoments) {
  const Element accumulation = accumulation_of(Arguments::operand(operand_code));
  Arguments arguments;
  const std::vector<View> views = arguments.views(z);
  const int64_t count = static_cast<int64_t>(views.size()), n = z[0].size(0), d = z[0].size(1);
  std::vector<MomentsPart> parts{
      {static_cast<double*>(arguments.output(means, "means", {count, d}, Element::f64)),
       static_cast<double*>(arguments.output(comoments, "comoments", {count, count, d}, Element::f64))}};
  arguments.done();
  const auto [rows, columns] = moments_cut(n, d);
  const int64_t column_parts = ceil_div(d, columns), of_part = (count + count * count) * d;
  TrimOnExit trim;
  double* extra = static_cast<double*>(
      call_scratch.get(static_cast<size_t>((ceil_div(n, rows) - 1) * of_part + 1) * sizeof(double)));
  for (int64_t row = rows; row < n; row += rows, extra += of_part) parts.push_back({extra, extra + count * d});
  Steps steps;
  steps.add(static_cast<int64_t>(parts.size()) * column_parts, [&, rows = rows, columns = columns](int64_t i) {
    const int64_t part = i / column_parts, column = i % column_parts * columns;
    const auto [to_means, to_comoments] = parts[static_cast<size_t>(part)];
    const int64_t row = part * rows, row_end = std::min(n, row + rows), column_end = std::min(d, column + columns);
    if (count == 2) {
      primitives().moments({views[0], views[1], row, row_end, column, column_end,
                            {to_means, to_means + d, to_comoments, to_comoments + 3 * d, to_comoments + 2 * d},
                            accumulation});
      return;
    }
    const ViewMomentsTask task{views.data(), count, row, row_end, column, column_end, to_means, to_comoments, d,
                               accumulation};
    primitives().view_moments(task, task_scratch.get(primitives().view_moments_scratch(task)));
  });
  steps.add(column_parts, [&, rows = rows, columns = columns](int64_t i) {
    merge_view_moments(parts, count, rows, n, d, i * columns, std::min(d, (i + 1) * columns));
  });
  steps.run(operations_of_moments(n, d) * static_cast<double>(count));
}

// Statistics of columns [begin, end) of (5, D) moments of `count` rows, and two sums over these columns.
void standardise_columns(const double* moments, int64_t d, int64_t begin, int64_t end, int64_t count, double eps,
                         const Output& statistics, double* sums) {
  primitives().standardisation({moments, statistics.data, sums, d, begin, end, static_cast<double>(count), eps,
                                statistics.type});
}

void add_up(const std::vector<double>& partial, double* sums) {
  sums[0] = sums[1] = 0;
  for (size_t i = 0; i < partial.size(); ++i) sums[i % 2] += partial[i];
}

// Of no columns as well: a rank of a group may have none.
void standardisation(const Tensor& moments, int64_t count, double eps, Tensor statistics, Tensor sums) {
  Arguments::positive(count, "count");
  Arguments::not_negative(eps, "eps");
  Arguments arguments;
  const int64_t d = moments.dim() == 2 ? moments.size(1) : 1;
  const void* from = arguments.input(moments, "moments", {5, d}, Element::f64);
  const Element type = Arguments::floating(statistics, "statistics") == Element::f64 ? Element::f64 : Element::f32;
  const Output to{arguments.output(statistics, "statistics", {7, d}, type), d, type};
  double* pair = arguments.sums(sums, "sums", 2);
  arguments.done();
  std::vector<double> partial(static_cast<size_t>(2 * ceil_div(d, kMergedColumns)));
  Steps steps;
  steps.add(ceil_div(d, kMergedColumns), [&](int64_t i) {
    const int64_t begin = i * kMergedColumns, end = std::min(d, begin + kMergedColumns);
    standardise_columns(static_cast<const double*>(from), d, begin, end, count, eps, to,
                        &partial[static_cast<size_t>(2 * i)]);
  });
  steps.run(operations_of_moments(4, d));
  add_up(partial, pair);
}

// Both of the above for rows that are all here, without a tensor between them.
void statistics(const Tensor& z_a, const Tensor& z_b, int64_t operand_code, double eps, Tensor statistics,
                Tensor sums) {
  const Element accumulation = accumulation_of(Arguments::operand(operand_code));
  Arguments::not_negative(eps, "eps");
  Arguments arguments;
  const std::array<View, 2> views = arguments.pair(z_a, z_b);
  const View &a = views[0], &b = views[1];
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Output to{arguments.output(statistics, "statistics", {7, d}, accumulation), d, accumulation};
  double* pair = arguments.sums(sums, "sums", 2);
  arguments.done();
  TrimOnExit trim;
  std::vector<double> partial(static_cast<size_t>(2 * ceil_div(d, kMergedColumns)));
  Steps steps;
  add_moments(steps, a, b, n, d, accumulation, [&, n, d, eps](const double* moments, int64_t begin, int64_t end) {
    standardise_columns(moments, d, begin, end, n, eps, to, &partial[static_cast<size_t>(begin / kMergedColumns * 2)]);
  });
  steps.run(operations_of_moments(n, d));
  add_up(partial, pair);
}

// Of no rows as well.
void standardise(const Tensor& z, const Tensor& mean, const Tensor& rstd, const Tensor& shift, Tensor out) {
  Arguments arguments;
  const View view = arguments.embeddings(z, "z", 0);
  const int64_t n = z.size(0), d = z.size(1), rows = std::max<int64_t>(1, 65536 / d);
  const Element type = Arguments::floating(out, "out"), accumulation = accumulation_of(type);
  const Norm norm{arguments.input(mean, "mean", {d}, accumulation), arguments.input(rstd, "rstd", {d}, accumulation),
                  arguments.input(shift, "shift", {d}, accumulation)};
  const StandardiseTask base{view, norm, {arguments.output(out, "out", {n, d}, type), d, type}, d, 0, n};
  arguments.done();
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

std::vector<Turn> turns(const GradientTask& task, bool one_at_a_time) {
  if (task.grad_a.data == nullptr && task.grad_b.data == nullptr) return {};
  if (task.grad_a.data == nullptr) return {{1, 1}};
  if (task.grad_b.data == nullptr) return {{0, 1}};
  if (one_at_a_time) return {{0, 1}, {1, 1}};
  return {{0, 2}};
}

// The arguments that both gradient operators take.
GradientTask gradient_task(Arguments& arguments, const Tensor& z_a, const Tensor& z_b, const Tensor& statistics,
                           const Tensor& grad_scale, double coefficient, double slope, double offset, Element operand,
                           const Tensor& grad_a, const Tensor& grad_b) {
  Arguments::finite(coefficient, "coefficient");
  Arguments::finite(slope, "slope");
  Arguments::finite(offset, "offset");
  const std::array<View, 2> views = arguments.pair(z_a, z_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Element accumulation = accumulation_of(operand);
  const Statistics s(arguments.input(statistics, "statistics", {7, d}, accumulation), d, accumulation);
  const Output out_a = arguments.gradient(grad_a, "grad_a", z_a, views[0]);
  const Output out_b = arguments.gradient(grad_b, "grad_b", z_b, views[1]);
  const double scale = arguments.scalar(grad_scale, "grad_scale");
  const bool stream = too_large_to_keep(out_a, n * d);
  return {views[0], views[1], s.norm_a, s.norm_b, s.diagonal, out_a,  out_b,
          coefficient, slope, offset, scale, operand, stream, caches()};
}

// Leaves only the gradients of a turn.
void restrict_to(const Turn& turn, GradientTask& task) {
  if (turn.first > 0) task.grad_a.data = nullptr;
  if (turn.first + turn.count < 2) task.grad_b.data = nullptr;
}

// ---- terms --------------------------------------------------------------------------------------------------------

void set_scalar(const Output& out, double value) {
  if (out.type == Element::f64) {
    *static_cast<double*>(out.data) = value;
  } else {
    *static_cast<float*>(out.data) = static_cast<float>(value);
  }
}

// The loss and its two terms, and what they are made of.
struct Terms {
  const double* pairs;
  int64_t rows;
  double lambd;
  Output loss, on_diagonal, off_diagonal;

  Terms(Arguments& arguments, const Tensor& sums, double weight, const Tensor& to_loss, const Tensor& to_on,
        const Tensor& to_off)
      : rows(sums.dim() == 2 ? sums.size(0) : 0), lambd(weight) {
    STD_TORCH_CHECK(sums.dim() == 2 && sums.size(1) == 2, "barlow_fast: sums must be (R, 2), got ",
                    Arguments::described(sums));
    Arguments::finite(lambd, "lambd");
    pairs = arguments.values(sums, "sums");
    loss = arguments.accumulated(to_loss, "loss", 1);
    on_diagonal = arguments.accumulated(to_on, "on_diagonal", 1);
    off_diagonal = arguments.accumulated(to_off, "off_diagonal", 1);
  }
  // From the sum of C_ij^2, of elements on the diagonal as well where it is included.
  void set(double off, bool diagonal_included) const {
    double on = 0, squares = 0;
    for (int64_t i = 0; i < rows; ++i) {
      on += pairs[2 * i];
      squares += pairs[2 * i + 1];
    }
    if (diagonal_included) off -= squares;
    set_scalar(loss, on + lambd * off);
    set_scalar(on_diagonal, on);
    set_scalar(off_diagonal, off);
  }
};

// One call instead of ten small ones: where embeddings are small, calls take most of a step's time.
void terms(const Tensor& sums, const Tensor& parts, int64_t divisor, bool diagonal_included, double lambd, Tensor loss,
           Tensor on_diagonal, Tensor off_diagonal) {
  Arguments::positive(divisor, "divisor");
  Arguments arguments;
  const Terms terms(arguments, sums, lambd, loss, on_diagonal, off_diagonal);
  const double* part = arguments.values(parts, "parts");
  arguments.done();
  std::array<double, 8> lanes{};  // independent sums; their order depends on the count alone
  const int64_t count = parts.numel();
  for (int64_t i = 0; i < count; ++i) lanes[static_cast<size_t>(i % 8)] += part[i];
  double off = 0;
  for (const double lane : lanes) off += lane;
  terms.set(off / static_cast<double>(divisor), diagonal_included);
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

// Of `views` triangles of a symmetric product of N rows and D summed columns; a whole product is two of them.
double operations_of_gram(int64_t views, int64_t n, int64_t d) {
  return static_cast<double>(views * n) * static_cast<double>(n) * static_cast<double>(d);
}

// K of one view: the memory of its parts, the first of which is the output.
struct PartialGram {
  View z;
  Norm norm;
  std::vector<void*> parts;
};

// A step to the lower triangles of every view's K, in parts still to be added up: `elements` values each, in tiles of
// `side` (contract.h, GramTask). Parts beyond the first live in call_scratch.
void add_grams(Steps& steps, std::vector<PartialGram>& grams, int64_t n, int64_t d, int64_t side, int64_t elements,
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
  steps.add(cut.pairs * views * cut.parts, [=, &grams](int64_t index) {
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
                        operand,
                        caches()};
    primitives().gram(task, task_scratch.get(primitives().gram_scratch(task)));
  });
}

// K of both views; returns <K_a, K_b>. Nothing is taken out of their diagonals.
double multiply_pair(const std::array<View, 2>& views, const Statistics& s, int64_t n, int64_t d, Element operand,
                     void* to) {
  const Element accumulation = accumulation_of(operand);
  char* second = static_cast<char*>(to) + static_cast<size_t>(n * n) * bytes_of(accumulation);
  std::vector<PartialGram> grams{{views[0], s.norm_a, {to}}, {views[1], s.norm_b, {second}}};
  TrimOnExit trim;
  Steps steps;
  add_grams(steps, grams, n, d, n, n * n, operand);
  const int64_t rows = 32, row_blocks = ceil_div(n, rows);
  std::vector<double> sums(static_cast<size_t>(row_blocks));
  steps.add(row_blocks, [&](int64_t index) {
    const int64_t block = row_blocks - 1 - index, row = block * rows, end = std::min(n, row + rows);  // long rows first
    for (const PartialGram& gram : grams) {
      const std::vector<void*>& parts = gram.parts;
      primitives().symmetrise({parts.data(), static_cast<int64_t>(parts.size()), n, row, end, parts[0], accumulation});
    }
    sums[static_cast<size_t>(block)] = primitives().inner({grams[0].parts[0], grams[1].parts[0], n, row, end,
                                                           accumulation});
  });
  steps.run(operations_of_gram(2, n, d));
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

// What gram_pair and gram_terms take.
struct PairArguments {
  Element operand, accumulation;
  std::array<View, 2> views;
  int64_t n, d;
  Statistics statistics;
  void *grams, *centres;

  PairArguments(Arguments& arguments, const Tensor& z_a, const Tensor& z_b, const Tensor& statistics_of,
                int64_t operand_code, const Tensor& to_grams, const Tensor& to_centres)
      : operand(Arguments::operand(operand_code)),
        accumulation(accumulation_of(operand)),
        views(arguments.pair(z_a, z_b)),
        n(z_a.size(0)),
        d(z_a.size(1)),
        statistics(arguments.input(statistics_of, "statistics", {7, d}, accumulation), d, accumulation),
        grams(arguments.output(to_grams, "grams", {2, n, n}, accumulation)),
        centres(arguments.output(to_centres, "centres", {2}, accumulation)) {}
  double multiply() const {
    std::memset(centres, 0, 2 * bytes_of(accumulation));
    return multiply_pair(views, statistics, n, d, operand, grams);
  }
};

void gram_pair(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, int64_t operand, Tensor grams,
               Tensor centres, Tensor inner) {
  Arguments arguments;
  const PairArguments pair(arguments, z_a, z_b, statistics, operand, grams, centres);
  double* total = arguments.sums(inner, "inner", 1);
  arguments.done();
  *total = pair.multiply();
}

void gram_terms(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, const Tensor& sums, double lambd,
                int64_t operand, Tensor grams, Tensor centres, Tensor loss, Tensor on_diagonal, Tensor off_diagonal) {
  Arguments arguments;
  const PairArguments pair(arguments, z_a, z_b, statistics, operand, grams, centres);
  const Terms terms(arguments, sums, lambd, loss, on_diagonal, off_diagonal);
  arguments.done();
  terms.set(pair.multiply() / (static_cast<double>(pair.n) * static_cast<double>(pair.n)), true);
}

// Rows of a tile, and how many tiles a view's K has (tiles.py).
struct Tiles {
  int64_t side, count;

  Tiles(const Tensor& tiles, const char* name, int64_t n, Element operand) {
    side = tiles.dim() > 0 ? tiles.size(tiles.dim() - 1) : 0;
    STD_TORCH_CHECK(side > 0 && side % primitives().geometry(operand).panel == 0 && 128 % side == 0, "barlow_fast: ",
                    name, " must have tiles of 64 or 128 rows, got ", Arguments::described(tiles));
    const int64_t blocks = ceil_div(n, side);
    count = blocks * (blocks + 1) / 2;
  }
};

// function(number over all views, view, first row, first column) for every tile.
template <class Function>
void add_tiles(Steps& steps, int64_t views, int64_t n, int64_t side, const Function& function) {
  const int64_t blocks = ceil_div(n, side), count = blocks * (blocks + 1) / 2;
  std::vector<std::pair<int64_t, int64_t>> places;
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t j = 0; j <= i; ++j) places.emplace_back(i * side, j * side);
  }
  steps.add(views * count, [=](int64_t index) {
    const auto [row, column] = places[static_cast<size_t>(index % count)];
    function(index, index / count, row, column);
  });
}

void gram_tiles(const Tensor& z, const Tensor& statistics, int64_t operand_code, Tensor tiles) {
  const Element operand = Arguments::operand(operand_code), accumulation = accumulation_of(operand);
  Arguments arguments;
  const View view = arguments.embeddings(z, "z");
  const int64_t n = z.size(0), d = z.size(1);
  const auto [side, count] = Tiles(tiles, "tiles", n, operand);
  const Norm norm = norm_of(arguments.input(statistics, "statistics", {3, d}, accumulation), d, accumulation);
  std::vector<PartialGram> grams{
      {view, norm, {arguments.output(tiles, "tiles", {count, side, side}, accumulation)}}};
  arguments.done();
  TrimOnExit trim;
  Steps steps;
  add_grams(steps, grams, n, d, side, tiles.numel(), operand);
  const std::vector<void*>& parts = grams[0].parts;
  const size_t bytes = static_cast<size_t>(side * side) * bytes_of(accumulation);
  add_tiles(steps, 1, n, side, [&, side = side](int64_t index, int64_t, int64_t row, int64_t column) {
    std::vector<const void*> tile;
    for (const void* part : parts) tile.push_back(static_cast<const char*>(part) + static_cast<size_t>(index) * bytes);
    char* out = static_cast<char*>(parts[0]) + static_cast<size_t>(index) * bytes;
    primitives().finish_tile({tile.data(), static_cast<int64_t>(tile.size()), side, std::min(side, n - row),
                              row == column, out, accumulation});
  });
  steps.run(operations_of_gram(1, n, d));
}

void gram_from_tiles(const Tensor& packed, const Tensor& centres, int64_t operand_code, Tensor grams) {
  const Element operand = Arguments::operand(operand_code), accumulation = accumulation_of(operand);
  Arguments arguments;
  const int64_t n = grams.dim() == 3 ? grams.size(1) : 0;
  Arguments::positive(n, "the second of three sizes of grams");
  const auto [side, count] = Tiles(packed, "packed", n, operand);
  const Element type = Arguments::floating(packed, "packed");
  const int64_t matrices = packed.size(0);
  const char* tiles = static_cast<const char*>(arguments.input(packed, "packed", {matrices, count, side, side}, type));
  const void* from = arguments.input(centres, "centres", {matrices}, accumulation);
  char* out = static_cast<char*>(arguments.output(grams, "grams", {matrices, n, n}, accumulation));
  arguments.done();
  const size_t tile_bytes = static_cast<size_t>(side * side) * bytes_of(type);
  const size_t gram_bytes = static_cast<size_t>(n * n) * bytes_of(accumulation);
  Steps steps;
  add_tiles(steps, matrices, n, side, [&, side = side](int64_t index, int64_t matrix, int64_t row, int64_t column) {
    primitives().unpack_tile({tiles + static_cast<size_t>(index) * tile_bytes, type, side, n, row, column,
                              number_at(from, matrix, accumulation), out + static_cast<size_t>(matrix) * gram_bytes,
                              accumulation});
  });
  steps.run(operations_of_moments(matrices * n, n));
}

template <class A>
double mean_of_diagonal(const void* matrix, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<const A*>(matrix)[i * n + i];
  return sum / static_cast<double>(n);
}

double centre_of(const void* gram, int64_t n, Element accumulation) {
  const double centre = accumulation == Element::f64 ? mean_of_diagonal<double>(gram, n)
                                                     : mean_of_diagonal<float>(gram, n);
  // What is subtracted is rounded to the accumulation type: the correction must use the same number.
  return accumulation == Element::f64 ? centre : static_cast<double>(static_cast<float>(centre));
}

// The gradients that a call makes: of all views, those that are wanted, with their links one behind the other.
// `packed` of a gradient is its whole matrix at first.
struct GramGradients {
  std::vector<GramView> views;
  std::vector<GramGradient> gradients;
  std::vector<Link> links;

  void add(int64_t view, const Output& out, const void* gram, int64_t n, Element accumulation, double product,
           const void* added) {
    const double centre = gram == nullptr ? 0 : centre_of(gram, n, accumulation);
    gradients.push_back({view, out, gram, product, centre, nullptr, 0, added});
  }
  // To the gradient that was added last.
  void link(const Link& link) {
    links.push_back(link);
    ++gradients.back().link_count;
  }
};

// One pass over the inputs: some of the gradients, and the views that they need.
struct GramTurn {
  std::vector<GramView> views;
  std::vector<GramGradient> gradients;
  std::vector<Link> links;
  std::vector<size_t> with_matrix;  // of `gradients`

  // Gradients from `first` on, with at most `most` matrices.
  GramTurn(const GramGradients& all, size_t first, size_t most) : views(all.views) {
    size_t link = 0;
    for (size_t i = 0; i < all.gradients.size(); ++i) {
      const GramGradient& gradient = all.gradients[i];
      const size_t count = static_cast<size_t>(gradient.link_count);
      if (i >= first) {
        if (gradient.packed != nullptr && with_matrix.size() == most) break;
        if (gradient.packed != nullptr) with_matrix.push_back(gradients.size());
        gradients.push_back(gradient);
        links.insert(links.end(), all.links.begin() + static_cast<std::ptrdiff_t>(link),
                     all.links.begin() + static_cast<std::ptrdiff_t>(link + count));
      }
      link += count;
    }
    for (size_t i = 0, at = 0; i < gradients.size(); ++i) {
      gradients[i].links = links.data() + at;
      GramView& own = views[static_cast<size_t>(gradients[i].view)];
      own.staged = true;
      own.multiplied = own.multiplied || gradients[i].packed != nullptr;
      for (int64_t l = 0; l < gradients[i].link_count; ++l, ++at) {
        views[static_cast<size_t>(links[at].view)].staged = true;
      }
    }
  }
  int64_t staged() const {
    return std::count_if(views.begin(), views.end(), [](const GramView& view) { return view.staged; });
  }
};

// Columns of a task: those of which the product and the linked views beyond one stay in half of the second-level cache. Two
// views pass through it once for each product, and the more columns, the fewer times does the matrix.
int64_t columns_of_gradients(int64_t n, int64_t d, int64_t staged, Element operand) {
  const Geometry geometry = primitives().geometry(operand);
  const int64_t bytes = static_cast<int64_t>(bytes_of(accumulation_of(operand)));
  const int64_t fitting = caches().second / 2 / (std::max<int64_t>(staged - 1, 1) * n * bytes), shared = d / (4 * threads());
  if (const int64_t tiled = primitives().tiled_cut(n, d, staged, operand).columns; tiled > 0) {
    return std::min(tiled, std::max(geometry.panel, shared / geometry.panel * geometry.panel));
  }
  return std::clamp<int64_t>(std::min(fitting, shared) / geometry.panel, 1, 8) * geometry.panel;
}

// All gradients of (N, D) views. `base`: what the operator's arguments determine. Packed matrices take at most half of
// the inputs' memory, or are one: a pass over the inputs is made for each part of the gradients.
void run_gram_gradients(const GramGradients& all, const GramGradientTask& base, int64_t d, int64_t dimensions) {
  const int64_t n = base.n;
  const Element operand = base.operand;
  const size_t bytes = primitives().packed_gram_bytes(n, operand);
  // No element of K exceeds N times the columns that it was summed over (precision.py, gram_scale).
  float half_scale = 1;
  for (double largest = static_cast<double>(n) * static_cast<double>(dimensions); largest > 32768; largest /= 2) {
    half_scale /= 2;
  }
  const int64_t panels = ceil_div(n, primitives().geometry(operand).tile_rows), chunk = 4, chunks = ceil_div(panels, chunk);
  const size_t most = static_cast<size_t>(std::max<int64_t>(1, static_cast<int64_t>(all.views.size()) * d / (2 * n)));
  TrimOnExit trim;
  for (size_t first = 0; first < all.gradients.size();) {
    GramTurn turn(all, first, most);
    first += turn.gradients.size();
    const int64_t matrices = static_cast<int64_t>(turn.with_matrix.size()), staged = turn.staged();
    char* packed = static_cast<char*>(call_scratch.get(turn.with_matrix.size() * bytes));
    std::vector<const void*> grams;
    for (const size_t i : turn.with_matrix) {
      GramGradient& gradient = turn.gradients[i];
      const size_t number = grams.size();
      grams.push_back(std::exchange(gradient.packed, packed + number * bytes));
    }
    Steps steps;
    steps.add(matrices * chunks, [&](int64_t index) {
      const size_t which = static_cast<size_t>(index / chunks);
      const int64_t begin = index % chunks * chunk, last = std::min(panels, begin + chunk);
      primitives().pack_gram({grams[which], n, begin, last, turn.gradients[turn.with_matrix[which]].centre, half_scale,
                              packed + which * bytes, operand});
    });
    const int64_t columns = columns_of_gradients(n, d, staged, operand);
    steps.add(ceil_div(d, columns), [&](int64_t i) {
      GramGradientTask task = base;
      task.views = turn.views.data();
      task.view_count = static_cast<int64_t>(turn.views.size());
      task.gradients = turn.gradients.data();
      task.gradient_count = static_cast<int64_t>(turn.gradients.size());
      task.column_begin = i * columns;
      task.column_end = std::min(d, task.column_begin + columns);
      primitives().gram_gradient(task, task_scratch.get(primitives().gram_gradient_scratch(task)));
    });
    const int64_t passes = staged + static_cast<int64_t>(turn.links.size());
    steps.run(operations_of_gram(2 * matrices, n, d) + operations_of_moments(n, d) / 8 * static_cast<double>(passes));
  }
}

void gram_gradients(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, const Tensor& grams,
                    const Tensor& grad_scale, double coefficient, double slope, double offset, double eps,
                    int64_t operand_code, int64_t dimensions, bool projected, Tensor grad_a, Tensor grad_b) {
  const Element operand = Arguments::operand(operand_code), accumulation = accumulation_of(operand);
  Arguments::not_negative(eps, "eps");
  Arguments::positive(dimensions, "dimensions");
  Arguments arguments;
  const GradientTask pair = gradient_task(arguments, z_a, z_b, statistics, grad_scale, coefficient, slope, offset,
                                          operand, grad_a, grad_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const char* matrices = static_cast<const char*>(arguments.input(grams, "grams", {2, n, n}, accumulation));
  arguments.done();
  GramGradients all{{{pair.a, pair.norm_a, false, false}, {pair.b, pair.norm_b, false, false}}, {}, {}};
  const Output outputs[2] = {pair.grad_a, pair.grad_b};
  // K_b serves the gradient of a, and K_a that of b.
  for (int64_t view = 0; view < 2; ++view) {
    if (outputs[view].data == nullptr) continue;
    const void* other = matrices + static_cast<size_t>((1 - view) * n * n) * bytes_of(accumulation);
    all.add(view, outputs[view], other, n, accumulation, coefficient, nullptr);
    all.link({1 - view, pair.diagonal, slope, offset});
  }
  run_gram_gradients(all, {nullptr, 0, nullptr, 0, n, 0, 0, eps, pair.grad_scale, projected, operand,
                           pair.stream, caches()}, d, dimensions);
}

// The links of view_gradients: pairs (gradient, view), by gradient.
void check_links(const std::vector<int64_t>& links, int64_t outputs, int64_t views) {
  STD_TORCH_CHECK(links.size() % 2 == 0, "barlow_fast: links must be pairs of numbers, got ", links.size());
  for (size_t i = 0; i < links.size(); i += 2) {
    const bool inside = links[i] >= (i > 0 ? links[i - 2] : 0) && links[i] < outputs && links[i + 1] >= 0 &&
                        links[i + 1] < views;
    STD_TORCH_CHECK(inside, "barlow_fast: links must be pairs of one of ", outputs, " gradients, in ascending order, "
                    "and one of ", views, " views, got (", links[i], ", ", links[i + 1], ")");
  }
}

// grams: (M, N, N); added: (O, D), or (0, D) for none; grads: O of them, empty where not wanted.
void view_gradients(const std::vector<Tensor>& z, const Tensor& statistics, const Tensor& grams, const Tensor& products,
                    const std::vector<int64_t>& links, const Tensor& weights, const Tensor& added,
                    const Tensor& grad_scale, double eps, int64_t operand_code, int64_t dimensions, bool projected,
                    const std::vector<Tensor>& grads) {
  const Element operand = Arguments::operand(operand_code), accumulation = accumulation_of(operand);
  Arguments::not_negative(eps, "eps");
  Arguments::positive(dimensions, "dimensions");
  Arguments arguments;
  const std::vector<View> views = arguments.views(z);
  const int64_t count = static_cast<int64_t>(views.size()), n = z[0].size(0), d = z[0].size(1);
  const int64_t outputs = static_cast<int64_t>(grads.size()), matrices = grams.dim() == 3 ? grams.size(0) : 0;
  STD_TORCH_CHECK(matrices <= outputs && outputs <= count, "barlow_fast: there must be at most as many matrices as "
                  "gradients, and gradients as views, got ", matrices, ", ", outputs, " and ", count);
  check_links(links, outputs, count);
  const auto rows_of = [&](const Tensor& x, const char* name, int64_t rows) {
    return static_cast<const char*>(arguments.input(x, name, {rows, d}, accumulation));
  };
  const size_t row = static_cast<size_t>(d) * bytes_of(accumulation);
  const int64_t link_count = static_cast<int64_t>(links.size() / 2), added_rows = added.dim() == 2 ? added.size(0) : 0;
  STD_TORCH_CHECK(added_rows == 0 || (added_rows == outputs && !projected), "barlow_fast: added must have no row, or "
                  "one for each of ", outputs, " gradients that are not projected, got ", added_rows);
  const char* from = static_cast<const char*>(arguments.input(statistics, "statistics", {count, 3, d}, accumulation));
  const char* matrix = static_cast<const char*>(arguments.input(grams, "grams", {matrices, n, n}, accumulation));
  const double* factors = static_cast<const double*>(arguments.input(products, "products", {matrices}, Element::f64));
  const char *weight = rows_of(weights, "weights", link_count), *constant = rows_of(added, "added", added_rows);
  const double scale = arguments.scalar(grad_scale, "grad_scale");
  std::vector<Output> outs;
  for (size_t i = 0; i < grads.size(); ++i) outs.push_back(arguments.gradient(grads[i], "grads", z[i], views[i]));
  arguments.done();
  GramGradients all;
  for (size_t i = 0; i < views.size(); ++i) all.views.push_back({views[i], norm_of(from + 3 * i * row, d, accumulation), false, false});
  size_t link = 0;
  for (int64_t i = 0; i < outputs; ++i) {
    const size_t at = static_cast<size_t>(i);
    const bool wanted = outs[at].data != nullptr, product = i < matrices;
    const void* gram = product ? matrix + at * static_cast<size_t>(n * n) * bytes_of(accumulation) : nullptr;
    const void* extra = added_rows > 0 ? constant + at * row : nullptr;
    if (wanted) all.add(i, outs[at], gram, n, accumulation, product ? factors[i] : 0, extra);
    for (; link < links.size() / 2 && links[2 * link] == i; ++link) {
      if (wanted) all.link({links[2 * link + 1], weight + link * row, 1, 0});
    }
  }
  run_gram_gradients(all, {nullptr, 0, nullptr, 0, n, 0, 0, eps, scale, projected, operand,
                           too_large_to_keep({nullptr, 0, views[0].type}, n * d), caches()}, d, dimensions);
}

// ---- correlation form ---------------------------------------------------------------------------------------------

void correlation(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, int64_t operand_code, Tensor matrix,
                 Tensor squares) {
  const Element operand = Arguments::operand(operand_code), accumulation = accumulation_of(operand);
  Arguments arguments;
  const std::array<View, 2> views = arguments.pair(z_a, z_b);
  const View &a = views[0], &b = views[1];
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const Statistics s(arguments.input(statistics, "statistics", {7, d}, accumulation), d, accumulation);
  void* whole = arguments.output(matrix, "matrix", {d, d}, accumulation);
  double* row_squares = static_cast<double*>(arguments.output(squares, "squares", {2, d}, Element::f64));
  arguments.done();
  // Partial matrices stay within the size of one input.
  const int64_t wanted = threads() == 1 ? 1 : 4 * threads(), most_parts = std::max<int64_t>(1, std::min(n / d, n / 256));
  // Where matrix tiles multiply, packing an element takes as long as hundreds of its products: blocks stay large.
  const int64_t fewest = primitives().tiled_cut(n, d, 2, operand).rows > 0 ? ceil_div(wanted, 2) : wanted;
  int64_t block = 512;
  for (; block > 128; block /= 2) {
    if (ceil_div(d, block) * ceil_div(d, block) * most_parts >= fewest) break;
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
  std::vector<void*> parts{whole};
  for (int64_t p = 1; p < part_count; ++p) parts.push_back(extra + static_cast<size_t>(p - 1) * bytes);
  Steps steps;
  steps.add(part_count * blocks * blocks, [&](int64_t index) {
    const int64_t part = index / (blocks * blocks), i = index / blocks % blocks * block, j = index % blocks * block;
    const CorrelationTask task{a, b, s.norm_a, s.norm_b, part * rows, std::min(n, (part + 1) * rows), i,
                               std::min(d, i + block), j, std::min(d, j + block), parts[static_cast<size_t>(part)], d,
                               operand, caches()};
    primitives().correlation(task, task_scratch.get(primitives().correlation_scratch(task)));
  });
  steps.add(sums, [&](int64_t i) {
    primitives().correlation_sum({parts.data(), part_count, n, d, i * sum_rows, std::min(d, (i + 1) * sum_rows),
                                  whole, row_squares, column_sums + i * d, accumulation});
  });
  steps.run(operations_of_gram(2, d, n));
  double* column_squares = row_squares + d;
  std::fill(column_squares, column_squares + d, 0.0);
  for (int64_t i = 0; i < sums; ++i) {
    for (int64_t c = 0; c < d; ++c) column_squares[c] += column_sums[i * d + c];
  }
}

void correlation_gradients(const Tensor& z_a, const Tensor& z_b, const Tensor& statistics, const Tensor& matrix,
                           const Tensor& squares, const Tensor& grad_scale, double coefficient, double slope,
                           double offset, int64_t operand_code, Tensor grad_a, Tensor grad_b) {
  const Element operand = Arguments::operand(operand_code), accumulation = accumulation_of(operand);
  Arguments arguments;
  const GradientTask gradients = gradient_task(arguments, z_a, z_b, statistics, grad_scale, coefficient, slope, offset,
                                               operand, grad_a, grad_b);
  const int64_t n = z_a.size(0), d = z_a.size(1);
  const void* whole = arguments.input(matrix, "matrix", {d, d}, accumulation);
  const double* row_squares = static_cast<const double*>(arguments.input(squares, "squares", {2, d}, Element::f64));
  arguments.done();
  const Geometry geometry = primitives().geometry(operand);
  const size_t bytes = primitives().packed_matrix_bytes(d, operand);
  const int64_t panels = ceil_div(d, geometry.panel);
  const CorrelationGradientTask base{gradients, row_squares, row_squares + d, nullptr, nullptr, n, d, 0, 0};
  // Rows whose standardised copies of both views stay in half of the second-level cache: panels pass through it.
  int64_t rows = std::clamp<int64_t>(caches().second / 2 / (8 * d) / 32 * 32, 32, 128);
  if (const int64_t tiled = primitives().tiled_cut(n, d, 2, operand).rows; tiled > 0) rows = tiled;
  TrimOnExit trim;
  for (const Turn& turn : turns(gradients, 2 * d > n)) {
    char* packed = static_cast<char*>(call_scratch.get(static_cast<size_t>(turn.count) * bytes));
    Steps steps;
    steps.add(turn.count * panels, [&](int64_t index) {
      const int64_t which = turn.first + index / panels, panel = index % panels;
      char* to = packed + static_cast<size_t>(index / panels) * bytes;
      primitives().pack_matrix({whole, d, panel, panel + 1, which == 0, to, operand});
    });
    steps.add(ceil_div(n, rows), [&](int64_t i) {
      CorrelationGradientTask task = base;
      task.row_begin = i * rows;
      task.row_end = std::min(n, task.row_begin + rows);
      task.packed_a = packed;
      task.packed_b = packed + (turn.count - 1) * bytes;
      restrict_to(turn, task);
      primitives().correlation_gradient(task, task_scratch.get(primitives().correlation_gradient_scratch(task)));
    });
    steps.run(operations_of_gram(2 * turn.count, d, n));
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
  return static_cast<int64_t>(std::ceil(std::clamp<double>(border, 0, static_cast<double>(size))));
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

void photometric(const Tensor& crops, const Tensor& parameters, const Tensor& mean, const Tensor& std, bool use_pool,
                 Tensor out) {
  const bool images = crops.dim() == 4 && (crops.size(3) == 1 || crops.size(3) == 3);
  STD_TORCH_CHECK(images && crops.size(1) <= INT32_MAX && crops.size(2) <= INT32_MAX,
                  "barlow_fast: crops must be (B, H, W, 1) or (B, H, W, 3), got ", Arguments::described(crops));
  const int64_t count = crops.size(0), height = crops.size(1), width = crops.size(2), channels = crops.size(3);
  Arguments arguments;
  const uint8_t* from = static_cast<const uint8_t*>(
      arguments.input(crops, "crops", {count, height, width, channels}, ScalarType::Byte));
  const float* rows =
      static_cast<const float*>(arguments.input(parameters, "parameters", {count, kParameters}, Element::f32));
  const float* means = static_cast<const float*>(arguments.input(mean, "mean", {channels}, Element::f32));
  const float* deviation = static_cast<const float*>(arguments.input(std, "std", {channels}, Element::f32));
  const Element type = Arguments::floating(out, "out");
  STD_TORCH_CHECK(type != Element::f64, "barlow_fast: out must be float32, bfloat16 or float16");
  char* to = static_cast<char*>(arguments.output(out, "out", {count, height, width, channels}, type));
  arguments.done();
  for (int64_t i = 0; i < count; ++i) check_parameters(rows + i * kParameters, i);
  const int64_t values = height * width * channels;
  if (count * values == 0) return;
  float scale[3];
  for (int64_t c = 0; c < channels; ++c) scale[c] = 1 / deviation[c];
  const bool stream = too_large_to_keep({to, 0, type}, count * values);
  const auto finish = [&](int64_t i) {
    const float* row = rows + i * kParameters;
    PhotometricTask task = photometric_task(row, height, width, channels);
    task.crop = from + i * values;
    task.out = to + i * values * (type == Element::f32 ? 4 : 2);
    task.type = type;
    task.mean = means;
    task.scale = scale;
    task.stream = stream;
    float weights[kLargestRadius + 1];
    if (task.radius > 0) blur_weights(row[kBlurSigma], task.radius, weights);
    task.weights = weights;
    primitives().photometric(task, task_scratch.get(primitives().photometric_scratch(task)));
  };
  if (use_pool) {
    run_tasks(count, finish);
  } else {
    for (int64_t i = 0; i < count; ++i) finish(i);
  }
}

bool may_permute_bytes() {
#if defined(BARLOW_FAST_X86)
  return __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

// Windows of images to other sizes. An image runs in the calling thread, a batch of them on torch's threads.
void crop_resize(const Tensor& image, std::vector<int64_t> window, int64_t interpolation, Tensor out) {
  STD_TORCH_CHECK(interpolation == 0 || interpolation == 1,
                  "barlow_fast: interpolation must be 0 (bilinear) or 1 (bicubic), got ", interpolation);
  const bool batched = image.dim() == 4;
  Arguments arguments;
  const Pixels from = arguments.pixels(image, "image", batched, false), to = arguments.pixels(out, "out", batched, true);
  STD_TORCH_CHECK(from.count == to.count && from.channels == to.channels,
                  "barlow_fast: out must have as many images and channels as image, got ", Arguments::described(out),
                  " for ", Arguments::described(image));
  STD_TORCH_CHECK(static_cast<int64_t>(window.size()) == 4 * from.count, "barlow_fast: window must be ",
                  4 * from.count, " numbers (top, left, height, width of each image), got ", window.size());
  arguments.done();
  for (int64_t i = 0; i < from.count; ++i) {
    const int64_t* at = &window[static_cast<size_t>(4 * i)];
    const bool inside = at[0] >= 0 && at[1] >= 0 && at[2] >= 1 && at[3] >= 1 && at[2] <= from.height &&
                        at[3] <= from.width && at[0] <= from.height - at[2] && at[1] <= from.width - at[3];
    STD_TORCH_CHECK(inside, "barlow_fast: window (top, left, height, width) must lie within the ", from.height, " x ",
                    from.width, " pixels of its image, got (", at[0], ", ", at[1], ", ", at[2], ", ", at[3], ")");
  }
  const auto resize = [&](int64_t i) {
    const int64_t* at = &window[static_cast<size_t>(4 * i)];
    const uint8_t* first = from.data + i * from.image_stride;
    const ResizeTask task{first + at[0] * from.row_stride + at[1] * from.channels,
                          first + (from.height - 1) * from.row_stride + from.width * from.channels,
                          from.row_stride, at[2], at[3], from.channels, to.data + i * to.image_stride, to.row_stride,
                          to.height, to.width, static_cast<Filter>(interpolation), may_permute_bytes()};
    primitives().resize(task, task_scratch.get(primitives().resize_scratch(task)));
    task_scratch.trim(kKeptBytes);
  };
  if (batched) {
    run_tasks(from.count, resize);
  } else {
    resize(0);
  }
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
      "gram_pair(Tensor z_a, Tensor z_b, Tensor statistics, int operand, Tensor(a!) grams, Tensor(b!) centres, "
      "Tensor(c!) inner) -> ()");
  m.def(
      "gram_terms(Tensor z_a, Tensor z_b, Tensor statistics, Tensor sums, float lambd, int operand, Tensor(a!) grams, "
      "Tensor(b!) centres, Tensor(c!) loss, Tensor(d!) on_diagonal, Tensor(e!) off_diagonal) -> ()");
  m.def("view_moments(Tensor[] views, int operand, Tensor(a!) means, Tensor(b!) comoments) -> ()");
  m.def(
      "view_gradients(Tensor[] views, Tensor statistics, Tensor grams, Tensor products, int[] links, Tensor weights, "
      "Tensor added, Tensor grad_scale, float eps, int operand, int dimensions, bool projected, Tensor(a!)[] grads) "
      "-> ()");
  m.def("gram_tiles(Tensor z, Tensor statistics, int operand, Tensor(a!) tiles) -> ()");
  m.def("gram_from_tiles(Tensor packed, Tensor centres, int operand, Tensor(a!) grams) -> ()");
  m.def(
      "gram_gradients(Tensor z_a, Tensor z_b, Tensor statistics, Tensor grams, Tensor grad_scale, "
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
  m.def("photometric(Tensor crops, Tensor parameters, Tensor mean, Tensor std, bool use_pool, Tensor(a!) out) -> ()");
  m.def("crop_resize(Tensor image, int[] window, int interpolation, Tensor(a!) out) -> ()");
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
  m.impl("gram_terms", TORCH_BOX(&barlow_fast::gram_terms));
  m.impl("view_moments", TORCH_BOX(&barlow_fast::view_moments));
  m.impl("view_gradients", TORCH_BOX(&barlow_fast::view_gradients));
  m.impl("gram_tiles", TORCH_BOX(&barlow_fast::gram_tiles));
  m.impl("gram_from_tiles", TORCH_BOX(&barlow_fast::gram_from_tiles));
  m.impl("gram_gradients", TORCH_BOX(&barlow_fast::gram_gradients));
  m.impl("correlation", TORCH_BOX(&barlow_fast::correlation));
  m.impl("correlation_gradients", TORCH_BOX(&barlow_fast::correlation_gradients));
  m.impl("terms", TORCH_BOX(&barlow_fast::terms));
  m.impl("photometric", TORCH_BOX(&barlow_fast::photometric));
  m.impl("crop_resize", TORCH_BOX(&barlow_fast::crop_resize));
}
