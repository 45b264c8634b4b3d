// 3x3 convolution (stride 1, zero padding 1) and its gradients, by the faster algorithm.
#pragma once

#include <tuple>
#include <utility>

#include "algorithm.h"
#include "convolution.h"
#include "direct.h"
#include "narrow.h"
#include "winograd.h"
#include "winograd_gradient.h"

namespace clsd::cpu {

template <class S>
void convolve(const Convolution<S>& convolution) {
  switch (choose<S>(convolution.input, convolution.output)) {
    case Algorithm::kWinograd: return winograd_convolve(convolution);
    case Algorithm::kNarrowInput: return narrow_input_convolve(convolution);
    case Algorithm::kNarrowOutput: return narrow_output_convolve(convolution);
    case Algorithm::kDirect: return direct_convolve(convolution);
  }
}

// Gradients of a convolution's weight and bias, each if asked for, from its input and the gradient
// of its output. Both are scaled.
// `back`, if there is one, is convolved as well: from the same gradient of the output to that of the
// input, so that the algorithm is the same.
template <class S>
std::pair<Tensor, Tensor> parameter_gradients(const Images<const S>& input,
                                              const Images<const S>& grad, const Tensor& weight,
                                              Accumulator<S> scale, bool needs_weight,
                                              bool needs_bias, const Convolution<S>* back) {
  const Tensor grad_weight =
      needs_weight ? empty(weight, shape_of(weight), memory_format(weight)) : absent(weight);
  const Tensor grad_bias = needs_bias ? empty(weight, {weight.size(0)}) : absent(weight);
  const Algorithm algorithm = choose<S>(input, grad);
  const bool needs_any = needs_weight || needs_bias;
  if (back && !(needs_any && algorithm == Algorithm::kWinograd)) convolve(*back);
  if (needs_any) {
    const Tensor* to_weight = needs_weight ? &grad_weight : nullptr;
    const Tensor* to_bias = needs_bias ? &grad_bias : nullptr;
    switch (algorithm) {
      case Algorithm::kWinograd:
        WinogradGradient<S>(input, grad, kWinogradTile3x3).write(scale, to_weight, to_bias, back);
        break;
      case Algorithm::kNarrowInput:
      case Algorithm::kNarrowOutput:
        NarrowGradient<S>(input, grad, algorithm).write(scale, to_weight, to_bias);
        break;
      case Algorithm::kDirect:
        DirectGradient<S>(input, grad).write(scale, to_weight, to_bias);
        break;
    }
  }
  return {grad_weight, grad_bias};
}

// All gradients of output = scale * convolution(x, weight, bias), each if asked for. `grad` is the
// gradient of the output, seen as [N, K, H, W].
template <class S>
std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Images<const S>& grad,
                                                        const Tensor& x, const Tensor& weight,
                                                        Accumulator<S> scale, bool needs_x,
                                                        bool needs_weight, bool needs_bias) {
  const Tensor grad_x = needs_x ? empty(x, shape_of(x), memory_format(x)) : absent(x);
  const Epilogue<S> scaled{.scale = scale};
  std::optional<Images<S>> target;
  std::optional<Convolution<S>> back;
  if (needs_x) {
    target = images<S>(grad_x);
    back.emplace(Convolution<S>{.input = grad,
                                .weight = weight,
                                .transposed = true,
                                .epilogue = scaled,
                                .output = *target});
  }
  const auto [grad_weight, grad_bias] = parameter_gradients(
      images<const S>(x), grad, weight, scale, needs_weight, needs_bias, back ? &*back : nullptr);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace clsd::cpu
