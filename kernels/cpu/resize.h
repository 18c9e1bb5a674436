// A window of an image of bytes to another size, to the bit as Pillow has it: resizing.py defines what is computed.
//
// Sums are whole numbers, so any order of adding gives the same bits. A 32-bit lane holds one value of the result, and
// products are of pairs of 16 bits: two neighbouring pixels (along a row) or two rows, times two weights. A weight has
// more than 16 bits and is split into two parts, with a sum each. What the first pass makes is kept as such pairs of
// rows, in a ring of as many as the second pass takes in.

constexpr int kWeightBits = 22;  // of the fraction of a weight
constexpr int kPartBits = 12;    // of the lower part

// ---- weights --------------------------------------------------------------------------------------------------------

// A product that is rounded before it is added to anything: the compiler may not fuse the two, as Pillow's did not.
BARLOW_FAST_INLINE Vector<double> rounded_product(Vector<double> x, Vector<double> y) {
  Vector<double> product = x * y;
#if defined(__AVX512F__)
  __asm__("" : "+v"(product));
#elif defined(__SSE2__)
  __asm__("" : "+x"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#else
  __asm__("" : "+m"(product));
#endif
  return product;
}

template <Filter F>
BARLOW_FAST_INLINE Vector<double> filter_weight(Vector<double> x) {
  x = x < 0.0 ? -x : x;
  if constexpr (F == Filter::bilinear) return x < 1.0 ? 1.0 - x : Vector<double>{};
  constexpr double a = -0.5;
  const Vector<double> slope = rounded_product(broadcast(a + 2), x) - (a + 3);
  const Vector<double> near = rounded_product(rounded_product(slope, x), x) + 1.0;
  const Vector<double> middle = rounded_product(x - 5.0, x) + 8.0;
  const Vector<double> far = (rounded_product(middle, x) - 4.0) * a;
  return x < 1.0 ? near : x < 2.0 ? far : Vector<double>{};
}

constexpr double filter_radius(Filter filter) { return filter == Filter::bicubic ? 2.0 : 1.0; }

// Pixels of the result that weights are made for at a time.
constexpr int kWeightLanes = kLanes<double>;
using WeightNumbers = NarrowVector<int32_t, kWeightLanes>::type;

// Which pixels of a line of `length` each of `size` pixels is the sum of, and with what weights.
struct Weights {
  int64_t length, size, stride;  // of a row of `fixed`
  int64_t most;                  // taps that there is room for
  int64_t taps = 0;              // that a pixel has at most
  int32_t* first;
  int32_t* fixed;  // tap t of pixel i at t * stride + i, times 2^kWeightBits; zero beyond a pixel's own taps
  double* exact;   // of the pixels in the making

  Weights(Arena& arena, int64_t from, int64_t to, Filter filter) : length(from), size(to) {
    const double scale = static_cast<double>(length) / static_cast<double>(size);
    const double support = filter_radius(filter) * (scale < 1 ? 1 : scale);
    most = smaller(length, static_cast<int64_t>(2 * support) + 2);
    stride = round_up(size, kWeightLanes);
    first = arena.take<int32_t>(stride);
    fixed = arena.take<int32_t>(most * stride);
    exact = arena.take<double>(most * kWeightLanes);
  }
};

template <Filter F>
void make_weights_of(Weights& weights) {
  using Doubles = Vector<double>;
  const double scale = static_cast<double>(weights.length) / static_cast<double>(weights.size);
  const double stretch = scale < 1 ? 1 : scale;
  const double support = filter_radius(F) * stretch, shrink = 1.0 / stretch;
  for (int64_t i = 0; i < weights.size; i += kWeightLanes) {
    Doubles at;
    for (int lane = 0; lane < kWeightLanes; ++lane) {
      at[lane] = static_cast<double>(smaller(i + lane, weights.size - 1)) + 0.5;
    }
    const Doubles centre = rounded_product(at, broadcast(scale));
    WeightNumbers begin = __builtin_convertvector(centre - support + 0.5, WeightNumbers);
    WeightNumbers end = __builtin_convertvector(centre + support + 0.5, WeightNumbers);
    const WeightNumbers length = static_cast<int32_t>(weights.length) - WeightNumbers{};
    begin = begin < 0 ? WeightNumbers{} : begin;
    end = end > length ? length : end;
    __builtin_memcpy(weights.first + i, &begin, sizeof begin);
    int64_t taps = 0;
    for (int lane = 0; lane < kWeightLanes; ++lane) taps = larger(taps, end[lane] - begin[lane]);
    Doubles sum{};
    const Doubles last = __builtin_convertvector(end, Doubles);
    for (int64_t t = 0; t < taps; ++t) {
      const Doubles place = __builtin_convertvector(begin + static_cast<int32_t>(t), Doubles);
      Doubles weight = filter_weight<F>(rounded_product(place - centre + 0.5, broadcast(shrink)));
      weight = place < last ? weight : Doubles{};
      sum += weight;
      store(weights.exact + t * kWeightLanes, weight);
    }
    for (int64_t t = 0; t < taps; ++t) {
      const Doubles weight = load(weights.exact + t * kWeightLanes) / sum;
      const Doubles scaled = weight * static_cast<double>(int64_t{1} << kWeightBits);
      const Doubles half = weight < 0.0 ? broadcast(-0.5) : broadcast(0.5);
      const WeightNumbers whole = __builtin_convertvector(scaled + half, WeightNumbers);
      __builtin_memcpy(weights.fixed + t * weights.stride + i, &whole, sizeof whole);
    }
    for (int64_t t = taps; t < weights.most; ++t) {
      for (int lane = 0; lane < kWeightLanes; ++lane) weights.fixed[t * weights.stride + i + lane] = 0;
    }
    weights.taps = larger(weights.taps, taps);
  }
}

void make_weights(Weights& weights, Filter filter) {
  if (weights.length == weights.size) {
    weights.taps = 1;
    for (int64_t i = 0; i < weights.size; ++i) {
      weights.first[i] = static_cast<int32_t>(i);
      weights.fixed[i] = 1 << kWeightBits;
    }
  } else if (filter == Filter::bicubic) {
    make_weights_of<Filter::bicubic>(weights);
  } else {
    make_weights_of<Filter::bilinear>(weights);
  }
}

// Two weights in the halves of a lane: their upper parts, which are signed, and their lower ones.
BARLOW_FAST_INLINE int32_t upper_parts(int32_t x, int32_t y) {
  return static_cast<int32_t>((static_cast<uint32_t>(x >> kPartBits) & 0xffff) |
                              static_cast<uint32_t>(y >> kPartBits) << 16);
}
BARLOW_FAST_INLINE int32_t lower_parts(int32_t x, int32_t y) {
  constexpr int32_t mask = (1 << kPartBits) - 1;
  return (x & mask) | (y & mask) << 16;
}

// ---- sums of products -----------------------------------------------------------------------------------------------

using Lanes32 = Vector<int32_t>;

// sum + x.low * y.low + x.high * y.high, lane by lane, of signed halves.
BARLOW_FAST_INLINE Lanes32 add_products(Lanes32 sum, Lanes32 x, Lanes32 y) {
#if defined(__AVX512VNNI__)
  return (Lanes32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)y);
#elif defined(__AVX512F__)
  return (Lanes32)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)x, (__m512i)y));
