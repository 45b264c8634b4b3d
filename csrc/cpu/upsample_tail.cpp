#include <tuple>
#include <vector>

#include "ops.h"
#include "tail_apply.h"
#include "tail_compose.h"

namespace clsd::cpu {

namespace {

std::string text(int64_t number) { return std::to_string(number); }

std::vector<int64_t> stage_factors(const char* op, int64_t upscale_factor) {
  if (upscale_factor == 4) return {2, 2};
  check(upscale_factor == 2 || upscale_factor == 3, op, "upscale_factor 2, 3 or 4",
        text(upscale_factor));
  return {upscale_factor};
}

// The stages of a call's parameters, checked. Those have the accumulator's dtype.
class Tail {
 public:
  Tail(const char* op, const Tensor& x, const Tensor& up_weight1,
       const std::optional<Tensor>& up_bias1, const std::optional<Tensor>& up_weight2,
       const std::optional<Tensor>& up_bias2, const Tensor& out_weight, int64_t upscale_factor)
      : op_(op), x_(x), out_weight(out_weight) {
    check_images(op, "x", x);
    const auto factors = stage_factors(op, upscale_factor);
    axes = tail_axes(factors);
    check(up_weight2.has_value() == (factors.size() == 2), op,
          text(static_cast<int64_t>(factors.size())) + " up_weights for upscale_factor " +
              text(upscale_factor),
          up_weight2 ? "2" : "1");
    channels_ = x.size(1);
    add_stage("1", up_weight1, up_bias1, factors.front());
    if (up_weight2) add_stage("2", *up_weight2, up_bias2, factors.back());
    check_weight("out_weight", "K", out_weight, 1);
  }

  const TailAxis& axis() const { return axes.front(); }
  int64_t outputs() const { return out_weight.size(0); }
  Shape output_shape() const {
    const int64_t factor = axis().upscale;
    return {x_.size(0), outputs(), factor * x_.size(2), factor * x_.size(3)};
  }
  Shape kernel_shape() const {
    return {x_.size(1) + 1, axis().size(), axis().size(), outputs()};
  }
  TailShape shape() const {
    return {axis(), x_.size(1), outputs(), x_.size(2), x_.size(3)};
  }

  void check_parameter(const char* name, const Tensor& parameter) const {
    const auto dtype = accumulator_dtype(x_.scalar_type());
    check_dtype(op_, name, parameter, dtype, dtype_name(dtype));
    check(parameter.is_cpu(), op_, std::string(name) + " on x's device", "another");
  }

  void check_bias(const char* name, const std::optional<Tensor>& bias, int64_t features) const {
    if (!bias) return;
    check_shape(op_, name, *bias, {features});
    check_parameter(name, *bias);
  }

 private:
  void check_weight(const std::string& name, const char* features, const Tensor& weight,
                    int64_t square) const {
    const bool good = weight.dim() == 4 && weight.size(0) >= 1 && weight.size(0) % square == 0 &&
                      weight.size(1) == channels_ && weight.size(2) == 3 && weight.size(3) == 3;
    if (!good) {
      fail(op_, name + " of shape [" + features + ", " + text(channels_) + ", 3, 3]",
           to_string(shape_of(weight)));
    }
    check_parameter(name.c_str(), weight);
  }

  void add_stage(const std::string& number, const Tensor& weight, const std::optional<Tensor>& bias,
                 int64_t factor) {
    const int64_t square = factor * factor;
    check_weight("up_weight" + number, (text(square) + " M").c_str(), weight, square);
    check_bias(("up_bias" + number).c_str(), bias, weight.size(0));
    stages.push_back({weight, bias, factor});
    channels_ = weight.size(0) / square;
  }

  const char* op_;
  const Tensor& x_;
  int64_t channels_;

