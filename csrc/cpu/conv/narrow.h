// 3x3 convolutions between a map of many channels and a narrow one, of an image's few: the first
// and the last convolution of a network. A register tile across the narrow side would be mostly
// empty. So the nine taps are laid beside each other: an expanded pixel is the narrow map's 3x3
// patch, 9 m numbers, and
//
//   wide = expanded * weight                          from the narrow map to the wide one
//   narrow = nine shifted sums of wide * weight       and back
//   gradient of the weight = wide^T * expanded        either way
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "algorithm.h"
#include "convolution.h"
#include "direct.h"

namespace clsd::cpu {

constexpr int64_t kNarrowBand = 16;   // image rows of one task
constexpr int64_t kNarrowChain = 64;  // steps of one summation chain (kernels.h)

// The patches of a row of a narrow image, [W][stride]: the numbers (tap, channel) of each, then a
// one, to multiply with a bias.
template <class S>
class ExpandedRow {
 public:
  using T = Accumulator<S>;

  ExpandedRow(Workspace& workspace, const Images<const S>& image)
      : depth(9 * image.channels),
        stride(round_up(depth, kTileCols)),
        image_(image),
        rows_(workspace, 3, 1, image.width + 2, image.channels),
        values_(workspace.take<T>(round_up(image.width, kRowStep) * stride)) {
    std::fill_n(values_, round_up(image.width, kRowStep) * stride, T(0));
  }

  const int64_t depth, stride;

  // Valid until the next call.
  const T* read(int64_t n, int64_t y) const {
    rows_.fill(image_, n, y - 1, 3);
    const int64_t run = 3 * image_.channels;
    for (int64_t x = 0; x < image_.width; ++x) {
      for (int64_t ky = 0; ky < 3; ++ky) {
        copy_fours(rows_.pixel(ky, x), run, values_ + x * stride + ky * run);
      }
      values_[x * stride + depth] = 1;
    }
    return values_;
  }

 private:
  // Whole vectors, faster than the exact number: what is too much is overwritten by the next run,
  // or ends in the padding.
  static void copy_fours(const T* source, int64_t count, T* target) {
    for (int64_t i = 0; i < count; i += 4) std::memcpy(target + i, source + i, 4 * sizeof(T));
  }

  const Images<const S>& image_;
  PackedRows<T> rows_;
  T* values_;
};

// From a narrow map to a wide one.
template <class S>
void narrow_input_convolve(const Convolution<S>& convolution) {
  using T = Accumulator<S>;
  constexpr int64_t kPixels = 4 * kTileRows;  // of one product
  const Images<const S>& input = convolution.input;
  const Images<S>& output = convolution.output;
  const int64_t depth = 9 * input.channels, panel = (depth + 1) * kTileCols;
  const int64_t outputs = round_up(output.channels, kTileCols);
  const int64_t bands = ceil_div(input.height, kNarrowBand);
  // With nothing but a bias to add, products are made where the output is.
  const std::vector<T>* bias = convolution.epilogue.bias;
  const bool here = convolution.epilogue.only_bias() && rows_in_place<T>(output);
  Workspace workspace;
  T* weight = direct_weight(workspace, convolution.weights(), 1);
  for (int64_t k = 0; bias && k < outputs; k += kTileCols) {
    std::copy_n(bias->data() + k, kTileCols, weight + k / kTileCols * panel + depth * kTileCols);
  }
  parallel_tasks(0, input.batch * bands, [&](const auto& take) {
    Workspace scratch;
    const ExpandedRow<S> expanded(scratch, input);
    OutputBand<S> band(scratch, convolution, kNarrowBand);
    T* sums = scratch.take<T>(kPixels * outputs);
    for (int64_t task; take(task);) {
      const int64_t n = task / bands, first = task % bands * kNarrowBand;
      const int64_t height = std::min(kNarrowBand, input.height - first);
      band.load(n, first, height);
      for (int64_t y = 0; y < height; ++y) {
        const T* row = expanded.read(n, first + y);
        for (int64_t x = 0; x < input.width; x += kPixels) {
          const int64_t pixels = std::min(kPixels, input.width - x);
          const TileOperands<T> operands{
              .a = row + x * expanded.stride,
              .a_row = expanded.stride,
              .a_step = 1,
              .b = weight,
              .b_step = kTileCols,
              .steps = depth + here,
              .chain = kNarrowChain,
              .add = false,
              .rows = round_up(pixels, kRowStep),
              .acc_row = here ? output.stride_w : outputs,
              .panels = outputs / kTileCols,
              .b_panel = panel,
          };
          if constexpr (std::is_same_v<S, T>) {
            if (here) {
              convolution.kernels.multiply(output.pixel(n, first + y, x), operands);
              continue;
            }
          }
          convolution.kernels.multiply(sums, operands);
          band.store(sums, outputs, y, x, pixels, 0, outputs);
        }
      }
      band.flush();
    }
  });
}

// From a wide map to a narrow one: the products of a row of pixels with all taps are kept until
// the three output rows that they belong to are summed.
template <class S>
class NarrowOutputBand {
 public:
  using T = Accumulator<S>;

