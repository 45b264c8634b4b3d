// The collapsed tail: a transposed convolution by a composed kernel, and its gradients.
//
// A row of the input reaches a strip of the output: as many rows as there are taps. A strip is kept
// [columns][rows][K], so that what one pixel reaches is consecutive, and
//
//   strip += row * kernel                one product whose output rows overlap
//   gradient of the row = strip * kernel^T
//   gradient of the kernel = row^T * strip      products whose right or left rows overlap
//
// Each segment of the rows (tail_axis.h) has a strip of its own, to which a product for each
// segment of the columns adds. Strips are added to a canvas, a band of the output in their order.
#pragma once

#include <algorithm>
#include <vector>

#include "../conv/convolution.h"
#include "../conv/narrow.h"
#include "axis.h"

namespace clsd::cpu {

constexpr int64_t kTailChain = 64;  // steps of one summation chain (tile.h)
constexpr int64_t kTailReach = 2;   // rows of the input beside a band that reach it
constexpr int64_t kTailGroups = 8;  // parts of the rows whose gradients are added in order

// One product of a strip: the taps of a segment of the columns.
struct TailPart {
  TailSegment columns;
  int64_t taps;   // numbers that a pixel reaches: columns * rows * K
  int64_t first;  // of its tiles of taps among those of all parts

  int64_t panels() const { return ceil_div(taps, kTileCols); }
};

// The taps of a segment of the rows.
struct TailStrip {
  TailSegment rows;
  int64_t run;  // numbers of a column: rows * K
  std::vector<TailPart> parts;
};

// The parts of a tail for images of one size.
struct TailShape {
  const TailAxis& axis;
  int64_t channels, outputs, height, width;
  std::vector<TailStrip> strips;
  int64_t tiles = 0;  // numbers of all parts, each padded to whole tiles

  TailShape(const TailAxis& axis, int64_t channels, int64_t outputs, int64_t height, int64_t width)
      : axis(axis), channels(channels), outputs(outputs), height(height), width(width) {
    for (const TailSegment& rows : axis.segments) {
      if (!rows.exists(height)) continue;
      strips.push_back({rows, rows.count * outputs, {}});
      for (const TailSegment& columns : axis.segments) {
        if (!columns.exists(width)) continue;
        const int64_t taps = columns.count * rows.count * outputs;
        strips.back().parts.push_back({columns, taps, tiles});
        tiles += round_up(taps, kTileCols);
      }
    }
  }

  int64_t taps() const { return axis.segments[0].count; }
  int64_t kernel_size() const { return axis.size() * axis.size() * outputs; }  // of a channel
  // Columns of a strip: from those that the first pixel reaches on, and what whole products touch.
  int64_t strip_columns() const {
    return axis.upscale * (round_up(width, kRowStep) + kRowStep) + taps();
  }
  int64_t strip_size() const { return strip_columns() * taps() * outputs + 2 * kTileCols; }
  // Where in a strip the taps of a part's first pixel begin.
  int64_t offset(const TailStrip& strip, const TailPart& part) const {
    return (axis.target(part.columns, 0, width) + axis.padding) * strip.run;
  }
  int64_t pixel_stride(const TailStrip& strip) const { return axis.upscale * strip.run; }

  // Call visit(packed, kernel, count) for each run of consecutive taps of a part: its place among
  // the part's, and among those of a channel of the composed kernel.
  template <class Visit>
  void visit_runs(const TailStrip& strip, const TailPart& part, const Visit& visit) const {
    for (int64_t x = 0; x < part.columns.count; ++x) {
      const int64_t column = (part.columns.begin + x) * axis.size() + strip.rows.begin;
      visit(x * strip.run, column * outputs, strip.run);
    }
  }
};

// Where the input is 1 everywhere, an axis has three kinds of pixels: the first, the last, and all
// others. So an axis of three pixels stands for any.
inline int64_t tail_like(int64_t pixel, int64_t size) {
  return pixel == size - 1 ? std::min<int64_t>(size, 3) - 1 : std::min<int64_t>(pixel, 1);
}

// What the channel of ones adds to an image of as few pixels as have all kinds.
template <class T>
class TailBias {
 public:
  TailBias(const TailShape& shape)
      : small_(shape.axis, 1, shape.outputs, std::min<int64_t>(shape.height, 3),
               std::min<int64_t>(shape.width, 3)) {}

  int64_t column_size() const { return small_.axis.upscale * small_.height * small_.outputs; }
  int64_t size() const { return small_.axis.upscale * small_.width * column_size(); }

