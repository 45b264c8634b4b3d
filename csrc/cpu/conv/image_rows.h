// Rows of images in the order and type that the kernels work on, and back.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../../tensor_util.h"
#include "../kernels.h"
#include "../workspace.h"

namespace clsd::cpu {

typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));

inline void transpose_quads(Quad& a, Quad& b, Quad& c, Quad& d) {
  const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// Between four planes and four consecutive channels of `pixels` pixels: reads planes that are
// const, else writes them.
template <class S>
void transpose(S* const planes[4], float* packed, int64_t stride, int64_t pixels) {
  constexpr bool kRead = std::is_const_v<S>;
  int64_t x = 0;
  for (; x + 4 <= pixels; x += 4) {
    Quad quads[4];
    for (int i = 0; i < 4; ++i) {
      quads[i] = *reinterpret_cast<const Quad*>(kRead ? planes[i] + x : packed + (x + i) * stride);
    }
    transpose_quads(quads[0], quads[1], quads[2], quads[3]);
    for (int i = 0; i < 4; ++i) {
      if constexpr (kRead) {
        *reinterpret_cast<Quad*>(packed + (x + i) * stride) = quads[i];
      } else {
        *reinterpret_cast<Quad*>(planes[i] + x) = quads[i];
      }
    }
  }
  for (; x < pixels; ++x) {
    for (int i = 0; i < 4; ++i) {
      if constexpr (kRead) {
        packed[x * stride + i] = planes[i][x];
      } else {
        planes[i][x] = packed[x * stride + i];
      }
    }
  }
}

// Rows [0, rows) x columns of pixels whose channels are consecutive, padded to `channels`, with
// zeros in the padding and in the `halo` columns before each image row.
template <class T>
struct PackedRows {
  int64_t halo = 0, columns = 0, channels = 0;
  T* values = nullptr;

  PackedRows() = default;
  PackedRows(Workspace& workspace, int64_t rows, int64_t halo, int64_t columns, int64_t channels)
      : halo(halo),
        columns(columns),
        channels(channels),
        // A register tile may read kTileRows - 1 elements beyond the last pixel it uses.
        values(workspace.take<T>(rows * columns * channels + kTileRows)) {
    std::fill_n(values, rows * columns * channels + kTileRows, T(0));
  }

  T* row(int64_t y) const { return values + y * columns * channels; }
  T* pixel(int64_t y, int64_t x) const { return row(y) + x * channels; }

  // Copy rows [first, first + rows) of an image; those outside of it are zeros.
  template <class S>
  void fill(const Images<const S>& image, int64_t n, int64_t first, int64_t rows) const {
    for (int64_t y = 0; y < rows; ++y) {
      if (first + y < 0 || first + y >= image.height) {
        std::fill_n(row(y), columns * channels, T(0));
      } else {
        move_row(image, image.pixel(n, first + y, 0), pixel(y, halo));
      }
    }
  }

  // The inverse: copy to rows [first, first + rows) of an image.
  template <class S>
  void flush(const Images<S>& image, int64_t n, int64_t first, int64_t rows) const {
    for (int64_t y = 0; y < rows; ++y) {
      move_row(image, image.pixel(n, first + y, 0), pixel(y, halo));
    }
  }

 private:
  // Pixels of one pass over planes: they stay in the L1 cache while their channels come.
  static constexpr int64_t kPass = 32;

  // Between a row of an image, which is read if it is const and else written, and packed pixels.
  template <class S>
  void move_row(const Images<S>& image, S* row, T* packed) const {
    if (image.run > 1) {
      for (int64_t c = 0; c < image.channels; c += image.run) {
        S* pixel = row + image.channel[image.order[c]];
        for (int64_t x = 0; x < image.width; ++x, pixel += image.stride_w) {
          move(pixel, 1, packed + x * channels + c, 1, image.run);
        }
      }
      return;
    }
    for (int64_t x = 0; x < image.width; x += kPass) {
      move_planes(image, row + x * image.stride_w, packed + x * channels,
                  std::min(kPass, image.width - x));
    }
  }

  template <class S>
  void move_planes(const Images<S>& image, S* row, T* packed, int64_t pixels) const {
    const auto plane = [&](int64_t c) { return row + image.channel[image.order[c]]; };
    int64_t c = 0;
    if constexpr (std::is_same_v<std::remove_const_t<S>, float> && std::is_same_v<T, float>) {
      for (; image.stride_w == 1 && c + 4 <= image.channels; c += 4) {
        S* const planes[4] = {plane(c), plane(c + 1), plane(c + 2), plane(c + 3)};
        transpose(planes, packed + c, channels, pixels);
      }
    }
    for (; c < image.channels; ++c) move(plane(c), image.stride_w, packed + c, channels, pixels);
  }

  // `count` elements from image to scratch, or back.
  template <class S>
  static void move(S* pixel, int64_t stride, T* packed, int64_t packed_stride, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (std::is_const_v<S>) {
        packed[i * packed_stride] = static_cast<T>(pixel[i * stride]);
      } else {
        pixel[i * stride] = static_cast<S>(packed[i * packed_stride]);
      }
    }
  }
};

// Whether kernels can work on an image where it is: of their type, its channels whole panels.
template <class T, class S>
bool in_place(const Images<S>& image) {
  return std::is_same_v<std::remove_const_t<S>, T> && image.run % kTileCols == 0;
}

// Whether products of a row's pixels can read or write them where they are.
template <class T, class S>
bool rows_in_place(const Images<S>& image) {
  return in_place<T>(image) && image.run == image.channels && image.width % kRowStep == 0;
}

// One row at a time of an image: where it is, or packed.
template <class S>
class RowReader {
 public:
  using T = Accumulator<S>;

  RowReader(Workspace& workspace, const Images<const S>& image)
      : channels(round_up(image.channels, kTileCols)), image_(image) {
    if (rows_in_place<T>(image)) return;
    packed_ = PackedRows<T>(workspace, 1, 0, round_up(image.width, kRowStep), channels);
  }

  const int64_t channels;  // whole panels

  struct Row {
    const T* data;
    int64_t stride;
  };

  // Valid until the next call.
  Row read(int64_t n, int64_t y) const {
    if constexpr (std::is_same_v<S, T>) {
      if (!packed_.values) return {image_.pixel(n, y, 0), image_.stride_w};
    }
    packed_.fill(image_, n, y, 1);
    return {packed_.values, channels};
  }

 private:
  const Images<const S>& image_;
  PackedRows<T> packed_;
};

}  // namespace clsd::cpu
