// Checks of the operators' arguments. The operators are public (torch.ops.barlow_fast_cpu): saved graphs and scripts
// call them, and the kernels do not check. Each operator checks type, shape and layout of every tensor and the range of
// every number here, before any memory is accessed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

#include "contract.h"

namespace barlow_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType scalar_type_of(Element element) {
  constexpr ScalarType types[] = {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half};
  return types[static_cast<int>(element)];
}

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    default: return torch::headeronly::toString(type);
  }
}

// Images of bytes in memory: the channels of a pixel and the pixels of a row are contiguous, rows and images any number
// of bytes apart.
struct Pixels {
  uint8_t* data;
  int64_t count, height, width, channels, image_stride, row_stride;
};

// The tensors of one call. `input`, `output` and the others check one each; `done` that no output overlaps another
// tensor of the call.
class Arguments {
 public:
  // (N, D) embeddings, at least `rows_at_least` rows and one column: columns contiguous, rows any number
  // of elements apart.
  View embeddings(const Tensor& z, const char* name, int64_t rows_at_least = 1) {
    STD_TORCH_CHECK(z.dim() == 2 && z.size(0) >= rows_at_least && z.size(1) >= 1, "barlow_fast: ", name,
                    " must be (N, D) with N >= ", rows_at_least, " and D >= 1, got ", described(z));
    STD_TORCH_CHECK(z.size(1) == 1 || z.stride(1) == 1, "barlow_fast: the columns of ", name,
                    " must be contiguous, got ", described(z));
    const Element type = floating(z, name);
    const int64_t n = z.size(0), d = z.size(1);
    hold(z, name, n == 0 ? 0 : (n - 1) * z.stride(0) + d, element_bytes(type), false);
    return View{z.const_data_ptr(), z.stride(0), type};
  }

  // Both views: of one shape and type.
  std::array<View, 2> pair(const Tensor& z_a, const Tensor& z_b) {
    const View a = embeddings(z_a, "z_a"), b = embeddings(z_b, "z_b");
    STD_TORCH_CHECK(z_a.size(0) == z_b.size(0) && z_a.size(1) == z_b.size(1) && a.type == b.type,
                    "barlow_fast: z_a and z_b must have the same shape and dtype, got ", described(z_a), " and ",
                    described(z_b));
    return {a, b};
  }

  // One view or more, of one shape and type.
  std::vector<View> views(const std::vector<Tensor>& z) {
    STD_TORCH_CHECK(!z.empty(), "barlow_fast: views must be one tensor or more, got none");
    std::vector<View> found;
    for (const Tensor& view : z) {
      found.push_back(embeddings(view, "views"));
      STD_TORCH_CHECK(view.size(0) == z[0].size(0) && view.size(1) == z[0].size(1) && found.back().type == found[0].type,
                      "barlow_fast: views must have the same shape and dtype, got ", described(z[0]), " and ",
                      described(view));
    }
    return found;
  }

  // A contiguous tensor of exactly these sizes and this type.
  const void* input(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, ScalarType type) {
    check(x, name, sizes, type);
    hold(x, name, x.numel(), size_of(type), false);
    return x.const_data_ptr();
  }
  const void* input(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, Element type) {
    return input(x, name, sizes, scalar_type_of(type));
  }
  void* output(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, Element type) {
    check(x, name, sizes, scalar_type_of(type));
    hold(x, name, x.numel(), element_bytes(type), true);
    return x.mutable_data_ptr();
  }

