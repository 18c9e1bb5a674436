// A cropped view to an encoder's input: what photometry.py defines, image by image, without leaving the cache.
//
// Pixels are worked on as planes: a vector of neighbours of one row per channel. Without a blur a vector goes from
// bytes to its output in registers. With one, rows are blurred sideways as they are made, into a ring of as many rows
// as the blur takes in, and two output rows at a time are summed from the ring in registers and finished from there.
// What lies in memory is the ring: nothing of the size of an image exists beside input and output.

// Lanes of two vectors chosen by compile-time indices; those of the second begin at kLanes.
template <int... Lane>
BARLOW_FAST_INLINE Vector<float> chosen(Vector<float> x, Vector<float> y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, Lane...);
#else
  return __builtin_shuffle(x, y, Vector<int32_t>{Lane...});
#endif
}

// The instructions, which the comparison that they stand for does not always become.
BARLOW_FAST_INLINE Vector<float> minimum(Vector<float> x, Vector<float> y) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_min_ps((__m512)x, (__m512)y);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_min_ps((__m256)x, (__m256)y);
#elif defined(__SSE2__)
  return (Vector<float>)_mm_min_ps((__m128)x, (__m128)y);
#else
  return x < y ? x : y;
#endif
}
BARLOW_FAST_INLINE Vector<float> maximum(Vector<float> x, Vector<float> y) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_max_ps((__m512)x, (__m512)y);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_max_ps((__m256)x, (__m256)y);
#elif defined(__SSE2__)
  return (Vector<float>)_mm_max_ps((__m128)x, (__m128)y);
#else
  return x > y ? x : y;
#endif
}
BARLOW_FAST_INLINE Vector<float> within_unit(Vector<float> x) {
  return minimum(maximum(x, Vector<float>{}), broadcast(1.0f));
}
BARLOW_FAST_INLINE Vector<float> magnitude(Vector<float> x) {
  return (Vector<float>)((Vector<int32_t>)x & 0x7fffffff);
}

// kLanes neighbouring pixels of a row; a gray image in the making has one channel whatever its output has.
template <int C>
struct Pixels {
  Vector<float> channel[C];
};

// ---- bytes to planes ----------------------------------------------------------------------------------------------

// A byte over 255, rounded as the division rounds it, so that a threshold means the same here and there: the first
// factor has so few bits that its product is exact, the second is what it lacks.
BARLOW_FAST_INLINE Vector<float> from_bytes(Vector<int32_t> bytes) {
  constexpr float most = 0x1.0101p-8f, rest = static_cast<float>(1.0 / 255 - 0x1.0101p-8);
  const Vector<float> x = __builtin_convertvector(bytes, Vector<float>);
  return x * most + x * rest;
}

constexpr int64_t kReadAhead = 2048;  // bytes: what is worked on within a memory access's time

// Reads kLanes pixels of a row, mirrored or not.
template <int C>
class Reader {
 public:
  explicit Reader(bool flip) : flip_(flip) {
#if defined(__AVX2__)
    // Groups of four pixels go to the 16-byte parts of a vector, and each of them to a lane there, widened by zeros.
    constexpr int parts = kVectorBytes / 16;
    for (int part = 0; part < parts; ++part) {
      for (int k = 0; k < 4; ++k) {
        groups_[4 * part + k] = 3 * (flip ? parts - 1 - part : part) + (k < 3 ? k : 0);
        for (int c = 0; c < C; ++c) {
          const uint32_t byte = static_cast<uint32_t>(3 * (flip ? 3 - k : k) + c);
          bytes_[c][4 * part + k] = static_cast<int32_t>(0x80808000u + byte);
        }
      }
    }
#endif
  }

  // Pixels x, x + 1, ... of the mirrored row or the row itself, of which `count` > 0 are there; the others are black.
  BARLOW_FAST_INLINE Pixels<C> read(const uint8_t* row, int64_t width, int64_t x) const {
    // Of a mirrored image pixels are read backwards and rows forwards, which the hardware does not foresee.
    __builtin_prefetch(row + C * x + kReadAhead);
    const int64_t count = width - x;
    if (count >= kLanes<float>) return read_whole(row + C * (flip_ ? count - kLanes<float> : x));
    uint8_t buffer[C * kLanes<float>] = {};
    const int64_t at = flip_ ? C * (kLanes<float> - count) : 0;
    for (int64_t i = 0; i < C * count; ++i) buffer[at + i] = row[i + (flip_ ? 0 : C * x)];
    return read_whole(buffer);
  }

