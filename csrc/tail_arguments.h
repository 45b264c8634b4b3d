// The arguments of the composed tail's operators.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tail_axis.h"
#include "tensor_util.h"

namespace clsd {

// What is done to the last convolution's outputs, as by a 1x1 convolution of these parameters: weight
// [K, K, 1, 1], and bias [K], which a backward is not given. What comes out has their dtype, the
// accumulator's.
struct OutputShift {
  std::optional<Tensor> weight, bias;

  explicit operator bool() const { return weight.has_value(); }

  void check_forward(const char* op) const {
    check(weight.has_value() == bias.has_value(), op, "shift_weight and shift_bias or neither",
          "one of them");
  }
};

// The arguments of a call, checked. Parameters have the accumulator's dtype.
class TailArguments {
 public:
  TailArguments(const char* op, const Tensor& x, const Tensor& up_weight1,
                const std::optional<Tensor>& up_bias1, const std::optional<Tensor>& up_weight2,
                const std::optional<Tensor>& up_bias2, const Tensor& out_weight,
                int64_t upscale_factor)
      : x(x), out_weight(out_weight), op_(op), channels_(0) {
    check_images(op, "x", x);
    if (upscale_factor < 2 || upscale_factor > 4) {
      fail(op, "upscale_factor 2, 3 or 4", std::to_string(upscale_factor));
    }
    // STAGES of clsd_fast/_tail_axes.py. Another factor or number of stages would not compute what
    // the reference does, which the tests compare at each upscale factor.
    const std::vector<int64_t> factors =
        upscale_factor == 4 ? std::vector<int64_t>{2, 2} : std::vector<int64_t>{upscale_factor};
    if (up_weight2.has_value() != (factors.size() == 2)) {
      const std::string expected = up_weight2 ? "no up_weight2" : "up_weight2";
      fail(op, expected + " for upscale_factor " + std::to_string(upscale_factor),
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
  const Tensor& x;
  const Tensor& out_weight;

  const TailAxis& axis() const { return axes.front(); }
  int64_t outputs() const { return out_weight.size(0); }
  Shape output_shape() const {
    const int64_t factor = axis().upscale;
    return {x.size(0), outputs(), factor * x.size(2), factor * x.size(3)};
  }
  Shape composed_shape() const { return {x.size(1) + 1, axis().size(), axis().size(), outputs()}; }

  void check_backward_of(const Tensor& grad_output, const Tensor& composed,
                         bool is_shifted = false) const {
    if (is_shifted) {
      check_shape(op_, "grad_output", grad_output, output_shape());
      check_parameter("grad_output", grad_output);
    } else {
      check_backward(op_, "grad_output", x, grad_output, output_shape());
    }
    check_shape(op_, "composed", composed, composed_shape());
    check_parameter("composed", composed);
    check_contiguous(op_, "composed", composed);
  }

  void check_parameter(const char* name, const Tensor& parameter) const {
    const auto dtype = accumulator_dtype(x.scalar_type());
    check_dtype(op_, name, parameter, dtype, dtype_name(dtype));
    check_device(op_, name, x, parameter);
  }

  void check_shift(const OutputShift& shift) const {
    if (!shift) return;
    check_shape(op_, "shift_weight", *shift.weight, {outputs(), outputs(), 1, 1});
    check_parameter("shift_weight", *shift.weight);
    check_contiguous(op_, "shift_weight", *shift.weight);
    check_bias("shift_bias", shift.bias, outputs());
    if (shift.bias) check_contiguous(op_, "shift_bias", *shift.bias);
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
      fail(op_, name + " of shape [" + features + ", " + std::to_string(channels_) + ", 3, 3]",
           to_string(shape_of(weight)));
    }
    check_parameter(name.c_str(), weight);
  }

  void add_stage(const std::string& number, const Tensor& weight, const std::optional<Tensor>& bias,
                 int64_t factor) {
    const int64_t square = factor * factor;
    check_weight("up_weight" + number, std::to_string(square) + " M", weight, square);
    check_bias(("up_bias" + number).c_str(), bias, weight.size(0));
    stages.push_back({weight, bias, factor});
    channels_ = weight.size(0) / square;
  }

  const char* op_;
  int64_t channels_;
};

// Those of several tails, from lists; lists of what there is not are empty.
struct TailLists {
  struct Tail {
    Tensor x, up_weight1;
    std::optional<Tensor> up_bias1, up_weight2, up_bias2;
    Tensor out_weight;
    std::optional<Tensor> out_bias;
  };

  std::vector<Tail> tails;

  TailLists(const char* op, const std::vector<Tensor>& xs, const std::vector<Tensor>& up_weights1,
            const std::vector<Tensor>& up_biases1, const std::vector<Tensor>& up_weights2,
            const std::vector<Tensor>& up_biases2, const std::vector<Tensor>& out_weights,
            const std::vector<Tensor>& out_biases) {
    check(!xs.empty(), op, "at least one tail", "none");
    for (const auto* list : {&up_weights1, &out_weights}) check_list(op, xs.size(), list->size());
    for (const auto* list : {&up_biases1, &up_weights2, &up_biases2, &out_biases}) {
      if (!list->empty()) check_list(op, xs.size(), list->size());
    }
    for (size_t i = 0; i < xs.size(); ++i) {
      tails.push_back({xs[i], up_weights1[i], given(up_biases1, i), given(up_weights2, i),
                       given(up_biases2, i), out_weights[i], given(out_biases, i)});
    }
  }

  size_t size() const { return tails.size(); }

  // They refer to the lists.
  TailArguments arguments(const char* op, size_t i, int64_t upscale_factor) const {
    const Tail& tail = tails[i];
    TailArguments found(op, tail.x, tail.up_weight1, tail.up_bias1, tail.up_weight2, tail.up_bias2,
                        tail.out_weight, upscale_factor);
    found.check_bias("out_bias", tail.out_bias, found.outputs());
    return found;
  }

  void check_backward_of(const char* op, const std::vector<Tensor>& grad_outputs,
                         const std::vector<Tensor>& composed) const {
    for (const auto* list : {&grad_outputs, &composed}) check_list(op, size(), list->size());
  }
};

}  // namespace clsd