  // As many float64 values as there are, of any shape.
  const double* values(const Tensor& x, const char* name) {
    STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Double && x.is_contiguous(), "barlow_fast: ", name,
                    " must be a contiguous float64 CPU tensor, got ", described(x));
    hold(x, name, x.numel(), 8, false);
    return static_cast<const double*>(x.const_data_ptr());
  }
  // `count` values of one of two types in any shape.
  Output accumulated(const Tensor& x, const char* name, int64_t count) {
    const bool fits = x.is_cpu() && x.numel() == count && x.is_contiguous() &&
                      (x.scalar_type() == ScalarType::Double || x.scalar_type() == ScalarType::Float);
    STD_TORCH_CHECK(fits, "barlow_fast: ", name, " must be a contiguous CPU tensor of ", count,
                    " float32 or float64 elements, got ", described(x));
    const Element type = x.scalar_type() == ScalarType::Double ? Element::f64 : Element::f32;
    hold(x, name, count, element_bytes(type), true);
    return Output{x.mutable_data_ptr(), count, type};
  }
  double* sums(const Tensor& x, const char* name, int64_t count) {
    const Output out = accumulated(x, name, count);
    STD_TORCH_CHECK(out.type == Element::f64, "barlow_fast: ", name, " must be float64, got ", described(x));
    return static_cast<double*>(out.data);
  }
  // One value that is read.
  double scalar(const Tensor& x, const char* name) {
    const bool fits = x.is_cpu() && x.numel() == 1 &&
                      (x.scalar_type() == ScalarType::Double || x.scalar_type() == ScalarType::Float);
    STD_TORCH_CHECK(fits, "barlow_fast: ", name, " must be one float32 or float64 element on the CPU, got ",
                    described(x));
    const bool wide = x.scalar_type() == ScalarType::Double;
    hold(x, name, 1, wide ? 8 : 4, false);
    return wide ? *static_cast<const double*>(x.const_data_ptr()) : *static_cast<const float*>(x.const_data_ptr());
  }
  // A gradient in the shape and type of its embeddings; an empty tensor where it is not wanted.
  Output gradient(const Tensor& x, const char* name, const Tensor& z, const View& view) {
    if (x.numel() == 0) return Output{nullptr, 0, Element::f32};
    return Output{output(x, name, {z.size(0), z.size(1)}, view.type), z.size(1), view.type};
  }

  // One image (H, W, C) or, `batched`, any number (B, H, W, C). Images that are written do not overlap each other.
  Pixels pixels(const Tensor& x, const char* name, bool batched, bool written) {
    constexpr int64_t most = int64_t{1} << 24;
    const int64_t d = batched ? 1 : 0;
    const bool fits = x.is_cpu() && x.scalar_type() == ScalarType::Byte && x.dim() == 3 + d &&
                      (x.size(d + 2) == 1 || x.size(d + 2) == 3) && x.size(d) >= 1 && x.size(d + 1) >= 1 &&
                      x.size(d) <= most && x.size(d + 1) <= most;
    STD_TORCH_CHECK(fits, "barlow_fast: ", name, " must be a uint8 CPU tensor of (", batched ? "B, " : "",
                    "H, W, 1 or 3) with sides of 1 to ", most, ", got ", described(x));
    const int64_t count = batched ? x.size(0) : 1, height = x.size(d), width = x.size(d + 1), channels = x.size(d + 2);
    const int64_t rows = x.stride(d), images = batched ? x.stride(0) : 0, row = width * channels;
    const bool pixels_contiguous = (channels == 1 || x.stride(d + 2) == 1) && (width == 1 || x.stride(d + 1) == channels);
    const bool rows_apart = (height == 1 || rows >= row) && (count <= 1 || images >= (height - 1) * rows + row);
    STD_TORCH_CHECK(pixels_contiguous, "barlow_fast: the pixels of a row of ", name, " must be contiguous, got ",
                    described(x));
    STD_TORCH_CHECK(!written || rows_apart, "barlow_fast: ", name, " is written and overlaps itself, got ", described(x));
    hold(x, name, count == 0 ? 0 : (count - 1) * images + (height - 1) * rows + row, 1, written);
    return Pixels{static_cast<uint8_t*>(const_cast<void*>(x.const_data_ptr())), count, height, width, channels, images,
                  rows};
  }

  // Overlaps would be read while they are written.
  void done() const {
    for (const Held& out : held_) {
      if (!out.written) continue;
      for (const Held& other : held_) {
        const bool apart = &out == &other || out.end <= other.begin || other.end <= out.begin;
        STD_TORCH_CHECK(apart, "barlow_fast: ", out.name, " is written and overlaps ", other.name);
      }
    }
  }

  static void finite(double value, const char* name) {
    STD_TORCH_CHECK(std::isfinite(value), "barlow_fast: ", name, " must be finite, got ", value);
  }
  static void not_negative(double value, const char* name) {
    STD_TORCH_CHECK(std::isfinite(value) && value >= 0, "barlow_fast: ", name, " must be finite and at least 0, got ",
                    value);
  }
  static void positive(int64_t value, const char* name) {
    STD_TORCH_CHECK(value >= 1, "barlow_fast: ", name, " must be at least 1, got ", value);
  }
  static Element operand(int64_t code) {
    STD_TORCH_CHECK(code >= 0 && code <= 4, "barlow_fast: operand must be 0 (float64), 1 (float32), 2 (bfloat16), "
                    "3 (float16) or 4 (tf32), got ", code);
    return static_cast<Element>(code);
  }

  static Element floating(const Tensor& x, const char* name) {
    if (x.is_cpu()) {
      switch (x.scalar_type()) {
        case ScalarType::Double: return Element::f64;
        case ScalarType::Float: return Element::f32;
        case ScalarType::BFloat16: return Element::bf16;
        case ScalarType::Half: return Element::f16;
        default: break;
      }
    }
    STD_TORCH_CHECK(false, "barlow_fast: ", name, " must be float64, float32, bfloat16 or float16 on the CPU, got ",
                    described(x));
    return Element::f32;
  }

  static std::string described(const Tensor& x) {
    std::ostringstream words;
    words << type_name(x.scalar_type()) << " (";
    for (int64_t i = 0; i < x.dim(); ++i) words << (i ? ", " : "") << x.size(i);
    words << ")" << (x.is_contiguous() ? "" : ", not contiguous") << (x.is_cpu() ? "" : ", not on the CPU");
    return words.str();
  }

 private:
  struct Held {
    const char* begin;
    const char* end;
    const char* name;
    bool written;
  };

  static int64_t size_of(ScalarType type) {
    switch (type) {
      case ScalarType::Double: return 8;
      case ScalarType::Float: return 4;
      case ScalarType::Byte: return 1;
      default: return 2;
    }
  }

  static void check(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, ScalarType type) {
    bool fits = x.is_cpu() && x.scalar_type() == type && x.dim() == static_cast<int64_t>(sizes.size());
    int64_t dim = 0;
    for (const int64_t size : sizes) fits = fits && x.size(dim++) == size;
    if (fits && x.is_contiguous()) return;
    std::ostringstream words;
    for (const int64_t size : sizes) words << (words.tellp() > 0 ? ", " : "") << size;
    STD_TORCH_CHECK(false, "barlow_fast: ", name, " must be a contiguous ", type_name(type),
                    " CPU tensor of (", words.str(), "), got ", described(x));
  }

  // Remembers where x lies. Storage can be freed under a tensor (untyped_storage().resize_(0), as FSDP does).
  void hold(const Tensor& x, const char* name, int64_t elements, int64_t size, bool written) {
    if (elements == 0) return;
    int64_t stored = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &stored));
    STD_TORCH_CHECK((x.storage_offset() + elements) * size <= stored, "barlow_fast: the storage of ", name,
                    " has been freed or is smaller than the tensor");
    const char* begin = static_cast<const char*>(x.const_data_ptr());
    held_.push_back(Held{begin, begin + elements * size, name, written});
  }

  std::vector<Held> held_;
};

}  // namespace barlow_fast
