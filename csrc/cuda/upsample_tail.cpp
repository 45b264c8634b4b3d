// The composed tail, as operators.
#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../tail_arguments.h"
#include "gradients.h"
#include "ops.h"
#include "tail.h"
#include "tensors.h"

namespace clsd::cuda {

namespace {

void check_sizes(const char* op, const TailArguments& tail) {
  const int64_t channels = tail.x.size(1);
  if (channels % kChannelMultiple == 0 && channels <= kLargestChannels &&
      tail.outputs() <= kFewChannels) {
    return;
  }
  fail(op,
       "channels in multiples of " + std::to_string(kChannelMultiple) + " up to " +
           std::to_string(kLargestChannels) + " and up to " + std::to_string(kFewChannels) +
           " outputs for its CUDA kernel",
       "x of shape " + to_string(shape_of(tail.x)) + " and out_weight of shape " +
           to_string(shape_of(tail.out_weight)));
}

TailReaches reaches_of(const TailAxis& axis) {
  TailReaches reaches{};
  for (auto& taps : reaches.tap) std::fill(std::begin(taps), std::end(taps), int8_t{-1});
  const auto add = [&](int64_t reach, int64_t i, int64_t tap) {
    reaches.tap[reach][i] = static_cast<int8_t>(tap);
    reaches.reach[tap] = static_cast<int8_t>(reach), reaches.i[tap] = static_cast<int8_t>(i);
  };
  const int64_t factor = axis.upscale;
  for (const TailSegment& segment : axis.segments) {
    for (int64_t i = 0; i < factor; ++i) {
      for (int64_t reach = 0; segment.every && reach < kEveryReaches; ++reach) {
        const int64_t tap = factor * (2 - reach) + axis.padding + i;
        if (tap >= 0 && tap < segment.count) add(reach, i, tap);
      }
      if (segment.every) continue;
      const bool at_end = segment.edge < 0;
      const int64_t tap = at_end ? i - (factor - segment.count) : i;
      const int64_t reach = kEveryReaches + (at_end ? 2 + ~segment.edge : segment.edge);
      if (tap >= 0 && tap < segment.count) add(reach, i, segment.begin + tap);
    }
  }
  return reaches;
}

TailPaths paths_of(const TailAxis& axis, const TailAxis& after) {
  TailPaths paths{};
  int count = 0;
  for (int64_t tap = 0; tap < axis.size(); ++tap) {
    paths.begin[tap] = static_cast<int8_t>(count);
    for (const TailPath& path : axis.paths) {
      const int64_t along = tap - path.tap;
      if (along < 0 || along >= path.count) continue;
      paths.row[count] = static_cast<int8_t>(path.row);
      paths.after[count] = static_cast<int8_t>(path.after + along);
      paths.sign[count] = static_cast<int8_t>(path.sign);
      ++count;
      const int64_t place = path.row * after.size() + path.after + along;
      const int which = paths.signs[place][0] != 0;
      paths.taps[place][which] = static_cast<int8_t>(tap);
      paths.signs[place][which] = static_cast<int8_t>(path.sign);
    }
  }
  paths.begin[axis.size()] = static_cast<int8_t>(count);
  return paths;
}

TailShape shape_of_tail(const TailArguments& tail) {
  const TailAxis& axis = tail.axis();
  TailShape shape{};
  shape.batch = tail.x.size(0);
  if (std::max(tail.x.size(2), tail.x.size(3)) > kMaxSide) {
    throw std::runtime_error("upsample_tail: expected sides of at most 2^30 pixels");
  }
  shape.height = static_cast<int>(tail.x.size(2)), shape.width = static_cast<int>(tail.x.size(3));
  shape.channels = static_cast<int>(tail.x.size(1));
  shape.outputs = static_cast<int>(tail.outputs());
  shape.factor = static_cast<int>(axis.upscale), shape.taps = static_cast<int>(axis.size());
  shape.inner = axis.segments.size() > 3;
  shape.reaches = reaches_of(axis);
  const int length = shape.factor * shape.outputs;
  for (int column = 0; column < shape.columns(); ++column) {
    const int64_t row = column / length * int64_t{shape.width} * length;
    shape.column_offsets[column] = static_cast<int32_t>(row + column % length);
  }
  return shape;
}

void set_strides(int64_t (&strides)[4], const Tensor& weight) {
  for (int i = 0; i < 4; ++i) strides[i] = weight.stride(i);
}

Global<const float> strided(const Tensor& parameter) {
  return global(const_data<float>(parameter), extent(parameter));
}

// Stage `number` of a tail. What follows it: what `composed` is of, or nothing for the last one.
TailStage stage_of(const TailArguments& tail, size_t number, Global<const float> composed,
                   const OutputShift& shift) {
  const auto& [weight, bias, factor] = tail.stages[number];
  TailStage stage{};
  stage.weight = strided(weight);
  set_strides(stage.weight_strides, weight);
  if (bias) stage.bias = strided(*bias), stage.bias_stride = bias->stride(0);
  stage.channels = static_cast<int>(weight.size(1));
  stage.features = static_cast<int>(weight.size(0) / (factor * factor));
  stage.outputs = static_cast<int>(tail.outputs()), stage.factor = static_cast<int>(factor);
  stage.after_taps = static_cast<int>(tail.axes[number + 1].size());
  stage.last = number + 1 == tail.stages.size();
  stage.by_outputs = Divisor(stage.outputs), stage.by_after_taps = Divisor(stage.after_taps);
  stage.by_map_rows = Divisor(stage.map_rows());
  stage.after = stage.last ? strided(tail.out_weight) : composed;
  if (!stage.last) return stage;
  set_strides(stage.after_strides, tail.out_weight);
  stage.shift_weight = to_global<float>(shift.weight);
  return stage;
}

// Floats for kernels alone.
Tensor workspace(const Tensor& like, int64_t floats) {
  return torch::stable::new_empty(like, {floats}, ScalarType::Float);
}

// Tails of equal images and scale, at most kMaxTails, on their way from parameters to laid out
// weights. It owns what the kernels write on the way.
template <class T>
class Composer {
 public:
  Composer(const std::vector<TailArguments>& tails, const OutputShift& shift, Stream stream)
      : tails_(tails), shift_(shift), stream_(stream) {
    composed_.resize(tails.size());
    tasks_.count = static_cast<int>(tails.size());
  }