 private:
  BARLOW_FAST_INLINE Pixels<C> read_whole(const uint8_t* from) const {
    Pixels<C> pixels;
#if defined(__AVX512F__)
    if constexpr (C == 3) {
      const __m512i groups =
          _mm512_permutexvar_epi32((__m512i)groups_, _mm512_maskz_loadu_epi32(0x0fff, from));
      for (int c = 0; c < C; ++c) {
        pixels.channel[c] = from_bytes((Vector<int32_t>)_mm512_shuffle_epi8(groups, (__m512i)bytes_[c]));
      }
      return pixels;
    }
#elif defined(__AVX2__)
    if constexpr (C == 3) {
      const __m256i there = _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0);
      const __m256i loaded = _mm256_maskload_epi32(reinterpret_cast<const int*>(from), there);
      const __m256i groups = _mm256_permutevar8x32_epi32(loaded, (__m256i)groups_);
      for (int c = 0; c < C; ++c) {
        pixels.channel[c] = from_bytes((Vector<int32_t>)_mm256_shuffle_epi8(groups, (__m256i)bytes_[c]));
      }
      return pixels;
    }
#endif
    for (int c = 0; c < C; ++c) {
      Vector<int32_t> bytes;
      if constexpr (C == 1) {
        typename NarrowVector<uint8_t, kLanes<float>>::type narrow;
        __builtin_memcpy(&narrow, from, sizeof narrow);
        bytes = __builtin_convertvector(narrow, Vector<int32_t>);
      } else {
#if defined(BARLOW_FAST_NEON)
        // Twelve bytes, and no more are read; those of a channel go to the lanes, widened by zeros.
        uint32_t last;
        __builtin_memcpy(&last, from + 8, sizeof last);
        const uint8x16_t pixels_of_all = vcombine_u8(vld1_u8(from), vcreate_u8(last));
        const uint32_t none = 0xffffff00u, first = none + static_cast<uint32_t>(c);
        const Vector<uint32_t> places = {first, first + C, first + 2 * C, first + 3 * C};
        bytes = (Vector<int32_t>)vqtbl1q_u8(pixels_of_all, (uint8x16_t)places);
#else
        for (int lane = 0; lane < kLanes<float>; ++lane) bytes[lane] = from[C * lane + c];
#endif
      }
      const Vector<float> x = from_bytes(bytes);
      pixels.channel[c] = flip_ ? reversed(x, std::make_integer_sequence<int, kLanes<float>>{}) : x;
    }
    return pixels;
  }

  template <int... Lane>
  static BARLOW_FAST_INLINE Vector<float> reversed(Vector<float> x, std::integer_sequence<int, Lane...>) {
    return chosen<(kLanes<float> - 1 - Lane)...>(x, x);
  }

  bool flip_;
#if defined(__AVX2__)
  Vector<int32_t> groups_;
  Vector<int32_t> bytes_[C];
#endif
};

// ---- colours --------------------------------------------------------------------------------------------------------

template <int C>
BARLOW_FAST_INLINE Vector<float> gray_of(const Pixels<C>& pixels) {
  if constexpr (C == 1) {
    return pixels.channel[0];
  } else {
    return pixels.channel[0] * 0.2989f + pixels.channel[1] * 0.587f + pixels.channel[2] * 0.114f;
  }
}

// Turns the hue by `turns`, from 1/6 to 7/6. The angle in sixths of a circle is (g - b) / chroma about red, (b - r) /
// chroma about green (2) and (r - g) / chroma about blue (4); a channel is below the value by a part of the chroma that
// rises and falls linearly with the angle's distance from the channel's own. Angles begin at -1: turned, at 0.
BARLOW_FAST_INLINE void turn_hue(Pixels<3>& pixels, float turns) {
  const Vector<float> red = pixels.channel[0], green = pixels.channel[1], blue = pixels.channel[2];
  const Vector<float> value = maximum(maximum(red, green), blue);
  const Vector<float> chroma = value - minimum(minimum(red, green), blue);
  const auto is_red = value == red, is_green = value == green;
  const Vector<float> difference = is_red ? green - blue : is_green ? blue - red : red - green;
  const float sixths = 6 * turns;
  const Vector<float> centre =
      is_red ? broadcast(sixths) : is_green ? broadcast(sixths + 2) : broadcast(sixths + 4);
  // Of a gray pixel the difference is zero too.
  Vector<float> turned = centre + difference / maximum(chroma, broadcast(1e-30f));
  turned = turned >= 6.0f ? turned - 6.0f : turned;
  pixels.channel[0] = value - chroma * within_unit(2.0f - magnitude(turned - 3.0f));
  pixels.channel[1] = value - chroma * within_unit(magnitude(turned - 2.0f) - 1.0f);
  pixels.channel[2] = value - chroma * within_unit(magnitude(turned - 4.0f) - 1.0f);
}