#elif defined(__AVX2__)
  return (Lanes32)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)x, (__m256i)y));
#elif defined(__SSE2__)
  return (Lanes32)_mm_add_epi32((__m128i)sum, _mm_madd_epi16((__m128i)x, (__m128i)y));
#else
  const Lanes32 low = ((x << 16) >> 16) * ((y << 16) >> 16), high = (x >> 16) * (y >> 16);
  return (Lanes32)((Vector<uint32_t>)sum + (Vector<uint32_t>)low + (Vector<uint32_t>)high);
#endif
}

// The sums of both parts of the weights, for one vector of results.
#if defined(BARLOW_FAST_NEON)
// The products of a pair add up when the sums are done.
struct Sum {
  static constexpr int32_t kHalf = 1 << (kWeightBits - 1);  // halves are rounded up
  int32x4_t upper[2]{}, lower[2] = {{kHalf, 0, kHalf, 0}, {kHalf, 0, kHalf, 0}};

  static BARLOW_FAST_INLINE void add_products(int32x4_t (&sum)[2], Lanes32 x, Lanes32 y) {
    sum[0] = vmlal_s16(sum[0], vget_low_s16((int16x8_t)x), vget_low_s16((int16x8_t)y));
    sum[1] = vmlal_high_s16(sum[1], (int16x8_t)x, (int16x8_t)y);
  }
  BARLOW_FAST_INLINE void add(Lanes32 pairs, Lanes32 upper_weights, Lanes32 lower_weights) {
    add_products(upper, pairs, upper_weights);
    add_products(lower, pairs, lower_weights);
  }
  BARLOW_FAST_INLINE Lanes32 whole() const {
    const int32x4_t high = vshlq_n_s32(vpaddq_s32(upper[0], upper[1]), kPartBits);
    return (Lanes32)vaddq_s32(high, vpaddq_s32(lower[0], lower[1]));
  }
};
#else
struct Sum {
  Lanes32 upper{}, lower = broadcast<int32_t>(1 << (kWeightBits - 1));  // halves are rounded up