  NarrowOutputBand(Workspace& workspace, const Convolution<S>& convolution, const T* weight)
      : kernels_(convolution.kernels),
        input_(convolution.input),
        narrow_(convolution.output.channels),
        stride_(products_stride(narrow_)),
        weight_(weight),
        reader_(workspace, convolution.input),
        sums_(workspace.take<T>(input_.width * kTileCols)) {
    for (T*& row : products_) row = workspace.take<T>(round_up(input_.width, kRowStep) * stride_);
    std::fill_n(sums_, input_.width * kTileCols, T(0));  // beyond the narrow channels, for good
  }

  static int64_t products_stride(int64_t narrow) { return round_up(9 * narrow, kTileCols); }

  void multiply(int64_t n, int64_t y) const {
    if (y < 0 || y >= input_.height) return;
    const auto row = reader_.read(n, y);
    const TileOperands<T> operands{
        .a = row.data,
        .a_row = row.stride,
        .a_step = 1,
        .b = weight_,
        .b_step = kTileCols,
        .steps = input_.channels,
        .chain = kNarrowChain,
        .add = false,
        .rows = round_up(input_.width, kRowStep),
        .acc_row = stride_,
        .panels = stride_ / kTileCols,
        .b_panel = input_.channels * kTileCols,
    };
    kernels_.multiply(products_[y % 3], operands);
  }

  // The sums of row y, [W][kTileCols], of the products of rows y - 1 to y + 1.
  const T* sum(int64_t y) const {
    for (int64_t x = 0; x < input_.width; ++x) std::fill_n(sums_ + x * kTileCols, kNarrow, T(0));
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t source_y = y + tap / 3 - 1, shift = tap % 3 - 1;
      if (source_y >= 0 && source_y < input_.height) {
        add_shifted(products_[source_y % 3] + tap * narrow_, shift);
      }
    }
    return sums_;
  }

 private:
  // Always kNarrow numbers, a vector: those beyond the narrow channels are not used.
  void add_shifted(const T* products, int64_t shift) const {
    const int64_t first = std::max<int64_t>(0, -shift);
    const int64_t last = std::min(input_.width, input_.width - shift);
    for (int64_t x = first; x < last; ++x) {
      for (int64_t v = 0; v < kNarrow; ++v) {
        sums_[x * kTileCols + v] += products[(x + shift) * stride_ + v];
      }
    }
  }

  const TileKernels<T>& kernels_;
  const Images<const S>& input_;
  int64_t narrow_, stride_;
  const T* weight_;
  RowReader<S> reader_;
  T* sums_;
  std::array<T*, 3> products_{};
};

template <class S>
void narrow_output_convolve(const Convolution<S>& convolution) {
  using T = Accumulator<S>;
  const Images<const S>& input = convolution.input;
  const WeightView<S> weights = convolution.weights();
  const int64_t stride = NarrowOutputBand<S>::products_stride(weights.outputs);
  Workspace workspace;
  T* weight = workspace.take<T>(stride * weights.inputs);  // [panels of (tap, k)][C][kTileCols]
  std::fill_n(weight, stride * weights.inputs, T(0));
  for (int64_t e = 0; e < 9 * weights.outputs; ++e) {
    T* target = weight + e / kTileCols * weights.inputs * kTileCols + e % kTileCols;
    for (int64_t c = 0; c < weights.inputs; ++c) {
      target[c * kTileCols] = weights.at(e % weights.outputs, c, e / weights.outputs);
    }
  }
  const int64_t bands = ceil_div(input.height, kNarrowBand);
  parallel_tasks(0, input.batch * bands, [&](const auto& take) {
    Workspace scratch;
    const NarrowOutputBand<S> products(scratch, convolution, weight);
    OutputBand<S> band(scratch, convolution, kNarrowBand);
    for (int64_t task; take(task);) {
      const int64_t n = task / bands, first = task % bands * kNarrowBand;
      const int64_t height = std::min(kNarrowBand, input.height - first);
      band.load(n, first, height);
      products.multiply(n, first - 1);
      products.multiply(n, first);
      for (int64_t y = 0; y < height; ++y) {
        products.multiply(n, first + y + 1);
        band.store(products.sum(first + y), kTileCols, y, 0, input.width, 0, kTileCols);
      }
      band.flush();
    }
  });
}

