// Winograd convolution F(4x4, 3x3): the direct algorithm's sums with a quarter of the
// multiplications (Lavin and Gray, arXiv 1509.09308; the matrices are in tile.cpp).
//
// An output of 4x4 pixels needs an input of 6x6, which becomes 36 numbers per channel (tile.h:
// winograd_input). For each of the 36, the tiles of a band are a matrix [tiles, C] that is
// multiplied with the transformed weights [C, K]; 36 products become 4x4 outputs. The gradient of
// the weights takes the same road backwards: 36 products of inputs [C, tiles] with output
// gradients [tiles, K] are summed over all tiles, then transformed to 3x3 once.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "packed_rows.h"
#include "tile.h"

namespace clsd::cpu {

constexpr int64_t kWinogradTile = 4;   // output pixels of a side
constexpr int64_t kWinogradPatch = 6;  // input pixels of a side
constexpr int64_t kFrequencies = kWinogradPatch * kWinogradPatch;
// Tiles of one set of products: two register tiles, so that for 64 channels the transformed
// inputs and weights stay in a cache of 1 MiB.
constexpr int64_t kBlockTiles = 2 * kTileRows;
constexpr int64_t kWinogradChain = 64;  // steps of one summation chain (tile.h)

// The tiles of a band of one image, row by row.
struct WinogradBands {
  int64_t rows, columns;     // tiles of an image
  int64_t rows_per_band;     // enough for a block, where the image has them
  int64_t bands;             // of an image

  WinogradBands(int64_t height, int64_t width)
      : rows(ceil_div(height, kWinogradTile)),
        columns(ceil_div(width, kWinogradTile)),
        rows_per_band(std::min(rows, ceil_div(kBlockTiles, columns))),
        bands(ceil_div(rows, rows_per_band)) {}

  int64_t tile_rows(int64_t band) const {
    return std::min(rows_per_band, rows - band * rows_per_band);
  }
  int64_t first_pixel_row(int64_t band) const { return band * rows_per_band * kWinogradTile; }
  int64_t pixel_rows() const { return rows_per_band * kWinogradTile; }
  int64_t pixel_columns() const { return columns * kWinogradTile; }
};

// Whether Winograd is the faster way: it is for channels that fill the vectors, on images whose
// tiles fill the products. Its 4x4 tiles are summed in single precision, so double stays direct.
template <class T>
bool prefers_winograd(int64_t channels, int64_t outputs, int64_t height, int64_t width) {
  if (std::is_same_v<T, double> || channels % 8 || outputs % 8) return false;
  if (channels < 16 || outputs < 16) return false;
  const WinogradBands bands(height, width);
  const int64_t tiles = bands.bands * round_up(bands.rows_per_band * bands.columns, kTileRows);
  // Multiplications, with half as many again for the transforms.
  return 3 * tiles * kFrequencies < 2 * 9 * height * round_up(width, kTileRows);
}

// G g G^T of every 3x3 kernel, as [tiles of K][36][C][kTileCols]. `transposed` as in pack_weight.
template <class S>
std::vector<Accumulator<S>> winograd_weight(const Tensor& weight, bool transposed) {
  using T = Accumulator<S>;
  const KernelView<S> kernels(weight, transposed);
  const int64_t tiles = ceil_div(kernels.outputs, kTileCols);
  std::vector<T> packed(static_cast<size_t>(tiles * kFrequencies * kernels.inputs * kTileCols));
  torch::stable::parallel_for(0, tiles * kernels.inputs, 16, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tile = task / kernels.inputs, c = task % kernels.inputs;
      T taps[9 * kTileCols] = {};
      const int64_t first = tile * kTileCols;
      for (int64_t v = 0; v < std::min(kTileCols, kernels.outputs - first); ++v) {
        for (int64_t tap = 0; tap < 9; ++tap) {
          taps[tap * kTileCols + v] = kernels.at(first + v, c, tap);
        }
      }
      T* target = packed.data() + (tile * kFrequencies * kernels.inputs + c) * kTileCols;
      tile_kernels<T>().winograd_weight(target, kernels.inputs * kTileCols, taps);
    }
  });
  return packed;
}