constexpr int kBlock = 8;  // vectors of pixels that go through the colour operations together

// The first `count` operations of the image on `vectors` vectors of pixels. Operation by operation: there is enough to
// do side by side in each, and nothing to choose within.
template <int C>
BARLOW_FAST_INLINE void jitter(Pixels<C>* block, int vectors, const PhotometricTask& task, int count, float mean_gray) {
  for (int i = 0; i < count; ++i) {
    const float factor = task.factors[i];
    switch (task.operations[i]) {
      case Jitter::hue:
        if constexpr (C == 3) {
          for (int v = 0; v < vectors; ++v) turn_hue(block[v], factor);
        }
        break;
      case Jitter::saturation:
        for (int v = 0; v < vectors; ++v) {
          const Vector<float> gray = (1 - factor) * gray_of(block[v]);
          for (int c = 0; c < C; ++c) block[v].channel[c] = within_unit(block[v].channel[c] * factor + gray);
        }
        break;
      case Jitter::brightness:
      case Jitter::contrast: {
        const float gray = task.operations[i] == Jitter::contrast ? (1 - factor) * mean_gray : 0.0f;
        for (int v = 0; v < vectors; ++v) {
          for (int c = 0; c < C; ++c) block[v].channel[c] = within_unit(block[v].channel[c] * factor + gray);
        }
        break;
      }
    }
  }
}

// Row y after the first `count` operations: hands function(x, pixels) a vector of them at a time.
template <int C, class Function>
BARLOW_FAST_INLINE void colour_row(const PhotometricTask& task, const Reader<C>& reader, int64_t y, int count,
                                   float mean_gray, const Function& function) {
  constexpr int lanes = kLanes<float>;
  const uint8_t* row = task.crop + y * task.width * C;
  if (count == 0) {
    for (int64_t x = 0; x < task.width; x += lanes) function(x, reader.read(row, task.width, x));
    return;
  }
  for (int64_t begin = 0; begin < task.width; begin += kBlock * lanes) {
    const int vectors = static_cast<int>(smaller(kBlock, (task.width - begin + lanes - 1) / lanes));
    Pixels<C> block[kBlock];
    for (int v = 0; v < vectors; ++v) block[v] = reader.read(row, task.width, begin + v * lanes);
    jitter(block, vectors, task, count, mean_gray);
    for (int v = 0; v < vectors; ++v) function(begin + v * lanes, block[v]);
  }
}

// The mean gray value after the first `count` operations, none of which is the contrast: they leave a black lane beyond
// the end of a row black.
template <int C>
float mean_gray_after(const PhotometricTask& task, const Reader<C>& reader, int count) {
  double total = 0;
  for (int64_t y = 0; y < task.height; ++y) {
    Vector<float> sum{};
    colour_row(task, reader, y, count, 0.0f, [&](int64_t, const Pixels<C>& pixels) { sum += gray_of(pixels); });
    total += sum_lanes<float>(sum);
  }
  return static_cast<float>(total / static_cast<double>(task.height * task.width));
}

template <int C>
float mean_gray_of(const PhotometricTask& task, const Reader<C>& reader) {
  for (int i = 0; i < task.operation_count; ++i) {
    if (task.operations[i] == Jitter::contrast) return mean_gray_after(task, reader, i);
  }
  return 0;
}

// ---- planes to the output -------------------------------------------------------------------------------------------

