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
    Epilogue<S> epilogue{&packed_bias, static_cast<Accumulator<S>>(res_scale)};
    epilogue.relu = relu;
    std::optional<Images<const S>> skip;
    if (residual) epilogue.residual = &skip.emplace(images<const S>(*residual));
    convolve<S>({images<const S>(x), weight, false, epilogue, target});
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

}  // namespace clsd::cpu
