// Winograd convolution F(4x4, 3x3): the direct algorithm's sums with a quarter of the
// multiplications (Lavin and Gray, arXiv 1509.09308; the matrices are in isa/winograd.h). So is, for
// kernels of 5x5, F(2x2, 5x5), with 9 of 25; what follows has the numbers of the first.
//
// An output of 4x4 pixels, a Winograd tile, needs an input of 6x6, which becomes 36 numbers per
// channel (kernels.h: winograd_input). For each of the 36, called frequencies, the Winograd tiles
// are a matrix [Winograd tiles, C] that is multiplied with the transformed weight [C, K]; 36
// products become 4x4 outputs. The gradient of the weight takes the same road backwards
// (winograd_gradient.h).
#pragma once

#include <algorithm>
#include <type_traits>

#include "convolution.h"
#include "winograd_bands.h"

namespace clsd::cpu {

constexpr int64_t kWinogradSlice = 4 * kTileCols;  // output channels of one set of products
constexpr int64_t kWinogradChain = 64;             // steps of one summation chain (kernels.h)
// Between the matrices of two frequencies: 36 addresses at a distance of a power of two would
// share a few sets of the cache.
constexpr int64_t kFrequencyPadding = 16;
constexpr int64_t kMostTaps = 25;  // of a Winograd convolution's kernel

// Patches of `size` x `size` pixels around the Winograd tiles of a band: where the image has them,
// or, at its edges and if the image is of another type or layout, in a copy with zeros outside of
// it.
template <class S>
class WinogradPatches {
 public:
  using T = Accumulator<S>;
  WinogradPatches(Workspace& workspace, const Images<const S>& image, const WinogradBands& bands,
                  int64_t size)
      : channels(round_up(image.channels, kTileCols)),
        image_(image),
        bands_(bands),
        size_(size),
        halo_((size - bands.tile) / 2) {
    if (in_place<T>(image)) {
      copy_ = workspace.take<T>(size * size * channels);
    } else {
      rows_ = PackedRows<T>(workspace, bands.pixel_rows() + 2 * halo_, halo_,
                            bands.pixel_columns() + 2 * halo_, channels);
    }
  }

  const int64_t channels;  // whole panels

  void load(int64_t n, int64_t band) {
    n_ = n, top_ = bands_.first_pixel_row(band) - halo_;
    if (rows_.values) {
      rows_.fill(image_, n, top_, bands_.tile_rows(band) * bands_.tile + 2 * halo_);
    }
  }

  // Call visit(c, source, stride_h, stride_w, count) for the patch of a Winograd tile, counted
  // through the band, with the pixel at its corner and its channels [c, c + count).
  template <class Visit>
  void visit(int64_t tile, const Visit& visit) const {
    const int64_t y = tile / bands_.columns * bands_.tile;
    const int64_t x = tile % bands_.columns * bands_.tile;
    if constexpr (std::is_same_v<S, T>) {
      if (!rows_.values) return visit_image(top_ + y, x - halo_, visit);
    }
    visit(0, rows_.pixel(y, x), rows_.columns * channels, channels, channels);
  }

 private:
  template <class Visit>
  void visit_image(int64_t top, int64_t left, const Visit& visit) const {
    if (top >= 0 && left >= 0 && top + size_ <= image_.height && left + size_ <= image_.width) {
      const S* corner = image_.pixel(n_, top, left);
      for (int64_t c = 0; c < channels; c += image_.run) {
        visit(c, corner + image_.channel[image_.order[c]], image_.stride_h, image_.stride_w,
              image_.run);
      }
      return;
    }
    for (int64_t i = 0; i < size_; ++i) copy_row(top + i, left, copy_ + i * size_ * channels);
    visit(0, copy_, size_ * channels, channels, channels);
  }

  // `size_` pixels of row y from pixel x on.
  void copy_row(int64_t y, int64_t x, T* target) const {
    if (y < 0 || y >= image_.height) {
      std::fill_n(target, size_ * channels, T(0));
      return;
    }
    const int64_t begin = std::max<int64_t>(-x, 0), end = std::min(image_.width - x, size_);
    std::fill_n(target, begin * channels, T(0));
    if (image_.run == channels && image_.stride_w == channels) {
      const S* pixels = image_.pixel(n_, y, x + begin) + image_.channel[image_.order[0]];
      std::copy(pixels, pixels + (end - begin) * channels, target + begin * channels);
    } else {
      for (int64_t j = begin; j < end; ++j) copy_pixel(y, x + j, target + j * channels);
    }
    std::fill_n(target + end * channels, (size_ - end) * channels, T(0));
  }

