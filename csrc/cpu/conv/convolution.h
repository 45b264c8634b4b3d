// What the algorithms of a 3x3 convolution share: its description, and how finished sums get out.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "../kernels.h"
#include "../parallel.h"
#include "../workspace.h"
#include "image_rows.h"
#include "weight_view.h"

namespace clsd::cpu {

template <class S>
struct Epilogue {
  using T = Accumulator<S>;
  const std::vector<T>* bias = nullptr;       // [K] in the output's order, padded to whole panels
  T scale = 1;                                // of convolution and bias
  const Images<const S>* residual = nullptr;  // added after the scale
  const Images<const S>* positive = nullptr;  // result 0 where this is <= 0
  bool relu = false;
  const std::vector<T>* slopes = nullptr;  // like bias: what is < 0 is multiplied by them

  bool only_bias() const { return scale == 1 && !residual && !positive && !relu && !slopes; }
};

// Convolution of input with weight, or with its transpose (WeightView), through the epilogue.
template <class S>
struct Convolution {
  using T = Accumulator<S>;
  const Images<const S>& input;
  const Tensor& weight;
  bool transposed = false;
  const Epilogue<S>& epilogue;
  const Images<S>& output;
  const TileKernels<T>& kernels = tile_kernels<T>();

  WeightView<S> weights() const { return {weight, transposed, output.order, input.order}; }
};

// The way of finished sums to the rows of a convolution's output.
template <class S>
class OutputBand {
 public:
  using T = Accumulator<S>;

  OutputBand(Workspace& workspace, const Convolution<S>& convolution, int64_t rows)
      : kernels_(convolution.kernels), convolution_(convolution) {
    const Images<S>& output = convolution.output;
    const auto pack = [&](const auto* image, PackedRows<T>& target) {
      if (!image || in_place<T>(*image)) return;
      target =
          PackedRows<T>(workspace, rows, 0, output.width, round_up(output.channels, kTileCols));
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
    visit_runs(
        y, x, k, channels,
        [&](int64_t c, int64_t count, const PixelGrid<T>& output, const TileEpilogue<T>& epilogue) {
      kernels_.finish(output, sums + c - k, sums_stride, pixels, count, epilogue);
    });
  }

  // Take the products of the Winograd tile whose first pixel is pixel x of row y.
  void store_winograd_tile(int64_t tile, const T* products, int64_t product_stride, int64_t y,
                           int64_t x, int64_t k, int64_t channels) const {
    const int64_t rows = std::min(tile, rows_ - y);
    const int64_t columns = std::min(tile, convolution_.output.width - x);
    visit_runs(
        y, x, k, channels,
        [&](int64_t c, int64_t count, const PixelGrid<T>& output, const TileEpilogue<T>& epilogue) {
      kernels_.winograd(tile).output(output, rows, columns, products + c - k, product_stride, count,
                                     epilogue);
    });
  }

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
    const auto locate_if = [&](const Images<const S>* image, const PackedRows<T>& packed) {
      return image ? locate(*image, packed, y, x, k) : PixelGrid<const T>{};
    };
    return {
        .bias = epilogue.bias ? epilogue.bias->data() + k : nullptr,
        .scale = epilogue.scale,
        .residual = locate_if(epilogue.residual, residual_),
        .relu = epilogue.relu,
        .slopes = epilogue.slopes ? epilogue.slopes->data() + k : nullptr,
        .positive = locate_if(epilogue.positive, positive_),
    };
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

  const TileKernels<T>& kernels_;
  const Convolution<S>& convolution_;
  PackedRows<T> output_, residual_, positive_;  // without values where images are used in place
  int64_t n_ = 0, first_ = 0, rows_ = 0;
};

// A parameter [K] in the output's order, padded to whole panels; zeros if there is none.
template <class S>
std::vector<Accumulator<S>> pack_parameter(const std::optional<Tensor>& parameter,
                                           const std::vector<int64_t>& order) {
  std::vector<Accumulator<S>> packed(
      static_cast<size_t>(round_up(static_cast<int64_t>(order.size()), kTileCols)));
  if (parameter) {
    dispatch_parameter<S>(*parameter, [&](auto zero) {
      const auto* source = const_data<decltype(zero)>(*parameter);
      for (size_t k = 0; k < order.size(); ++k) {
        packed[k] = static_cast<Accumulator<S>>(source[order[k] * parameter->stride(0)]);
      }
    });
  }
  return packed;
}

// Write the gradient of the weight from `taps(c, k, result)`: the tap gradients [9][kTileCols] of
// input channel c and output channels [k, k + kTileCols), in the images' orders.
template <class P, class S, class Taps>
void write_weight_gradient_as(const Images<const S>& input, const Images<const S>& grad,
                              Accumulator<S> scale, const Tensor& grad_weight, const Taps& taps) {
  P* target = data<P>(grad_weight);
  const int64_t inputs = input.channels, outputs = grad.channels;
  const int64_t panels = ceil_div(outputs, kTileCols);
  int64_t strides[4];
  for (int64_t dim = 0; dim < 4; ++dim) strides[dim] = grad_weight.stride(dim);
  parallel_for(0, panels * inputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / inputs * kTileCols, c = task % inputs;
      Accumulator<S> values[9 * kTileCols];
      taps(c, k, values);
      for (int64_t v = 0; v < std::min(kTileCols, outputs - k); ++v) {
        P* gradient = target + grad.order[k + v] * strides[0] + input.order[c] * strides[1];
        for (int64_t tap = 0; tap < 9; ++tap) {
          gradient[tap / 3 * strides[2] + tap % 3 * strides[3]] =
              static_cast<P>(values[tap * kTileCols + v] * scale);
        }
      }
    }
  });
}

template <class S, class Taps>
void write_weight_gradient(const Images<const S>& input, const Images<const S>& grad,
                           Accumulator<S> scale, const Tensor& grad_weight, const Taps& taps) {
  dispatch_parameter<S>(grad_weight, [&](auto zero) {
    write_weight_gradient_as<decltype(zero)>(input, grad, scale, grad_weight, taps);
  });
}

// Write the gradient of the bias from partial sums of the pixels, [partials][stride], added in
// order. They are doubles: a chain of thousands of additions.
template <class S>
void write_bias_gradient(const Images<const S>& grad, Accumulator<S> scale, const Tensor& grad_bias,
                         const double* sums, int64_t stride, int64_t partials) {
  dispatch_parameter<S>(grad_bias, [&](auto zero) {
    auto* target = data<decltype(zero)>(grad_bias);
    for (int64_t k = 0; k < grad.channels; ++k) {
      double sum = 0;
      for (int64_t partial = 0; partial < partials; ++partial) sum += sums[partial * stride + k];
      target[grad.order[k]] = static_cast<decltype(zero)>(static_cast<Accumulator<S>>(sum) * scale);
    }
  });
}

}  // namespace clsd::cpu
