// Between stable-ABI tensors and what kernels take.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "../tensor_util.h"
#include "convolution.h"

#ifdef CLSD_CUDA_EMULATION
#include "emulated_device.h"  // of tests/cuda_emulation
#endif

namespace clsd::cuda {

#ifdef CLSD_CUDA_EMULATION
using emulation::Device;
#else
// While it lives, x's device is the current one, on which kernels are launched.
class Device {
 public:
  explicit Device(const Tensor& x) : guard_(static_cast<int32_t>(x.get_device())) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(
        static_cast<int32_t>(x.get_device()), &stream_));
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};
#endif

// Call function(T{}) with the kernels' type for dtype.
template <class F>
auto dispatch_16_bit(const char* op, ScalarType dtype, F&& function) {
  switch (dtype) {
    case ScalarType::BFloat16: return function(Bf16{});
    case ScalarType::Half: return function(Fp16{});
    default:
      fail(op, "x of dtype bfloat16 or float16 for its CUDA kernel", dtype_name(dtype));
  }
}

// Kernels read and write pieces of 16 bytes.
inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

inline bool is_nhwc(const Tensor& tensor) { return is_dense(tensor, {0, 2, 3, 1}); }

// The tensor itself if its memory is dense [N, H, W, C], else a copy that is: images that are
// channels_last, and weights of a model that is, are not copied.
inline Tensor as_nhwc(const Tensor& tensor) {
  if (is_nhwc(tensor) && is_aligned(tensor)) return tensor;
  Tensor copy = empty(tensor, shape_of(tensor), MemoryFormat::ChannelsLast);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline std::optional<Tensor> as_nhwc(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(as_nhwc(*tensor)) : std::nullopt;
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// Images that a kernel writes as dense [N, H, W, C], and that the caller gets in another format.
class Output {
 public:
  Output(const Tensor& like, const Shape& shape, MemoryFormat format)
      : result_(empty(like, shape, format)),
        written_(is_nhwc(result_) ? result_ : empty(like, shape, MemoryFormat::ChannelsLast)) {}

  const Tensor& written() const { return written_; }

  // After the kernel: a copy, unless the format is what it wrote.
  Tensor finish() {
    if (!is_nhwc(result_)) torch::stable::copy_(result_, written_);
    return result_;
  }

 private:
  Tensor result_, written_;
};

template <class T>
Global<const T> to_global(const Tensor& tensor) {
  return global(const_data<T>(tensor), tensor.numel());
}

template <class T>
Global<const T> to_global(const std::optional<Tensor>& tensor) {
  return tensor ? to_global<T>(*tensor) : nullptr;
}

template <class T>
Global<T> to_mutable_global(const Tensor& tensor) {
  return global(data<T>(tensor), tensor.numel());
}

// That the kernels take the channels, of which a multiple of upscale^2 are outputs.
inline void check_channels(const char* op, const Tensor& weight, int64_t upscale = 1) {
  const auto is_wide = [](int64_t channels) {
    return channels % kChannelMultiple == 0 && channels <= kLargestChannels;
  };
  const auto is_few = [&](int64_t channels) { return upscale == 1 && channels <= kFewChannels; };
  const int64_t outputs = weight.size(0) / (upscale * upscale), inputs = weight.size(1);
  if (is_wide(inputs) && (is_wide(outputs) || is_few(outputs))) return;
  if (is_few(inputs) && is_wide(outputs)) return;
  fail(op,
       "channels in multiples of " + std::to_string(kChannelMultiple) + " up to " +
           std::to_string(kLargestChannels) + ", or up to " + std::to_string(kFewChannels) +
           " on one side, for its CUDA kernel",
       "weight of shape " + to_string(shape_of(weight)));
}

// The convolution of x with weight, [K, C, 3, 3], both dense [N, H, W, C]. With an upscale factor,
// output is shuffled by it.
template <class T>
Convolution<T> forward_convolution(const Tensor& x, const Tensor& weight, const Tensor& output,
                                   int upscale = 1) {
  Convolution<T> conv{};
  conv.input = to_global<T>(x), conv.weight = to_global<T>(weight);
  conv.output = to_mutable_global<T>(output);
  conv.batch = x.size(0), conv.height = x.size(2), conv.width = x.size(3);
  conv.inputs = static_cast<int>(weight.size(1)), conv.outputs = static_cast<int>(weight.size(0));
  conv.output_upscale = upscale;
  return conv;
}

// The gradient of its input from that of its output.
template <class T>
Convolution<T> input_gradient(const Tensor& grad_output, const Tensor& weight, const Tensor& grad_x,
                              int upscale = 1) {
  Convolution<T> conv{};
  conv.input = to_global<T>(grad_output), conv.weight = to_global<T>(weight);
  conv.output = to_mutable_global<T>(grad_x);
  conv.batch = grad_x.size(0), conv.height = grad_x.size(2), conv.width = grad_x.size(3);
  conv.inputs = static_cast<int>(weight.size(0)), conv.outputs = static_cast<int>(weight.size(1));
  conv.input_upscale = upscale;
  conv.transposed = true;
  return conv;
}

}  // namespace clsd::cuda
