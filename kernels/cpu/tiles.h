// bfloat16 products by matrix tiles: 32 x 32 sums from 32 rows of the left and 32 columns of the right operand, as 2 x 2
// tiles of 16 x 16 and 32 values (16 units) of the summed index at a time. Included by primitives.cpp only.
//
// The right operand is a panel (pack.h): one tile is 16 of its units by 16 columns. The left operand keeps the units of
// a row together, in blocks of 16 rows x 16 units: [row / 32][half][block][row][unit].
//
// BARLOW_FAST_AMX: the tile registers of AMX. BARLOW_FAST_AMX_EMULATED: the same operations in plain C++, so that
// every machine can test the layouts.

// With two pieces, every value is held as a bfloat16 and what that leaves of it, another one: 16 bits of mantissa, and
// hi * hi + hi * lo + lo * hi as product. 16 units of each of the pieces alternate in panels and blocks.

template <int Pieces>
struct TilesOf {
  using Accumulator = float;
  using Unit = uint32_t;
  static constexpr int kDepth = 2;
};
using Tiles = TilesOf<1>;
using SplitTiles = TilesOf<2>;
template <int Pieces>
constexpr bool kTiled<TilesOf<Pieces>> = true;
template <int Pieces>
constexpr int kPieces<TilesOf<Pieces>> = Pieces;
template <int Pieces>
constexpr int kTileRows<TilesOf<Pieces>> = 32;

constexpr int kTileSide = 16;

#if defined(BARLOW_FAST_AMX)
// GCC's intrinsics that load tiles do not declare that they read memory, and that of the configuration names eight bytes of
// it: what was stored before has to be there.
BARLOW_FAST_INLINE void read_memory(const void* data) { __asm__ volatile("" ::"r"(data) : "memory"); }

// The registers belong to one task: later code on this thread does not pay for their state.
struct TileRegisters {
  TileRegisters() {
    struct __attribute__((packed)) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } layout;
    for (int tile = 0; tile < 8; ++tile) {
      layout.row_bytes[tile] = 64;
      layout.rows[tile] = kTileSide;
    }
    read_memory(&layout);
    _tile_loadconfig(&layout);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// out (+)= left * right of `units` units: 32 rows, `stride` floats apart, of 32 columns.
template <class Op>
BARLOW_FAST_INLINE void multiply_tiles(int64_t units, const uint32_t* left, const uint32_t* right, bool accumulate,
                                       float* out, int64_t stride) {
  read_memory(right);
  constexpr int64_t panel = kPanel<Op>, row_bytes = kTileSide * 4, panel_bytes = panel * 4;
  constexpr int64_t block = kTileSide * kTileSide;
  const int64_t half = kTileSide * units, out_bytes = stride * 4;
  float *const right_out = out + kTileSide, *const lower = out + kTileSide * stride;
  if (accumulate) {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(1, right_out, out_bytes);
    _tile_loadd(2, lower, out_bytes);
    _tile_loadd(3, lower + kTileSide, out_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < units; k += kTileSide * kPieces<Op>) {
    const uint32_t* first = left + (kPieces<Op> - 1) * block;  // lo * hi, hi * hi, hi * lo: 8 loads for 12 products
    _tile_loadd(4, first, row_bytes);
    _tile_loadd(6, right, panel_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + kTileSide, panel_bytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, first + half, row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if constexpr (kPieces<Op> == 2) {
      _tile_loadd(4, left, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, left + half, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      right += kTileSide * panel;
      _tile_loadd(6, right, panel_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, right + kTileSide, panel_bytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    left += block * kPieces<Op>;
    right += kTileSide * panel;
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, right_out, out_bytes);
  _tile_stored(2, lower, out_bytes);
  _tile_stored(3, lower + kTileSide, out_bytes);
}
#else
struct TileRegisters {};

// As AMX does it: subnormal operands count as zero, the even and the odd values of a product add up by themselves.
template <class Op>
void multiply_tiles(int64_t units, const uint32_t* left, const uint32_t* right, bool accumulate, float* out,
                    int64_t stride) {
  constexpr int panel = kPanel<Op>, pieces = kPieces<Op>;
  constexpr int of_left[] = {pieces - 1, 0, 0}, of_right[] = {0, 0, 1};
  const auto value = [](uint32_t bits) {
    return bits_to_float((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
  };
  for (int row = 0; row < kTileRows<Op>; ++row) {
    Vector<float> sum[2];
    for (int v = 0; v < 2; ++v) sum[v] = accumulate ? load(out + row * stride + v * kTileSide) : Vector<float>{};
    const uint32_t* x = left + (row / kTileSide * units + row % kTileSide) * kTileSide;
    for (int64_t product = 0; product < units / kTileSide / pieces * (2 * pieces - 1); ++product) {
      const int64_t k = product / (2 * pieces - 1) * pieces, which = product % (2 * pieces - 1);
      Vector<float> even[2] = {}, odd[2] = {};
      for (int unit = 0; unit < kTileSide; ++unit) {
        const uint32_t pair = x[(k + of_left[which]) * kTileSide * kTileSide + unit];
        const uint32_t* y = right + ((k + of_right[which]) * kTileSide + unit) * panel;
        for (int column = 0; column < panel; ++column) {
          const int v = column / kTileSide, lane = column % kTileSide;
          even[v][lane] += value(pair << 16) * value(y[column] << 16);
          odd[v][lane] += value(pair & 0xffff0000) * value(y[column] & 0xffff0000);
        }
      }
      for (int v = 0; v < 2; ++v) sum[v] += even[v] + odd[v];
    }
    for (int v = 0; v < 2; ++v) store(out + row * stride + v * kTileSide, sum[v]);
  }
}
#endif
