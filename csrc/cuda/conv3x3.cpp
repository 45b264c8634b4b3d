#include <tuple>

#include "gradients.h"
#include "ops.h"
#include "sum.h"
#include "tensors.h"

namespace clsd::cuda {

namespace {

using Tensors = std::vector<Tensor>;

// What follows the sums of all convolutions of a call, as the operator has it.
struct Last {
  std::optional<Tensor> residual;
  double res_scale = 1;
  bool relu = false;
  double negative_slope = 0;
  std::optional<Tensor> slopes;  // as kernels read them
};

// Slopes of any strides and a parameter's type, dense and in float.
std::optional<Tensor> as_dense_float(const std::optional<Tensor>& slopes) {
  if (!slopes || (slopes->scalar_type() == ScalarType::Float && slopes->is_contiguous())) {
    return slopes;
  }
  const Device device(*slopes);
  Tensor copy = empty(*slopes, shape_of(*slopes), ScalarType::Float);
  torch::stable::copy_(copy, *slopes);
  return copy;
}

// Convolutions of one shape, and results of `shape`; the biases of all may be left out.
Tensors forward(const char* op, const Tensors& xs, const Tensors& weights, const Tensors& biases,
                const Last& last, const Shape& shape) {
  check_channels(op, weights[0]);
  const Device device(xs[0]);
  const auto skip = as_nhwc(last.residual);
  Tensors inputs, results;
  std::vector<Output> outputs;
  for (const Tensor& x : xs) {
    inputs.push_back(as_nhwc(x));
    outputs.emplace_back(x, shape, memory_format(x));
  }
  dispatch_16_bit(op, xs[0].scalar_type(), [&](auto type) {
    using T = decltype(type);
    ConvolutionList<T> list;
    for (size_t i = 0; i < xs.size(); ++i) {
      list.push_back(forward_convolution<T>(inputs[i], weights[i], outputs[i].written()));
      list[i].residual = to_global<T>(skip);
      list[i].scale = static_cast<float>(last.res_scale);
      list[i].activates = last.relu || last.slopes;
      list[i].slope = static_cast<float>(last.negative_slope);
      list[i].slopes = to_global<float>(last.slopes);
    }
    PackedParameters<T> packed;
    for (size_t i = 0; i < xs.size(); ++i) packed.add(list[i], weights[i], given(biases, i));
    packed.pack(xs[0], device.stream());
    convolve(list, device.stream());
  });
  for (Output& output : outputs) results.push_back(output.finish());
  return results;
}

// The sum of images of any strides, like x.
Tensor sum_of(const char* op, const Tensors& images, const Tensor& x) {
  if (images.size() > kMaxSummands) {
    fail(op,
         "at most " + std::to_string(kMaxSummands) + " convolutions for the residual's gradient",
         std::to_string(images.size()));
  }
  const Device device(x);
  Output output(x, shape_of(images[0]), memory_format(x));
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    Tensors dense;
    std::vector<Global<const T>> summands;
    for (const Tensor& image : images) {
      dense.push_back(as_nhwc(image));
      summands.push_back(to_global<T>(dense.back()));
    }
    sum(summands, to_mutable_global<T>(output.written()), output.written().numel(),
        device.stream());
  });
  return output.finish();
}

}  // namespace

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu, double negative_slope, std::optional<Tensor> slopes) {
  const char* op = "conv3x3";
  const Shape shape = check_conv3x3(op, x, weight, bias, residual, slopes);
  const Tensors biases = bias ? Tensors{*bias} : Tensors();
  const Last last{residual, res_scale, relu, negative_slope, as_dense_float(slopes)};
  return forward(op, {x}, {weight}, biases, last, shape)[0];
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                    double res_scale, bool needs_x,
                                                    bool needs_weight, bool needs_bias) {
  const char* op = "conv3x3_backward";
  const Shape shape = check_conv3x3(op, x, weight, std::nullopt);
  check_backward(op, "grad_output", x, grad_output, shape);
  check_channels(op, weight);
  return convolution_backward(op, grad_output, x, weight, res_scale, 1, needs_x, needs_weight,
                              needs_bias);
}

Tensors conv3x3s(Tensors xs, Tensors weights, Tensors biases, std::optional<Tensor> residual) {
  const char* op = "conv3x3s";
  const Shape shape = check_conv3x3s(op, xs, weights, biases, residual);
  return forward(op, xs, weights, biases, {.residual = residual}, shape);
}

std::tuple<Tensors, Tensors, Tensors, Tensor> conv3x3s_backward(Tensors grad_outputs, Tensors xs,
                                                                Tensors weights, bool needs_x,
                                                                bool needs_params,
                                                                bool needs_residual) {
  const char* op = "conv3x3s_backward";
  const Shape shape = check_conv3x3s(op, xs, weights, {});
  check_list(op, xs.size(), grad_outputs.size());
  for (const Tensor& grad : grad_outputs) check_backward(op, "grad_outputs", xs[0], grad, shape);
  check_channels(op, weights[0]);
  const auto [grad_xs, grad_weights, grad_biases] = convolutions_backward(
      op, grad_outputs, xs, weights, 1.0, 1, needs_x, needs_params, needs_params);
  const Tensor grad_residual = needs_residual ? sum_of(op, grad_outputs, xs[0]) : absent(xs[0]);
  return {grad_xs, grad_weights, grad_biases, grad_residual};
}

}  // namespace clsd::cuda
