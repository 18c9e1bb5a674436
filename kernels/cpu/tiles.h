// bfloat16 products by matrix tiles: 32 x 32 sums from 32 rows of the left and 32 columns of the right operand, as 2 x 2
// tiles of 16 x 16 and 32 values (16 units) of the summed index at a time. Included by primitives.cpp only.
//
// The right operand is a panel (pack.h): one tile is 16 of its units by 16 columns. The left operand keeps the units of
// a row together. Panels of it consist of blocks of 16 rows x 16 units, contiguous: [half][block][row][unit].
//
// BARLOW_FAST_AMX: the tile registers of AMX. BARLOW_FAST_AMX_EMULATED: the same operations in plain C++, so that
// every machine can test the layouts.

struct Tiles {
  using Accumulator = float;
  using Unit = uint32_t;
  static constexpr int kDepth = 2;
};
template <>
constexpr bool kTiled<Tiles> = true;
template <>
constexpr int kTileRows<Tiles> = 32;

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

// out (+)= left * right: 32 rows, `stride` floats apart, of 32 columns.
BARLOW_FAST_INLINE void multiply_tiles(int64_t units, const Left<Tiles>& left, const uint32_t* right, bool accumulate,
                                       float* out, int64_t stride) {
  read_memory(right);
  const int64_t row_bytes = left.row * 4, panel_bytes = kPanel<Tiles> * 4, out_bytes = stride * 4;
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
  const uint32_t* x = left.data;
  for (int64_t k = 0; k < units; k += kTileSide) {
    _tile_loadd(4, x, row_bytes);
    _tile_loadd(6, right, panel_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + kTileSide, panel_bytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + left.half, row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    x += left.step;
    right += kTileSide * kPanel<Tiles>;
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, right_out, out_bytes);
  _tile_stored(2, lower, out_bytes);
  _tile_stored(3, lower + kTileSide, out_bytes);
}
#else
struct TileRegisters {};

// As AMX does it: subnormal operands count as zero, the even and the odd values of a product add up by themselves.
inline void multiply_tiles(int64_t units, const Left<Tiles>& left, const uint32_t* right, bool accumulate, float* out,
                           int64_t stride) {
  const auto value = [](uint32_t bits) {
    return bits_to_float((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
  };
  for (int row = 0; row < kTileRows<Tiles>; ++row) {
    Vector<float> sum[2];
    for (int v = 0; v < 2; ++v) sum[v] = accumulate ? load(out + row * stride + v * kTileSide) : Vector<float>{};
    const uint32_t* x = left.data + row / kTileSide * left.half + row % kTileSide * left.row;
    for (int64_t k = 0; k < units; k += kTileSide) {
      Vector<float> even[2] = {}, odd[2] = {};
      for (int unit = 0; unit < kTileSide; ++unit) {
        const uint32_t pair = x[k / kTileSide * left.step + unit];
        const uint32_t* y = right + (k + unit) * kPanel<Tiles>;
        for (int column = 0; column < kPanel<Tiles>; ++column) {
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

template <>
BARLOW_FAST_INLINE void multiply<Tiles, kTileRows<Tiles>, 2>(int64_t units, const Left<Tiles>& left,
                                                            const uint32_t* right,
                                                            Vector<float> (&sum)[kTileRows<Tiles>][2]) {
  multiply_tiles(units, left, right, false, reinterpret_cast<float*>(sum), kPanel<Tiles>);
}
