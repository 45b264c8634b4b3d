#include <array>
#include <tuple>
#include <vector>

#include "../../tail_arguments.h"
#include "../ops.h"
#include "apply.h"
#include "compose.h"

namespace clsd::cpu {

namespace {

// A tail's composed weights: of what follows each stage here, of the whole tail elsewhere.
template <class T>
class ComposedWeights {
 public:
  ComposedWeights(Workspace& workspace, const TailArguments& tail) : tail_(tail) {
    for (const auto& stage : tail.stages) {
      stages_.emplace_back(stage.weight, stage.bias, stage.factor);
    }
    for (size_t i = 0; i < stages_.size(); ++i) after_.push_back(take_after(workspace, i));
    compose_out(TailWeight<const T>(tail.out_weight), after_.back());
    for (size_t i = stages_.size(); --i > 0;) composer(i).compose(after_[i - 1]);
  }

  void compose(T* composed) const { composer(0).compose(composed); }

  // From the gradient of the whole tail's composed weight to weight and bias of each stage, two
  // each, and the last weight.
  std::vector<Tensor> backward(const T* grad) const {
    Workspace workspace;
    std::vector<Tensor> grads;
    for (size_t i = 0; i < stages_.size(); ++i) {
      const Tensor& weight = tail_.stages[i].weight;
      const Tensor grad_weight = empty(weight, shape_of(weight), memory_format(weight));
      const Tensor grad_bias = empty(weight, {weight.size(0)});
      T* grad_after = take_after(workspace, i);
      composer(i).backward(grad, TailWeight<T>(grad_weight), data<T>(grad_bias), grad_after);
      grads.insert(grads.end(), {grad_weight, grad_bias});
      grad = grad_after;
    }
    while (grads.size() < 4) grads.push_back(absent(tail_.out_weight));
    const Tensor& weight = tail_.out_weight;
    grads.push_back(empty(weight, shape_of(weight), memory_format(weight)));
    compose_out_backward(grad, TailWeight<T>(grads.back()));
    return grads;
  }

 private:
  T* take_after(Workspace& workspace, size_t stage) const {
    const int64_t taps = tail_.axes[stage + 1].size();
    return workspace.take<T>((stages_[stage].outputs() + 1) * taps * taps * tail_.outputs());
  }

  TailComposer<T> composer(size_t stage) const {
    return {stages_[stage], tail_.axes[stage], tail_.axes[stage + 1], after_[stage],
            tail_.outputs()};
  }

  const TailArguments& tail_;
  std::vector<TailStage<T>> stages_;
  std::vector<T*> after_;
};

Tensor converted(const Tensor& x, ScalarType dtype) {
  if (x.scalar_type() == dtype) return x;
  Tensor copy = empty(x, shape_of(x), dtype, memory_format(x));
  torch::stable::copy_(copy, x);
  return copy;
}

// target[k] is the sum of matrix[k, j] source[j], or of matrix[j, k].
template <class T>
void multiply(const T* matrix, int64_t size, bool transposed, const T* source, int64_t source_step,
              T* target, int64_t target_step) {
  for (int64_t k = 0; k < size; ++k) {
    T sum = 0;
    for (int64_t j = 0; j < size; ++j) {
      sum += matrix[transposed ? j * size + k : k * size + j] * source[j * source_step];
    }
    target[k * target_step] = sum;
  }
}

// The last convolution's weight with what its outputs are shifted by behind it; or, of its gradient,
// back.
Tensor shifted_weight(const Tensor& weight, const Tensor& shift, bool back) {
  const Tensor result = empty(weight, shape_of(weight), memory_format(weight));
  dispatch("upsample_tails", weight.scalar_type(), [&](auto zero) {
    using T = Accumulator<decltype(zero)>;
    const TailWeight<const T> from(weight);
    const TailWeight<T> to(result);
    for (int64_t m = 0; m < from.inputs; ++m) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        multiply(const_data<T>(shift), from.outputs, back, &from.at(0, m, tap), from.stride_k,
                 &to.at(0, m, tap), to.stride_k);
      }
    }
  });
  return result;
}

Tensor shifted_bias(const Tensor& bias, const Tensor& shift, bool back) {
  const Tensor result = empty(bias, shape_of(bias));
  dispatch("upsample_tails", bias.scalar_type(), [&](auto zero) {
    using T = Accumulator<decltype(zero)>;
    multiply(const_data<T>(shift), bias.size(0), back, const_data<T>(bias), bias.stride(0),
             data<T>(result), 1);
  });
  return result;
}

// A tail of which the shift is a part, and its images in the dtype of the result.
TailLists::Tail shifted_tail(TailLists::Tail tail, const OutputShift& shift) {
  if (!shift) return tail;
  tail.x = converted(tail.x, shift.weight->scalar_type());
  tail.out_weight = shifted_weight(tail.out_weight, *shift.weight, false);
  if (!tail.out_bias) {
    tail.out_bias = shift.bias;
  } else if (shift.bias) {
    const Tensor bias = shifted_bias(*tail.out_bias, *shift.weight, false);
    dispatch("upsample_tails", bias.scalar_type(), [&](auto zero) {
      using T = Accumulator<decltype(zero)>;
      for (int64_t k = 0; k < bias.size(0); ++k) data<T>(bias)[k] += const_data<T>(*shift.bias)[k];
    });
    tail.out_bias = bias;
  }
  return tail;
}

}  // namespace

