#include "conv3x3.h"

#include <tuple>

#include "ops.h"

namespace clsd::cpu {

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu) {
  const char* op = "conv3x3";
  check_images(op, "x", x);
  check_conv(op, x, weight, bias);
  const Shape shape = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  if (residual) {
    check_shape(op, "residual", *residual, shape);
    check_like(op, "residual", x, *residual);
  }
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
  check_images(op, "x", x);
  check_conv(op, x, weight, std::nullopt);
  check_shape(op, "grad_output", grad_output,
              {x.size(0), weight.size(0), x.size(2), x.size(3)});
  check_like(op, "grad_output", x, grad_output);
  return dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    return convolution_backward(images<const S>(grad_output), x, weight,
                                static_cast<Accumulator<S>>(res_scale), needs_x, needs_weight,
                                needs_bias);
  });
}

}  // namespace clsd::cpu
