// Direct 3x3 convolution (stride 1, zero padding 1) and its weight gradient on register tiles.
//
// A band of rows is copied, once, to a zero-padded NHWC scratch in the accumulator's type. There
// the 3 C inputs of one pixel under one kernel row are consecutive, so that a convolution is, for
// each kernel row, a product of [pixels, 3 C] with [3 C, K] whose left rows overlap. The gradient
// of the weights is the transposed product. Channel offset tables (shapes.h) take care of layouts
// and of pixel shuffling, on both sides.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "../tensor_util.h"
#include "tile.h"

namespace clsd::cpu {

constexpr int64_t kBand = 8;   // image rows of one task
constexpr int64_t kChain = 64;  // steps of one summation chain (tile.h)

template <class S>
struct Epilogue {
  using T = Accumulator<S>;
  const std::vector<T>* bias = nullptr;      // [K], padded to whole tiles
  T scale = 1;                               // of convolution and bias
  const Images<const S>* residual = nullptr;  // added after the scale
  const Images<const S>* positive = nullptr;  // result kept only where this is > 0
  bool relu = false;
};

// Weights as [tiles of K][3 kernel rows][3 kernel columns, C][kTileCols], zero-padded.
// `transposed` swaps input and output channels and turns the kernel by 180 degrees: the
// convolution with it is the gradient of the convolution's input.
template <class S>
std::vector<Accumulator<S>> pack_weight(const Tensor& weight, bool transposed = false) {
  const int64_t outputs = weight.size(transposed ? 1 : 0);
  const int64_t inputs = weight.size(transposed ? 0 : 1);
  const int64_t stride_out = weight.stride(transposed ? 1 : 0);
  const int64_t stride_in = weight.stride(transposed ? 0 : 1);
  const S* source = const_data<S>(weight);
  std::vector<Accumulator<S>> packed(
      static_cast<size_t>(round_up(outputs, kTileCols) * 9 * inputs));
  for (int64_t k = 0; k < outputs; ++k) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t from = transposed ? 8 - tap : tap;
      const S* taps = source + k * stride_out + from / 3 * weight.stride(2) +
                      from % 3 * weight.stride(3);
      auto* target = packed.data() + (k / kTileCols * 9 + tap) * inputs * kTileCols;
      for (int64_t c = 0; c < inputs; ++c) {
        target[c * kTileCols + k % kTileCols] =
            static_cast<Accumulator<S>>(taps[c * stride_in]);
      }
    }
  }
  return packed;
}

template <class S>
std::vector<Accumulator<S>> pack_bias(const std::optional<Tensor>& bias, int64_t channels) {
  std::vector<Accumulator<S>> packed(static_cast<size_t>(round_up(channels, kTileCols)));
  if (bias) {
    const S* source = const_data<S>(*bias);
    for (int64_t k = 0; k < channels; ++k) {
      packed[k] = static_cast<Accumulator<S>>(source[k * bias->stride(0)]);
    }
  }
  return packed;
}

// Scratch for image rows [first, first + rows) with zeros outside of the image. `halo` columns of
// zeros precede each row; `channels` may exceed the image's, for whole tiles.
template <class T>
struct PackedRows {
  int64_t halo, columns, channels;
  std::vector<T> values;

  PackedRows(int64_t rows, int64_t halo, int64_t columns, int64_t channels)
      : halo(halo),
        columns(columns),
        channels(channels),
        // A tile may read kTileRows - 1 elements beyond the last pixel it uses.
        values(static_cast<size_t>(rows * columns * channels + kTileRows)) {}

  T* row(int64_t y) { return values.data() + y * columns * channels; }

  template <class S>
  void fill(const Images<const S>& image, int64_t n, int64_t first, int64_t rows) {
    for (int64_t y = 0; y < rows; ++y) {
      T* target = row(y);
      const int64_t source_y = first + y;
      if (source_y < 0 || source_y >= image.height) {
        std::fill(target, target + columns * channels, T(0));
      } else {
        copy_row(image, image.pixel(n, source_y, 0), target + halo * channels);
      }
    }
  }