  // table [columns][rows][K] from the last channel of the composed kernel
  void write(const T* kernel, T* table) const {
    visit([&](int64_t pixel, int64_t tap) { table[pixel] += kernel[tap]; });
  }
  void backward(const T* grad_table, T* grad_kernel) const {
    visit([&](int64_t pixel, int64_t tap) { grad_kernel[tap] += grad_table[pixel]; });
  }

 private:
  template <class Visit>
  void visit(const Visit& visit) const {
    for (int64_t y = 0; y < small_.height; ++y) {
      for (int64_t x = 0; x < small_.width; ++x) {
        for (const TailStrip& strip : small_.strips) {
          if (!strip.rows.has(y, small_.height)) continue;
          for (const TailPart& part : strip.parts) {
            if (part.columns.has(x, small_.width)) visit_pixel(strip, part, y, x, visit);
          }
        }
      }
    }
  }

  template <class Visit>
  void visit_pixel(const TailStrip& strip, const TailPart& part, int64_t y, int64_t x,
                   const Visit& visit) const {
    const TailAxis& axis = small_.axis;
    const int64_t outputs = small_.outputs;
    const int64_t top = axis.target(strip.rows, y, small_.height);
    const int64_t left = axis.target(part.columns, x, small_.width);
    for (int64_t j = 0; j < part.columns.count; ++j) {
      for (int64_t i = 0; i < strip.rows.count; ++i) {
        const int64_t row = top + i, column = left + j;
        const bool inside = row >= 0 && row < axis.upscale * small_.height && column >= 0 &&
                            column < axis.upscale * small_.width;
        if (!inside) continue;
        const int64_t tap = (part.columns.begin + j) * axis.size() + strip.rows.begin + i;
        for (int64_t k = 0; k < outputs; ++k) {
          visit(column * column_size() + row * outputs + k, tap * outputs + k);
        }
      }
    }
  }

  TailShape small_;
};

// A band of rows of the output or of its gradient, [columns][rows][K]. Its columns are the image's.
template <class T>
struct TailCanvas {
  int64_t column, first = 0, rows = 0;  // numbers of a column; first row, and how many there are
  T* values;

  TailCanvas(Workspace& workspace, int64_t columns, int64_t most_rows, int64_t outputs)
      : column(most_rows * outputs), values(workspace.take<T>(columns * most_rows * outputs)) {}

  // Between all pixels of the band and those of an image, which is read if it is const and else
  // written. Rows that the image does not have are zeros.
  template <class S>
  void move(const Images<S>& image, int64_t n) const {
    constexpr int64_t kBlock = 16;  // columns whose cache lines of the canvas stay in L1
    const int64_t stride = column, step = image.stride_w;
    for (int64_t left = 0; left < image.width; left += kBlock) {
      const int64_t count = std::min(kBlock, image.width - left);
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t k = 0; k < image.channels; ++k) {
          T* packed = values + left * stride + y * image.channels + k;
          if (first + y < 0 || first + y >= image.height) {
            for (int64_t x = 0; x < count; ++x) packed[x * stride] = 0;
            continue;
          }
          S* pixel = image.pixel(n, first + y, left) + image.channel[k];
          for (int64_t x = 0; x < count; ++x) {
            if constexpr (std::is_const_v<S>) {
              packed[x * stride] = static_cast<T>(pixel[x * step]);
            } else {
              pixel[x * step] = static_cast<S>(packed[x * stride]);
            }
          }
        }
      }
    }
  }
};

// The way of a row's pixels into the products of a strip's parts.
template <class S>
class TailRow {
 public:
  using T = Accumulator<S>;

  TailRow(Workspace& workspace, const TailShape& shape, const Images<const S>& input)
      : channels(round_up(shape.channels, kTileCols)),
        shape_(shape),
        reader_(workspace, input),
        edge_(workspace.take<T>(kRowStep * channels)) {
    std::fill_n(edge_, kRowStep * channels, T(0));
  }

  const int64_t channels;  // whole tiles

  void read(int64_t n, int64_t y) {
    const auto row = reader_.read(n, y);
    data_ = row.data;
    stride_ = row.stride;
  }

  struct Pixels {
    const T* data;
    int64_t stride, count;
  };

  // The pixels of a part, and zeros to whole steps of rows.
  Pixels pixels(const TailPart& part) const {
    if (part.columns.every) return {data_, stride_, shape_.width};
    std::copy_n(data_ + part.columns.first(shape_.width) * stride_, shape_.channels, edge_);
    return {edge_, channels, 1};
  }

 private:
  const TailShape& shape_;
  RowReader<S> reader_;
  T* edge_;
  const T* data_ = nullptr;
  int64_t stride_ = 0;
};

}  // namespace clsd::cpu