// The gradient of the weight between a wide and a narrow map: sums over the pixels of wide *
// expanded. Rows are divided into groups that depend on the shape alone, each with a partial, and
// the partials are added in order: the number of threads changes nothing.
template <class S>
class NarrowGradient {
 public:
  using T = Accumulator<S>;

  NarrowGradient(const Images<const S>& input, const Images<const S>& grad, Algorithm algorithm)
      : input_(input),
        grad_(grad),
        wide_is_input_(algorithm == Algorithm::kNarrowOutput),
        wide_(wide_is_input_ ? input : grad),
        narrow_(wide_is_input_ ? grad : input),
        stride_(round_up(9 * narrow_.channels, kTileCols)),
        size_(round_up(wide_.channels, kTileCols) * stride_),
        sums_(round_up(grad.channels, kTileCols)),
        groups_(std::min(input.batch * input.height, kMaxGroups)) {}

  void write(Accumulator<S> scale, const Tensor* grad_weight, const Tensor* grad_bias) const {
    Workspace workspace;
    T* partials = workspace.take<T>(groups_ * size_);
    double* sums = workspace.take<double>(groups_ * sums_);
    std::fill_n(partials, groups_ * size_, T(0));
    std::fill_n(sums, groups_ * sums_, 0.0);
    const int64_t rows = input_.batch * input_.height;
    parallel_tasks(0, groups_, [&](const auto& take) {
      for (int64_t group; take(group);) {
        add_rows(group * rows / groups_, (group + 1) * rows / groups_, partials + group * size_,
                 sums + group * sums_);
      }
    });
    if (grad_weight) {
      write_weight_gradient(input_, grad_, scale, *grad_weight,
                            [&](int64_t c, int64_t k, T* result) { taps(partials, c, k, result); });
    }
    if (grad_bias) write_bias_gradient(grad_, scale, *grad_bias, sums, sums_, groups_);
  }

 private:
  static constexpr int64_t kMaxGroups = 16;

  void add_rows(int64_t begin, int64_t end, T* partial, double* sums) const {
    Workspace scratch;
    const RowReader<S> wide(scratch, wide_);
    const ExpandedRow<S> expanded(scratch, narrow_);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / input_.height, y = task % input_.height;
      const auto row = wide.read(n, y);
      const T* patches = expanded.read(n, y);
      const TileOperands<T> operands{
          .a = row.data,
          .a_row = 1,
          .a_step = row.stride,
          .b = patches,
          .b_step = stride_,
          .steps = input_.width,
          .chain = kNarrowChain,
          .add = true,
          .rows = round_up(wide_.channels, kRowStep),
          .acc_row = stride_,
          .panels = stride_ / kTileCols,
          .b_panel = kTileCols,
      };
      kernels_.multiply(partial, operands);
      if (wide_is_input_) {  // the patch's own pixel is its middle
        add_row(patches + 4 * narrow_.channels, stride_, narrow_.channels, sums);
      } else {
        add_row(row.data, row.stride, wide_.channels, sums);
      }
    }
  }

  void add_row(const T* pixel, int64_t stride, int64_t channels, double* sums) const {
    for (int64_t x = 0; x < input_.width; ++x, pixel += stride) {
      for (int64_t c = 0; c < channels; ++c) sums[c] += pixel[c];
    }
  }

  void taps(const T* partials, int64_t c, int64_t k, T* result) const {
    std::fill_n(result, 9 * kTileCols, T(0));
    for (int64_t v = 0; v < std::min(kTileCols, grad_.channels - k); ++v) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        // The input at a pixel's tap is, seen from there, the gradient at the opposite tap.
        const int64_t index = wide_is_input_ ? c * stride_ + (8 - tap) * narrow_.channels + k + v
                                             : (k + v) * stride_ + tap * narrow_.channels + c;
        T& sum = result[tap * kTileCols + v];
        for (int64_t group = 0; group < groups_; ++group) sum += partials[group * size_ + index];
      }
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Images<const S>&input_, &grad_;
  bool wide_is_input_;
  const Images<const S>&wide_, &narrow_;
  int64_t stride_, size_, sums_, groups_;
};

}  // namespace clsd::cpu
