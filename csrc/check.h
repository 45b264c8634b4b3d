// Argument checks whose sentences are those of clsd_fast/ops/_checks.py:
// "<op>: expected <what>, got <what>". They keep a direct call of torch.ops memory-safe.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace clsd {

using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

[[noreturn]] inline void fail(const char* op, const std::string& expected, const std::string& got) {
  throw std::runtime_error(std::string(op) + ": expected " + expected + ", got " + got);
}

// What composes a sentence from more than literals tests first and calls `fail`: that takes longer
// than a small operator.
inline void check(bool condition, const char* op, const std::string& expected,
                  const std::string& got) {
  if (!condition) fail(op, expected, got);
}

inline std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

inline Shape shape_of(const Tensor& tensor) {
  Shape shape(tensor.dim());
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = tensor.size(static_cast<int64_t>(i));
  return shape;
}

inline bool has_shape(const Tensor& tensor, const Shape& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) {
    same = tensor.size(static_cast<int64_t>(i)) == shape[i];
  }
  return same;
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        const Shape& shape) {
  if (has_shape(tensor, shape)) return;
  fail(op, std::string(name) + " of shape " + to_string(shape), to_string(shape_of(tensor)));
}

inline void check_contiguous(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.is_contiguous()) return;
  Shape strides(tensor.dim());
  for (size_t i = 0; i < strides.size(); ++i) strides[i] = tensor.stride(static_cast<int64_t>(i));
  fail(op, std::string(name) + " contiguous", "strides " + to_string(strides));
}

inline const char* dtype_name(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    default: return torch::headeronly::toString(dtype);
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        torch::headeronly::ScalarType dtype, const char* expected) {
  if (tensor.scalar_type() == dtype) return;
  fail(op, std::string(name) + " of dtype " + expected, dtype_name(tensor.scalar_type()));
}

inline void check_device(const char* op, const char* name, const Tensor& x, const Tensor& other) {
  if (other.is_cpu() == x.is_cpu() && other.get_device() == x.get_device()) return;
  fail(op, std::string(name) + " on x's device", "another");
}

// The dtype and device of x are those of the call.
inline void check_like(const char* op, const char* name, const Tensor& x, const Tensor& other) {
  check_dtype(op, name, other, x.scalar_type(), dtype_name(x.scalar_type()));
  check_device(op, name, x, other);
}

inline bool is_16_bit(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// Parameters have x's dtype, or are all float32 beside 16-bit x. The call's first one decides.
inline void check_parameter(const char* op, const char* name, const Tensor& x, const Tensor& first,
                            const Tensor& parameter) {
  const auto narrow = x.scalar_type(), wide = torch::headeronly::ScalarType::Float;
  const auto dtype = is_16_bit(narrow) && first.scalar_type() == wide ? wide : narrow;
  if (parameter.scalar_type() != dtype) {
    const bool open = is_16_bit(narrow) && &first == &parameter;
    fail(op, std::string(name) + " of dtype " + dtype_name(dtype) + (open ? " or float32" : ""),
         dtype_name(parameter.scalar_type()));
  }
  check_device(op, name, x, parameter);
}

inline void check_images(const char* op, const char* name, const Tensor& x) {
  bool good = x.dim() == 4;
  for (int64_t i = 1; good && i < 4; ++i) good = x.size(i) >= 1;
  if (good) return;
  fail(op, std::string(name) + " of shape [N, C, H, W] with C, H, W >= 1", to_string(shape_of(x)));
}

// weight is [K, C, 3, 3] for x's C, bias is [K].
inline void check_conv(const char* op, const Tensor& x, const Tensor& weight,
                       const std::optional<Tensor>& bias, const std::string& suffix = "") {
  const int64_t channels = x.size(1);
  const bool good = weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == channels &&
                    weight.size(2) == 3 && weight.size(3) == 3;
  if (!good) {
    fail(op, "weight" + suffix + " of shape [K, " + std::to_string(channels) + ", 3, 3]",
         to_string(shape_of(weight)));
  }
  check_parameter(op, ("weight" + suffix).c_str(), x, weight, weight);
  if (bias) {
    check_shape(op, ("bias" + suffix).c_str(), *bias, {weight.size(0)});
    check_parameter(op, ("bias" + suffix).c_str(), x, weight, *bias);
  }
}

// The operands of conv3x3; returns the shape of its output.
inline Shape check_conv3x3(const char* op, const Tensor& x, const Tensor& weight,
                           const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& residual = std::nullopt) {
  check_images(op, "x", x);
  check_conv(op, x, weight, bias);
  const Shape shape = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  if (residual) {
    check_shape(op, "residual", *residual, shape);
    check_like(op, "residual", x, *residual);
  }
  return shape;
}

// The operands of residual_block; returns the shape of its hidden map.
inline Shape check_residual_block(const char* op, const Tensor& x, const Tensor& weight1,
                                  const std::optional<Tensor>& bias1, const Tensor& weight2,
                                  const std::optional<Tensor>& bias2) {
  check_images(op, "x", x);
  check_conv(op, x, weight1, bias1, "1");
  check_shape(op, "weight2", weight2, {x.size(1), weight1.size(0), 3, 3});
  check_parameter(op, "weight2", x, weight1, weight2);
  if (bias2) {
    check_shape(op, "bias2", *bias2, {x.size(1)});
    check_parameter(op, "bias2", x, weight1, *bias2);
  }
  return {x.size(0), weight1.size(0), x.size(2), x.size(3)};
}

// The operands of pixel_shuffle_upsample; returns the shape of its output.
inline Shape check_pixel_shuffle_upsample(const char* op, const Tensor& x, const Tensor& weight,
                                          const std::optional<Tensor>& bias,
                                          int64_t upscale_factor) {
  check_images(op, "x", x);
  if (upscale_factor < 1) fail(op, "upscale_factor >= 1", std::to_string(upscale_factor));
  check_conv(op, x, weight, bias);
  const int64_t square = upscale_factor * upscale_factor;
  if (weight.size(0) % square != 0) {
    fail(op,
         "weight of shape [" + std::to_string(square) + " K, " + std::to_string(x.size(1)) +
             ", 3, 3]",
         to_string(shape_of(weight)));
  }
  return {x.size(0), weight.size(0) / square, x.size(2) * upscale_factor,
          x.size(3) * upscale_factor};
}

// A further argument of a backward: images of that shape, like x.
inline void check_backward(const char* op, const char* name, const Tensor& x, const Tensor& images,
                           const Shape& shape) {
  check_shape(op, name, images, shape);
  check_like(op, name, x, images);
}

inline void check_rows(const char* op, const char* name, const Tensor& rows) {
  if (rows.dim() == 3 && rows.size(2) >= 1) return;
  fail(op, std::string(name) + " of shape [B, rows, D]", to_string(shape_of(rows)));
}

}  // namespace clsd