  BARLOW_FAST_INLINE void add(Lanes32 pairs, Lanes32 upper_weights, Lanes32 lower_weights) {
    upper = add_products(upper, pairs, upper_weights);
    lower = add_products(lower, pairs, lower_weights);
  }
  // The result times 2^kWeightBits; unsigned, as a lane that stands for nothing may wrap.
  BARLOW_FAST_INLINE Lanes32 whole() const {
    return (Lanes32)(((Vector<uint32_t>)upper << kPartBits) + (Vector<uint32_t>)lower);
  }
};
#endif

// Signed 16-bit values cut to bytes.
BARLOW_FAST_INLINE Lanes32 halves_within_bytes(Lanes32 x) {
#if defined(__AVX512F__)
  const __m512i positive = _mm512_max_epi16((__m512i)x, _mm512_setzero_si512());
  return (Lanes32)_mm512_min_epi16(positive, _mm512_set1_epi16(255));
#elif defined(__AVX2__)
  const __m256i positive = _mm256_max_epi16((__m256i)x, _mm256_setzero_si256());
  return (Lanes32)_mm256_min_epi16(positive, _mm256_set1_epi16(255));
#elif defined(__SSE2__)
  return (Lanes32)_mm_min_epi16(_mm_max_epi16((__m128i)x, _mm_setzero_si128()), _mm_set1_epi16(255));
#elif defined(BARLOW_FAST_NEON)
  return (Lanes32)vminq_s16(vmaxq_s16((int16x8_t)x, vdupq_n_s16(0)), vdupq_n_s16(255));
#else
  using Halves = Vector<int16_t>;
  const Halves halves = (Halves)x, positive = halves < 0 ? Halves{} : halves;
  return (Lanes32)(positive > 255 ? broadcast<int16_t>(255) : positive);
#endif
}

// The bytes that two rows become, as pairs.
BARLOW_FAST_INLINE Lanes32 byte_pairs(const Sum& upper, const Sum& lower) {
  const Lanes32 x = upper.whole() >> kWeightBits, y = lower.whole() >> (kWeightBits - 16);
#if defined(__AVX512F__)
  return halves_within_bytes((Lanes32)_mm512_mask_mov_epi16((__m512i)x, 0xaaaaaaaa, (__m512i)y));
#elif defined(__AVX2__)
  return halves_within_bytes((Lanes32)_mm256_blend_epi16((__m256i)x, (__m256i)y, 0xaa));
#else
  return halves_within_bytes((x & 0xffff) | (y & ~0xffff));
#endif
}

// The bytes of four vectors, one after the other.
BARLOW_FAST_INLINE Vector<uint8_t> bytes_of(const Sum (&sums)[4]) {
  Lanes32 x[4];
  for (int v = 0; v < 4; ++v) x[v] = sums[v].whole() >> kWeightBits;
#if defined(__AVX512F__)
  const __m512i low = _mm512_packs_epi32((__m512i)x[0], (__m512i)x[1]);
  const __m512i high = _mm512_packs_epi32((__m512i)x[2], (__m512i)x[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Vector<uint8_t>)_mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]);
  const __m256i high = _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return (Vector<uint8_t>)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
