#include <tuple>

#include "conv3x3.h"
#include "../ops.h"

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
    Epilogue<S> relu{&packed_bias1};
    relu.relu = true;
    const Epilogue<S> skip{&packed_bias2, static_cast<Accumulator<S>>(res_scale), &input};
    const Convolution<S> first{input, weight1, false, relu, activation};
    const Convolution<S> second{second_input, weight2, false, skip, target};
    if (!save_hidden && prefers_winograd<S>(input, activation)) {
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
    Epilogue<S> through_relu;
    through_relu.scale = scale;
    through_relu.positive = &activation;
    convolve<S>({grad, weight2, true, through_relu, grad_hidden});
    const auto [grad_weight2, grad_bias2] =
        parameter_gradients(activation, grad, weight2, scale, needs_params, needs_params);
    const auto hidden_grad = constant(grad_hidden);
    if (needs_x) {
      Epilogue<S> plus_skip;
      plus_skip.residual = &grad;
      convolve<S>({hidden_grad, weight1, true, plus_skip, images<S>(grad_x)});
    }
    const auto [grad_weight1, grad_bias1] =
        parameter_gradients(images<const S>(x), hidden_grad, weight1, Accumulator<S>(1),
                            needs_params, needs_params);
    return std::make_tuple(grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2);
  });
}

}  // namespace clsd::cpu
