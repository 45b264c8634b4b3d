// What the algorithms of a 3x3 convolution share: its description, and how finished sums get out.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "image_rows.h"
#include "../kernels.h"
#include "../workspace.h"

namespace clsd::cpu {

template <class S>
struct Epilogue {
  using T = Accumulator<S>;
  const std::vector<T>* bias = nullptr;       // [K] in the output's order, padded to whole tiles
  T scale = 1;                                // of convolution and bias
  const Images<const S>* residual = nullptr;  // added after the scale
  const Images<const S>* positive = nullptr;  // result kept only where this is > 0
  bool relu = false;

  bool only_bias() const { return scale == 1 && !residual && !positive && !relu; }
};

// Convolution of input with weight, or with its transpose (KernelView), through the epilogue.
template <class S>
struct Convolution {
  const Images<const S>& input;
  const Tensor& weight;
  bool transposed;
  const Epilogue<S>& epilogue;
  const Images<S>& output;

  KernelView<S> kernels() const { return {weight, transposed, output.order, input.order}; }
};

// Whether kernels can work on an image where it is: of their type, its channels whole tiles.
template <class T, class S>
bool in_place(const Images<S>& image) {
  return std::is_same_v<std::remove_const_t<S>, T> && image.run % kTileCols == 0;
}

// The way of finished sums to the rows of a convolution's output.
template <class S>
class OutputBand {
 public:
  using T = Accumulator<S>;

  OutputBand(Workspace& workspace, const Convolution<S>& convolution, int64_t rows)
      : convolution_(convolution) {
    const Images<S>& output = convolution.output;
    const auto pack = [&](const auto* image, PackedRows<T>& target) {
      if (!image || in_place<T>(*image)) return;
      target = PackedRows<T>(workspace, rows, 0, output.width,
                             round_up(output.channels, kTileCols));
    };
    pack(&output, output_);
    pack(convolution.epilogue.residual, residual_);
    pack(convolution.epilogue.positive, positive_);
  }

  // Begin rows [first, first + rows) of image n.
  void load(int64_t n, int64_t first, int64_t rows) {
    n_ = n, first_ = first, rows_ = rows;
    const Epilogue<S>& epilogue = convolution_.epilogue;
    if (residual_.values) residual_.fill(*epilogue.residual, n, first, rows);
    if (positive_.values) positive_.fill(*epilogue.positive, n, first, rows);
  }

  // Take the sums of channels [k, k + channels) of `pixels` pixels, from pixel x of row y on.
  void store(const T* sums, int64_t sums_stride, int64_t y, int64_t x, int64_t pixels, int64_t k,
             int64_t channels) const {
    visit_runs(y, x, k, channels, [&](int64_t c, int64_t count, const PixelGrid<T>& output,
                                      const TileEpilogue<T>& epilogue) {
      kernels_.finish(output, sums + c - k, sums_stride, pixels, count, epilogue);
    });
  }

  // Take the products of the Winograd tile whose first pixel is pixel x of row y.
  void store_tile(const T* products, int64_t product_stride, int64_t y, int64_t x, int64_t rows,
                  int64_t columns, int64_t k, int64_t channels) const {
    visit_runs(y, x, k, channels, [&](int64_t c, int64_t count, const PixelGrid<T>& output,
                                      const TileEpilogue<T>& epilogue) {
      kernels_.winograd_output(output, rows, columns, products + c - k, product_stride, count,
                               epilogue);
    });
  }

  int64_t rows() const { return rows_; }

  // End the rows.
  void flush() const {
    if (output_.values) output_.flush(convolution_.output, n_, first_, rows_);
  }

 private:
  // Call visit(c, count, output, epilogue) for the channels of [k, k + channels) that follow each
  // other in the output, c to c + count, with what belongs to pixel x of row y and those channels.
  template <class Visit>
  void visit_runs(int64_t y, int64_t x, int64_t k, int64_t channels, const Visit& visit) const {
    const int64_t run = output_.values ? output_.channels : convolution_.output.run;
    for (const int64_t end = k + channels; k < end;) {
      const int64_t count = std::min(end - k, run - k % run);
      visit(k, count, locate(convolution_.output, output_, y, x, k), epilogue_at(y, x, k));
      k += count;
    }
  }