  // Compose all of them into `composed`, and lay them out.
  void compose_all(const std::vector<Tensor>& composed) {
    if (has_second()) {
      set_stage(1);
      multiply_stages(tasks_, stream_);
      for (size_t i = 0; i < tails_.size(); ++i) tasks_.at[i].composition = after_of(i);
      compose(tasks_, paths(1), stream_);
    }
    set_stage(0);
    multiply_stages(tasks_, stream_);
    set_layout(composed);
    compose_and_lay_out(tasks_, shape(), paths(0), stream_);
  }

  // Lay `composed` out for the gradient of the images, and multiply what will be composed for those
  // of the parameters: what follows the first of two stages.
  void prepare_gradients(const std::vector<Tensor>& composed, bool of_images, bool of_params) {
    if (of_params && has_second()) {
      set_stage(1);
      for (size_t i = 0; i < tails_.size(); ++i) after_[i] = after_of(i);
    }
    if (of_images) set_layout(composed);
    cuda::prepare_gradients(tasks_, shape(), stream_);
  }

  const TailArguments& first() const { return tails_.front(); }
  TailShape shape() const { return shape_of_tail(first()); }
  TailPaths paths(size_t number) const {
    return paths_of(first().axes[number], first().axes[number + 1]);
  }
  bool has_second() const { return first().stages.size() > 1; }
  // What follows the first of two stages, composed, and on its way to that.
  Global<const float> composed_after(size_t i) const { return to_global<float>(composed_[i]); }
  const Composition& after(size_t i) const { return after_[i]; }
  Tails<T>& tasks() { return tasks_; }

 private:
  // A stage, and room for its products.
  void set_stage(size_t number) {
    products_.clear();
    for (size_t i = 0; i < tails_.size(); ++i) {
      const TailStage stage = stage_of(tails_[i], number, composed_after(i), shift_);
      const int64_t lines = int64_t{stage.pairs()} * (stage.channels + 1);
      products_.push_back(workspace(tails_[i].out_weight, lines * stage.after_size()));
      Composition composition{};
      composition.products = to_mutable_global<float>(products_[i]);
      composition.channels = stage.channels, composition.outputs = stage.outputs;
      composition.factor = stage.factor, composition.after_taps = stage.after_taps;
      composition.taps = static_cast<int>(first().axes[number].size());
      tasks_.at[i].stage = stage, tasks_.at[i].composition = composition;
    }
  }

