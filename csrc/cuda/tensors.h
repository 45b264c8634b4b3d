// Between stable-ABI tensors and what kernels take.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <vector>

#include "../tensor_util.h"
#include "convolution.h"
#include "packing.h"

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
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(static_cast<int32_t>(x.get_device()), &stream_));
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
    default: fail(op, "x of dtype bfloat16 or float16 for its CUDA kernel", dtype_name(dtype));
  }
}

// Kernels read and write pieces of 16 bytes.
inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

inline bool is_nhwc(const Tensor& tensor) { return is_dense(tensor, {0, 2, 3, 1}); }

// The images themselves if their memory is dense [N, H, W, C], else a copy that is.
inline Tensor as_nhwc(const Tensor& tensor) {
  if (is_nhwc(tensor) && is_aligned(tensor)) return tensor;
  Tensor copy = empty(tensor, shape_of(tensor), MemoryFormat::ChannelsLast);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline std::optional<Tensor> as_nhwc(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(as_nhwc(*tensor)) : std::nullopt;
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

// The convolution of x with weight, [K, C, 3, 3], x and output dense [N, H, W, C]; its parameters
// are to be packed. With an upscale factor, output is shuffled by it.
template <class T>
Convolution<T> forward_convolution(const Tensor& x, const Tensor& weight, const Tensor& output,
                                   int upscale = 1) {
  Convolution<T> conv{};
  conv.input = to_global<T>(x), conv.output = to_mutable_global<T>(output);
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
  conv.input = to_global<T>(grad_output), conv.output = to_mutable_global<T>(grad_x);
  conv.batch = grad_x.size(0), conv.height = grad_x.size(2), conv.width = grad_x.size(3);
  conv.inputs = static_cast<int>(weight.size(0)), conv.outputs = static_cast<int>(weight.size(1));
  conv.input_upscale = upscale;
  return conv;
}

// How many elements of memory a tensor of any strides reaches over.
inline int64_t extent(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return last + 1;
}

template <class T>
Parameter<const T> to_parameter(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::Float) {
    return {{}, global(const_data<float>(tensor), extent(tensor))};
  }
  return {global(const_data<T>(tensor), extent(tensor)), {}};
}

// The packed parameters of a call's convolutions, by one launch. It owns what they read.
template <class T>
class PackedParameters {
 public:
  // Of a convolution with weight [K, C, 3, 3] and bias; both of any strides.
  void add(Convolution<T>& conv, const Tensor& weight, const std::optional<Tensor>& bias) {
    Packing<T> packing = packing_of(conv, weight);
    packing.output_stride = weight.stride(0), packing.input_stride = weight.stride(1);
    packing.y_stride = weight.stride(2), packing.x_stride = weight.stride(3);
    if (bias) packing.bias = to_parameter<T>(*bias), packing.bias_stride = bias->stride(0);
    add(conv, packing);
  }

  // Of the convolution that is the gradient of its input.
  void add_transposed(Convolution<T>& conv, const Tensor& weight) {
    Packing<T> packing = packing_of(conv, weight);
    packing.output_stride = weight.stride(1), packing.input_stride = weight.stride(0);
    packing.y_stride = -weight.stride(2), packing.x_stride = -weight.stride(3);
    packing.weight_start = 2 * (weight.stride(2) + weight.stride(3));
    add(conv, packing);
  }

  // Pack what has been added, on the device and in the dtype of `like`.
  void pack(const Tensor& like, Stream stream) {
    int64_t elements = 0;
    for (const Packing<T>& packing : packings_) {
      elements += packing.weight_elements() + kFloat * packing.bias_elements();
    }
    memory_ = torch::stable::new_empty(like, {elements});
    T* at = data<T>(*memory_);
    for (size_t i = 0; i < packings_.size(); ++i) {
      Packing<T>& packing = packings_[i];
      packing.packed_weight = global(at, packing.weight_elements());
      at += packing.weight_elements();
      packing.packed_bias = global(reinterpret_cast<float*>(at), packing.bias_elements());
      at += kFloat * packing.bias_elements();
      convolutions_[i]->weight = packing.packed_weight;
      convolutions_[i]->bias = packing.packed_bias;
    }
    cuda::pack(packings_, stream);
  }

 private:
  static constexpr int64_t kFloat = sizeof(float) / sizeof(T);

  static Packing<T> packing_of(const Convolution<T>& conv, const Tensor& weight) {
    Packing<T> packing{};
    packing.weight = to_parameter<T>(weight);
    packing.outputs = {conv.outputs, conv.output_upscale * conv.output_upscale};
    packing.inputs = {conv.inputs, conv.input_upscale * conv.input_upscale};
    return packing;
  }

  void add(Convolution<T>& conv, const Packing<T>& packing) {
    convolutions_.push_back(&conv), packings_.push_back(packing);
  }

  std::vector<Convolution<T>*> convolutions_;
  std::vector<Packing<T>> packings_;
  std::optional<Tensor> memory_;
};

}  // namespace clsd::cuda
