#include <tuple>

#include "conv3x3.h"
#include "ops.h"

namespace clsd::cpu {

namespace {

void check_block(const char* op, const Tensor& x, const Tensor& weight1,
                 const std::optional<Tensor>& bias1, const Tensor& weight2,
                 const std::optional<Tensor>& bias2) {
  check_images(op, "x", x);
  check_conv(op, x, weight1, bias1, "1");
  check_shape(op, "weight2", weight2, {x.size(1), weight1.size(0), 3, 3});
  check_like(op, "weight2", x, weight2);
  if (bias2) {
    check_shape(op, "bias2", *bias2, {x.size(1)});
    check_like(op, "bias2", x, *bias2);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden) {
  const char* op = "residual_block";
  check_block(op, x, weight1, bias1, weight2, bias2);
  const Shape hidden_shape = {x.size(0), weight1.size(0), x.size(2), x.size(3)};
  Tensor hidden = empty(x, hidden_shape, memory_format(x));
  Tensor output = empty(x, shape_of(x), memory_format(x));
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto input = images<const S>(x);
    const auto activation = images<S>(hidden);
    const auto packed_bias1 = pack_bias<S>(bias1, activation.order);
    Epilogue<S> first{&packed_bias1};
    first.relu = true;
    convolve(input, weight1, false, first, activation);
    const auto target = images<S>(output);
    const auto packed_bias2 = pack_bias<S>(bias2, target.order);
    Epilogue<S> second{&packed_bias2, static_cast<Accumulator<S>>(res_scale), &input};
    convolve(images<const S>(hidden), weight2, false, second, target);
  });
  return {output, save_hidden ? hidden : absent(x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params) {
  const char* op = "residual_block_backward";
  check_block(op, x, weight1, std::nullopt, weight2, std::nullopt);
  check_shape(op, "grad_output", grad_output, shape_of(x));
  check_like(op, "grad_output", x, grad_output);
  check_shape(op, "hidden", hidden, {x.size(0), weight1.size(0), x.size(2), x.size(3)});
  check_like(op, "hidden", x, hidden);
  return dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto scale = static_cast<Accumulator<S>>(res_scale);
    const auto grad = images<const S>(grad_output);
    const auto activation = images<const S>(hidden);
    Epilogue<S> through_relu;
    through_relu.scale = scale;
    through_relu.positive = &activation;
    const auto second = convolution_backward(grad, hidden, weight2, through_relu, scale, true,
                                             needs_params, needs_params);
    Epilogue<S> plus_skip;
    plus_skip.residual = &grad;
    const auto first =
        convolution_backward(images<const S>(second.x), x, weight1, plus_skip, Accumulator<S>(1),
                             needs_x, needs_params, needs_params);
    return std::make_tuple(first.x, first.weight, first.bias, second.weight, second.bias);
  });
}

}  // namespace clsd::cpu
