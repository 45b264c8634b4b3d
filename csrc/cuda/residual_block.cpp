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
  const Tensor dense_weight1 = as_nhwc(weight1), dense_weight2 = as_nhwc(weight2);
  const auto offsets1 = as_contiguous(bias1), offsets2 = as_contiguous(bias2);
  Output output(x, shape_of(x), memory_format(x));
  const bool fused = !save_hidden && fuses_residual_block(x.size(0), x.size(2), x.size(3),
                                                          x.size(1), hidden_shape[1]);
  // Fused, it is neither written nor read: an image of the same shape stands for it.
  const Tensor hidden = fused ? output.written()
                              : empty(x, hidden_shape, MemoryFormat::ChannelsLast);
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto first = forward_convolution<T>(input, dense_weight1, hidden);
    first.bias = to_global<T>(offsets1);
    first.relu = true;
    auto second = forward_convolution<T>(hidden, dense_weight2, output.written());
    second.bias = to_global<T>(offsets2);
    second.residual = to_global<T>(input);
    second.scale = static_cast<float>(res_scale);
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
  const Tensor dense_weight1 = as_nhwc(weight1), dense_weight2 = as_nhwc(weight2);
  const Tensor grad_hidden = empty(x, hidden_shape, MemoryFormat::ChannelsLast);
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto second = input_gradient<T>(grad, dense_weight2, grad_hidden);
    second.scale = static_cast<float>(res_scale);
    second.positive = to_global<T>(activation);
    convolve(second, device.stream());
    if (needs_x) {
      Output output(x, shape_of(x), memory_format(x));
      auto first = input_gradient<T>(grad_hidden, dense_weight1, output.written());
      first.residual = to_global<T>(grad);
      convolve(first, device.stream());
      grad_x = output.finish();
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
