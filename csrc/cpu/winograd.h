// Winograd convolution F(4x4, 3x3): the direct algorithm's sums with a quarter of the
// multiplications (Lavin and Gray, arXiv 1509.09308; the matrices are in tile.cpp).
//
// An output of 4x4 pixels needs an input of 6x6, which becomes 36 numbers per channel (tile.h:
// winograd_input). For each of the 36, called frequencies, the tiles are a matrix [tiles, C] that
// is multiplied with the transformed weights [C, K]; 36 products become 4x4 outputs. The gradient
// of the weights takes the same road backwards: 36 products of inputs [C, tiles] with output
// gradients [tiles, K], transformed to 3x3 at the end.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "convolution_band.h"

namespace clsd::cpu {

constexpr int64_t kWinogradTile = 4;  // output pixels of a side
constexpr int64_t kFrequencies = 36;
// Tiles of one set of products: two register tiles, so that for 64 channels the transformed
// inputs, weights and products stay in a cache of 1 MiB.
constexpr int64_t kBlockTiles = 2 * kTileRows;
constexpr int64_t kOutputChunk = 4 * kTileCols;  // output channels of one set of products
constexpr int64_t kWinogradChain = 64;           // steps of one summation chain (tile.h)
// Between the matrices of two frequencies: 36 addresses at a distance of a power of two would
// share a few sets of the cache.
constexpr int64_t kFrequencyPadding = 16;

// The tiles of an image are cut into bands, each of them whole rows of tiles.
struct WinogradBands {
  int64_t rows, columns;  // tiles of an image
  int64_t rows_per_band;  // enough for a block, where the image has them
  int64_t bands;          // of an image

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
  // Tiles before a band, where bands of all images are counted through.
  int64_t first_tile(int64_t band) const {
    return (band / bands * rows + band % bands * rows_per_band) * columns;
  }
};

// Whether Winograd is the faster way: it is for channels that fill the vectors, on images whose
// tiles fill the products. Its tiles are summed in single precision, so double stays direct.
template <class T>
bool prefers_winograd(int64_t channels, int64_t outputs, int64_t height, int64_t width) {
  if (std::is_same_v<T, double> || channels % 8 || outputs % 8) return false;
  if (channels < 16 || outputs < 16) return false;
  const WinogradBands bands(height, width);
  const int64_t tiles = bands.bands * round_up(bands.rows_per_band * bands.columns, kRowStep);
  // Multiplications, with half as many again for the transforms.
  return 3 * tiles * kFrequencies < 2 * 9 * height * round_up(width, kTileRows);
}

// The transformed numbers of some tiles, [36][tiles][channels].
template <class T>
struct WinogradMatrices {
  int64_t channels, stride;
  T* values;

  WinogradMatrices(Workspace& workspace, int64_t tiles, int64_t channels)
      : channels(channels),
        stride(tiles * channels + kFrequencyPadding),
        // A register tile may read kTileRows - 1 elements beyond the last channel it uses.
        values(workspace.take<T>(kFrequencies * stride + kTileRows)) {}

  T* at(int64_t frequency, int64_t tile) const {
    return values + frequency * stride + tile * channels;
  }

  // Transform tiles [first, first + count) of a band to the places from `slot` on.
  void fill(int64_t slot, const PackedRows<T>& rows, const WinogradBands& bands, int64_t first,
            int64_t count, WinogradTransform<T> transform) const {
    for (int64_t t = 0; t < count; ++t) {
      const int64_t y = (first + t) / bands.columns, x = (first + t) % bands.columns;
      transform(at(0, slot + t), stride, rows.pixel(y * kWinogradTile, x * kWinogradTile),
                rows.columns * rows.channels, rows.channels, channels);
    }
  }
};

// G g G^T of every 3x3 kernel, as [36][tiles of K][C][kTileCols].
template <class T>
struct WinogradWeight {
  int64_t panel, stride;
  T* values;

