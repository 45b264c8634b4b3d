#include <tuple>

#include "../ops.h"
#include "conv3x3.h"

namespace clsd::cpu {

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden) {
  const char* op = "residual_block";
  const Shape hidden_shape = check_residual_block(op, x, weight1, bias1, weight2, bias2);
  const Tensor hidden =
      save_hidden ? empty(x, hidden_shape, MemoryFormat::ChannelsLast) : absent(x);
  const Tensor output = empty(x, shape_of(x), memory_format(x));
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto input = images<const S>(x);
    auto activation = save_hidden ? images<S>(hidden) : images<S>(nullptr, hidden_shape);
    auto second_input = constant(activation);
    const auto target = images<S>(output);
    const auto packed_bias1 = pack_bias<S>(bias1, activation.order);
    const auto packed_bias2 = pack_bias<S>(bias2, target.order);
    const Epilogue<S> relu{.bias = &packed_bias1, .relu = true};
    const Epilogue<S> skip{
        .bias = &packed_bias2,
        .scale = static_cast<Accumulator<S>>(res_scale),
        .residual = &input,
    };
    const Convolution<S> first{
        .input = input, .weight = weight1, .epilogue = relu, .output = activation};
    const Convolution<S> second{
        .input = second_input, .weight = weight2, .epilogue = skip, .output = target};
    // The choice is the same for both: they have the same image and each other's channels.
    if (!save_hidden && choose<S>(input, activation) == Algorithm::kWinograd) {
      winograd_convolve_twice(first, second, activation, second_input);
      return;
    }
    Workspace workspace;
    if (!save_hidden) {
      activation.data = workspace.take<S>(x.size(0) * activation.stride_n);
      second_input.data = activation.data;
    }
    convolve(first);
    convolve(second);
  });
  return {output, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params) {
  const char* op = "residual_block_backward";
  const Shape hidden_shape =
      check_residual_block(op, x, weight1, std::nullopt, weight2, std::nullopt);
  check_backward(op, "grad_output", x, grad_output, shape_of(x));
  check_backward(op, "hidden", x, hidden, hidden_shape);
  const Tensor grad_x = needs_x ? empty(x, shape_of(x), memory_format(x)) : absent(x);
  return dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    Workspace workspace;
    const auto scale = static_cast<Accumulator<S>>(res_scale);
    const auto grad = images<const S>(grad_output);
    const auto activation = images<const S>(hidden);
    const auto grad_hidden =
        images<S>(workspace.take<S>(x.size(0) * activation.stride_n), hidden_shape);
    convolve<S>({
        .input = grad,
        .weight = weight2,
        .transposed = true,
        .epilogue = {.scale = scale, .positive = &activation},
        .output = grad_hidden,
    });
    const auto [grad_weight2, grad_bias2] =
        parameter_gradients(activation, grad, weight2, scale, needs_params, needs_params);
    const auto hidden_grad = constant(grad_hidden);
    if (needs_x) {
      convolve<S>({
          .input = hidden_grad,
          .weight = weight1,
          .transposed = true,
          .epilogue = {.residual = &grad},
          .output = images<S>(grad_x),
      });
    }
    const auto [grad_weight1, grad_bias1] = parameter_gradients(
        images<const S>(x), hidden_grad, weight1, Accumulator<S>(1), needs_params, needs_params);
    return std::make_tuple(grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2);
  });
}

}  // namespace clsd::cpu