// Element Lane of the output's vector Part comes from this lane of the first two channels, or, Last, from this lane of
// what these gave and the third one.
template <int Part, bool Last>
constexpr int interleaved_lane(int lane) {
  constexpr int lanes = kLanes<float>;
  const int pixel = (Part * lanes + lane) / 3, channel = (Part * lanes + lane) % 3;
  if (Last) return channel == 2 ? lanes + pixel : lane;
  return channel == 1 ? lanes + pixel : channel == 0 ? pixel : 0;
}

template <int Part, int... Lane>
BARLOW_FAST_INLINE Vector<float> interleaved(const Pixels<3>& pixels, std::integer_sequence<int, Lane...>) {
  const Vector<float> both =
      chosen<interleaved_lane<Part, false>(Lane)...>(pixels.channel[0], pixels.channel[1]);
  return chosen<interleaved_lane<Part, true>(Lane)...>(both, pixels.channel[2]);
}

template <int... Lane>
BARLOW_FAST_INLINE Vector<int32_t> lane_numbers(std::integer_sequence<int, Lane...>) {
  return Vector<int32_t>{Lane...};
}

// Solarizes, erases, normalises and stores pixels x, x + 1, ... of row y.
template <int C, Element E>
BARLOW_FAST_INLINE void finish(Pixels<C> pixels, const PhotometricTask& task, int64_t y, int64_t x) {
  using Lanes = std::make_integer_sequence<int, kLanes<float>>;
  if (task.solarize) {
    const Vector<float> threshold = broadcast(task.threshold);
    for (int c = 0; c < C; ++c) {
      const Vector<float> before = pixels.channel[c];
      pixels.channel[c] = before >= threshold ? 1.0f - before : before;
    }
  }
  if (y >= task.erase_top && y < task.erase_bottom) {
    const Vector<int32_t> column = lane_numbers(Lanes{}) + static_cast<int32_t>(x);
    const auto erased = (column >= static_cast<int32_t>(task.erase_left)) &
                        (column < static_cast<int32_t>(task.erase_right));
    for (int c = 0; c < C; ++c) pixels.channel[c] = erased ? Vector<float>{} : pixels.channel[c];
  }
  for (int c = 0; c < C; ++c) pixels.channel[c] = (pixels.channel[c] - task.mean[c]) * task.scale[c];
  auto* to = static_cast<typename ElementOf<E>::type*>(task.out) + C * (y * task.width + x);
  const int64_t count = C * (task.width - x);
  constexpr int lanes = kLanes<float>;
  if constexpr (C == 1) {
    write_out<float, E>(to, pixels.channel[0], count, task.stream);
  } else {
    write_out<float, E>(to, interleaved<0>(pixels, Lanes{}), count, task.stream);
    write_out<float, E>(to + lanes, interleaved<1>(pixels, Lanes{}), count - lanes, task.stream);
    write_out<float, E>(to + 2 * lanes, interleaved<2>(pixels, Lanes{}), count - 2 * lanes, task.stream);
  }
}

template <int C>
BARLOW_FAST_INLINE Pixels<C> all_channels(const Pixels<1>& gray) {
  Pixels<C> pixels;
  for (int c = 0; c < C; ++c) pixels.channel[c] = gray.channel[0];
  return pixels;
}
template <int C>
BARLOW_FAST_INLINE Pixels<C> all_channels(const Pixels<C>& pixels) {
  return pixels;
}

// ---- images without a blur ------------------------------------------------------------------------------------------

template <int C, Element E>
void sharp_image(const PhotometricTask& task) {
  const Reader<C> reader(task.flip);
  const float mean_gray = mean_gray_of(task, reader);
  for (int64_t y = 0; y < task.height; ++y) {
    colour_row(task, reader, y, task.operation_count, mean_gray, [&](int64_t x, const Pixels<C>& pixels) {
      finish<C, E>(task.gray ? all_channels<C>(Pixels<1>{{gray_of(pixels)}}) : pixels, task, y, x);
    });
  }
}

// ---- images with a blur ---------------------------------------------------------------------------------------------

constexpr int64_t kBlurredRows = 2;  // output rows that are summed at a time

// Where position `at` of a line of `size` lies when borders are mirrors: -1, -2, ... are 1, 2, ..., back and forth.
BARLOW_FAST_INLINE int64_t mirrored(int64_t at, int64_t size) {
  if (size == 1) return 0;
  const int64_t period = 2 * size - 2;
  at %= period;
  if (at < 0) at += period;
  return at < size ? at : period - at;
}