 private:
  // The halo and the padding columns are never written: they keep the zeros of construction,
  // or those of a row outside of the image.
  template <class S>
  void copy_row(const Images<const S>& image, const S* source, T* target) {
    if (image.dense_channels) {
      for (int64_t x = 0; x < image.width; ++x) {
        for (int64_t c = 0; c < image.channels; ++c) {
          target[x * channels + c] = static_cast<T>(source[x * image.stride_w + c]);
        }
      }
      return;
    }
    for (int64_t c = 0; c < image.channels; ++c) {
      const S* plane = source + image.channel[c];
      for (int64_t x = 0; x < image.width; ++x) {
        target[x * channels + c] = static_cast<T>(plane[x * image.stride_w]);
      }
    }
  }
};

// Write `pixels` rows of a tile, for channels [k, k + count), through the epilogue.
template <class S>
void store_tile(Accumulator<S>* tile, const Epilogue<S>& epilogue, const Images<S>& output,
                int64_t n, int64_t y, int64_t x, int64_t pixels, int64_t k, int64_t count) {
  using T = Accumulator<S>;
  for (int64_t p = 0; p < pixels; ++p) {
    T* sums = tile + p * kTileCols;
    if (epilogue.bias) {
      for (int64_t v = 0; v < kTileCols; ++v) sums[v] += (*epilogue.bias)[k + v];
    }
    for (int64_t v = 0; v < kTileCols; ++v) sums[v] *= epilogue.scale;
    if (epilogue.residual) {
      const S* source = epilogue.residual->pixel(n, y, x + p);
      for (int64_t v = 0; v < count; ++v) {
        sums[v] += static_cast<T>(source[epilogue.residual->channel[k + v]]);
      }
    }
    if (epilogue.relu) {
      // Written so that a NaN is kept, as torch.relu keeps it.
      for (int64_t v = 0; v < kTileCols; ++v) sums[v] = sums[v] < 0 ? T(0) : sums[v];
    }
    if (epilogue.positive) {
      const S* source = epilogue.positive->pixel(n, y, x + p);
      for (int64_t v = 0; v < count; ++v) {
        if (!(static_cast<T>(source[epilogue.positive->channel[k + v]]) > 0)) sums[v] = 0;
      }
    }
    S* target = output.pixel(n, y, x + p);
    for (int64_t v = 0; v < count; ++v) target[output.channel[k + v]] = static_cast<S>(sums[v]);
  }
}

// output = epilogue(convolution of input with packed weights)
template <class S>
void convolve(const Images<const S>& input, const std::vector<Accumulator<S>>& weight,
              const Epilogue<S>& epilogue, const Images<S>& output) {
  using T = Accumulator<S>;
  const auto& tile = tile_kernels<T>();
  const int64_t bands = ceil_div(input.height, kBand);
  const int64_t depth = 3 * input.channels;
  const int64_t columns = round_up(input.width, kTileRows) + 2;
  const auto convolve_bands = [&](int64_t begin, int64_t end) {
    PackedRows<T> rows(kBand + 2, 1, columns, input.channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / bands;
      const int64_t first = task % bands * kBand;
      const int64_t height = std::min(kBand, input.height - first);
      rows.fill(input, n, first - 1, height + 2);
      for (int64_t k = 0; k < output.channels; k += kTileCols) {
        const T* weights = weight.data() + k * 3 * depth;
        const int64_t count = std::min(kTileCols, output.channels - k);
        for (int64_t y = 0; y < height; ++y) {
          for (int64_t x = 0; x < input.width; x += kTileRows) {
            T sums[kTileSize] = {};
            for (int64_t ky = 0; ky < 3; ++ky) {
              tile.multiply(sums, {rows.row(y + ky) + x * input.channels, input.channels, 1,
                                   weights + ky * depth * kTileCols, kTileCols, depth, kChain});
            }
            store_tile(sums, epilogue, output, n, first + y, x,
                       std::min(kTileRows, input.width - x), k, count);
          }
        }
      }
    }
  };
  torch::stable::parallel_for(0, input.batch * bands, 1, convolve_bands);
}

