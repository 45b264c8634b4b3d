// The backward of a convolution, as operators put it together.
#pragma once

#include <algorithm>
#include <tuple>

#include "tensors.h"
#include "wgrad.h"

namespace clsd::cuda {

// Gradients of a convolution's parameters, or absent ones, not yet computed. That of the weight has
// the weight's memory format.
struct ParameterGradients {
  Tensor weight, bias;

  ParameterGradients(const Tensor& like, bool needs_weight, bool needs_bias)
      : weight(needs_weight ? empty(like, shape_of(like), memory_format(like)) : absent(like)),
        bias(needs_bias ? empty(like, {like.size(0)}) : absent(like)) {}

  bool any() const { return weight.numel() > 0 || bias.numel() > 0; }
};

template <class T>
Parameter<T> to_gradient(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::Float) return {{}, to_mutable_global<float>(tensor)};
  return {to_mutable_global<T>(tensor), {}};
}

// To compute them from the gradient of the convolution's output and from its input, both dense
// [N, H, W, C]. With an upscale factor, the output is shuffled by it.
template <class T>
WeightGradient<T> weight_gradient(const Tensor& grad_output, const Tensor& input,
                                  const ParameterGradients& gradients, int outputs,
                                  double scale = 1, int upscale = 1) {
  WeightGradient<T> gradient{};
  gradient.grad_output = to_global<T>(grad_output), gradient.input = to_global<T>(input);
  if (gradients.weight.numel() > 0) gradient.grad_weight = to_gradient<T>(gradients.weight);
  if (gradients.bias.numel() > 0) gradient.grad_bias = to_gradient<T>(gradients.bias);
  gradient.batch = input.size(0);
  gradient.height = input.size(2), gradient.width = input.size(3);
  gradient.inputs = static_cast<int>(input.size(1)), gradient.outputs = outputs;
  gradient.upscale = upscale, gradient.scale = static_cast<float>(scale);
  gradient.channels_last = memory_format(gradients.weight) == MemoryFormat::ChannelsLast;
  return gradient;
}

// Compute them, with workspace from torch's allocator.
template <class T>
void compute(const WeightGradients<T>& gradients, const Tensor& like, Stream stream) {
  for (size_t first = 0; first < gradients.size(); first += kMaxWeightGradients) {
    const size_t last = std::min(first + kMaxWeightGradients, gradients.size());
    const WeightGradients<T> part(gradients.begin() + first, gradients.begin() + last);
    const Tensor workspace =
        torch::stable::new_empty(like, {workspace_size(part)}, ScalarType::Float);
    weight_gradients(part, to_mutable_global<float>(workspace), stream);
  }
}

// All gradients of scale * convolution(x, weight, bias), each if asked for.
inline std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const char* op, const Tensor& grad_output, const Tensor& x, const Tensor& weight, double scale,
    int upscale, bool needs_x, bool needs_weight, bool needs_bias) {
  const ParameterGradients parameters(weight, needs_weight, needs_bias);
  if (!needs_x && !parameters.any()) return {absent(x), parameters.weight, parameters.bias};
  const Device device(x);
  const Tensor grad = as_nhwc(grad_output);
  Tensor grad_x = absent(x);
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if (needs_x) {
      Output output(x, shape_of(x), memory_format(x));
      auto conv = input_gradient<T>(grad, weight, output.written(), upscale);
      conv.scale = static_cast<float>(scale);
      PackedParameters<T> packed;
      packed.add_transposed(conv, weight);
      packed.pack(x, device.stream());
      convolve({conv}, device.stream());
      grad_x = output.finish();
    }
    if (parameters.any()) {
      const Tensor input = as_nhwc(x);
      const int outputs = static_cast<int>(weight.size(0));
      compute<T>({weight_gradient<T>(grad, input, parameters, outputs, scale, upscale)}, x,
                 device.stream());
    }
  });
  return {grad_x, parameters.weight, parameters.bias};
}

}  // namespace clsd::cuda