#elif defined(__SSE2__)
  const __m128i low = _mm_packs_epi32((__m128i)x[0], (__m128i)x[1]);
  const __m128i high = _mm_packs_epi32((__m128i)x[2], (__m128i)x[3]);
  return (Vector<uint8_t>)_mm_packus_epi16(low, high);
#elif defined(BARLOW_FAST_NEON)
  const auto packed = [&](int v) __attribute__((always_inline)) {
    return vqmovun_s16(vqmovn_high_s32(vqmovn_s32((int32x4_t)x[v]), (int32x4_t)x[v + 1]));
  };
  return (Vector<uint8_t>)vcombine_u8(packed(0), packed(2));
#else
  using Narrow = typename NarrowVector<uint8_t, kLanes<int32_t>>::type;
  Vector<uint8_t> all;
  for (int v = 0; v < 4; ++v) {
    const Narrow bytes = __builtin_convertvector(halves_within_bytes(x[v] & 0xffff), Narrow);
    __builtin_memcpy(reinterpret_cast<uint8_t*>(&all) + v * sizeof bytes, &bytes, sizeof bytes);
  }
  return all;
#endif
}

// ---- along rows -----------------------------------------------------------------------------------------------------

// Two pairs of neighbouring pixels for each of a vector's lanes.
struct TwoPairs {
  Lanes32 first, second;
};

// Bytes that are read from an offset on.
template <int C>
constexpr int64_t kRead = C == 3 ? 17 : 4;
// Lanes of a vector that a pixel takes: of three channels four, the last of which stands for nothing.
template <int C>
constexpr int kPixelLanes = C == 3 ? 4 : 1;
template <int C>
constexpr int kVectorPixels = kLanes<int32_t> / kPixelLanes<C>;

BARLOW_FAST_INLINE Lanes32 spread(Lanes32 x) { return (x | (x << 8)) & 0x00ff00ff; }

template <int C>
BARLOW_FAST_INLINE TwoPairs pairs_at(const uint8_t* row, const int32_t* offsets) {
  if constexpr (C == 1) {
    Lanes32 four;
    for (int lane = 0; lane < kLanes<int32_t>; ++lane) {
      int32_t bytes;
      __builtin_memcpy(&bytes, row + offsets[lane], 4);
      four[lane] = bytes;
    }
    return {spread(four & 0xffff), spread((four >> 16) & 0xffff)};
  } else {
#if defined(__AVX2__)
    const auto pixels = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + offsets[i])); };
    const __m128i first = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m128i second = _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
#if defined(__AVX512F__)
    __m512i bytes = _mm512_castsi128_si512(pixels(0));
    bytes = _mm512_inserti32x4(bytes, pixels(1), 1);
    bytes = _mm512_inserti32x4(bytes, pixels(2), 2);
    bytes = _mm512_inserti32x4(bytes, pixels(3), 3);
    return {(Lanes32)_mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(first)),
            (Lanes32)_mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(second))};
#else
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(pixels(0)), pixels(1), 1);
    return {(Lanes32)_mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(first)),
            (Lanes32)_mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(second))};
#endif
#elif defined(BARLOW_FAST_NEON)
    const auto pair = [&](int at) __attribute__((always_inline)) {
      const uint8_t* pixel = row + offsets[0] + at;
      return (Lanes32)vmovl_u8(vzip1_u8(vld1_u8(pixel), vld1_u8(pixel + 3)));
    };
    return {pair(0), pair(6)};
#else
    using Bytes = NarrowVector<uint8_t, 8>::type;
    const auto pair = [&](int at) {
      Bytes x, y;
      __builtin_memcpy(&x, row + offsets[0] + at, sizeof x);
      __builtin_memcpy(&y, row + offsets[0] + at + 3, sizeof y);
#if defined(__clang__)
      const Bytes both = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
#else
      const Bytes both = __builtin_shuffle(x, y, Bytes{0, 8, 1, 9, 2, 10, 3, 11});
#endif
      return (Lanes32)__builtin_convertvector(both, Vector<uint16_t>);
    };
    return {pair(0), pair(6)};