// Gradients of weight [K, C, 3, 3] and bias [K]; either may be undefined (not needed).
//
// The bands are divided into a number of groups that depends on the shape alone. Each group sums
// into its own partial result and the partials are added in order, so that the result does not
// depend on the number of threads.
template <class S>
void weight_gradient(const Images<const S>& input, const Images<const S>& grad,
                     Accumulator<S> scale, const std::optional<Tensor>& grad_weight,
                     const std::optional<Tensor>& grad_bias) {
  using T = Accumulator<S>;
  constexpr int64_t kMaxGroups = 16;
  constexpr int64_t kPartialBytes = 64 << 20;
  const auto& tile = tile_kernels<T>();
  const int64_t depth = 3 * input.channels;
  const int64_t row_tiles = ceil_div(depth, kTileRows);
  const int64_t padded = round_up(grad.channels, kTileCols);
  const int64_t weight_size = 3 * row_tiles * kTileRows * padded;
  const int64_t partial_size = weight_size + padded;
  const int64_t bands = input.batch * ceil_div(input.height, kBand);
  const int64_t affordable = kPartialBytes / (partial_size * static_cast<int64_t>(sizeof(T)));
  const int64_t groups = std::min({bands, kMaxGroups, std::max<int64_t>(affordable, 2)});
  std::vector<T> partials(static_cast<size_t>(groups * partial_size));

  const auto sum_band = [&](PackedRows<T>& x, PackedRows<T>& dy, int64_t band, T* partial) {
    const int64_t bands_per_image = ceil_div(input.height, kBand);
    const int64_t n = band / bands_per_image;
    const int64_t first = band % bands_per_image * kBand;
    const int64_t height = std::min(kBand, input.height - first);
    x.fill(input, n, first - 1, height + 2);
    dy.fill(grad, n, first, height);
    for (int64_t ky = 0; ky < 3; ++ky) {
      for (int64_t t = 0; t < row_tiles; ++t) {
        for (int64_t k = 0; k < padded; k += kTileCols) {
          T* sums = partial + ((ky * row_tiles + t) * padded + k) * kTileRows;
          for (int64_t y = 0; y < height; ++y) {
            tile.multiply(sums, {x.row(y + ky) + t * kTileRows, 1, input.channels,
                                 dy.row(y) + k, padded, input.width, kChain});
          }
        }
      }
    }
    T* bias = partial + weight_size;
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t i = 0; i < input.width; ++i) {
        for (int64_t k = 0; k < padded; ++k) bias[k] += dy.row(y)[i * padded + k];
      }
    }
  };
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    PackedRows<T> x(kBand + 2, 1, input.width + 2, input.channels);
    PackedRows<T> dy(kBand, 0, input.width, padded);
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t band = group * bands / groups; band < (group + 1) * bands / groups; ++band) {
        sum_band(x, dy, band, partials.data() + group * partial_size);
      }
    }
  });

  const auto total = [&](int64_t index) {
    T sum = 0;
    for (int64_t group = 0; group < groups; ++group) sum += partials[group * partial_size + index];
    return static_cast<S>(sum * scale);
  };
  if (grad_weight) {
    S* target = data<S>(*grad_weight);
    torch::stable::parallel_for(0, grad.channels, 16, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        for (int64_t c = 0; c < input.channels; ++c) {
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t t = tap % 3 * input.channels + c;
            const int64_t index =
                ((tap / 3 * row_tiles + t / kTileRows) * padded + k / kTileCols * kTileCols) *
                    kTileRows +
                t % kTileRows * kTileCols + k % kTileCols;
            target[(k * input.channels + c) * 9 + tap] = total(index);
          }
        }
      }
    });
  }
  if (grad_bias) {
    S* target = data<S>(*grad_bias);
    for (int64_t k = 0; k < grad.channels; ++k) target[k] = total(weight_size + k);
  }
}

// Gradients of one convolution with respect to x, weight and bias, each if asked for. `grad` is
// the gradient of its output, seen as [N, K, H, W]; `epilogue` finishes the gradient of x.
struct ConvGrads {
  Tensor x, weight, bias;
};

template <class S>
ConvGrads convolution_backward(const Images<const S>& grad, const Tensor& x, const Tensor& weight,
                               const Epilogue<S>& epilogue, Accumulator<S> scale, bool needs_x,
                               bool needs_weight, bool needs_bias) {
  ConvGrads grads{absent(x), absent(x), absent(x)};
  if (needs_x) {
    grads.x = empty(x, shape_of(x), memory_format(x));
    convolve(grad, pack_weight<S>(weight, true), epilogue, images<S>(grads.x));
  }
  if (needs_weight || needs_bias) {
    std::optional<Tensor> grad_weight, grad_bias;
    if (needs_weight) grad_weight = grads.weight = empty(x, shape_of(weight));
    if (needs_bias) grad_bias = grads.bias = empty(x, {weight.size(0)});
    weight_gradient(images<const S>(x), grad, scale, grad_weight, grad_bias);
  }
  return grads;
}

}  // namespace clsd::cpu