  template <class S>
  WinogradWeight(Workspace& workspace, const KernelView<S>& kernels)
      : panel(kernels.inputs * kTileCols),
        stride(ceil_div(kernels.outputs, kTileCols) * panel + kFrequencyPadding),
        values(workspace.take<T>(kFrequencies * stride)) {
    const int64_t tiles = ceil_div(kernels.outputs, kTileCols);
    const auto& tile = tile_kernels<T>();  // here, where a thread can still throw
    torch::stable::parallel_for(0, tiles * kernels.inputs, 16, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / kernels.inputs * kTileCols, c = task % kernels.inputs;
        alignas(64) T taps[9 * kTileCols] = {};
        for (int64_t v = 0; v < std::min(kTileCols, kernels.outputs - k); ++v) {
          for (int64_t tap = 0; tap < 9; ++tap) {
            taps[tap * kTileCols + v] = kernels.at(k + v, c, tap);
          }
        }
        tile.winograd_weight(values + task * kTileCols, stride, taps);
      }
    });
  }

  const T* at(int64_t frequency, int64_t k) const {
    return values + frequency * stride + k / kTileCols * panel;
  }
};

// One block of tiles: their transformed inputs, and products for some output channels.
template <class S>
class WinogradBlock {
 public:
  using T = Accumulator<S>;

  WinogradBlock(Workspace& workspace, int64_t channels, int64_t outputs)
      : inputs_(workspace, kBlockTiles, channels),
        products_(workspace, kBlockTiles, std::min(round_up(outputs, kTileCols), kOutputChunk)) {}

  // Convolve tiles [first, first + count) of a loaded band.
  void convolve(const ConvolutionBand<S>& band, const WinogradBands& bands, int64_t first,
                int64_t count, const WinogradWeight<T>& weight, const Images<S>& output) const {
    inputs_.fill(0, band.input, bands, first, count, tile_kernels<T>().winograd_input);
    const int64_t padded = round_up(output.channels, kTileCols);
    for (int64_t k = 0; k < padded; k += products_.channels) {
      const int64_t channels = std::min(products_.channels, padded - k);
      multiply(weight, k, channels, count);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t y = (first + t) / bands.columns, x = (first + t) % bands.columns;
        finish(band, t, y * kWinogradTile, x * kWinogradTile, k, channels, output);
      }
    }
  }

 private:
  void multiply(const WinogradWeight<T>& weight, int64_t k, int64_t channels,
                int64_t count) const {
    for (int64_t e = 0; e < kFrequencies; ++e) {
      TileOperands<T> operands{inputs_.at(e, 0), inputs_.channels, 1,
                               weight.at(e, k),  kTileCols,        weight.panel / kTileCols,
                               kWinogradChain,   false};
      operands.rows = round_up(count, kRowStep);
      operands.acc_row = products_.channels;
      operands.panels = channels / kTileCols;
      operands.b_panel = weight.panel;
      tile_kernels<T>().multiply(products_.at(e, 0), operands);
    }
  }

  // y and x are the tile's first pixel in the band.
  void finish(const ConvolutionBand<S>& band, int64_t tile, int64_t y, int64_t x, int64_t k,
              int64_t channels, const Images<S>& output) const {
    alignas(64) T pixels[kWinogradTile * kWinogradTile * kOutputChunk];
    tile_kernels<T>().winograd_output(pixels, products_.at(0, tile), products_.stride, channels);
    const int64_t height = std::min(kWinogradTile, band.rows() - y);
    for (int64_t i = 0; i < height; ++i) {
      band.store(pixels + i * kWinogradTile * channels, channels, y + i, x,
                 std::min(kWinogradTile, output.width - x), k, channels);
    }
  }

  WinogradMatrices<T> inputs_, products_;
};

template <class S>
void winograd_convolve(const Convolution<S>& convolution) {
  using T = Accumulator<S>;
  const Images<const S>& input = convolution.input;
  const Images<S>& output = convolution.output;
  const WinogradBands bands(input.height, input.width);
  const int64_t channels = round_up(input.channels, kTileCols);
  Workspace workspace;
  const WinogradWeight<T> weight(workspace, convolution.kernels());
  torch::stable::parallel_for(0, input.batch * bands.bands, 1, [&](int64_t begin, int64_t end) {
    Workspace scratch;
    ConvolutionBand<S> band(scratch, convolution, bands.pixel_rows(), bands.pixel_columns(),
                            channels);
    const WinogradBlock<S> block(scratch, channels, output.channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / bands.bands, b = task % bands.bands;
      const int64_t tiles = bands.tile_rows(b) * bands.columns;
      band.load(n, bands.first_pixel_row(b), bands.pixel_rows(), kWinogradTile);
      for (int64_t first = 0; first < tiles; first += kBlockTiles) {
        block.convolve(band, bands, first, std::min(kBlockTiles, tiles - first), weight, output);
      }
      band.flush();
    }
  });
}

