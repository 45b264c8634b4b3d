#include "conv3x3.h"

#include <tuple>

#include "../ops.h"

namespace clsd::cpu {

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu) {
  const char* op = "conv3x3";
  const Shape shape = check_conv3x3(op, x, weight, bias, residual);
  Tensor output = empty(x, shape, memory_format(x));
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto target = images<S>(output);
    const auto packed_bias = pack_bias<S>(bias, target.order);
    std::optional<Images<const S>> skip;
    if (residual) skip = images<const S>(*residual);
    const Epilogue<S> epilogue{
        .bias = &packed_bias,
        .scale = static_cast<Accumulator<S>>(res_scale),
        .residual = skip ? &*skip : nullptr,
        .relu = relu,
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