#endif
  }
}

// Lanes that are filled from as many words of a row.
#if defined(__AVX512VNNI__)
constexpr int kGroup = kLanes<int32_t>;  // one permutation of bytes
#else
constexpr int kGroup = 4;  // a permutation of words, then one of bytes within 16
#endif

// The weights of a pass along rows, as its vectors take them. `dense`: each lane is a value of the result, which needs
// byte permutations, a vector's bytes within as many of the row, and a group's within its words. Else pixels have
// kPixelLanes.
template <int C>
struct Across {
  bool dense;
  int64_t vectors, pairs, reach;
  int32_t* offsets;  // bytes from the row's begin to the first tap of each pixel, or of each dense vector
  uint8_t* places;   // of a dense vector's bytes from its offset on, or within the words
  int32_t* words;    // of a dense vector from its offset on
  int32_t* parts;    // of each vector and pair the upper and the lower parts

  Across(Arena& arena, const Weights& weights) {
    vectors = (weights.size + kVectorPixels<C> - 1) / kVectorPixels<C>;
    pairs = (weights.most + 1) / 2;
    offsets = arena.take<int32_t>(vectors * kVectorPixels<C>);
    places = arena.take<uint8_t>(vectors * kVectorBytes);
    words = arena.take<int32_t>(vectors * kLanes<int32_t>);
    parts = arena.take<int32_t>(vectors * pairs * 2 * kLanes<int32_t>);
  }

  void fill(const Weights& weights, bool permutes_bytes) {
    pairs = (weights.taps + 1) / 2;
#if defined(__AVX512VNNI__)
    dense = permutes_bytes && place_dense(weights);
#elif defined(__AVX2__)
    (void)permutes_bytes;
    dense = place_dense(weights);
#else
    (void)permutes_bytes;
    dense = false;
#endif
    if (dense) {
      fill_parts<C>(weights);
      reach = offsets[vectors - 1] + (pairs - 1) * 2 * C + kVectorBytes;
      return;
    }
    vectors = (weights.size + kVectorPixels<C> - 1) / kVectorPixels<C>;
    reach = 0;
    for (int64_t i = 0; i < vectors * kVectorPixels<C>; ++i) {
      offsets[i] = i < weights.size ? C * weights.first[i] : 0;
      reach = larger(reach, offsets[i] + (pairs - 1) * 2 * C + kRead<C>);
    }
    fill_parts<kPixelLanes<C>>(weights);
  }

 private:
  // Whether the bytes lie close enough.
  bool place_dense(const Weights& weights) {
    constexpr int lanes = kLanes<int32_t>;
    const int64_t values = C * weights.size;
    vectors = (values + lanes - 1) / lanes;
    for (int64_t v = 0; v < vectors; ++v) {
      offsets[v] = C * weights.first[v * lanes / C];
      const auto place = [&](int lane) {
        const int64_t value = smaller(v * lanes + lane, values - 1);
        return C * weights.first[value / C] + value % C - offsets[v];
      };
      for (int group = 0; group < lanes; group += kGroup) {
        // A group may begin within a pixel, and the next pixel's first channel lie before.
        int64_t begin = place(group);
        for (int lane = 1; lane < kGroup; ++lane) begin = smaller(begin, place(group + lane));
        begin = begin / 4 * 4;
        for (int lane = 0; lane < kGroup; ++lane) {
          const int64_t at = place(group + lane);
          if (at + C >= kVectorBytes || at + C - begin >= 4 * kGroup) return false;
          uint8_t* to = places + v * kVectorBytes + 4 * (group + lane);
          to[0] = static_cast<uint8_t>(at - begin);
          to[2] = static_cast<uint8_t>(at + C - begin);
          to[1] = to[3] = 0x80;
          words[v * lanes + group + lane] = static_cast<int32_t>(begin / 4 + lane);
        }
      }
    }
    return true;
  }