  // The composition of the stage, with room for its result.
  Composition after_of(size_t i) {
    Composition after = tasks_.at[i].composition;
    composed_[i] = workspace(tails_[i].out_weight, after.size());
    after.composed = to_mutable_global<float>(*composed_[i]);
    return after;
  }

  void set_layout(const std::vector<Tensor>& composed) {
    const int64_t pairs = int64_t{shape().fragments()} * kFragmentPairs;
    for (size_t i = 0; i < tails_.size(); ++i) {
      weights_.push_back(workspace(tails_[i].out_weight, pairs));  // of as many bytes
      tasks_.at[i].weights = global(reinterpret_cast<uint32_t*>(data<float>(weights_[i])), pairs);
      tasks_.at[i].composition.composed = to_mutable_global<float>(composed[i]);
    }
  }

  const std::vector<TailArguments>& tails_;
  const OutputShift& shift_;
  Stream stream_;
  Tails<T> tasks_{};
  Composition after_[kMaxTails]{};
  std::vector<Tensor> products_, weights_;
  std::vector<std::optional<Tensor>> composed_;  // of what follows the first of two stages
};

std::vector<Tensor> forward(const std::vector<TailArguments>& tails,
                            const std::vector<std::optional<Tensor>>& out_biases,
                            const std::vector<Tensor>& composed, const OutputShift& shift) {
  const Tensor& x = tails.front().x;
  const Device device(x);
  std::vector<Output> outputs;
  for (const TailArguments& tail : tails) {
    const Tensor& like = shift ? tail.out_weight : tail.x;
    outputs.emplace_back(like, tail.output_shape(), memory_format(tail.x));
  }
  dispatch_16_bit("upsample_tail", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    Composer<T> composer(tails, shift, device.stream());
    composer.compose_all(composed);
    Tails<T>& tasks = composer.tasks();
    std::vector<Tensor> inputs;
    for (size_t i = 0; i < tails.size(); ++i) {
      inputs.push_back(as_nhwc(tails[i].x));
      tasks.at[i].input = to_global<T>(inputs[i]);
      if (shift) {
        tasks.at[i].shifted = to_mutable_global<float>(outputs[i].written());
        tasks.at[i].shift = {to_global<float>(shift.weight), to_global<float>(shift.bias)};
      } else {
        tasks.at[i].output = to_mutable_global<T>(outputs[i].written());
      }
      if (!out_biases[i]) continue;
      tasks.at[i].out_bias = strided(*out_biases[i]);
      tasks.at[i].out_bias_stride = out_biases[i]->stride(0);
    }
    apply(tasks, composer.shape(), device.stream());
  });
  std::vector<Tensor> results;
  for (Output& output : outputs) results.push_back(output.finish());
  return results;
}

// Gradients of a tail's parameters: of weight and bias of each stage, and of the last convolution's.
struct TailGradients {
  std::vector<Tensor> stages;  // two each
  Tensor out_weight, out_bias;