  void copy_pixel(int64_t y, int64_t x, T* target) const {
    const S* pixel = image_.pixel(n_, y, x);
    for (int64_t c = 0; c < channels; c += image_.run) {
      const S* source = pixel + image_.channel[image_.order[c]];
      std::copy(source, source + image_.run, target + c);
    }
  }

  const Images<const S>& image_;
  const WinogradBands& bands_;
  int64_t size_, halo_;
  PackedRows<T> rows_;
  T* copy_ = nullptr;
  int64_t n_ = 0, top_ = 0;
};

// The transformed numbers of some Winograd tiles, [36][Winograd tiles][channels].
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

  template <class S>
  void transform(int64_t slot, const WinogradPatches<S>& patches, int64_t tile,
                 WinogradTransform<T> transform) const {
    patches.visit(
        tile, [&](int64_t c, const T* source, int64_t stride_h, int64_t stride_w, int64_t count) {
      transform(at(0, slot) + c, stride, source, stride_h, stride_w, count);
    });
  }
};

// G g G^T of the taps of each pair of channels, as [36][panels of K][C][kTileCols].
template <class T>
struct WinogradWeight {
  int64_t panel, stride;
  T* values;

  // `weights` has at(k, c, tap) for its `outputs` and `inputs`, as WeightView has.
  template <class Weights>
  WinogradWeight(Workspace& workspace, const Weights& weights, const TileKernels<T>& kernels,
                 int64_t tile)
      : panel(weights.inputs * kTileCols),
        stride(ceil_div(weights.outputs, kTileCols) * panel + kFrequencyPadding),
        values(workspace.take<T>(kFrequencies * stride)) {
    const int64_t panels = ceil_div(weights.outputs, kTileCols);
    const int64_t num_taps = WinogradBands(1, 1, tile).taps();
    parallel_for(0, panels * weights.inputs, 16, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / weights.inputs * kTileCols, c = task % weights.inputs;
        alignas(64) T taps[kMostTaps * kTileCols] = {};
        for (int64_t v = 0; v < std::min(kTileCols, weights.outputs - k); ++v) {
          for (int64_t tap = 0; tap < num_taps; ++tap) {
            taps[tap * kTileCols + v] = weights.at(k + v, c, tap);
          }
        }
        kernels.winograd(tile).weight(values + task * kTileCols, stride, taps);
      }
    });
  }

  const T* at(int64_t frequency, int64_t k) const {
    return values + frequency * stride + k / kTileCols * panel;
  }
};

// One block of Winograd tiles: their transformed inputs, and products for a slice of the output.
template <class S>
class WinogradBlock {
 public:
  using T = Accumulator<S>;

  WinogradBlock(Workspace& workspace, const Convolution<S>& convolution, int64_t channels)
      : kernels_(convolution.kernels),
        output_(convolution.output),
        inputs_(workspace, kWinogradBlock, channels),
        products_(workspace, kWinogradBlock,
                  std::min(round_up(output_.channels, kTileCols), kWinogradSlice)) {}

  // Convolve Winograd tiles [first, first + count) of a band.
  void convolve(const WinogradPatches<S>& patches, const OutputBand<S>& band,
                const WinogradBands& bands, int64_t first, int64_t count,
                const WinogradWeight<T>& weight) const {
    for (int64_t t = 0; t < count; ++t) {
      inputs_.transform(t, patches, first + t, kernels_.winograd_input);
    }
    const int64_t padded = round_up(output_.channels, kTileCols);
    for (int64_t k = 0; k < padded; k += products_.channels) {
      const int64_t channels = std::min(products_.channels, padded - k);
      multiply(weight, k, channels, count);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t y = (first + t) / bands.columns * bands.tile;
        const int64_t x = (first + t) % bands.columns * bands.tile;
        band.store_winograd_tile(bands.tile, products_.at(0, t), products_.stride, y, x, k,
                                 channels);
      }
    }
  }

 private:
  void multiply(const WinogradWeight<T>& weight, int64_t k, int64_t channels, int64_t count) const {
    for (int64_t e = 0; e < kFrequencies; ++e) {
      const TileOperands<T> operands{
          .a = inputs_.at(e, 0),
          .a_row = inputs_.channels,
          .a_step = 1,
          .b = weight.at(e, k),
          .b_step = kTileCols,
          .steps = weight.panel / kTileCols,
          .chain = kWinogradChain,
          .add = false,
          .rows = round_up(count, kRowStep),
          .acc_row = products_.channels,
          .panels = channels / kTileCols,
          .b_panel = weight.panel,
      };
      kernels_.multiply(products_.at(e, 0), operands);
    }
  }

  const TileKernels<T>& kernels_;
  const Images<S>& output_;
  WinogradMatrices<T> inputs_, products_;
};