struct BlurScratch {
  int64_t width;      // of a plane's row, in whole vectors
  int64_t border;     // elements before a sharp row's first pixel
  int64_t sharp_row;  // elements of a sharp row with its borders
  int64_t ring_rows;
  float* sharp;        // one row of each plane with its borders
  float* ring;         // rows blurred sideways: row y is in slot y % ring_rows, its planes one behind the other
  const float** rows;  // of the ring, above and below the output rows

  BlurScratch(Arena& arena, const PhotometricTask& task) {
    width = round_up(task.width, kLanes<float>);
    border = round_up(task.radius, kLanes<float>);
    sharp_row = width + 2 * border;
    ring_rows = smaller(task.height, 2 * task.radius + kBlurredRows);
    sharp = arena.take<float>(task.channels * sharp_row);
    ring = arena.take<float>(task.channels * ring_rows * width);
    rows = arena.take<const float*>(2 * task.radius + kBlurredRows);
  }
};

// The borders of a row of `width` pixels: its mirror images.
BARLOW_FAST_INLINE void add_borders(float* row, int64_t width, int64_t radius) {
  if (radius < width) {
    for (int64_t k = 1; k <= radius; ++k) {
      row[-k] = row[k];
      row[width - 1 + k] = row[width - 1 - k];
    }
    return;
  }
  for (int64_t k = 1; k <= radius; ++k) {
    row[-k] = row[mirrored(-k, width)];
    row[width - 1 + k] = row[mirrored(width - 1 + k, width)];
  }
}

// A row that has borders, in whole vectors, blurred along itself.
BARLOW_FAST_INLINE void blur_sideways_by_loads(const float* row, int64_t width, const float* weights, int64_t radius,
                                               float* out) {
  for (int64_t x = 0; x < width; x += kLanes<float>) {
    Vector<float> sum = load(row + x) * weights[0];
    for (int64_t k = 1; k <= radius; ++k) sum += (load(row + x - k) + load(row + x + k)) * weights[k];
    store(out + x, sum);
  }
}

#if defined(__AVX512F__)
// The same for each of the distances 1 + Before. A load that is not aligned reads two lines of the cache here,
// so neighbours are shifted out of three vectors in registers instead.
template <int... Before>
void blur_sideways_by_shifts(const float* row, int64_t width, const float* weights, float* out,
                             std::integer_sequence<int, Before...>) {
  const Vector<float> weight[] = {broadcast(weights[1 + Before])...};
  const Vector<float> middle = broadcast(weights[0]);
  Vector<float> left = load(row - kLanes<float>), here = load(row);
  for (int64_t x = 0; x < width; x += kLanes<float>) {
    const Vector<float> right = load(row + x + kLanes<float>);
    const __m512i a = (__m512i)left, b = (__m512i)here, c = (__m512i)right;
    Vector<float> sum = here * middle;
    ((sum += ((Vector<float>)_mm512_alignr_epi32(b, a, 15 - Before) +
              (Vector<float>)_mm512_alignr_epi32(c, b, 1 + Before)) * weight[Before]), ...);
    store(out + x, sum);
    left = here;
    here = right;
  }
}
#endif

BARLOW_FAST_INLINE void blur_sideways(const float* row, int64_t width, const float* weights, int64_t radius,
                                      float* out) {
#if defined(__AVX512F__)
#define BARLOW_FAST_SHIFTS(r) \
  case r: return blur_sideways_by_shifts(row, width, weights, out, std::make_integer_sequence<int, r>{})
  switch (radius) {
    BARLOW_FAST_SHIFTS(1);
    BARLOW_FAST_SHIFTS(2);
    BARLOW_FAST_SHIFTS(3);
    BARLOW_FAST_SHIFTS(4);
    BARLOW_FAST_SHIFTS(5);
    BARLOW_FAST_SHIFTS(6);
    BARLOW_FAST_SHIFTS(7);
    BARLOW_FAST_SHIFTS(8);
  }
#undef BARLOW_FAST_SHIFTS
#endif
  blur_sideways_by_loads(row, width, weights, radius, out);
}

