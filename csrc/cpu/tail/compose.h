// Composing the weight of a composed tail (docs/tail.md), and the gradients of what it is made of.
//
// A composed weight is [C + 1][columns][rows][K], over all taps of both axes (tail_axis.h). Its last
// channel is one that is 1 everywhere, to multiply with the biases. Composing begins at the output,
// which has few channels.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include "../../tail_axis.h"
#include "../../tensor_util.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../workspace.h"

namespace clsd::cpu {

constexpr int64_t kComposeChain = 33;  // steps of one summation chain (kernels.h): half of 64 + 1
constexpr int64_t kComposeGroups = 8;  // of channels, whose partials are added in order

// A weight [K, C, 3, 3] of any strides, which is only read if T is const: a tensor takes too long
// to tell its strides for every element.
template <class T>
struct TailWeight {
  T* data;
  int64_t outputs, inputs, stride_k, stride_c, taps[9];

  explicit TailWeight(const Tensor& weight)
      : data(clsd::data<std::remove_const_t<T>>(weight)),
        outputs(weight.size(0)),
        inputs(weight.size(1)),
        stride_k(weight.stride(0)),
        stride_c(weight.stride(1)) {
    for (int64_t i = 0; i < 9; ++i) taps[i] = i / 3 * weight.stride(2) + i % 3 * weight.stride(3);
  }

  T& at(int64_t k, int64_t c, int64_t tap) const {
    return data[k * stride_k + c * stride_c + taps[tap]];
  }
};

// A stage of an upsampler: weight [M r^2, C, 3, 3] and bias [M r^2].
template <class T>
struct TailStage {
  TailWeight<const T> weight;
  const T* bias = nullptr;
  int64_t bias_stride = 0;
  int64_t factor;

  TailStage(const Tensor& weight, const std::optional<Tensor>& bias, int64_t factor)
      : weight(weight), factor(factor) {
    if (bias) this->bias = const_data<T>(*bias), bias_stride = bias->stride(0);
  }

  int64_t inputs() const { return weight.inputs; }
  int64_t outputs() const { return weight.outputs / (factor * factor); }
};

// The last convolution [K, M, 3, 3] as a composed weight [M + 1][3][3][K].
template <class T>
void compose_out(const TailWeight<const T>& weight, T* composed) {
  for (int64_t m = 0; m < weight.inputs; ++m) {
    for (int64_t i = 0; i < 9; ++i) {
      const int64_t tap = 8 - (i % 3 * 3 + i / 3);
      for (int64_t k = 0; k < weight.outputs; ++k) *composed++ = weight.at(k, m, tap);
    }
  }
  std::fill_n(composed, 9 * weight.outputs, T(0));
}

template <class T>
void compose_out_backward(const T* grad, const TailWeight<T>& grad_weight) {
  for (int64_t m = 0; m < grad_weight.inputs; ++m) {
    for (int64_t i = 0; i < 9; ++i) {
      const int64_t tap = 8 - (i % 3 * 3 + i / 3);
      for (int64_t k = 0; k < grad_weight.outputs; ++k) grad_weight.at(k, m, tap) = *grad++;
    }
  }
}

// A stage put before the composed weight `after` of what follows it: for each input channel, what a
// pixel adds to the shuffled map, [3 r * 3 r, M + 1], times that weight, [M + 1, columns * rows *
// K], and the products summed along the paths of both axes.
template <class T>
class TailComposer {
 public:
  TailComposer(const TailStage<T>& stage, const TailAxis& axis, const TailAxis& after_axis,
               const T* after, int64_t outputs)
      : stage_(stage),
        axis_(axis),
        after_axis_(after_axis),
        after_(after),
        outputs_(outputs),
        steps_(stage.outputs() + 1),
        side_(3 * stage.factor),
        rows_(round_up(side_ * side_, kRowStep)),
        after_size_(after_axis.size() * after_axis.size() * outputs),
        columns_(round_up(after_size_, kTileCols)) {}

  int64_t channels() const { return stage_.inputs() + 1; }
  int64_t size() const { return axis_.size() * axis_.size() * outputs_; }  // of a channel