// The gradient of the weights. Tiles are taken in stages: first they are transformed, then each
// frequency's product over the stage is added up by one task. So there is one sum, in one order,
// for any number of threads.
template <class S>
class WinogradGradient {
 public:
  using T = Accumulator<S>;

  WinogradGradient(const Images<const S>& input, const Images<const S>& grad)
      : input_(input),
        grad_(grad),
        bands_(input.height, input.width),
        rows_(round_up(input.channels, kRowStep)),
        inputs_(round_up(input.channels, kTileCols)),
        outputs_(round_up(grad.channels, kTileCols)),
        stride_(rows_ * outputs_ + kFrequencyPadding) {}

  void write(Accumulator<S> scale, const Tensor* grad_weight, const Tensor* grad_bias) const {
    Workspace workspace;
    const int64_t tiles = bands_.rows_per_band * bands_.columns;
    const int64_t band_bytes =
        tiles * kFrequencies * (inputs_ + outputs_) * static_cast<int64_t>(sizeof(T));
    const int64_t bands = input_.batch * bands_.bands;
    const int64_t stage = std::clamp<int64_t>(kStageBytes / band_bytes, 1, std::max<int64_t>(bands, 1));
    const WinogradMatrices<T> left(workspace, stage * tiles, inputs_);
    const WinogradMatrices<T> right(workspace, stage * tiles, outputs_);
    T* products = workspace.take<T>(kFrequencies * stride_);
    double* sums = workspace.take<double>(bands * outputs_);
    if (bands == 0) std::fill_n(products, kFrequencies * stride_, T(0));
    for (int64_t first = 0; first < bands; first += stage) {
      const int64_t last = std::min(first + stage, bands);
      transform(left, right, first, last, sums);
      add_products(left, right, bands_.first_tile(last) - bands_.first_tile(first), first > 0,
                   products);
    }
    if (grad_weight) {
      const auto taps = [&](int64_t c, int64_t k, T* result) {
        kernels_.winograd_grad_weight(result, products + c * outputs_ + k, stride_);
      };
      write_weight_gradient(input_, grad_, scale, *grad_weight, taps);
    }
    if (grad_bias) write_bias_gradient(grad_, scale, *grad_bias, sums, outputs_, bands);
  }

 private:
  static constexpr int64_t kStageBytes = 4 << 20;

  // Both matrices of bands [first, last), and each band's sum of the gradient's pixels.
  void transform(const WinogradMatrices<T>& left, const WinogradMatrices<T>& right, int64_t first,
                 int64_t last, double* sums) const {
    const int64_t columns = bands_.pixel_columns();
    torch::stable::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      Workspace scratch;
      const PackedRows<T> x(scratch, bands_.pixel_rows() + 2, 1, columns + 2, inputs_);
      const PackedRows<T> dy(scratch, bands_.pixel_rows(), 0, columns, outputs_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / bands_.bands, band = task % bands_.bands;
        const int64_t rows = bands_.tile_rows(band) * kWinogradTile;
        const int64_t slot = bands_.first_tile(task) - bands_.first_tile(first);
        const int64_t tiles = bands_.tile_rows(band) * bands_.columns;
        x.fill(input_, n, bands_.first_pixel_row(band) - 1, rows + 2);
        dy.fill(grad_, n, bands_.first_pixel_row(band), rows);
        left.fill(slot, x, bands_, 0, tiles, kernels_.winograd_input);
        right.fill(slot, dy, bands_, 0, tiles, kernels_.winograd_grad_output);
        std::fill_n(sums + task * outputs_, outputs_, 0.0);
        add_pixels(dy, rows * columns, sums + task * outputs_);
      }
    });
  }

  void add_products(const WinogradMatrices<T>& left, const WinogradMatrices<T>& right,
                    int64_t tiles, bool add, T* products) const {
    torch::stable::parallel_for(0, kFrequencies, 1, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        TileOperands<T> operands{left.at(e, 0),  1,        inputs_, right.at(e, 0), outputs_,
                                 tiles, kWinogradChain, add};
        operands.rows = rows_;
        operands.acc_row = outputs_;
        operands.panels = outputs_ / kTileCols;
        operands.b_panel = kTileCols;
        kernels_.multiply(products + e * stride_, operands);
      }
    });
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Images<const S>&input_, &grad_;
  WinogradBands bands_;
  int64_t rows_, inputs_, outputs_, stride_;
};

}  // namespace clsd::cpu
