#include <tuple>

#include "conv3x3.h"
#include "ops.h"

namespace clsd::cpu {

namespace {

Shape check_upsample(const char* op, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, int64_t upscale_factor) {
  check_images(op, "x", x);
  check(upscale_factor >= 1, op, "upscale_factor >= 1", std::to_string(upscale_factor));
  check_conv(op, x, weight, bias);
  const int64_t square = upscale_factor * upscale_factor;
  check(weight.size(0) % square == 0, op,
        "weight of shape [" + std::to_string(square) + " K, " + std::to_string(x.size(1)) +
            ", 3, 3]",
        to_string(shape_of(weight)));
  return {x.size(0), weight.size(0) / square, x.size(2) * upscale_factor,
          x.size(3) * upscale_factor};
}

}  // namespace

Tensor pixel_shuffle_upsample(Tensor x, Tensor weight, std::optional<Tensor> bias,
                              int64_t upscale_factor) {
  const char* op = "pixel_shuffle_upsample";
  const Shape shape = check_upsample(op, x, weight, bias, upscale_factor);
  Tensor output = empty(x, shape, memory_format(x));
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto target = images<S>(output, upscale_factor);
    const auto packed_bias = pack_bias<S>(bias, target.order);
    const Epilogue<S> epilogue{&packed_bias};
    convolve<S>({images<const S>(x), weight, false, epilogue, target});
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> pixel_shuffle_upsample_backward(
    Tensor grad_output, Tensor x, Tensor weight, int64_t upscale_factor, bool needs_x,
    bool needs_weight, bool needs_bias) {
  const char* op = "pixel_shuffle_upsample_backward";
  const Shape shape = check_upsample(op, x, weight, std::nullopt, upscale_factor);
  check_shape(op, "grad_output", grad_output, shape);
  check_like(op, "grad_output", x, grad_output);
  return dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    return convolution_backward(images<const S>(grad_output, upscale_factor), x, weight,
                                Accumulator<S>(1), needs_x, needs_weight, needs_bias);
  });
}

}  // namespace clsd::cpu
