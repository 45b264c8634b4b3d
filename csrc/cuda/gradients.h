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

// All gradients of scale * convolution(x, weight, bias) of convolutions of one shape, each if asked
// for.
inline std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>
convolutions_backward(const char* op, const std::vector<Tensor>& grad_outputs,
                      const std::vector<Tensor>& xs, const std::vector<Tensor>& weights,
                      double scale, int upscale, bool needs_x, bool needs_weight, bool needs_bias) {
  std::vector<ParameterGradients> parameters;
  std::vector<Tensor> grads, inputs, grad_xs, grad_weights, grad_biases;
  for (const Tensor& weight : weights) parameters.emplace_back(weight, needs_weight, needs_bias);
  for (const ParameterGradients& of_one : parameters) {
    grad_weights.push_back(of_one.weight), grad_biases.push_back(of_one.bias);
  }
  const bool needs_params = needs_weight || needs_bias;
  if (needs_x || needs_params) {
    const Device device(xs[0]);
    for (const Tensor& grad : grad_outputs) grads.push_back(as_nhwc(grad));
    dispatch_16_bit(op, xs[0].scalar_type(), [&](auto type) {
      using T = decltype(type);
      if (needs_x) {
        std::vector<Output> outputs;
        ConvolutionList<T> list;
        for (size_t i = 0; i < xs.size(); ++i) {
          outputs.emplace_back(xs[i], shape_of(xs[i]), memory_format(xs[i]));
          list.push_back(input_gradient<T>(grads[i], weights[i], outputs[i].written(), upscale));
          list[i].scale = static_cast<float>(scale);
        }
        PackedParameters<T> packed;
        for (size_t i = 0; i < xs.size(); ++i) packed.add_transposed(list[i], weights[i]);
        packed.pack(xs[0], device.stream());
        convolve(list, device.stream());
        for (Output& output : outputs) grad_xs.push_back(output.finish());
      }
      if (!needs_params) return;
      WeightGradients<T> list;
      for (size_t i = 0; i < xs.size(); ++i) {
        inputs.push_back(as_nhwc(xs[i]));
        const int outputs = static_cast<int>(weights[i].size(0));
        list.push_back(
            weight_gradient<T>(grads[i], inputs[i], parameters[i], outputs, scale, upscale));
      }
      compute<T>(list, xs[0], device.stream());
    });
  }
  if (!needs_x) grad_xs.assign(xs.size(), absent(xs[0]));
  return {grad_xs, grad_weights, grad_biases};
}

// Those of one.
inline std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const char* op, const Tensor& grad_output, const Tensor& x, const Tensor& weight, double scale,
    int upscale, bool needs_x, bool needs_weight, bool needs_bias) {
  const auto [grad_xs, weights, biases] = convolutions_backward(
      op, {grad_output}, {x}, {weight}, scale, upscale, needs_x, needs_weight, needs_bias);
  return {grad_xs[0], weights[0], biases[0]};
}

}  // namespace clsd::cuda