std::tuple<Tensor, Tensor> upsample_tail(Tensor x, Tensor up_weight1,
                                         std::optional<Tensor> up_bias1,
                                         std::optional<Tensor> up_weight2,
                                         std::optional<Tensor> up_bias2, Tensor out_weight,
                                         std::optional<Tensor> out_bias, int64_t upscale_factor) {
  const TailArguments tail("upsample_tail", x, up_weight1, up_bias1, up_weight2, up_bias2,
                           out_weight, upscale_factor);
  tail.check_bias("out_bias", out_bias, tail.outputs());
  const Tensor output = empty(x, tail.output_shape(), memory_format(x));
  const Tensor composed = empty(out_weight, tail.composed_shape());
  dispatch("upsample_tail", x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    std::vector<T> bias(static_cast<size_t>(tail.outputs()));
    for (int64_t k = 0; out_bias && k < tail.outputs(); ++k) {
      bias[static_cast<size_t>(k)] = const_data<T>(*out_bias)[k * out_bias->stride(0)];
    }
    Workspace workspace;
    ComposedWeights<T>(workspace, tail).compose(data<T>(composed));
    const TailShape shape = tail_shape<S>(tail);
    TailForward<S>(shape, x, output).write(composed, bias.data());
  });
  return {output, composed};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> upsample_tail_backward(
    Tensor grad_output, Tensor x, Tensor composed, Tensor up_weight1,
    std::optional<Tensor> up_bias1, std::optional<Tensor> up_weight2,
    std::optional<Tensor> up_bias2, Tensor out_weight, int64_t upscale_factor, bool needs_x,
    bool needs_params) {
  const char* op = "upsample_tail_backward";
  const TailArguments tail(op, x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight,
                           upscale_factor);
  tail.check_backward_of(grad_output, composed);
  const Tensor grad_x = needs_x ? empty(x, shape_of(x), memory_format(x)) : absent(x);
  const Tensor grad_bias = needs_params ? empty(out_weight, {tail.outputs()}) : absent(out_weight);
  std::vector<Tensor> grads;
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    Workspace workspace;
    T* grad_composed = needs_params ? workspace.take<T>(composed.numel()) : nullptr;
    const TailShape shape = tail_shape<S>(tail);
    std::optional<Images<S>> target;
    if (needs_x) target = images<S>(grad_x);
    TailGradient<S>(shape, x, grad_output)
        .write(composed, target ? &*target : nullptr, grad_composed,
               needs_params ? data<T>(grad_bias) : nullptr);
    if (needs_params) grads = ComposedWeights<T>(workspace, tail).backward(grad_composed);
  });
  while (grads.size() < 5) grads.push_back(absent(out_weight));
  return {grad_x, grads[0], grads[1], grads[2], grads[3], grads[4], grad_bias};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> upsample_tails(
    std::vector<Tensor> xs, std::vector<Tensor> up_weights1, std::vector<Tensor> up_biases1,
    std::vector<Tensor> up_weights2, std::vector<Tensor> up_biases2,
    std::vector<Tensor> out_weights, std::vector<Tensor> out_biases,
    std::optional<Tensor> shift_weight, std::optional<Tensor> shift_bias, int64_t upscale_factor) {
  const char* op = "upsample_tails";
  const TailLists lists(op, xs, up_weights1, up_biases1, up_weights2, up_biases2, out_weights,
                        out_biases);
  const OutputShift shift{shift_weight, shift_bias};
  shift.check_forward(op);
  std::vector<Tensor> outputs, all_composed;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (shift) lists.arguments(op, i, upscale_factor).check_shift(shift);
    const TailLists::Tail tail = shifted_tail(lists.tails[i], shift);
    const auto [output, composed] =
        upsample_tail(tail.x, tail.up_weight1, tail.up_bias1, tail.up_weight2, tail.up_bias2,
                      tail.out_weight, tail.out_bias, upscale_factor);
    outputs.push_back(output), all_composed.push_back(composed);
  }
  return {outputs, all_composed};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>,
           std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>
upsample_tails_backward(std::vector<Tensor> grad_outputs, std::vector<Tensor> xs,
                        std::vector<Tensor> composed, std::vector<Tensor> up_weights1,
                        std::vector<Tensor> up_biases1, std::vector<Tensor> up_weights2,
                        std::vector<Tensor> up_biases2, std::vector<Tensor> out_weights,
                        std::optional<Tensor> shift_weight, int64_t upscale_factor, bool needs_x,
                        bool needs_params) {
  const char* op = "upsample_tails_backward";
  const TailLists lists(op, xs, up_weights1, up_biases1, up_weights2, up_biases2, out_weights, {});
  lists.check_backward_of(op, grad_outputs, composed);
  const OutputShift shift{shift_weight, std::nullopt};
  std::array<std::vector<Tensor>, 7> found;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (shift) lists.arguments(op, i, upscale_factor).check_shift(shift);
    const TailLists::Tail tail = shifted_tail(lists.tails[i], shift);
    auto grads = upsample_tail_backward(grad_outputs[i], tail.x, composed[i], tail.up_weight1,
                                        tail.up_bias1, tail.up_weight2, tail.up_bias2,
                                        tail.out_weight, upscale_factor, needs_x, needs_params);
    if (needs_x) std::get<0>(grads) = converted(std::get<0>(grads), xs[i].scalar_type());
    if (shift && needs_params) {
      std::get<5>(grads) = shifted_weight(std::get<5>(grads), *shift.weight, true);
      std::get<6>(grads) = shifted_bias(std::get<6>(grads), *shift.weight, true);
    }
    const auto add = [&](const auto&... of_tail) {
      size_t number = 0;
      (found[number++].push_back(of_tail), ...);
    };
    std::apply(add, grads);
  }
  return std::tuple_cat(found);
}

}  // namespace clsd::cpu
