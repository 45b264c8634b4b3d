// 3x3 convolution (stride 1, zero padding 1) and its gradients, by the faster algorithm.
#pragma once

#include <vector>

#include "convolution_band.h"
#include "direct.h"
#include "winograd.h"

namespace clsd::cpu {

// output = epilogue(convolution of input with weight, or with its transpose)
template <class S>
void convolve(const Images<const S>& input, const Tensor& weight, bool transposed,
              const Epilogue<S>& epilogue, const Images<S>& output) {
  const Convolution<S> convolution{input, weight, transposed, epilogue, output};
  if (prefers_winograd<Accumulator<S>>(input.channels, output.channels, input.height,
                                       input.width)) {
    winograd_convolve(convolution);
  } else {
    direct_convolve(convolution);
  }
}

// Gradients of one convolution with respect to x, weight and bias, each if asked for. `grad` is
// the gradient of its output, seen as [N, K, H, W]; `epilogue` finishes the gradient of x.
struct ConvGrads {
  Tensor x, weight, bias;
};

template <class S>
ConvGrads convolution_backward(const Images<const S>& grad, const Tensor& x, const Tensor& weight,
                               const Epilogue<S>& epilogue, Accumulator<S> scale, bool needs_x,
                               bool needs_weight, bool needs_bias) {
  ConvGrads grads{absent(x), absent(x), absent(x)};
  if (needs_x) {
    grads.x = empty(x, shape_of(x), memory_format(x));
    convolve(grad, weight, true, epilogue, images<S>(grads.x));
  }
  if (needs_weight) grads.weight = empty(x, shape_of(weight));
  if (needs_bias) grads.bias = empty(x, {weight.size(0)});
  if (needs_weight || needs_bias) {
    const auto input = images<const S>(x);
    const Tensor* grad_weight = needs_weight ? &grads.weight : nullptr;
    const Tensor* grad_bias = needs_bias ? &grads.bias : nullptr;
    if (prefers_winograd<Accumulator<S>>(input.channels, grad.channels, input.height,
                                         input.width)) {
      WinogradGradient<S>(input, grad).write(scale, grad_weight, grad_bias);
    } else {
      DirectGradient<S>(input, grad).write(scale, grad_weight, grad_bias);
    }
  }
  return grads;
}

}  // namespace clsd::cpu
