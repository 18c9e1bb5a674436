// Prints the GFLOP/s of bfloat16 products by AMX tiles, operands in the second-level cache: what a kernel could reach
// at most. Usage: tile_rate THREADS SECONDS. Exit status 1 where the system does not let it use the tiles.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

constexpr int kSide = 256, kSteps = 16;  // rows and columns; 32 values of the summed index each
constexpr int64_t kBlock = 512;          // bfloat16 values of a tile

void load_layout() {
  struct __attribute__((packed)) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } layout;
  for (int tile = 0; tile < 8; ++tile) {
    layout.row_bytes[tile] = 64;
    layout.rows[tile] = 16;
  }
  __asm__ volatile("" ::"r"(&layout) : "memory");
  _tile_loadconfig(&layout);
}

// 32 x 32 sums.
void multiply(const uint16_t* left, const uint16_t* right, float* out) {
  constexpr int64_t half = kSteps * kBlock, stride = kSide * 4;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < kSteps; ++step, left += kBlock, right += kBlock) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + half, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + half, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, stride);
  _tile_stored(1, out + 16, stride);
  _tile_stored(2, out + 16 * kSide, stride);
  _tile_stored(3, out + 16 * kSide + 16, stride);
}

void repeat(int repetitions) {
  load_layout();
  constexpr int64_t panel = 2 * kSteps * kBlock;
  std::vector<uint16_t> left(kSide / 32 * panel), right(kSide / 32 * panel);
  std::vector<float> out(kSide * kSide);
  for (int k = 0; k < repetitions; ++k) {
    for (int j = 0; j < kSide / 32; ++j) {
      for (int i = 0; i < kSide / 32; ++i) multiply(&left[i * panel], &right[j * panel], &out[i * 32 * kSide + j * 32]);
    }
  }
  _tile_release();
}

int main(int, char** arguments) {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 1;
  const int threads = std::atoi(arguments[1]), repetitions = 200;
  const double seconds = std::atof(arguments[2]);
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); };
  double best = 0;
  for (const Clock::time_point start = Clock::now(); since(start) < seconds;) {
    const Clock::time_point from = Clock::now();
    std::vector<std::thread> pool;
    for (int k = 0; k < threads; ++k) pool.emplace_back(repeat, repetitions);
    for (std::thread& thread : pool) thread.join();
    best = std::max(best, 2.0 * kSide * kSide * kSteps * 32 * repetitions * threads / since(from) / 1e9);
  }
  std::printf("%.1f\n", best);
}