  template <int PixelLanes>
  void fill_parts(const Weights& weights) {
    constexpr int lanes = kLanes<int32_t>;
    for (int64_t v = 0; v < vectors; ++v) {
      for (int64_t j = 0; j < pairs; ++j) {
        int32_t* to = parts + (v * pairs + j) * 2 * lanes;
        for (int lane = 0; lane < lanes; ++lane) {
          const int64_t i = (v * lanes + lane) / PixelLanes;
          const bool none = i >= weights.size || (v * lanes + lane) % PixelLanes >= C;
          const int32_t* fixed = weights.fixed + i;
          const int32_t x = none || 2 * j >= weights.taps ? 0 : fixed[2 * j * weights.stride];
          const int32_t y = none || 2 * j + 1 >= weights.taps ? 0 : fixed[(2 * j + 1) * weights.stride];
          to[lane] = upper_parts(x, y);
          to[lanes + lane] = lower_parts(x, y);
        }
      }
    }
  }
};

// Stores a vector's pixels without the lanes that stand for nothing; writes up to a vector.
template <int C>
BARLOW_FAST_INLINE void store_pixels(int32_t* out, Lanes32 x) {
  if constexpr (C == 1) {
    store(out, x);
  } else {
#if defined(__AVX512F__)
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
    store(out, (Lanes32)_mm512_permutexvar_epi32(order, (__m512i)x));
#elif defined(__AVX2__)
    const __m256i order = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
    store(out, (Lanes32)_mm256_permutevar8x32_epi32((__m256i)x, order));
#else
    store(out, x);
#endif
  }
}

#if defined(__AVX2__)
// Not every CPU that has the dot products permutes bytes.
#if defined(__AVX512VNNI__)
#define BARLOW_FAST_PERMUTES __attribute__((target("avx512vbmi")))
#else
#define BARLOW_FAST_PERMUTES
#endif

// The pairs of a dense vector.
BARLOW_FAST_PERMUTES BARLOW_FAST_INLINE Lanes32 picked(const uint8_t* row, Lanes32 words, Vector<uint8_t> places) {
#if defined(__AVX512VNNI__)
  (void)words;
  return (Lanes32)_mm512_maskz_permutexvar_epi8(0x5555555555555555, (__m512i)places, (__m512i)load(row));
#elif defined(__AVX512F__)
  return (Lanes32)_mm512_shuffle_epi8(_mm512_permutexvar_epi32((__m512i)words, (__m512i)load(row)), (__m512i)places);
#else
  return (Lanes32)_mm256_shuffle_epi8(_mm256_permutevar8x32_epi32((__m256i)load(row), (__m256i)words), (__m256i)places);
#endif
}

// Both rows resized, as pairs, where `weights` is dense.
template <int C>
BARLOW_FAST_PERMUTES void across_dense(const Across<C>& weights, const uint8_t* upper, const uint8_t* lower,
                                       int32_t* out) {
  constexpr int lanes = kLanes<int32_t>;
  const int32_t* part = weights.parts;
  for (int64_t v = 0; v < weights.vectors; ++v) {
    const Vector<uint8_t> places = load(weights.places + v * kVectorBytes);
    const Lanes32 words = load(weights.words + v * lanes);
    const uint8_t *x = upper + weights.offsets[v], *y = lower + weights.offsets[v];
    Sum sums[2];
    for (int64_t j = 0; j < weights.pairs; ++j) {
      const Lanes32 high = load(part), low = load(part + lanes);
      sums[0].add(picked(x + 2 * C * j, words, places), high, low);
      sums[1].add(picked(y + 2 * C * j, words, places), high, low);
      part += 2 * lanes;
    }
    store(out + v * lanes, byte_pairs(sums[0], sums[1]));
  }
}
#endif