// The transformed tiles [36][kBlockTiles][channels] of one block.
template <class T>
struct WinogradBlock {
  int64_t channels;  // whole vectors
  std::vector<T> values;

  explicit WinogradBlock(int64_t channels)
      : channels(channels),
        // A register tile may read kTileRows - 1 elements beyond the last channel it uses.
        values(static_cast<size_t>(kFrequencies * kBlockTiles * channels + kTileRows)) {}

  int64_t frequency_stride() const { return kBlockTiles * channels; }
  const T* at(int64_t frequency, int64_t tile) const {
    return values.data() + frequency * frequency_stride() + tile * channels;
  }

  // Tiles [first, first + count) of a band whose packed rows are given.
  void fill(PackedRows<T>& rows, const WinogradBands& bands, int64_t first, int64_t count,
            WinogradTransform<T> transform) {
    for (int64_t t = 0; t < count; ++t) {
      const int64_t y = (first + t) / bands.columns, x = (first + t) % bands.columns;
      transform(values.data() + t * channels, frequency_stride(),
                rows.pixel(y * kWinogradTile, x * kWinogradTile), rows.columns * rows.channels,
                rows.channels, channels);
    }
  }
};

// Convolution of input with winograd_weight. `store(pixels, n, y, x, count, k)` takes the sums of
// `count` pixels of a row, [count][kTileCols] for channels k and up.
template <class S, class Store>
void winograd_convolve(const Images<const S>& input, const std::vector<Accumulator<S>>& weight,
                       int64_t outputs, const Store& store) {
  using T = Accumulator<S>;
  const auto& kernels = tile_kernels<T>();
  const WinogradBands bands(input.height, input.width);
  const int64_t channels = round_up(input.channels, kTileCols);
  constexpr int64_t kProductStride = kBlockTiles * kTileCols;

  const auto multiply = [&](const WinogradBlock<T>& block, int64_t k, int64_t count, T* products) {
    const T* weights = weight.data() + k * kFrequencies * input.channels;
    for (int64_t e = 0; e < kFrequencies; ++e) {
      for (int64_t t = 0; t < count; t += kTileRows) {
        kernels.multiply(products + e * kProductStride + t * kTileCols,
                         {block.at(e, t), channels, 1, weights + e * input.channels * kTileCols,
                          kTileCols, input.channels, kWinogradChain, false});
      }
    }
  };
  const auto finish = [&](const T* product, int64_t n, int64_t y, int64_t x, int64_t k) {
    T pixels[kWinogradTile * kWinogradTile * kTileCols];
    kernels.winograd_output(pixels, product, kProductStride);
    for (int64_t i = 0; i < std::min(kWinogradTile, input.height - y); ++i) {
      store(pixels + i * kWinogradTile * kTileCols, n, y + i, x,
            std::min(kWinogradTile, input.width - x), k);
    }
  };
  torch::stable::parallel_for(0, input.batch * bands.bands, 1, [&](int64_t begin, int64_t end) {
    PackedRows<T> rows(bands.pixel_rows() + 2, 1, bands.pixel_columns() + 2, channels);
    WinogradBlock<T> block(channels);
    std::vector<T> products(static_cast<size_t>(kFrequencies * kProductStride));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / bands.bands, band = task % bands.bands;
      const int64_t tiles = bands.tile_rows(band) * bands.columns;
      const int64_t top = bands.first_pixel_row(band);
      rows.fill(input, n, top - 1, bands.tile_rows(band) * kWinogradTile + 2);
      for (int64_t first = 0; first < tiles; first += kBlockTiles) {
        const int64_t count = std::min(kBlockTiles, tiles - first);
        block.fill(rows, bands, first, count, kernels.winograd_input);
        for (int64_t k = 0; k < outputs; k += kTileCols) {
          multiply(block, k, count, products.data());
          for (int64_t t = 0; t < count; ++t) {
            finish(products.data() + t * kTileCols, n,
                   top + (first + t) / bands.columns * kWinogradTile,
                   (first + t) % bands.columns * kWinogradTile, k);
          }
        }
      }
    }
  });
}