 public:
  std::vector<TailAxis> axes;  // from each stage to the end, and that of the last convolution
  std::vector<TailStage> stages;
  const Tensor& out_weight;
};

// The composed kernels of what follows each stage; that of the whole tail is elsewhere.
template <class T>
std::vector<T*> compose_after(Workspace& workspace, const Tail& tail) {
  const size_t count = tail.stages.size();
  std::vector<T*> kernels(count);
  for (size_t i = count; i-- > 0;) {
    const int64_t taps = tail.axes[i + 1].size();
    const int64_t channels = tail.stages[i].outputs() + 1;
    kernels[i] = workspace.take<T>(channels * taps * taps * tail.outputs());
    if (i + 1 == count) {
      compose_out(tail.out_weight, kernels[i]);
    } else {
      TailComposer<T>(tail.stages[i + 1], tail.axes[i + 1], tail.axes[i + 2], kernels[i + 1],
                      tail.outputs())
          .compose(kernels[i]);
    }
  }
  return kernels;
}

template <class T>
void compose(const Tail& tail, T* kernel) {
  Workspace workspace;
  const auto after = compose_after<T>(workspace, tail);
  TailComposer<T>(tail.stages[0], tail.axes[0], tail.axes[1], after[0], tail.outputs())
      .compose(kernel);
}

// From the gradient of the whole tail's kernel to weight and bias of each stage, and the last weight.
template <class T>
std::vector<Tensor> compose_backward(const Tail& tail, const T* grad) {
  Workspace workspace;
  const auto after = compose_after<T>(workspace, tail);
  std::vector<Tensor> grads;
  for (size_t i = 0; i < tail.stages.size(); ++i) {
    const TailStage& stage = tail.stages[i];
    const TailComposer<T> composer(stage, tail.axes[i], tail.axes[i + 1], after[i],
                                   tail.outputs());
    const int64_t taps = tail.axes[i + 1].size();
    T* grad_after = workspace.take<T>((stage.outputs() + 1) * taps * taps * tail.outputs());
    grads.push_back(empty(stage.weight, shape_of(stage.weight)));
    grads.push_back(empty(stage.weight, {stage.weight.size(0)}));
    composer.backward(grad, grads[2 * i], grads[2 * i + 1], grad_after);
    grad = grad_after;
  }
  const Tensor grad_out = empty(tail.out_weight, shape_of(tail.out_weight));
  compose_out_backward(grad, grad_out);
  while (grads.size() < 4) grads.push_back(absent(tail.out_weight));
  grads.push_back(grad_out);
  return grads;
}

}  // namespace

std::tuple<Tensor, Tensor> upsample_tail(Tensor x, Tensor up_weight1,
                                         std::optional<Tensor> up_bias1,
                                         std::optional<Tensor> up_weight2,
                                         std::optional<Tensor> up_bias2, Tensor out_weight,
                                         std::optional<Tensor> out_bias, int64_t upscale_factor) {
  const Tail tail("upsample_tail", x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight,
                  upscale_factor);
  tail.check_bias("out_bias", out_bias, tail.outputs());
  const Tensor output = empty(x, tail.output_shape(), memory_format(x));
  const Tensor kernel = empty(out_weight, tail.kernel_shape());
  dispatch("upsample_tail", x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    std::vector<T> bias(static_cast<size_t>(tail.outputs()));
    for (int64_t k = 0; out_bias && k < tail.outputs(); ++k) {
      bias[static_cast<size_t>(k)] = const_data<T>(*out_bias)[k * out_bias->stride(0)];
    }
    compose<T>(tail, data<T>(kernel));
    const TailShape shape = tail.shape();
    const auto input = images<const S>(x);
    const auto target = images<S>(output);
    TailForward<S>(shape, input, target).write(const_data<T>(kernel), bias.data());
  });
  return {output, kernel};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> upsample_tail_backward(
    Tensor grad_output, Tensor x, Tensor kernel, Tensor up_weight1, std::optional<Tensor> up_bias1,
    std::optional<Tensor> up_weight2, std::optional<Tensor> up_bias2, Tensor out_weight,
    int64_t upscale_factor, bool needs_x, bool needs_params) {
  const char* op = "upsample_tail_backward";
  const Tail tail(op, x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight, upscale_factor);
  check_shape(op, "grad_output", grad_output, tail.output_shape());
  check_like(op, "grad_output", x, grad_output);
  check_shape(op, "kernel", kernel, tail.kernel_shape());
  tail.check_parameter("kernel", kernel);
  check(kernel.is_contiguous(), op, "kernel contiguous", "another layout");
  const Tensor grad_x = needs_x ? empty(x, shape_of(x), memory_format(x)) : absent(x);
  const Tensor grad_bias = needs_params ? empty(out_weight, {tail.outputs()}) : absent(out_weight);
  std::vector<Tensor> grads(5);
  for (Tensor& grad : grads) grad = absent(out_weight);
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    Workspace workspace;
    T* grad_kernel = needs_params ? workspace.take<T>(kernel.numel()) : nullptr;
    const TailShape shape = tail.shape();
    const auto input = images<const S>(x);
    const auto grad = images<const S>(grad_output);
    const auto target = needs_x ? std::optional(images<S>(grad_x)) : std::nullopt;
    TailGradient<S>(shape, input, grad)
        .write(const_data<T>(kernel), target ? &*target : nullptr, grad_kernel,
               needs_params ? data<T>(grad_bias) : nullptr);
    if (needs_params) grads = compose_backward<T>(tail, grad_kernel);
  });
  return {grad_x, grads[0], grads[1], grads[2], grads[3], grads[4], grad_bias};
}

}  // namespace clsd::cpu
