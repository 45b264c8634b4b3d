// Copies of image rows and of weights in the order and type that the kernels work on.
#pragma once

#include <algorithm>
#include <vector>

#include "../tensor_util.h"
#include "tile.h"

namespace clsd::cpu {

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
  T* pixel(int64_t y, int64_t x) { return row(y) + x * channels; }

  template <class S>
  void fill(const Images<const S>& image, int64_t n, int64_t first, int64_t rows) {
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t source_y = first + y;
      if (source_y < 0 || source_y >= image.height) {
        std::fill_n(row(y), columns * channels, T(0));
      } else {
        copy_row(image, image.pixel(n, source_y, 0), pixel(y, halo));
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

// sums[c] += the sum of channel c over the first `pixels` packed pixels; in double, for a chain of
// thousands of additions.
template <class T>
void add_pixels(PackedRows<T>& rows, int64_t pixels, T* sums) {
  std::vector<double> totals(static_cast<size_t>(rows.channels));
  for (int64_t p = 0; p < pixels; ++p) {
    const T* pixel = rows.pixel(0, p);
    for (int64_t c = 0; c < rows.channels; ++c) totals[c] += pixel[c];
  }
  for (int64_t c = 0; c < rows.channels; ++c) sums[c] += static_cast<T>(totals[c]);
}

// Weights [K, C, 3, 3] of any strides. `transposed` swaps input and output channels and turns the
// kernel by 180 degrees: the convolution with it is the gradient of the convolution's input.
template <class S>
struct KernelView {
  int64_t outputs, inputs;

  KernelView(const Tensor& weight, bool transposed)
      : outputs(weight.size(transposed ? 1 : 0)),
        inputs(weight.size(transposed ? 0 : 1)),
        data_(const_data<S>(weight)),
        stride_out_(weight.stride(transposed ? 1 : 0)),
        stride_in_(weight.stride(transposed ? 0 : 1)),
        stride_h_(weight.stride(2)),
        stride_w_(weight.stride(3)),
        transposed_(transposed) {}

  Accumulator<S> at(int64_t k, int64_t c, int64_t tap) const {
    const int64_t from = transposed_ ? 8 - tap : tap;
    return static_cast<Accumulator<S>>(data_[k * stride_out_ + c * stride_in_ +
                                             from / 3 * stride_h_ + from % 3 * stride_w_]);
  }

 private:
  const S* data_;
  int64_t stride_out_, stride_in_, stride_h_, stride_w_;
  bool transposed_;
};

}  // namespace clsd::cpu
