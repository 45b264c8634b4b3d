#include <tuple>

#include "../ops.h"
#include "conv3x3.h"

namespace clsd::cpu {

Tensor pixel_shuffle_upsample(Tensor x, Tensor weight, std::optional<Tensor> bias,
                              int64_t upscale_factor) {
  const char* op = "pixel_shuffle_upsample";
  const Shape shape = check_pixel_shuffle_upsample(op, x, weight, bias, upscale_factor);
  Tensor output = empty(x, shape, memory_format(x));
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto target = images<S>(output, upscale_factor);
    const auto packed_bias = pack_parameter<S>(bias, target.order);
    convolve<S>({
        .input = images<const S>(x),
        .weight = weight,
        .epilogue = {.bias = &packed_bias},
        .output = target,
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> pixel_shuffle_upsample_backward(Tensor grad_output, Tensor x,
                                                                   Tensor weight,
                                                                   int64_t upscale_factor,
                                                                   bool needs_x, bool needs_weight,
                                                                   bool needs_bias) {
  const char* op = "pixel_shuffle_upsample_backward";
  const Shape shape = check_pixel_shuffle_upsample(op, x, weight, std::nullopt, upscale_factor);
  check_backward(op, "grad_output", x, grad_output, shape);
  return dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    return convolution_backward(images<const S>(grad_output, upscale_factor), x, weight,
                                Accumulator<S>(1), needs_x, needs_weight, needs_bias);
  });
}

}  // namespace clsd::cpu