// A worker's part of a convolution. Its tasks are bands, counted through all images.
template <class S, class Take>
void winograd_convolve_bands(const Convolution<S>& convolution,
                             const WinogradWeight<Accumulator<S>>& weight,
                             const WinogradBands& bands, const Take& take) {
  const Images<const S>& input = convolution.input;
  Workspace scratch;
  WinogradPatches<S> patches(scratch, input, bands, kWinogradPatch);
  OutputBand<S> band(scratch, convolution, bands.pixel_rows());
  const WinogradBlock<S> block(scratch, convolution, patches.channels);
  for (int64_t task; take(task);) {
    const int64_t n = task / bands.bands, b = task % bands.bands;
    const int64_t tiles = bands.tiles(b);
    patches.load(n, b);
    band.load(n, bands.first_pixel_row(b),
              std::min(bands.pixel_rows(), input.height - bands.first_pixel_row(b)));
    for (int64_t first = 0; first < tiles; first += kWinogradBlock) {
      block.convolve(patches, band, bands, first, std::min(kWinogradBlock, tiles - first), weight);
    }
    band.flush();
  }
}

// Bands [begin, end), counted through all images.
template <class S>
void winograd_convolve(const Convolution<S>& convolution,
                       const WinogradWeight<Accumulator<S>>& weight, const WinogradBands& bands,
                       int64_t begin, int64_t end) {
  parallel_tasks(begin, end, [&](const auto& take) {
    winograd_convolve_bands(convolution, weight, bands, take);
  });
}

// All bands, with weights [K, C, taps] of which the convolution itself knows nothing.
template <class S, class Weights>
void winograd_convolve(const Convolution<S>& convolution, const Weights& weights, int64_t tile) {
  const Images<const S>& input = convolution.input;
  const WinogradBands bands(input.height, input.width, tile);
  Workspace workspace;
  const WinogradWeight<Accumulator<S>> weight(workspace, weights, convolution.kernels, tile);
  winograd_convolve(convolution, weight, bands, 0, input.batch * bands.bands);
}

template <class S>
void winograd_convolve(const Convolution<S>& convolution) {
  winograd_convolve(convolution, convolution.weights(), kWinogradTile3x3);
}

// Two convolutions whose map between them nobody else needs: only a strip of it exists at a time.
// The images of `first.output` and `second.input` are those of `hidden`, whose data is set here.
template <class S>
void winograd_convolve_twice(const Convolution<S>& first, const Convolution<S>& second,
                             Images<S>& hidden, Images<const S>& hidden_input) {
  constexpr int64_t kStripBytes = 4 << 20;
  using T = Accumulator<S>;
  const WinogradBands bands(hidden.height, hidden.width, kWinogradTile3x3);
  const int64_t count = hidden.batch * bands.bands;
  const int64_t band_size = bands.pixel_rows() * hidden.stride_h;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t strip =
      std::max(kStripBytes / (band_size * static_cast<int64_t>(sizeof(S))), 2 * threads);
  // Where a band begins, if all images were there.
  const auto offset = [&](int64_t band) {
    return (band / bands.bands * hidden.height + bands.first_pixel_row(band % bands.bands)) *
           hidden.stride_h;
  };
  Workspace workspace;
  const WinogradWeight<T> weight1(workspace, first.weights(), first.kernels, bands.tile);
  const WinogradWeight<T> weight2(workspace, second.weights(), second.kernels, bands.tile);
  S* memory = workspace.take<S>((std::min(strip, count) + 2) * band_size);
  int64_t kept = 0, done = 0;  // bands of the hidden map [kept, done) are in memory
  for (int64_t begin = 0; begin < count; begin += strip) {
    const int64_t end = std::min(begin + strip, count);
    const int64_t from = std::max<int64_t>(begin - 1, 0), to = std::min(end + 1, count);
    std::copy(memory + offset(from) - offset(kept), memory + offset(done) - offset(kept), memory);
    kept = from;
    hidden.data = memory - offset(from);
    hidden_input.data = hidden.data;
    winograd_convolve(first, weight1, bands, done, to);
    winograd_convolve(second, weight2, bands, begin, end);
    done = to;
  }
}

}  // namespace clsd::cpu