// Both rows resized, as pairs.
template <int C>
void across(const Across<C>& weights, const uint8_t* upper, const uint8_t* lower, int32_t* out) {
#if defined(__AVX2__)
  if (weights.dense) return across_dense(weights, upper, lower, out);
#endif
  constexpr int lanes = kLanes<int32_t>;
  const int32_t* part = weights.parts;
  for (int64_t v = 0; v < weights.vectors; ++v) {
    const int32_t* offsets = weights.offsets + v * kVectorPixels<C>;
    Sum sums[2];
    for (int64_t j = 0; j < weights.pairs; j += 2) {
      const TwoPairs x = pairs_at<C>(upper + 2 * C * j, offsets), y = pairs_at<C>(lower + 2 * C * j, offsets);
      sums[0].add(x.first, load(part), load(part + lanes));
      sums[1].add(y.first, load(part), load(part + lanes));
      part += 2 * lanes;
      if (j + 1 == weights.pairs) break;
      sums[0].add(x.second, load(part), load(part + lanes));
      sums[1].add(y.second, load(part), load(part + lanes));
      part += 2 * lanes;
    }
    const Lanes32 both = byte_pairs(sums[0], sums[1]);
    store_pixels<C>(out + C * v * kVectorPixels<C>, both);
  }
}

// ---- across rows ----------------------------------------------------------------------------------------------------

constexpr int kBlockLanes = 4 * kLanes<int32_t>;  // values that become one vector of bytes

BARLOW_FAST_INLINE void store_bytes(uint8_t* out, Vector<uint8_t> bytes, int64_t count) {
  if (count >= kBlockLanes) {
    store(out, bytes);
  } else {
    uint8_t buffer[kBlockLanes];
    store(buffer, bytes);
    for (int64_t i = 0; i < count; ++i) out[i] = buffer[i];
  }
}

// One row of `count` bytes from pairs of rows, each times its pair of weights.
void downwards(const int32_t* const* pairs, const int32_t* upper, const int32_t* lower, int64_t pair_count,
               int64_t count, uint8_t* out) {
  constexpr int lanes = kLanes<int32_t>;
  for (int64_t x = 0; x < count; x += kBlockLanes) {
    Sum sums[4];
    for (int64_t j = 0; j < pair_count; ++j) {
      const Lanes32 above = broadcast(upper[j]), below = broadcast(lower[j]);
      BARLOW_FAST_UNROLL
      for (int v = 0; v < 4; ++v) sums[v].add(load(pairs[j] + x + v * lanes), above, below);
    }
    store_bytes(out + x, bytes_of(sums), count - x);
  }
}

// Two rows of bytes to pairs and back.
BARLOW_FAST_INLINE void pair_rows(const uint8_t* upper, const uint8_t* lower, int64_t count, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = upper[i] | lower[i] << 16;
}
BARLOW_FAST_INLINE void part_rows(const int32_t* pairs, int64_t count, uint8_t* upper, uint8_t* lower) {
  for (int64_t i = 0; i < count; ++i) upper[i] = static_cast<uint8_t>(pairs[i]);
  if (lower == nullptr) return;
  for (int64_t i = 0; i < count; ++i) lower[i] = static_cast<uint8_t>(pairs[i] >> 16);
}

// ---- one window -----------------------------------------------------------------------------------------------------

// Whether columns are summed first: where that leaves fewer pixels to the second pass by Pillow's estimate.
BARLOW_FAST_INLINE bool columns_first(const ResizeTask& task) {
  const int64_t lost_rows = task.height - task.out_height, lost_columns = task.width - task.out_width;
  return lost_rows > 0 && lost_rows > 2 * lost_columns;
}

template <int C>
struct ResizeScratch {
  Weights down_weights, across_weights;
  Across<C> row;
  int64_t pair_count;   // pairs of rows that a row of the result is summed from, at most
  int64_t width;        // of what is kept in the ring, in values
  int64_t line;         // of the ring, in values
  int32_t* ring;        // pair p is in slot p % pair_count
  int32_t* wide;        // a pair of rows of the result
  uint8_t* bytes[2];    // rows that are read from here
  const int32_t** pairs;
  int32_t* upper;
  int32_t* lower;

  ResizeScratch(Arena& arena, const ResizeTask& task)
      : down_weights(arena, task.height, task.out_height, task.filter),
        across_weights(arena, task.width, task.out_width, task.filter),
        row(arena, across_weights) {
    constexpr int64_t spare = kBlockLanes + 4;
    pair_count = down_weights.most / 2 + 2;
    width = C * (columns_first(task) ? task.width : task.out_width);
    line = round_up(width, kBlockLanes) + spare;
    ring = arena.take<int32_t>(pair_count * line);
    wide = arena.take<int32_t>(round_up(C * task.out_width, kBlockLanes) + spare);
    for (uint8_t*& copy : bytes) copy = arena.take<uint8_t>(C * task.width + 8 * C + 64 + 2 * C * row.pairs);
    pairs = arena.take<const int32_t*>(pair_count);
    upper = arena.take<int32_t>(pair_count);
    lower = arena.take<int32_t>(pair_count);
  }
};

