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

#include "convolution.h"

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
  int64_t bands;          // of an image, each enough for a block, where the image has them
  int64_t rows_per_band;  // of all but the last

  WinogradBands(int64_t height, int64_t width)
      : rows(ceil_div(height, kWinogradTile)),
        columns(ceil_div(width, kWinogradTile)),
        bands(ceil_div(rows, ceil_div(kBlockTiles, columns))),
        rows_per_band(ceil_div(rows, bands)) {}

  int64_t tile_rows(int64_t band) const {
    return std::min(rows_per_band, rows - band * rows_per_band);
  }
  int64_t first_pixel_row(int64_t band) const { return band * rows_per_band * kWinogradTile; }
  int64_t pixel_rows() const { return rows_per_band * kWinogradTile; }
  int64_t pixel_columns() const { return columns * kWinogradTile; }
};

// Whether Winograd is the faster way: it is for channels that fill the vectors, on images whose
// tiles fill the products. Its tiles are summed in single precision, so double stays direct.
template <class S, class In, class Out>
bool prefers_winograd(const Images<In>& input, const Images<Out>& output) {
  const int64_t channels = input.channels, outputs = output.channels;
  if (std::is_same_v<S, double> || channels % 8 || outputs % 8) return false;
  if (channels < 16 || outputs < 16) return false;
  const WinogradBands bands(input.height, input.width);
  const int64_t tiles = bands.bands * round_up(bands.rows_per_band * bands.columns, kRowStep);
  // Multiplications, with half as many again for the transforms.
  return 3 * tiles * kFrequencies < 2 * 9 * input.height * round_up(input.width, kTileRows);
}

