// Direct 3x3 convolution (stride 1, zero padding 1) and its weight gradient on register tiles.
//
// A band of rows is copied, once, to a zero-padded NHWC scratch in the accumulator's type. There
// the 3 C inputs of one pixel under one kernel row are consecutive, so that a convolution is, for
// each kernel row, a product of [pixels, 3 C] with [3 C, K] whose left rows overlap. The gradient
// of the weights is the transposed product. Channel offset tables (shapes.h) take care of layouts
// and of pixel shuffling, on both sides.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "packed_rows.h"
#include "tile.h"
#include "winograd.h"

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

// Weights of the direct kernel, [tiles of K][3 kernel rows][3 kernel columns, C][kTileCols].
template <class S>
std::vector<Accumulator<S>> pack_weight(const Tensor& weight, bool transposed) {
  const KernelView<S> kernels(weight, transposed);
  std::vector<Accumulator<S>> packed(
      static_cast<size_t>(round_up(kernels.outputs, kTileCols) * 9 * kernels.inputs));
  for (int64_t k = 0; k < kernels.outputs; ++k) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      auto* target = packed.data() + (k / kTileCols * 9 + tap) * kernels.inputs * kTileCols;
      for (int64_t c = 0; c < kernels.inputs; ++c) {
        target[c * kTileCols + k % kTileCols] = kernels.at(k, c, tap);
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

template <class S>
bool is_dense(const Epilogue<S>& epilogue, const Images<S>& output) {
  return output.dense_channels && (!epilogue.residual || epilogue.residual->dense_channels) &&
         (!epilogue.positive || epilogue.positive->dense_channels);
}

// store_tile where the channels of every image are consecutive.
template <class T>
void store_dense_tile(const T* tile, const Epilogue<T>& epilogue, const Images<T>& output,
                      int64_t n, int64_t y, int64_t x, int64_t pixels, int64_t k) {
  TileEpilogue<T> dense{};
  dense.bias = epilogue.bias ? epilogue.bias->data() + k : nullptr;
  dense.scale = epilogue.scale;
  dense.relu = epilogue.relu;
  if (epilogue.residual) {
    dense.residual = epilogue.residual->pixel(n, y, x) + k;
    dense.residual_stride = epilogue.residual->stride_w;
  }
  if (epilogue.positive) {
    dense.positive = epilogue.positive->pixel(n, y, x) + k;
    dense.positive_stride = epilogue.positive->stride_w;
  }
  tile_kernels<T>().finish(output.pixel(n, y, x) + k, output.stride_w, tile, pixels, dense);
}

// Write `pixels` rows of a tile, for channels [k, k + count), through the epilogue.
template <class S>
void store_tile(Accumulator<S>* tile, const Epilogue<S>& epilogue, const Images<S>& output,
                int64_t n, int64_t y, int64_t x, int64_t pixels, int64_t k) {
  using T = Accumulator<S>;
  const int64_t count = std::min(kTileCols, output.channels - k);
  if constexpr (std::is_same_v<S, T>) {
    if (count == kTileCols && is_dense(epilogue, output)) {
      store_dense_tile(tile, epilogue, output, n, y, x, pixels, k);
      return;
    }
  }
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

// The direct kernel: output = epilogue(convolution of input with pack_weight)
template <class S>
void direct_convolve(const Images<const S>& input, const std::vector<Accumulator<S>>& weight,
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
        for (int64_t y = 0; y < height; ++y) {
          for (int64_t x = 0; x < input.width; x += kTileRows) {
            T sums[kTileSize];
            for (int64_t ky = 0; ky < 3; ++ky) {
              tile.multiply(sums, {rows.row(y + ky) + x * input.channels, input.channels, 1,
                                   weights + ky * depth * kTileCols, kTileCols, depth, kChain,
                                   ky > 0});
            }
            store_tile(sums, epilogue, output, n, first + y, x,
                       std::min(kTileRows, input.width - x), k);
          }
        }
      }
    }
  };
  torch::stable::parallel_for(0, input.batch * bands, 1, convolve_bands);
}

// output = epilogue(convolution of input with weight, or with its transpose), by Winograd's or the
// direct algorithm, whichever is faster.
template <class S>
void convolve(const Images<const S>& input, const Tensor& weight, bool transposed,
              const Epilogue<S>& epilogue, const Images<S>& output) {
  using T = Accumulator<S>;
  if (!prefers_winograd<T>(input.channels, output.channels, input.height, input.width)) {
    direct_convolve(input, pack_weight<S>(weight, transposed), epilogue, output);
    return;
  }
  winograd_convolve(input, winograd_weight<S>(weight, transposed), output.channels,
                    [&](T* sums, int64_t n, int64_t y, int64_t x, int64_t pixels, int64_t k) {
                      store_tile(sums, epilogue, output, n, y, x, pixels, k);
                    });
}

// The direct kernel of the weights' gradient: [3 kernel rows][tiles of 3 C][tiles of K], each a
// register tile of sums over all pixels. The interface is that of WinogradGradient.
template <class S>
struct DirectGradient {
  using T = Accumulator<S>;
  const Images<const S>& input;
  const Images<const S>& grad;
  int64_t depth, row_tiles, padded, bands;