  void compose(T* composed) const {
    Workspace workspace;
    const T* columns = pack_after(workspace, false);
    parallel_for(0, channels(), 4, [&](int64_t begin, int64_t end) {
      Workspace scratch;
      T* responses = take_responses(scratch);
      T* products = scratch.take<T>(rows_ * columns_);
      for (int64_t c = begin; c < end; ++c) {
        respond(c, responses);
        const TileOperands<T> operands{
            .a = responses,
            .a_row = steps_,
            .a_step = 1,
            .b = columns,
            .b_step = kTileCols,
            .steps = steps_,
            .chain = kComposeChain,
            .add = false,
            .rows = rows_,
            .acc_row = columns_,
            .panels = columns_ / kTileCols,
            .b_panel = steps_ * kTileCols,
        };
        kernels_.multiply(products, operands);
        T* target = composed + c * size();
        std::fill_n(target, size(), T(0));
        visit_paths([&](int64_t product, int64_t tap, int64_t count, T sign) {
          add_signed(target + tap, products + product, sign, count);
        });
      }
    });
  }

  // From the gradient of the composed weight to those of weight, bias and `after`.
  void backward(const T* grad, const TailWeight<T>& grad_weight, T* grad_bias,
                T* grad_after) const {
    Workspace workspace;
    const T* columns = pack_after(workspace, true);
    const int64_t size = round_up(steps_, kRowStep) * columns_;
    T* partials = workspace.take<T>(kComposeGroups * size);
    std::fill_n(partials, kComposeGroups * size, T(0));
    parallel_tasks(0, kComposeGroups, [&](const auto& take) {
      for (int64_t group; take(group);) {
        const int64_t first = group * channels() / kComposeGroups;
        const int64_t last = (group + 1) * channels() / kComposeGroups;
        add_gradients(first, last, grad, columns, grad_weight, grad_bias, partials + group * size);
      }
    });
    for (int64_t m = 0; m < steps_; ++m) {
      T* target = grad_after + m * after_size_;
      std::copy_n(partials + m * columns_, after_size_, target);
      for (int64_t group = 1; group < kComposeGroups; ++group) {
        const T* partial = partials + group * size + m * columns_;
        for (int64_t i = 0; i < after_size_; ++i) target[i] += partial[i];
      }
    }
  }

 private:
  // `after` as the right side of a product, or its transpose as that.
  const T* pack_after(Workspace& workspace, bool transposed) const {
    const int64_t depth = transposed ? after_size_ : steps_;
    const int64_t width = transposed ? steps_ : after_size_;
    T* packed = workspace.take<T>(round_up(width, kTileCols) * depth);
    std::fill_n(packed, round_up(width, kTileCols) * depth, T(0));
    for (int64_t m = 0; m < steps_; ++m) {
      for (int64_t i = 0; i < after_size_; ++i) {
        const int64_t step = transposed ? i : m, v = transposed ? m : i;
        packed[(v / kTileCols * depth + step) * kTileCols + v % kTileCols] =
            after_[m * after_size_ + i];
      }
    }
    return packed;
  }

  // A product of the transpose may read kRowStep - 1 elements beyond the last.
  T* take_responses(Workspace& workspace) const {
    return workspace.take<T>(rows_ * steps_ + kRowStep);
  }