// Sums over the tiles of one group of bands of inputs [C, tiles] times output gradients
// [tiles, K], for each of the 36: [36][tiles of C][tiles of K][kTileRows][kTileCols].
template <class S>
struct WinogradGradient {
  using T = Accumulator<S>;
  const Images<const S>& input;
  const Images<const S>& grad;
  WinogradBands bands;
  int64_t input_channels, grad_channels;  // whole vectors
  int64_t row_tiles, column_tiles;

  WinogradGradient(const Images<const S>& input, const Images<const S>& grad)
      : input(input),
        grad(grad),
        bands(input.height, input.width),
        input_channels(round_up(input.channels, kTileCols)),
        grad_channels(round_up(grad.channels, kTileCols)),
        row_tiles(ceil_div(input.channels, kTileRows)),
        column_tiles(grad_channels / kTileCols) {}

  int64_t band_count() const { return input.batch * bands.bands; }
  int64_t frequency_size() const { return row_tiles * column_tiles * kTileSize; }
  // The sums, and behind them the gradient of the bias.
  int64_t weight_size() const { return kFrequencies * frequency_size(); }
  int64_t partial_size() const { return weight_size() + grad_channels; }

  void add_bands(int64_t begin, int64_t end, T* partial) const {
    const auto& kernels = tile_kernels<T>();
    const int64_t columns = bands.pixel_columns();
    PackedRows<T> x(bands.pixel_rows() + 2, 1, columns + 2, input_channels);
    PackedRows<T> dy(bands.pixel_rows(), 0, columns, grad_channels);
    WinogradBlock<T> left(input_channels), right(grad_channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / bands.bands, band = task % bands.bands;
      const int64_t tiles = bands.tile_rows(band) * bands.columns;
      const int64_t rows = bands.tile_rows(band) * kWinogradTile;
      x.fill(input, n, bands.first_pixel_row(band) - 1, rows + 2);
      dy.fill(grad, n, bands.first_pixel_row(band), rows);
      for (int64_t first = 0; first < tiles; first += kBlockTiles) {
        const int64_t count = std::min(kBlockTiles, tiles - first);
        left.fill(x, bands, first, count, kernels.winograd_input);
        right.fill(dy, bands, first, count, kernels.winograd_grad_output);
        add_products(left, right, count, partial);
      }
      add_pixels(dy, rows * columns, partial + weight_size());
    }
  }

  // Tap gradients [9][kTileCols] of input channel c and output channels [k, k + kTileCols).
  void taps(const std::vector<T>& partials, int64_t groups, int64_t c, int64_t k, T* result) const {
    T sums[kFrequencies * kTileCols] = {};
    const int64_t index = (c / kTileRows * column_tiles + k / kTileCols) * kTileSize +
                          c % kTileRows * kTileCols;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t e = 0; e < kFrequencies; ++e) {
        const T* source = partials.data() + group * partial_size() + e * frequency_size() + index;
        for (int64_t v = 0; v < kTileCols; ++v) sums[e * kTileCols + v] += source[v];
      }
    }
    tile_kernels<T>().winograd_grad_weight(result, sums, kTileCols);
  }

 private:
  void add_products(const WinogradBlock<T>& left, const WinogradBlock<T>& right, int64_t count,
                    T* partial) const {
    for (int64_t e = 0; e < kFrequencies; ++e) {
      for (int64_t r = 0; r < row_tiles; ++r) {
        for (int64_t c = 0; c < column_tiles; ++c, partial += kTileSize) {
          tile_kernels<T>().multiply(
              partial, {left.at(e, 0) + r * kTileRows, 1, input_channels,
                        right.at(e, 0) + c * kTileCols, grad_channels, count, count, true});
        }
      }
    }
  }
};

}  // namespace clsd::cpu
