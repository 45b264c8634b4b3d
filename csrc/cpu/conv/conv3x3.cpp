#include "conv3x3.h"

#include <tuple>

#include "../ops.h"
#include "sum.h"

namespace clsd::cpu {

namespace {

// Factors of negative results, or none where these are kept or become 0: an infinity times 0 is NaN.
template <class S>
std::vector<Accumulator<S>> pack_slopes(bool relu, double negative_slope,
                                        const std::optional<Tensor>& slopes,
                                        const std::vector<int64_t>& order) {
  if (slopes) return pack_parameter<S>(slopes, order);
  if (!relu || negative_slope == 0) return {};
  const int64_t channels = round_up(static_cast<int64_t>(order.size()), kTileCols);
  return std::vector<Accumulator<S>>(static_cast<size_t>(channels),
                                     static_cast<Accumulator<S>>(negative_slope));
}

}  // namespace

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu, double negative_slope, std::optional<Tensor> slopes) {
  const char* op = "conv3x3";
  const Shape shape = check_conv3x3(op, x, weight, bias, residual, slopes);
  Tensor output = empty(x, shape, memory_format(x));
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto target = images<S>(output);
    const auto packed_bias = pack_parameter<S>(bias, target.order);
    const auto packed_slopes = pack_slopes<S>(relu, negative_slope, slopes, target.order);
    std::optional<Images<const S>> skip;
    if (residual) skip = images<const S>(*residual);
    const Epilogue<S> epilogue{
        .bias = &packed_bias,
        .scale = static_cast<Accumulator<S>>(res_scale),
        .residual = skip ? &*skip : nullptr,
        .relu = relu && packed_slopes.empty(),
        .slopes = packed_slopes.empty() ? nullptr : &packed_slopes,
    };
    convolve<S>({
        .input = images<const S>(x),
        .weight = weight,
        .epilogue = epilogue,
        .output = target,
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                    double res_scale, bool needs_x,
                                                    bool needs_weight, bool needs_bias) {
  const char* op = "conv3x3_backward";
  const Shape shape = check_conv3x3(op, x, weight, std::nullopt);
  check_backward(op, "grad_output", x, grad_output, shape);
  return dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    return convolution_backward(images<const S>(grad_output), x, weight,
                                static_cast<Accumulator<S>>(res_scale), needs_x, needs_weight,
                                needs_bias);
  });
}

std::vector<Tensor> conv3x3s(std::vector<Tensor> xs, std::vector<Tensor> weights,
                             std::vector<Tensor> biases, std::optional<Tensor> residual) {
  check_conv3x3s("conv3x3s", xs, weights, biases, residual);
  std::vector<Tensor> outputs;
  for (size_t i = 0; i < xs.size(); ++i) {
    outputs.push_back(
        conv3x3(xs[i], weights[i], given(biases, i), residual, 1.0, false, 0.0, std::nullopt));
  }
  return outputs;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> conv3x3s_backward(
    std::vector<Tensor> grad_outputs, std::vector<Tensor> xs, std::vector<Tensor> weights,
    bool needs_x, bool needs_params, bool needs_residual) {
  const char* op = "conv3x3s_backward";
  const Shape shape = check_conv3x3s(op, xs, weights, {});
  check_list(op, xs.size(), grad_outputs.size());
  std::vector<Tensor> grad_xs, grad_weights, grad_biases;
  for (size_t i = 0; i < xs.size(); ++i) {
    const auto [grad_x, grad_weight, grad_bias] = conv3x3_backward(
        grad_outputs[i], xs[i], weights[i], 1.0, needs_x, needs_params, needs_params);
    grad_xs.push_back(grad_x), grad_weights.push_back(grad_weight);
    grad_biases.push_back(grad_bias);
  }
  const Tensor& x = xs[0];
  const Tensor grad_residual = needs_residual ? empty(x, shape, memory_format(x)) : absent(x);
  if (needs_residual) {
    dispatch(op, x.scalar_type(),
             [&](auto zero) { sum<decltype(zero)>(grad_outputs, grad_residual); });
  }
  return {grad_xs, grad_weights, grad_biases, grad_residual};
}

// Which algorithm convolves float32 images: for the tests, which know how Winograd rounds.
extern "C" __attribute__((visibility("default"))) const char* clsd_convolution_algorithm(
    int64_t inputs, int64_t outputs, int64_t height, int64_t width) {
  const auto input = images<const float>(nullptr, {1, inputs, height, width});
  const auto output = images<const float>(nullptr, {1, outputs, height, width});
  switch (choose<float>(input, output)) {
    case Algorithm::kWinograd: return "winograd";
    case Algorithm::kNarrowInput: return "narrow_input";
    case Algorithm::kNarrowOutput: return "narrow_output";
    case Algorithm::kDirect: return "direct";
  }
  return nullptr;
}

}  // namespace clsd::cpu