  // What a pixel of channel c adds to the shuffled map: [3 r][3 r][M + 1].
  void respond(int64_t c, T* responses) const {
    std::fill_n(responses, rows_ * steps_ + kRowStep, T(0));
    if (c < stage_.inputs()) {
      visit_phases([&](int64_t m, int64_t i, int64_t j, int64_t feature) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          responses[response(m, i, j, tap)] = stage_.weight.at(feature, c, tap);
        }
      });
      return;
    }
    visit_phases([&](int64_t m, int64_t i, int64_t j, int64_t feature) {
      if (stage_.bias) {
        responses[response(m, i, j, kMiddle)] = stage_.bias[feature * stage_.bias_stride];
      }
    });
    for (int64_t phase = 0; phase < stage_.factor * stage_.factor; ++phase) {
      responses[response(steps_ - 1, phase / stage_.factor, phase % stage_.factor, kMiddle)] = 1;
    }
  }

  // The gradients of a channel's weights, or of the bias, from those of its responses.
  void respond_backward(int64_t c, const T* grad, int64_t stride, const TailWeight<T>& grad_weight,
                        T* grad_bias) const {
    visit_phases([&](int64_t m, int64_t i, int64_t j, int64_t feature) {
      const auto of = [&](int64_t tap) { return grad[position(i, j, tap) * stride + m]; };
      if (c == stage_.inputs()) {
        grad_bias[feature] = of(kMiddle);
        return;
      }
      for (int64_t tap = 0; tap < 9; ++tap) grad_weight.at(feature, c, tap) = of(tap);
    });
  }

  void add_gradients(int64_t first, int64_t last, const T* grad, const T* columns,
                     const TailWeight<T>& grad_weight, T* grad_bias, T* grad_after) const {
    Workspace scratch;
    const int64_t width = round_up(steps_, kTileCols);
    T* responses = take_responses(scratch);
    T* grad_products = scratch.take<T>(rows_ * columns_);
    T* grad_responses = scratch.take<T>(rows_ * width);
    for (int64_t c = first; c < last; ++c) {
      std::fill_n(grad_products, rows_ * columns_, T(0));
      const T* source = grad + c * size();
      visit_paths([&](int64_t product, int64_t tap, int64_t count, T sign) {
        add_signed(grad_products + product, source + tap, sign, count);
      });
      const TileOperands<T> back{
          .a = grad_products,
          .a_row = columns_,
          .a_step = 1,
          .b = columns,
          .b_step = kTileCols,
          .steps = after_size_,
          .chain = kComposeChain,
          .add = false,
          .rows = rows_,
          .acc_row = width,
          .panels = width / kTileCols,
          .b_panel = after_size_ * kTileCols,
      };
      kernels_.multiply(grad_responses, back);
      respond_backward(c, grad_responses, width, grad_weight, grad_bias);
      respond(c, responses);
      const TileOperands<T> add{
          .a = responses,
          .a_row = 1,
          .a_step = steps_,
          .b = grad_products,
          .b_step = columns_,
          .steps = side_ * side_,
          .chain = kComposeChain,
          .add = true,
          .rows = round_up(steps_, kRowStep),
          .acc_row = columns_,
          .panels = columns_ / kTileCols,
          .b_panel = kTileCols,
      };
      kernels_.multiply(grad_after, add);
    }
  }

  static void add_signed(T* __restrict target, const T* __restrict source, T sign, int64_t count) {
    for (int64_t i = 0; i < count; ++i) target[i] += sign * source[i];
  }

  // Call visit(m, i, j, feature) for each output channel and its place in the weights.
  template <class Visit>
  void visit_phases(const Visit& visit) const {
    int64_t feature = 0;
    for (int64_t m = 0; m < stage_.outputs(); ++m) {
      for (int64_t i = 0; i < stage_.factor; ++i) {
        for (int64_t j = 0; j < stage_.factor; ++j) visit(m, i, j, feature++);
      }
    }
  }

  // Of the 3 r * 3 r pixels that one reaches, that of phase (i, j) by a tap of the weights.
  int64_t position(int64_t i, int64_t j, int64_t tap) const {
    return (stage_.factor * (2 - tap / 3) + i) * side_ + stage_.factor * (2 - tap % 3) + j;
  }
  int64_t response(int64_t m, int64_t i, int64_t j, int64_t tap) const {
    return position(i, j, tap) * steps_ + m;
  }

  // Call visit(product, tap, count, sign) for each `count` products that are parts of as many taps.
  template <class Visit>
  void visit_paths(const Visit& visit) const {
    for (const TailPath& column : axis_.paths) {
      for (int64_t x = 0; x < column.count; ++x) {
        for (const TailPath& row : axis_.paths) {
          const int64_t after = (column.after + x) * after_axis_.size() + row.after;
          const int64_t tap = (column.tap + x) * axis_.size() + row.tap;
          visit((row.row * side_ + column.row) * columns_ + after * outputs_, tap * outputs_,
                row.count * outputs_, static_cast<T>(row.sign * column.sign));
        }
      }
    }
  }

  static constexpr int64_t kMiddle = 4;  // of the 3x3 taps

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const TailStage<T>& stage_;
  const TailAxis &axis_, &after_axis_;
  const T* after_;
  int64_t outputs_, steps_, side_, rows_, after_size_, columns_;
};

}  // namespace clsd::cpu
