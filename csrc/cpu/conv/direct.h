// Direct 3x3 convolution and its weight gradient on register tiles.
//
// In packed rows the 3 C inputs of one pixel under one row of taps are consecutive, so that a
// convolution is, for each row of taps, a product of [pixels, 3 C] with [3 C, K] whose left rows
// overlap. The gradient of the weight is the transposed product.
#pragma once

#include <algorithm>
#include <vector>

#include "convolution.h"

namespace clsd::cpu {

constexpr int64_t kBand = 8;          // image rows of one task
constexpr int64_t kDirectChain = 64;  // steps of one summation chain (kernels.h)

// A weight as [panels of K][3 rows of taps][3 columns of taps, C][kTileCols], with `extra` steps of
// zeros after each panel.
template <class S>
Accumulator<S>* direct_weight(Workspace& workspace, const WeightView<S>& weights,
                              int64_t extra = 0) {
  const int64_t steps = 9 * weights.inputs + extra;
  const int64_t size = round_up(weights.outputs, kTileCols) * steps;
  auto* packed = workspace.take<Accumulator<S>>(size);
  std::fill_n(packed, size, 0);
  for (int64_t k = 0; k < weights.outputs; ++k) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      auto* target = packed + (k / kTileCols * steps + tap * weights.inputs) * kTileCols;
      for (int64_t c = 0; c < weights.inputs; ++c) {
        target[c * kTileCols + k % kTileCols] = weights.at(k, c, tap);
      }
    }
  }
  return packed;
}

template <class S>
void direct_convolve(const Convolution<S>& convolution) {
  using T = Accumulator<S>;
  const Images<const S>& input = convolution.input;
  const int64_t outputs = convolution.output.channels;
  const int64_t depth = 3 * input.channels;
  const int64_t bands = ceil_div(input.height, kBand);
  Workspace workspace;
  const T* weight = direct_weight(workspace, convolution.weights());
  parallel_tasks(0, input.batch * bands, [&](const auto& take) {
    Workspace scratch;
    const PackedRows<T> rows(scratch, kBand + 2, 1, round_up(input.width, kTileRows) + 2,
                             input.channels);
    OutputBand<S> band(scratch, convolution, kBand);
    for (int64_t task; take(task);) {
      const int64_t n = task / bands, first = task % bands * kBand;
      const int64_t height = std::min(kBand, input.height - first);
      rows.fill(input, n, first - 1, height + 2);
      band.load(n, first, height);
      for (int64_t k = 0; k < outputs; k += kTileCols) {
        for (int64_t y = 0; y < height; ++y) {
          for (int64_t x = 0; x < input.width; x += kTileRows) {
            alignas(64) T sums[kTileSize];
            for (int64_t ky = 0; ky < 3; ++ky) {
              const TileOperands<T> operands{
                  .a = rows.pixel(y + ky, x),
                  .a_row = input.channels,
                  .a_step = 1,
                  .b = weight + (k * 3 + ky * kTileCols) * depth,
                  .b_step = kTileCols,
                  .steps = depth,
                  .chain = kDirectChain,
                  .add = ky > 0,
              };
              convolution.kernels.multiply(sums, operands);
            }
            band.store(sums, kTileCols, y, x, std::min(kTileRows, input.width - x), k, kTileCols);
          }
        }
      }
      band.flush();
    }
  });
}

// sums[c] += the sum of channel c over the first `pixels` packed pixels
template <class T>
void add_pixels(const PackedRows<T>& rows, int64_t pixels, double* sums) {
  for (int64_t p = 0; p < pixels; ++p) {
    const T* pixel = rows.pixel(0, p);
    for (int64_t c = 0; c < rows.channels; ++c) sums[c] += pixel[c];
  }
}

// The gradient of the weight: [3 rows of taps][tiles of 3 C][panels of K], each a register tile of
// sums over all pixels.
//
// The bands are divided into a number of groups that depends on the shape alone. Each group sums
// into its own partial and the partials are added in order, so that the result does not depend on
// the number of threads.
template <class S>
class DirectGradient {
 public:
  using T = Accumulator<S>;