  DirectGradient(const Images<const S>& input, const Images<const S>& grad)
      : input(input),
        grad(grad),
        depth(3 * input.channels),
        row_tiles(ceil_div(depth, kTileRows)),
        padded(round_up(grad.channels, kTileCols)),
        bands(ceil_div(input.height, kBand)) {}

  int64_t band_count() const { return input.batch * bands; }
  int64_t weight_size() const { return 3 * row_tiles * kTileRows * padded; }
  int64_t partial_size() const { return weight_size() + padded; }

  void add_bands(int64_t begin, int64_t end, T* partial) const {
    PackedRows<T> x(kBand + 2, 1, input.width + 2, input.channels);
    PackedRows<T> dy(kBand, 0, input.width, padded);
    for (int64_t band = begin; band < end; ++band) {
      const int64_t n = band / bands, first = band % bands * kBand;
      const int64_t height = std::min(kBand, input.height - first);
      x.fill(input, n, first - 1, height + 2);
      dy.fill(grad, n, first, height);
      add_products(x, dy, height, partial);
      add_pixels(dy, height * input.width, partial + weight_size());
    }
  }

  void taps(const std::vector<T>& partials, int64_t groups, int64_t c, int64_t k, T* result) const {
    std::fill_n(result, 9 * kTileCols, T(0));
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t t = tap % 3 * input.channels + c;
        const T* source = partials.data() + group * partial_size() +
                          ((tap / 3 * row_tiles + t / kTileRows) * padded + k) * kTileRows +
                          t % kTileRows * kTileCols;
        for (int64_t v = 0; v < kTileCols; ++v) result[tap * kTileCols + v] += source[v];
      }
    }
  }

 private:
  void add_products(PackedRows<T>& x, PackedRows<T>& dy, int64_t height, T* partial) const {
    for (int64_t ky = 0; ky < 3; ++ky) {
      for (int64_t t = 0; t < row_tiles; ++t) {
        for (int64_t k = 0; k < padded; k += kTileCols, partial += kTileSize) {
          for (int64_t y = 0; y < height; ++y) {
            tile_kernels<T>().multiply(partial, {x.row(y + ky) + t * kTileRows, 1, input.channels,
                                                 dy.row(y) + k, padded, input.width, kChain, true});
          }
        }
      }
    }
  }
};

// Sum a gradient over all bands and write it.
//
// The bands are divided into a number of groups that depends on the shape alone. Each group sums
// into its own partial result and the partials are added in order, so that the result does not
// depend on the number of threads.
template <class S, class Gradient>
void reduce_gradient(const Gradient& gradient, Accumulator<S> scale, const Tensor* grad_weight,
                     const Tensor* grad_bias) {
  using T = Accumulator<S>;
  constexpr int64_t kMaxGroups = 16;
  constexpr int64_t kPartialBytes = 64 << 20;
  const int64_t size = gradient.partial_size();
  const int64_t affordable = kPartialBytes / (size * static_cast<int64_t>(sizeof(T)));
  const int64_t bands = gradient.band_count();
  const int64_t groups = std::min({bands, kMaxGroups, std::max<int64_t>(affordable, 2)});
  std::vector<T> partials(static_cast<size_t>(groups * size));
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      gradient.add_bands(group * bands / groups, (group + 1) * bands / groups,
                         partials.data() + group * size);
    }
  });
  const int64_t inputs = gradient.input.channels, outputs = gradient.grad.channels;
  if (grad_weight) {
    S* target = data<S>(*grad_weight);
    const int64_t tiles = ceil_div(outputs, kTileCols);
    torch::stable::parallel_for(0, tiles * inputs, 16, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / inputs * kTileCols, c = task % inputs;
        T taps[9 * kTileCols];
        gradient.taps(partials, groups, c, k, taps);
        for (int64_t v = 0; v < std::min(kTileCols, outputs - k); ++v) {
          for (int64_t tap = 0; tap < 9; ++tap) {
            target[((k + v) * inputs + c) * 9 + tap] =
                static_cast<S>(taps[tap * kTileCols + v] * scale);
          }
        }
      }
    });
  }
  if (grad_bias) {
    S* target = data<S>(*grad_bias);
    for (int64_t k = 0; k < outputs; ++k) {
      T sum = 0;
      for (int64_t group = 0; group < groups; ++group) {
        sum += partials[group * size + gradient.weight_size() + k];
      }
      target[k] = static_cast<S>(sum * scale);
    }
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
    convolve(grad, weight, true, epilogue, images<S>(grads.x));
  }
  if (needs_weight) grads.weight = empty(x, shape_of(weight));
  if (needs_bias) grads.bias = empty(x, {weight.size(0)});
  if (needs_weight || needs_bias) {
    const auto input = images<const S>(x);
    const Tensor* grad_weight = needs_weight ? &grads.weight : nullptr;
    const Tensor* grad_bias = needs_bias ? &grads.bias : nullptr;
    if (prefers_winograd<Accumulator<S>>(input.channels, grad.channels, input.height,
                                         input.width)) {
      reduce_gradient<S>(WinogradGradient<S>(input, grad), scale, grad_weight, grad_bias);
    } else {
      reduce_gradient<S>(DirectGradient<S>(input, grad), scale, grad_weight, grad_bias);
    }
  }
  return grads;
}

}  // namespace clsd::cpu
