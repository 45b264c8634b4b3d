// Between stable-ABI tensors and the plain views of shapes.h.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "check.h"
#include "shapes.h"

namespace clsd {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

// The type that sums are kept in: float for 16-bit storage.
template <class S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? dtype : ScalarType::Float;
}

// Call function(S{}) with the storage type S of dtype.
template <class F>
auto dispatch(const char* op, ScalarType dtype, F&& function) {
  switch (dtype) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(torch::headeronly::BFloat16{});
    case ScalarType::Half: return function(torch::headeronly::Half{});
    default:
      check(false, op, "x of dtype float32, float64, bfloat16, float16", dtype_name(dtype));
      return function(float{});
  }
}

// Call function(P{}) with the type P of a call's parameters: S, or float beside 16-bit images.
template <class S, class F>
auto dispatch_parameter(const Tensor& parameter, F&& function) {
  if constexpr (sizeof(S) == 2) {
    if (parameter.scalar_type() == ScalarType::Float) return function(float{});
  }
  return function(S{});
}

template <class S>
S* data(const Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

template <class S>
const S* const_data(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}

// Dense in the given order of dimensions; strides of dimensions of size 1 do not matter.
inline bool is_dense(const Tensor& x, std::initializer_list<int64_t> order) {
  int64_t expected = 1;
  for (auto dim = order.end(); dim != order.begin();) {
    --dim;
    if (x.size(*dim) != 1 && x.stride(*dim) != expected) return false;
    expected *= x.size(*dim);
  }
  return true;
}

// Every output's format: channels_last if x is unambiguously that, else contiguous.
inline MemoryFormat memory_format(const Tensor& x) {
  const bool channels_last =
      x.numel() > 0 && !is_dense(x, {0, 1, 2, 3}) && is_dense(x, {0, 2, 3, 1});
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Why PyTorch's last function failed, from PyTorch 2.13 on: the stable ABI of earlier ones keeps no
// reason.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

[[noreturn]] inline void fail_to_make(const Tensor& like, const Shape& shape, ScalarType dtype) {
  const std::string what = "a tensor of shape " + to_string(shape) + ", " + dtype_name(dtype);
  if (torch_exception_get_what_without_backtrace) {
    const char* reason = torch_exception_get_what_without_backtrace();
    throw std::runtime_error(std::string(reason) + " (for " + what + ")");
  }
  // On other devices, errors of earlier work come out here, too.
  if (!like.is_cpu()) throw std::runtime_error("PyTorch failed to make " + what);
  uint64_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  for (const int64_t size : shape) bytes *= static_cast<uint64_t>(size);
  fail_to_allocate(bytes, what);
}

inline Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  try {
    // The latter names the operator, which is looked up: for a small result, longer than the work.
    if (format == MemoryFormat::Contiguous) return torch::stable::new_empty(like, shape, dtype);
    return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt, format);
  } catch (const std::exception&) {
    fail_to_make(like, shape, dtype);
  }
}

inline Tensor empty(const Tensor& like, const Shape& shape,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return empty(like, shape, like.scalar_type(), format);
}

// The same shape for an absent gradient everywhere.
inline Tensor absent(const Tensor& like) { return empty(like, {0}); }

// Statistics of rows [B, N, D], in the accumulator's type: by default a number a row.
inline Tensor empty_statistic(const Tensor& rows, const Shape& leading = {}) {
  Shape shape = leading;
  shape.insert(shape.end(), {rows.size(0), rows.size(1)});
  return empty(rows, shape, accumulator_dtype(rows.scalar_type()));
}

inline void check_statistic(const char* op, const char* name, const Tensor& rows,
                            const Tensor& statistic, const Shape& leading = {}) {
  Shape shape = leading;
  shape.insert(shape.end(), {rows.size(0), rows.size(1)});
  check_shape(op, name, statistic, shape);
  const auto dtype = accumulator_dtype(rows.scalar_type());
  check_dtype(op, name, statistic, dtype, dtype_name(dtype));
  check_contiguous(op, name, statistic);
}

// Sort the channels by offset and find their runs.
template <class S>
void order_channels(Images<S>& view) {
  const auto before = [&](int64_t a, int64_t b) { return view.channel[a] < view.channel[b]; };
  view.order.resize(view.channel.size());
  std::iota(view.order.begin(), view.order.end(), int64_t{0});
  if (!std::is_sorted(view.order.begin(), view.order.end(), before)) {
    std::stable_sort(view.order.begin(), view.order.end(), before);
  }
  view.run = view.channels;
  for (int64_t k = 1; k < view.channels; ++k) {
    const bool consecutive = view.channel[view.order[k]] == view.channel[view.order[k - 1]] + 1;
    if (!consecutive) view.run = std::gcd(view.run, k);
  }
}

// channels_last images in memory that no tensor owns.
template <class S>
Images<S> images(S* memory, const Shape& shape) {
  const int64_t channels = shape[1], height = shape[2], width = shape[3];
  Images<S> view{
      .data = memory,
      .batch = shape[0],
      .channels = channels,
      .height = height,
      .width = width,
      .stride_n = height * width * channels,
      .stride_h = width * channels,
      .stride_w = channels,
  };
  view.channel.resize(static_cast<size_t>(channels));
  std::iota(view.channel.begin(), view.channel.end(), int64_t{0});
  order_channels(view);
  return view;
}

// Images [N, K, H r, W r] seen as what pixel_shuffle made them from: [N, K r^2, H, W].
template <class S>
Images<S> images(const Tensor& tensor, int64_t upscale = 1) {
  using Plain = std::remove_const_t<S>;
  const int64_t square = upscale * upscale;
  Images<S> view{
      .data = data<Plain>(tensor),
      .batch = tensor.size(0),
      .channels = tensor.size(1) * square,
      .height = tensor.size(2) / upscale,
      .width = tensor.size(3) / upscale,
      .stride_n = tensor.stride(0),
      .stride_h = tensor.stride(2) * upscale,
      .stride_w = tensor.stride(3) * upscale,
  };
  view.channel.resize(static_cast<size_t>(view.channels));
  for (int64_t k = 0; k < view.channels; ++k) {
    const int64_t phase = k % square;
    view.channel[k] = k / square * tensor.stride(1) + phase / upscale * tensor.stride(2) +
                      phase % upscale * tensor.stride(3);
  }
  order_channels(view);
  return view;
}

// The same images, not to be written.
template <class S>
Images<const S> constant(const Images<S>& images) {
  return {
      .data = images.data,
      .batch = images.batch,
      .channels = images.channels,
      .height = images.height,
      .width = images.width,
      .stride_n = images.stride_n,
      .stride_h = images.stride_h,
      .stride_w = images.stride_w,
      .channel = images.channel,
      .order = images.order,
      .run = images.run,
  };
}

template <class S>
FeatureRows<S> feature_rows(const Tensor& tensor) {
  using Plain = std::remove_const_t<S>;
  return {
      .data = data<Plain>(tensor),
      .batch = tensor.size(0),
      .count = tensor.size(1),
      .features = tensor.size(2),
      .stride_b = tensor.stride(0),
      .stride_n = tensor.stride(1),
      .stride_d = tensor.stride(2),
  };
}

}  // namespace clsd
