#include <tuple>

#include "gradients.h"
#include "ops.h"
#include "tensors.h"

namespace clsd::cuda {

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu) {
  const char* op = "conv3x3";
  const Shape shape = check_conv3x3(op, x, weight, bias, residual);
  check_channels(op, weight);
  const Device device(x);
  const Tensor input = as_nhwc(x);
  const auto skip = as_nhwc(residual);
  Output output(x, shape, memory_format(x));
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto conv = forward_convolution<T>(input, weight, output.written());
    conv.residual = to_global<T>(skip);
    conv.scale = static_cast<float>(res_scale);
    conv.relu = relu;
    PackedParameters<T> packed;
    packed.add(conv, weight, bias);
    packed.pack(x, device.stream());
    convolve({conv}, device.stream());
  });
  return output.finish();
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                    double res_scale, bool needs_x,
                                                    bool needs_weight, bool needs_bias) {
  const char* op = "conv3x3_backward";
  const Shape shape = check_conv3x3(op, x, weight, std::nullopt);
  check_backward(op, "grad_output", x, grad_output, shape);
  check_channels(op, weight);
  return convolution_backward(op, grad_output, x, weight, res_scale, 1, needs_x, needs_weight,
                              needs_bias);
}

}  // namespace clsd::cuda