// Columns x, x + 1, ... of two neighbouring output rows, from one plane of the rows about them: `rows` points to the
// ring's row at the first of them, with `radius` rows before and radius + 1 after it. Each loaded row serves both.
BARLOW_FAST_INLINE void blur_downwards(const float* const* rows, int64_t x, const float* weights, int64_t radius,
                                       Vector<float>& first, Vector<float>& second) {
  Vector<float> above = load(rows[-radius] + x), below = load(rows[radius + 1] + x);
  Vector<float> sum_first{}, sum_second{};
  for (int64_t k = radius; k > 0; --k) {
    const Vector<float> next_above = load(rows[1 - k] + x), next_below = load(rows[k] + x);
    sum_first += (above + next_below) * weights[k];
    sum_second += (next_above + below) * weights[k];
    above = next_above;
    below = next_below;
  }
  first = sum_first + above * weights[0];
  second = sum_second + below * weights[0];
}

// C channels in the input and the output, P planes that are blurred: one where the image becomes gray.
template <int C, int P, Element E>
void blurred_image(const PhotometricTask& task, void* memory) {
  Arena arena{static_cast<char*>(memory)};
  const BlurScratch scratch(arena, task);
  const Reader<C> reader(task.flip);
  const float mean_gray = mean_gray_of(task, reader);
  const int64_t radius = task.radius, height = task.height, width = scratch.width;
  float* const sharp = scratch.sharp + scratch.border;
  // Values beyond the borders only reach lanes that are not read, but must be numbers.
  for (int64_t i = 0; i < P * scratch.sharp_row; ++i) scratch.sharp[i] = 0;
  int64_t made = 0;
  for (int64_t y = 0; y < height; y += kBlurredRows) {
    for (const int64_t needed = smaller(height, y + radius + kBlurredRows); made < needed; ++made) {
      colour_row(task, reader, made, task.operation_count, mean_gray, [&](int64_t x, const Pixels<C>& pixels) {
        if constexpr (P == C) {
          for (int c = 0; c < C; ++c) store(sharp + c * scratch.sharp_row + x, pixels.channel[c]);
        } else {
          store(sharp + x, gray_of(pixels));
        }
      });
      float* to = scratch.ring + made % scratch.ring_rows * P * width;
      for (int p = 0; p < P; ++p) {
        float* plane = sharp + p * scratch.sharp_row;
        add_borders(plane, task.width, radius);
        blur_sideways(plane, width, task.weights, radius, to + p * width);
      }
    }
    for (int64_t k = 0; k < 2 * radius + kBlurredRows; ++k) {
      const int64_t at = y - radius + k;
      const int64_t row = at >= 0 && at < height ? at : mirrored(at, height);
      scratch.rows[k] = scratch.ring + row % scratch.ring_rows * P * width;
    }
    for (int64_t x = 0; x < task.width; x += kLanes<float>) {
      Pixels<P> first, second;
      for (int p = 0; p < P; ++p) {
        blur_downwards(scratch.rows + radius, p * width + x, task.weights, radius, first.channel[p], second.channel[p]);
      }
      finish<C, E>(all_channels<C>(first), task, y, x);
      // An odd height ends with one row alone; its sum stands for nothing.
      if (y + 1 < height) finish<C, E>(all_channels<C>(second), task, y + 1, x);
    }
  }
}

// ---- one image ------------------------------------------------------------------------------------------------------

size_t photometric_scratch(const PhotometricTask& task) {
  if (task.radius == 0) return 0;
  Arena arena{nullptr};
  BlurScratch scratch(arena, task);
  return arena.used;
}

template <int C, Element E>
void photometric_in(const PhotometricTask& task, void* scratch) {
  if (task.radius == 0) {
    sharp_image<C, E>(task);
  } else if (C == 1 || task.gray) {
    blurred_image<C, 1, E>(task, scratch);
  } else {
    blurred_image<C, C, E>(task, scratch);
  }
  finish_streams(task.stream);
}

template <int C>
void photometric_of(const PhotometricTask& task, void* scratch) {
  switch (task.type) {
    case Element::bf16: return photometric_in<C, Element::bf16>(task, scratch);
    case Element::f16: return photometric_in<C, Element::f16>(task, scratch);
    default: return photometric_in<C, Element::f32>(task, scratch);
  }
}

void photometric(const PhotometricTask& task, void* scratch) {
  task.channels == 1 ? photometric_of<1>(task, scratch) : photometric_of<3>(task, scratch);
}