// Patches of `size` x `size` pixels around the tiles of a band: where the image has them, or, at
// its edges and if the image is of another type or layout, in a copy with zeros outside of it.
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
        halo_((size - kWinogradTile) / 2) {
    if (in_place<T>(image)) {
      copy_ = workspace.take<T>(size * size * channels);
    } else {
      rows_ = PackedRows<T>(workspace, bands.pixel_rows() + 2 * halo_, halo_,
                            bands.pixel_columns() + 2 * halo_, channels);
    }
  }

  const int64_t channels;  // whole tiles

  void load(int64_t n, int64_t band) {
    n_ = n, top_ = bands_.first_pixel_row(band) - halo_;
    if (rows_.values) {
      rows_.fill(image_, n, top_, bands_.tile_rows(band) * kWinogradTile + 2 * halo_);
    }
  }

  // Call visit(c, source, stride_h, stride_w, count) for the patch of the tile-th tile of the band,
  // with the pixel at its corner and its channels [c, c + count).
  template <class Visit>
  void visit(int64_t tile, const Visit& visit) const {
    const int64_t y = tile / bands_.columns * kWinogradTile;
    const int64_t x = tile % bands_.columns * kWinogradTile;
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

  template <class S>
  void transform(int64_t slot, const WinogradPatches<S>& patches, int64_t tile,
                 WinogradTransform<T> transform) const {
    patches.visit(tile, [&](int64_t c, const T* source, int64_t stride_h, int64_t stride_w,
                            int64_t count) {
      transform(at(0, slot) + c, stride, source, stride_h, stride_w, count);
    });
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

  // Convolve tiles [first, first + count) of a band.
  void convolve(const WinogradPatches<S>& patches, const OutputBand<S>& band,
                const WinogradBands& bands, int64_t first, int64_t count,
                const WinogradWeight<T>& weight, const Images<S>& output) const {
    for (int64_t t = 0; t < count; ++t) {
      inputs_.transform(t, patches, first + t, tile_kernels<T>().winograd_input);
    }
    const int64_t padded = round_up(output.channels, kTileCols);
    for (int64_t k = 0; k < padded; k += products_.channels) {
      const int64_t channels = std::min(products_.channels, padded - k);
      multiply(weight, k, channels, count);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t y = (first + t) / bands.columns * kWinogradTile;
        const int64_t x = (first + t) % bands.columns * kWinogradTile;
        band.store_tile(products_.at(0, t), products_.stride, y, x,
                        std::min(kWinogradTile, band.rows() - y),
                        std::min(kWinogradTile, output.width - x), k, channels);
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

  WinogradMatrices<T> inputs_, products_;
};

// Bands [begin, end), counted through all images.
template <class S>
void winograd_convolve(const Convolution<S>& convolution,
                       const WinogradWeight<Accumulator<S>>& weight, int64_t begin, int64_t end) {
  const Images<const S>& input = convolution.input;
  const Images<S>& output = convolution.output;
  const WinogradBands bands(input.height, input.width);
  torch::stable::parallel_for(begin, end, 1, [&](int64_t first_task, int64_t last_task) {
    Workspace scratch;
    WinogradPatches<S> patches(scratch, input, bands, kWinogradTile + 2);
    OutputBand<S> band(scratch, convolution, bands.pixel_rows());
    const WinogradBlock<S> block(scratch, patches.channels, output.channels);
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t n = task / bands.bands, b = task % bands.bands;
      const int64_t tiles = bands.tile_rows(b) * bands.columns;
      patches.load(n, b);
      band.load(n, bands.first_pixel_row(b),
                std::min(bands.pixel_rows(), input.height - bands.first_pixel_row(b)));
      for (int64_t first = 0; first < tiles; first += kBlockTiles) {
        block.convolve(patches, band, bands, first, std::min(kBlockTiles, tiles - first), weight,
                       output);
      }
      band.flush();
    }
  });
}

template <class S>
void winograd_convolve(const Convolution<S>& convolution) {
  const Images<const S>& input = convolution.input;
  Workspace workspace;
  const WinogradWeight<Accumulator<S>> weight(workspace, convolution.kernels());
  winograd_convolve(convolution, weight, 0,
                    input.batch * WinogradBands(input.height, input.width).bands);
}

// Two convolutions whose map between them nobody else needs: only a strip of it exists at a time.
// The images of `first.output` and `second.input` are those of `hidden`, whose data is set here.
template <class S>
void winograd_convolve_twice(const Convolution<S>& first, const Convolution<S>& second,
                             Images<S>& hidden, Images<const S>& hidden_input) {
  constexpr int64_t kStripBytes = 4 << 20;
  using T = Accumulator<S>;
  const WinogradBands bands(hidden.height, hidden.width);
  const int64_t count = hidden.batch * bands.bands;
  const int64_t band_size = bands.pixel_rows() * hidden.stride_h;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t strip = std::max(kStripBytes / (band_size * static_cast<int64_t>(sizeof(S))),
                                 2 * threads);
  // Where a band begins, if all images were there.
  const auto offset = [&](int64_t band) {
    return (band / bands.bands * hidden.height + bands.first_pixel_row(band % bands.bands)) *
           hidden.stride_h;
  };
  Workspace workspace;
  const WinogradWeight<T> weight1(workspace, first.kernels()), weight2(workspace, second.kernels());
  S* memory = workspace.take<S>((std::min(strip, count) + 2) * band_size);
  int64_t kept = 0, done = 0;  // bands of the hidden map [kept, done) are in memory
  for (int64_t begin = 0; begin < count; begin += strip) {
    const int64_t end = std::min(begin + strip, count);
    const int64_t from = std::max<int64_t>(begin - 1, 0), to = std::min(end + 1, count);
    std::copy(memory + offset(from) - offset(kept), memory + offset(done) - offset(kept), memory);
    kept = from;
    hidden.data = memory - offset(from);
    hidden_input.data = hidden.data;
    winograd_convolve(first, weight1, done, to);
    winograd_convolve(second, weight2, begin, end);
    done = to;
  }
}

// The gradient of the weights. The bands of all images are cut into groups, and the output channels
// into chunks. One task adds up the products of one group and chunk, which stay in its core's
// cache; then the groups' results are added in order. Groups and chunks depend on the shape alone,
// so there is one sum, in one order, for any number of threads.
template <class S>
class WinogradGradient {
 public:
  using T = Accumulator<S>;

  WinogradGradient(const Images<const S>& input, const Images<const S>& grad)
      : input_(input),
        grad_(grad),
        bands_(input.height, input.width),
        num_bands_(input.batch * bands_.bands),
        outputs_(round_up(grad.channels, kTileCols)),
        tap_count_(input.channels * outputs_ * 9),
        groups_(num_groups(num_bands_, tap_count_)) {
    for (int64_t k = 0; k < grad.channels; k += kOutputChunk) {
      chunks_.push_back(channel_slice(grad, k, std::min(kOutputChunk, grad.channels - k)));
    }
  }

  void write(T scale, const Tensor* grad_weight, const Tensor* grad_bias) const {
    Workspace workspace;
    T* taps = workspace.take<T>(groups_ * tap_count_);
    double* sums = workspace.take<double>(groups_ * outputs_);
    const auto chunks = static_cast<int64_t>(chunks_.size());
    torch::stable::parallel_for(0, groups_ * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / chunks, k = task % chunks * kOutputChunk;
        add_group(group, chunks_[static_cast<size_t>(task % chunks)],
                  taps + group * tap_count_ + k * 9 * input_.channels,
                  sums + group * outputs_ + k);
      }
    });
    if (grad_weight) {
      const auto total = [&](int64_t c, int64_t k, T* result) {
        const T* part = taps + (k * input_.channels + c * kTileCols) * 9;
        std::copy_n(part, 9 * kTileCols, result);
        for (int64_t group = 1; group < groups_; ++group) {
          part += tap_count_;
          for (int64_t i = 0; i < 9 * kTileCols; ++i) result[i] += part[i];
        }
      };
      write_weight_gradient(input_, grad_, scale, *grad_weight, total);
    }
    if (grad_bias) write_bias_gradient(grad_, scale, *grad_bias, sums, outputs_, groups_);
  }

 private:
  // Three bands in a group make its results cheap beside its products; eight groups or more are
  // work for as many threads. All groups' results take 16 MiB at most.
  static int64_t num_groups(int64_t num_bands, int64_t tap_count) {
    const int64_t groups = std::min(num_bands, std::max<int64_t>(num_bands / 3, 8));
    const int64_t bytes = tap_count * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(std::min(groups, (16 << 20) / bytes), 1);
  }

  // A group's tap gradients of a chunk, [tiles of K][C][9][kTileCols], and the sums of its pixels.
  void add_group(int64_t group, const Images<const S>& grad, T* taps, double* sums) const {
    Workspace scratch;
    WinogradPatches<S> x(scratch, input_, bands_, kWinogradTile + 2);
    WinogradPatches<S> dy(scratch, grad, bands_, kWinogradTile);
    const int64_t tiles = bands_.rows_per_band * bands_.columns;
    const WinogradMatrices<T> left(scratch, tiles, x.channels), right(scratch, tiles, dy.channels);
    const WinogradMatrices<T> products(scratch, round_up(input_.channels, kRowStep), dy.channels);
    const int64_t first = group * num_bands_ / groups_, last = (group + 1) * num_bands_ / groups_;
    if (first == last) std::fill_n(products.values, kFrequencies * products.stride, T(0));
    std::fill_n(sums, dy.channels, 0.0);
    for (int64_t task = first; task < last; ++task) {
      const int64_t band = task % bands_.bands, count = bands_.tile_rows(band) * bands_.columns;
      x.load(task / bands_.bands, band);
      dy.load(task / bands_.bands, band);
      for (int64_t t = 0; t < count; ++t) {
        left.transform(t, x, t, kernels_.winograd_input);
        right.transform(t, dy, t, kernels_.winograd_grad_output);
        dy.visit(t, [&](int64_t c, const T* source, int64_t stride_h, int64_t stride_w,
                        int64_t channels) {
          kernels_.add_patch(sums + c, source, stride_h, stride_w, channels);
        });
      }
      multiply(left, right, count, task > first, products);
    }
    for (int64_t k = 0; k < dy.channels; k += kTileCols) {
      for (int64_t c = 0; c < input_.channels; ++c, taps += 9 * kTileCols) {
        kernels_.winograd_grad_weight(taps, products.at(0, c) + k, products.stride);
      }
    }
  }

  void multiply(const WinogradMatrices<T>& left, const WinogradMatrices<T>& right, int64_t tiles,
                bool add, const WinogradMatrices<T>& products) const {
    for (int64_t e = 0; e < kFrequencies; ++e) {
      TileOperands<T> operands{left.at(e, 0),  1,     left.channels,  right.at(e, 0),
                               right.channels, tiles, kWinogradChain, add};
      operands.rows = round_up(input_.channels, kRowStep);
      operands.acc_row = products.channels;
      operands.panels = products.channels / kTileCols;
      operands.b_panel = kTileCols;
      kernels_.multiply(products.at(e, 0), operands);
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Images<const S>&input_, &grad_;
  WinogradBands bands_;
  int64_t num_bands_, outputs_, tap_count_, groups_;
  std::vector<Images<const S>> chunks_;
};

}  // namespace clsd::cpu