template <int C>
class Resizer {
 public:
  Resizer(const ResizeTask& task, void* memory) : task_(task), arena_{static_cast<char*>(memory)}, scratch_(arena_, task) {
    make_weights(scratch_.down_weights, task.filter);
    make_weights(scratch_.across_weights, task.filter);
    scratch_.row.fill(scratch_.across_weights, task.permutes_bytes);
  }

  void run() {
    if (columns_first(task_)) {
      for (int64_t y = 0; y < task_.out_height; y += 2) {
        const bool two = y + 1 < task_.out_height;
        make_row<true>(y, scratch_.bytes[0]);
        if (two) make_row<true>(y + 1, scratch_.bytes[1]);
        across(scratch_.row, scratch_.bytes[0], scratch_.bytes[1], scratch_.wide);
        uint8_t* to = task_.out + y * task_.out_stride;
        part_rows(scratch_.wide, C * task_.out_width, to, two ? to + task_.out_stride : nullptr);
      }
    } else {
      for (int64_t y = 0; y < task_.out_height; ++y) make_row<false>(y, task_.out + y * task_.out_stride);
    }
  }

 private:
  // Row y of the pass across rows.
  template <bool First>
  void make_row(int64_t y, uint8_t* out) {
    const Weights& weights = scratch_.down_weights;
    const int64_t first = weights.first[y], last = smaller(first + weights.taps, task_.height) - 1;
    const int64_t begin = first / 2, count = last / 2 + 1 - begin;
    for (made_ = larger(made_, begin); made_ < begin + count; ++made_) make_pair<First>(made_);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t tap = 2 * (begin + j) - first;
      const int32_t* fixed = weights.fixed + y;
      const int32_t x = tap >= 0 ? fixed[tap * weights.stride] : 0;
      const int32_t z = tap + 1 < weights.taps ? fixed[(tap + 1) * weights.stride] : 0;
      scratch_.pairs[j] = slot(begin + j);
      scratch_.upper[j] = upper_parts(x, z);
      scratch_.lower[j] = lower_parts(x, z);
    }
    downwards(scratch_.pairs, scratch_.upper, scratch_.lower, count, scratch_.width, out);
  }

  int32_t* slot(int64_t pair) const { return scratch_.ring + pair % scratch_.pair_count * scratch_.line; }

  // Rows 2 * pair and the next one, which at the end of an odd window has no weight.
  template <bool First>
  void make_pair(int64_t pair) {
    const uint8_t* upper = task_.image + 2 * pair * task_.image_stride;
    const uint8_t* lower = 2 * pair + 1 < task_.height ? upper + task_.image_stride : upper;
    if constexpr (First) {
      pair_rows(upper, lower, scratch_.width, slot(pair));
    } else {
      across(scratch_.row, readable(upper, 0), readable(lower, 1), slot(pair));
    }
  }

  // A row of the window; a copy where what is read of it would end beyond the image.
  const uint8_t* readable(const uint8_t* row, int which) const {
    if (task_.image_end - row >= scratch_.row.reach) return row;
    for (int64_t i = 0; i < C * task_.width; ++i) scratch_.bytes[which][i] = row[i];
    return scratch_.bytes[which];
  }

  const ResizeTask& task_;
  Arena arena_;
  ResizeScratch<C> scratch_;
  int64_t made_ = 0;
};

size_t resize_scratch(const ResizeTask& task) {
  Arena arena{nullptr};
  if (task.channels == 1) {
    ResizeScratch<1> scratch(arena, task);
  } else {
    ResizeScratch<3> scratch(arena, task);
  }
  return arena.used;
}

void resize(const ResizeTask& task, void* scratch) {
  task.channels == 1 ? Resizer<1>(task, scratch).run() : Resizer<3>(task, scratch).run();
}