  TailGradients(const TailArguments& tail, bool needed)
      : out_weight(needed ? empty(tail.out_weight, shape_of(tail.out_weight),
                                  memory_format(tail.out_weight))
                          : absent(tail.out_weight)),
        out_bias(needed ? empty(tail.out_weight, {tail.outputs()}) : absent(tail.out_weight)) {
    for (const auto& stage : tail.stages) {
      const ParameterGradients stage_gradients(stage.weight, needed, needed);
      stages.insert(stages.end(), {stage_gradients.weight, stage_gradients.bias});
    }
    while (stages.size() < 4) stages.push_back(absent(tail.out_weight));
  }
};

// From the gradients of the composed weights on to the layers'.
template <class T>
void differentiate_all(Composer<T>& composer, const std::vector<TailArguments>& tails,
                       const std::vector<Tensor>& grads, const std::vector<TailGradients>& results,
                       Stream stream) {
  const TailArguments& first = tails.front();
  std::vector<Tensor> parts = grads, next;
  int grad_parts = 1;
  for (size_t number = 0; number < first.stages.size(); ++number) {
    StageGradients tasks{};
    tasks.count = static_cast<int>(tails.size());
    next.clear();
    for (size_t i = 0; i < tails.size(); ++i) {
      StageGradient& task = tasks.at[i];
      task.stage = stage_of(tails[i], number, composer.composed_after(i), {});
      task.grad = to_global<float>(parts[i]), task.grad_parts = grad_parts;
      // A second stage sums the parts of its gradient wherever it reads them: they are few.
      task.pairs_of_part = task.stage.last ? 1 : task.stage.map_rows();
      const Tensor& weight = results[i].stages[2 * number];
      task.grad_weight = to_mutable_global<float>(weight);
      set_strides(task.weight_strides, weight);
      task.grad_bias = to_mutable_global<float>(results[i].stages[2 * number + 1]);
      const int64_t size = int64_t{task.stage.after_size()} * task.stage.after_channels();
      next.push_back(workspace(weight, task.parts() * size));
      task.partials = to_mutable_global<float>(next[i]);
      task.grad_out_weight = to_mutable_global<float>(results[i].out_weight);
      set_strides(task.out_strides, results[i].out_weight);
    }
    differentiate_stages(tasks, composer.paths(number), static_cast<int>(first.axes[number].size()),
                         stream);
    if (tasks.at[0].stage.last) sum_out_weights(tasks, stream);
    grad_parts = tasks.at[0].parts();
    parts.swap(next);
  }
}

// Of an output, dense [N, H, W, C]; of float where it is shifted.
template <class T, class Task>
void set_grad(Task& task, const Tensor& grad) {
  if (is_16_bit(grad.scalar_type())) {
    task.grad = to_global<T>(grad);
  } else {
    task.grad_shifted = to_global<float>(grad);
  }
}

// Gradients of the composed weights, and of the biases; and compose what follows a first stage.
template <class T>
std::vector<Tensor> differentiate_composed(const Composer<T>& composer,
                                           const std::vector<TailArguments>& tails,
                                           const std::vector<Tensor>& grad_outputs,
                                           const OutputShift& shift,
                                           const std::vector<TailGradients>& results,
                                           Stream stream) {
  const TailShape shape = composer.shape();
  WeightsGradients<T> tasks{};
  tasks.count = static_cast<int>(tails.size());
  const int64_t floats = partial_floats(shape, tasks.count);
  std::vector<Tensor> inputs, partials, grads;
  for (size_t i = 0; i < tails.size(); ++i) {
    const Tensor& like = tails[i].out_weight;
    WeightsGradient<T>& task = tasks.at[i];
    inputs.push_back(as_nhwc(tails[i].x));
    partials.push_back(workspace(like, floats));
    const int64_t size = int64_t{shape.taps} * shape.taps * shape.outputs * (shape.channels + 1);
    grads.push_back(workspace(like, size));
    set_grad<T>(task, grad_outputs[i]);
    task.input = to_global<T>(inputs[i]);
    task.shift_weight = to_global<float>(shift.weight);
    task.partials = to_mutable_global<float>(partials[i]);
    task.grad_composed = to_mutable_global<float>(grads[i]);
    task.grad_bias = to_mutable_global<float>(results[i].out_bias);
    task.after = composer.after(i);
  }
  const TailPaths paths = composer.has_second() ? composer.paths(1) : TailPaths{};
  differentiate_weights(tasks, shape, paths, stream);
  return grads;
}

// Gradients of the images.
std::vector<Tensor> backward(const std::vector<TailArguments>& tails,
                             const std::vector<Tensor>& grad_outputs,
                             const std::vector<Tensor>& composed, const OutputShift& shift,
                             bool needs_x, const std::vector<TailGradients>& results,
                             bool needs_params) {
  const Tensor& x = tails.front().x;
  std::vector<Tensor> grad_xs;
  if (!needs_x && !needs_params) return std::vector<Tensor>(tails.size(), absent(x));
  const Device device(x);
  dispatch_16_bit("upsample_tail_backward", x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    // The gradients of what is composed go back through the shift themselves.
    const OutputShift none;
    Composer<T> composer(tails, none, device.stream());
    std::vector<Tensor> grads;
    for (const Tensor& grad : grad_outputs) grads.push_back(as_nhwc(grad));
    std::vector<Output> outputs;
    composer.prepare_gradients(composed, needs_x, needs_params);
    if (needs_x) {
      for (size_t i = 0; i < tails.size(); ++i) {
        outputs.emplace_back(tails[i].x, shape_of(tails[i].x), memory_format(tails[i].x));
        set_grad<T>(composer.tasks().at[i], grads[i]);
        composer.tasks().at[i].grad_input = to_mutable_global<T>(outputs[i].written());
      }
      differentiate_images(composer.tasks(), composer.shape(), device.stream());
    }
    for (size_t i = 0; i < tails.size(); ++i) {
      grad_xs.push_back(needs_x ? outputs[i].finish() : absent(x));
    }
    if (!needs_params) return;
    const auto grads_composed =
        differentiate_composed<T>(composer, tails, grads, shift, results, device.stream());
    differentiate_all(composer, tails, grads_composed, results, device.stream());
  });
  return grad_xs;
}