  DirectGradient(const Images<const S>& input, const Images<const S>& grad)
      : input_(input),
        grad_(grad),
        row_tiles_(ceil_div(3 * input.channels, kTileRows)),
        padded_(round_up(grad.channels, kTileCols)),
        bands_(ceil_div(input.height, kBand)),
        size_(3 * row_tiles_ * kTileRows * padded_),
        groups_(std::clamp<int64_t>(kPartialBytes / (size_ * static_cast<int64_t>(sizeof(T))), 2,
                                    kMaxGroups)) {
    groups_ = std::min(groups_, input.batch * bands_);
  }

  void write(Accumulator<S> scale, const Tensor* grad_weight, const Tensor* grad_bias) const {
    Workspace workspace;
    T* partials = workspace.take<T>(groups_ * size_);
    double* sums = workspace.take<double>(groups_ * padded_);
    std::fill_n(partials, groups_ * size_, T(0));
    std::fill_n(sums, groups_ * padded_, 0.0);
    const int64_t bands = input_.batch * bands_;
    parallel_tasks(0, groups_, [&](const auto& take) {
      for (int64_t group; take(group);) {
        add_bands(group * bands / groups_, (group + 1) * bands / groups_, partials + group * size_,
                  sums + group * padded_);
      }
    });
    if (grad_weight) {
      write_weight_gradient(input_, grad_, scale, *grad_weight,
                            [&](int64_t c, int64_t k, T* result) { taps(partials, c, k, result); });
    }
    if (grad_bias) write_bias_gradient(grad_, scale, *grad_bias, sums, padded_, groups_);
  }

 private:
  static constexpr int64_t kMaxGroups = 16;
  static constexpr int64_t kPartialBytes = 64 << 20;

  void add_bands(int64_t begin, int64_t end, T* partial, double* sums) const {
    Workspace scratch;
    const PackedRows<T> x(scratch, kBand + 2, 1, input_.width + 2, input_.channels);
    const PackedRows<T> dy(scratch, kBand, 0, input_.width, padded_);
    for (int64_t band = begin; band < end; ++band) {
      const int64_t n = band / bands_, first = band % bands_ * kBand;
      const int64_t height = std::min(kBand, input_.height - first);
      x.fill(input_, n, first - 1, height + 2);
      dy.fill(grad_, n, first, height);
      add_products(x, dy, height, partial);
      add_pixels(dy, height * input_.width, sums);
    }
  }

  void add_products(const PackedRows<T>& x, const PackedRows<T>& dy, int64_t height,
                    T* partial) const {
    for (int64_t ky = 0; ky < 3; ++ky) {
      for (int64_t t = 0; t < row_tiles_; ++t) {
        for (int64_t k = 0; k < padded_; k += kTileCols, partial += kTileSize) {
          for (int64_t y = 0; y < height; ++y) {
            const TileOperands<T> operands{
                .a = x.row(y + ky) + t * kTileRows,
                .a_row = 1,
                .a_step = input_.channels,
                .b = dy.row(y) + k,
                .b_step = padded_,
                .steps = input_.width,
                .chain = kDirectChain,
                .add = true,
            };
            kernels_.multiply(partial, operands);
          }
        }
      }
    }
  }

  void taps(const T* partials, int64_t c, int64_t k, T* result) const {
    std::fill_n(result, 9 * kTileCols, T(0));
    for (int64_t group = 0; group < groups_; ++group) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t t = tap % 3 * input_.channels + c;
        const T* source = partials + group * size_ +
                          ((tap / 3 * row_tiles_ + t / kTileRows) * padded_ + k) * kTileRows +
                          t % kTileRows * kTileCols;
        for (int64_t v = 0; v < kTileCols; ++v) result[tap * kTileCols + v] += source[v];
      }
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Images<const S>&input_, &grad_;
  int64_t row_tiles_, padded_, bands_, size_, groups_;
};

}  // namespace clsd::cpu
