#include <tuple>
#include <vector>

#include "../ops.h"
#include "apply.h"
#include "compose.h"

namespace clsd::cpu {

namespace {

std::string text(int64_t number) { return std::to_string(number); }

// The arguments of a call, checked. Parameters have the accumulator's dtype.
class Tail {
 public:
  Tail(const char* op, const Tensor& x, const Tensor& up_weight1,
       const std::optional<Tensor>& up_bias1, const std::optional<Tensor>& up_weight2,
       const std::optional<Tensor>& up_bias2, const Tensor& out_weight, int64_t upscale_factor)
      : out_weight(out_weight), op_(op), x_(x), channels_(0) {
    check_images(op, "x", x);
    if (upscale_factor < 2 || upscale_factor > 4) {
      fail(op, "upscale_factor 2, 3 or 4", text(upscale_factor));
    }
    // STAGES of clsd_fast/_tail_axes.py. Another factor or number of stages would not compute what
    // the reference does, which the tests compare at each upscale factor.
    const std::vector<int64_t> factors =
        upscale_factor == 4 ? std::vector<int64_t>{2, 2} : std::vector<int64_t>{upscale_factor};
    if (up_weight2.has_value() != (factors.size() == 2)) {
      const std::string expected = up_weight2 ? "no up_weight2" : "up_weight2";
      fail(op, expected + " for upscale_factor " + text(upscale_factor),
           up_weight2 ? "one" : "none");
    }
    channels_ = x.size(1);
    add_stage("1", up_weight1, up_bias1, factors.front());
    if (up_weight2) add_stage("2", *up_weight2, up_bias2, factors.back());
    check_weight("out_weight", "K", out_weight, 1);
    axes = tail_axes(factors);
  }

  struct Stage {
    const Tensor& weight;
    const std::optional<Tensor>& bias;
    int64_t factor;
  };

  std::vector<Stage> stages;
  std::vector<TailAxis> axes;  // from each stage to the end, and that of the last convolution
  const Tensor& out_weight;

  const TailAxis& axis() const { return axes.front(); }
  int64_t outputs() const { return out_weight.size(0); }
  TailShape shape() const { return {axis(), x_.size(1), outputs(), x_.size(2), x_.size(3)}; }
  Shape output_shape() const {
    const int64_t factor = axis().upscale;
    return {x_.size(0), outputs(), factor * x_.size(2), factor * x_.size(3)};
  }
  Shape composed_shape() const { return {x_.size(1) + 1, axis().size(), axis().size(), outputs()}; }

  void check_parameter(const char* name, const Tensor& parameter) const {
    const auto dtype = accumulator_dtype(x_.scalar_type());
    check_dtype(op_, name, parameter, dtype, dtype_name(dtype));
    check_device(op_, name, x_, parameter);
  }

  void check_bias(const char* name, const std::optional<Tensor>& bias, int64_t features) const {
    if (!bias) return;
    check_shape(op_, name, *bias, {features});
    check_parameter(name, *bias);
  }

 private:
  void check_weight(const std::string& name, const std::string& features, const Tensor& weight,
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
    check_weight("up_weight" + number, text(square) + " M", weight, square);
    check_bias(("up_bias" + number).c_str(), bias, weight.size(0));
    stages.push_back({weight, bias, factor});
    channels_ = weight.size(0) / square;
  }

  const char* op_;
  const Tensor& x_;
  int64_t channels_;
};

// A tail's composed weights: of what follows each stage here, of the whole tail elsewhere.
template <class T>
class ComposedWeights {
 public:
  ComposedWeights(Workspace& workspace, const Tail& tail) : tail_(tail) {
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

  const Tail& tail_;
  std::vector<TailStage<T>> stages_;
  std::vector<T*> after_;
};

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
    const TailShape shape = tail.shape();
    const auto input = images<const S>(x);
    const auto target = images<S>(output);
    TailForward<S>(shape, input, target).write(const_data<T>(composed), bias.data());
  });
  return {output, composed};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> upsample_tail_backward(
    Tensor grad_output, Tensor x, Tensor composed, Tensor up_weight1,
    std::optional<Tensor> up_bias1, std::optional<Tensor> up_weight2,
    std::optional<Tensor> up_bias2, Tensor out_weight, int64_t upscale_factor, bool needs_x,
    bool needs_params) {
  const char* op = "upsample_tail_backward";
  const Tail tail(op, x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight, upscale_factor);
  check_backward(op, "grad_output", x, grad_output, tail.output_shape());
  check_shape(op, "composed", composed, tail.composed_shape());
  tail.check_parameter("composed", composed);
  check_contiguous(op, "composed", composed);
  const Tensor grad_x = needs_x ? empty(x, shape_of(x), memory_format(x)) : absent(x);
  const Tensor grad_bias = needs_params ? empty(out_weight, {tail.outputs()}) : absent(out_weight);
  std::vector<Tensor> grads;
  dispatch(op, x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    Workspace workspace;
    T* grad_composed = needs_params ? workspace.take<T>(composed.numel()) : nullptr;
    const TailShape shape = tail.shape();
    const auto input = images<const S>(x);
    const auto grad = images<const S>(grad_output);
    std::optional<Images<S>> target;
    if (needs_x) target = images<S>(grad_x);
    TailGradient<S>(shape, input, grad)
        .write(const_data<T>(composed), target ? &*target : nullptr, grad_composed,
               needs_params ? data<T>(grad_bias) : nullptr);
    if (needs_params) grads = ComposedWeights<T>(workspace, tail).backward(grad_composed);
  });
  while (grads.size() < 5) grads.push_back(absent(out_weight));
  return {grad_x, grads[0], grads[1], grads[2], grads[3], grads[4], grad_bias};
}

}  // namespace clsd::cpu
