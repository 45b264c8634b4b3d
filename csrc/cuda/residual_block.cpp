#include <tuple>

#include "gradients.h"
#include "ops.h"
#include "tensors.h"

namespace clsd::cuda {

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden) {
  const char* op = "residual_block";
  const Shape hidden_shape = check_residual_block(op, x, weight1, bias1, weight2, bias2);
  check_channels(op, weight1);
  const Device device(x);
  const Tensor input = as_nhwc(x);
  Output output(x, shape_of(x), memory_format(x));
  const bool fused = !save_hidden && fuses_residual_block(x.size(0), x.size(2), x.size(3),
                                                          x.size(1), hidden_shape[1]);
  // Fused, it is neither written nor read: an image of the same shape stands for it.
  const Tensor hidden =
      fused ? output.written() : empty(x, hidden_shape, MemoryFormat::ChannelsLast);
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto first = forward_convolution<T>(input, weight1, hidden);
    first.relu = true;
    auto second = forward_convolution<T>(hidden, weight2, output.written());
    second.residual = to_global<T>(input);
    second.scale = static_cast<float>(res_scale);
    PackedParameters<T> packed;
    packed.add(first, weight1, bias1);
    packed.add(second, weight2, bias2);
    packed.pack(x, device.stream());
    if (fused) return convolve_residual_block(first, second, device.stream());
    convolve(first, device.stream());
    convolve(second, device.stream());
  });
  return {output.finish(), save_hidden ? hidden : absent(x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params) {
  const char* op = "residual_block_backward";
  const Shape hidden_shape =
      check_residual_block(op, x, weight1, std::nullopt, weight2, std::nullopt);
  check_backward(op, "grad_output", x, grad_output, shape_of(x));
  check_backward(op, "hidden", x, hidden, hidden_shape);
  check_channels(op, weight1);
  const ParameterGradients parameters1(weight1, needs_params, needs_params);
  const ParameterGradients parameters2(weight2, needs_params, needs_params);
  Tensor grad_x = absent(x);
  const auto gradients = [&] {
    return std::make_tuple(grad_x, parameters1.weight, parameters1.bias, parameters2.weight,
                           parameters2.bias);
  };
  if (!needs_x && !needs_params) return gradients();
  const Device device(x);
  const Tensor grad = as_nhwc(grad_output), activation = as_nhwc(hidden);
  const Tensor grad_hidden = empty(x, hidden_shape, MemoryFormat::ChannelsLast);
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto second = input_gradient<T>(grad, weight2, grad_hidden);
    second.scale = static_cast<float>(res_scale);
    second.positive = to_global<T>(activation);
    PackedParameters<T> packed;
    packed.add_transposed(second, weight2);
    std::optional<Output> output;
    Convolution<T> first{};
    if (needs_x) {
      output.emplace(x, shape_of(x), memory_format(x));
      first = input_gradient<T>(grad_hidden, weight1, output->written());
      first.residual = to_global<T>(grad);
      packed.add_transposed(first, weight1);
    }
    packed.pack(x, device.stream());
    convolve(second, device.stream());
    if (needs_x) {
      convolve(first, device.stream());
      grad_x = output->finish();
    }
    if (needs_params) {
      const Tensor input = as_nhwc(x);
      const int channels = static_cast<int>(x.size(1));
      const int hidden_channels = static_cast<int>(hidden.size(1));
      compute<T>({weight_gradient<T>(grad_hidden, input, parameters1, hidden_channels),
                  weight_gradient<T>(grad, activation, parameters2, channels, res_scale)},
                 x, device.stream());
    }
  });
  return gradients();
}

}  // namespace clsd::cuda
