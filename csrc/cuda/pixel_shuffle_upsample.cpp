#include <tuple>

#include "gradients.h"
#include "ops.h"
#include "tensors.h"

namespace clsd::cuda {

Tensor pixel_shuffle_upsample(Tensor x, Tensor weight, std::optional<Tensor> bias,
                              int64_t upscale_factor) {
  const char* op = "pixel_shuffle_upsample";
  const Shape shape = check_pixel_shuffle_upsample(op, x, weight, bias, upscale_factor);
  check_channels(op, weight, upscale_factor);
  const Device device(x);
  const Tensor input = as_nhwc(x);
  Output output(x, shape, memory_format(x));
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto conv =
        forward_convolution<T>(input, weight, output.written(), static_cast<int>(upscale_factor));
    PackedParameters<T> packed;
    packed.add(conv, weight, bias);
    packed.pack(x, device.stream());
    convolve({conv}, device.stream());
  });
  return output.finish();
}

std::tuple<Tensor, Tensor, Tensor> pixel_shuffle_upsample_backward(Tensor grad_output, Tensor x,
                                                                   Tensor weight,
                                                                   int64_t upscale_factor,
                                                                   bool needs_x, bool needs_weight,
                                                                   bool needs_bias) {
  const char* op = "pixel_shuffle_upsample_backward";
  const Shape shape = check_pixel_shuffle_upsample(op, x, weight, std::nullopt, upscale_factor);
  check_backward(op, "grad_output", x, grad_output, shape);
  check_channels(op, weight, upscale_factor);
  return convolution_backward(op, grad_output, x, weight, 1.0, static_cast<int>(upscale_factor),
                              needs_x, needs_weight, needs_bias);
}

}  // namespace clsd::cuda