// Those of the tails from `first` on that a launch takes, checked. They refer to the lists.
std::vector<TailArguments> tails_of(const char* op, const TailLists& lists, size_t first,
                                    int64_t upscale_factor) {
  std::vector<TailArguments> tails;
  for (size_t i = first; i < std::min(lists.size(), first + kMaxTails); ++i) {
    const TailArguments& tail = tails.emplace_back(lists.arguments(op, i, upscale_factor));
    check_sizes(op, tail);
    check_like(op, "xs", lists.tails[0].x, tail.x);
    check_shape(op, "xs", tail.x, shape_of(lists.tails[0].x));
    if (tail.outputs() == tails[0].outputs()) continue;
    fail(op, "equally many outputs of all tails", std::to_string(tail.outputs()));
  }
  return tails;
}

}  // namespace

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
  for (size_t first = 0; first < lists.size(); first += kMaxTails) {
    const auto tails = tails_of(op, lists, first, upscale_factor);
    std::vector<Tensor> composed;
    std::vector<std::optional<Tensor>> biases;
    for (size_t i = 0; i < tails.size(); ++i) {
      tails[i].check_shift(shift);
      composed.push_back(empty(tails[i].out_weight, tails[i].composed_shape()));
      biases.push_back(lists.tails[first + i].out_bias);
    }
    for (const Tensor& output : forward(tails, biases, composed, shift)) outputs.push_back(output);
    all_composed.insert(all_composed.end(), composed.begin(), composed.end());
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
  std::vector<Tensor> grad_xs;
  std::vector<TailGradients> all_grads;
  for (size_t first = 0; first < lists.size(); first += kMaxTails) {
    const auto tails = tails_of(op, lists, first, upscale_factor);
    std::vector<TailGradients> grads;
    for (size_t i = 0; i < tails.size(); ++i) {
      tails[i].check_shift(shift);
      tails[i].check_backward_of(grad_outputs[first + i], composed[first + i], bool(shift));
      grads.emplace_back(tails[i], needs_params);
    }
    const auto part = [&](const std::vector<Tensor>& list) {
      return std::vector<Tensor>(list.begin() + first, list.begin() + first + tails.size());
    };
    for (const Tensor& grad_x :
         backward(tails, part(grad_outputs), part(composed), shift, needs_x, grads, needs_params)) {
      grad_xs.push_back(grad_x);
    }
    all_grads.insert(all_grads.end(), grads.begin(), grads.end());
  }
  std::vector<Tensor> found[6];
  for (const TailGradients& grads : all_grads) {
    for (size_t i = 0; i < 4; ++i) found[i].push_back(grads.stages[i]);
    found[4].push_back(grads.out_weight), found[5].push_back(grads.out_bias);
  }
  return {grad_xs, found[0], found[1], found[2], found[3], found[4], found[5]};
}

std::tuple<Tensor, Tensor> upsample_tail(Tensor x, Tensor up_weight1,
                                         std::optional<Tensor> up_bias1,
                                         std::optional<Tensor> up_weight2,
                                         std::optional<Tensor> up_bias2, Tensor out_weight,
                                         std::optional<Tensor> out_bias, int64_t upscale_factor) {
  const char* op = "upsample_tail";
  const TailArguments tail(op, x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight,
                           upscale_factor);
  tail.check_bias("out_bias", out_bias, tail.outputs());
  check_sizes(op, tail);
  const Tensor composed = empty(out_weight, tail.composed_shape());
  return {forward({tail}, {out_bias}, {composed}, {})[0], composed};
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
  check_sizes(op, tail);
  const TailGradients grads(tail, needs_params);
  const Tensor grad_x =
      backward({tail}, {grad_output}, {composed}, {}, needs_x, {grads}, needs_params)[0];
  const auto& stages = grads.stages;
  return {grad_x, stages[0], stages[1], stages[2], stages[3], grads.out_weight, grads.out_bias};
}

}  // namespace clsd::cuda