  TileEpilogue<T> epilogue_at(int64_t y, int64_t x, int64_t k) const {
    const Epilogue<S>& epilogue = convolution_.epilogue;
    TileEpilogue<T> tile{};
    tile.bias = epilogue.bias ? epilogue.bias->data() + k : nullptr;
    tile.scale = epilogue.scale;
    tile.relu = epilogue.relu;
    if (epilogue.residual) tile.residual = locate(*epilogue.residual, residual_, y, x, k);
    if (epilogue.positive) tile.positive = locate(*epilogue.positive, positive_, y, x, k);
    return tile;
  }

  // The pixels from row y, pixel x on, with their channels from the k-th on.
  template <class Q>
  auto locate(const Images<Q>& image, const PackedRows<T>& packed, int64_t y, int64_t x,
              int64_t k) const {
    using Grid = PixelGrid<std::conditional_t<std::is_const_v<Q>, const T, T>>;
    if (packed.values) {
      return Grid{packed.pixel(y, x) + k, packed.columns * packed.channels, packed.channels};
    }
    if constexpr (std::is_same_v<std::remove_const_t<Q>, T>) {
      return Grid{image.pixel(n_, first_ + y, x) + image.channel[image.order[k]], image.stride_h,
                  image.stride_w};
    }
    return Grid{};  // other types are always packed
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Convolution<S>& convolution_;
  PackedRows<T> output_, residual_, positive_;  // without values where images are used in place
  int64_t n_ = 0, first_ = 0, rows_ = 0;
};

template <class S>
std::vector<Accumulator<S>> pack_bias(const std::optional<Tensor>& bias,
                                      const std::vector<int64_t>& order) {
  std::vector<Accumulator<S>> packed(static_cast<size_t>(
      round_up(static_cast<int64_t>(order.size()), kTileCols)));
  if (bias) {
    const S* source = const_data<S>(*bias);
    for (size_t k = 0; k < order.size(); ++k) {
      packed[k] = static_cast<Accumulator<S>>(source[order[k] * bias->stride(0)]);
    }
  }
  return packed;
}

// Write the gradient of the weights from `taps(c, k, result)`: the tap gradients [9][kTileCols] of
// input channel c and output channels [k, k + kTileCols), in the images' orders.
template <class S, class Taps>
void write_weight_gradient(const Images<const S>& input, const Images<const S>& grad,
                           Accumulator<S> scale, const Tensor& grad_weight, const Taps& taps) {
  S* target = data<S>(grad_weight);
  const int64_t inputs = input.channels, outputs = grad.channels;
  const int64_t tiles = ceil_div(outputs, kTileCols);
  int64_t strides[4];
  for (int64_t dim = 0; dim < 4; ++dim) strides[dim] = grad_weight.stride(dim);
  torch::stable::parallel_for(0, tiles * inputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / inputs * kTileCols, c = task % inputs;
      Accumulator<S> values[9 * kTileCols];
      taps(c, k, values);
      for (int64_t v = 0; v < std::min(kTileCols, outputs - k); ++v) {
        S* kernel = target + grad.order[k + v] * strides[0] + input.order[c] * strides[1];
        for (int64_t tap = 0; tap < 9; ++tap) {
          kernel[tap / 3 * strides[2] + tap % 3 * strides[3]] =
              static_cast<S>(values[tap * kTileCols + v] * scale);
        }
      }
    }
  });
}

// Write the gradient of the bias from sums of parts of the pixels, [parts][stride], adding the
// parts in order. They are doubles: a chain of thousands of additions.
template <class S>
void write_bias_gradient(const Images<const S>& grad, Accumulator<S> scale,
                         const Tensor& grad_bias, const double* sums, int64_t stride,
                         int64_t parts) {
  S* target = data<S>(grad_bias);
  for (int64_t k = 0; k < grad.channels; ++k) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * stride + k];
    target[grad.order[k]] = static_cast<S>(static_cast<Accumulator<S>>(sum) * scale);
  }
}

}  // namespace clsd::cpu
