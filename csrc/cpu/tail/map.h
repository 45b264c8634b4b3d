// The composed tail: a transposed convolution by a composed weight, and its gradients.
//
// A row of the input has a footprint in the output: as many rows as there are taps. It is kept
// [columns][rows][K], so that what one pixel reaches is consecutive, and
//
//   footprint += row * composed            one product whose output rows overlap
//   gradient of the row = footprint * composed^T
//   gradient of the composed weight = row^T * footprint      whose right or left rows overlap
//
// Each segment of the rows (tail_axis.h) has a footprint of its own, to which a product for each segment
// of the columns is added: the summands of the map. Footprints are added to a canvas, a band of the
// output in their order.
#pragma once

#include <algorithm>
#include <vector>

#include "../../tail_axis.h"
#include "../conv/image_rows.h"
#include "../workspace.h"

namespace clsd::cpu {

constexpr int64_t kTailChain = 64;  // steps of one summation chain (kernels.h)
constexpr int64_t kTailReach = 2;   // rows of the input beside a band that reach it
constexpr int64_t kTailGroups = 8;  // of bands, whose partials are added in order

// One product that is added to a footprint: by the taps of a segment of the columns.
struct TailSummand {
  TailSegment columns;
  int64_t taps;   // numbers that a pixel reaches: columns * rows * K
  int64_t first;  // of its packed taps among those of all summands

  int64_t panels() const { return ceil_div(taps, kTileCols); }
};

// What a row of the input reaches by the taps of a segment of the rows.
struct TailFootprint {
  TailSegment rows;
  int64_t column;  // numbers of a column: rows * K
  std::vector<TailSummand> summands;
};

// The summands of a tail for images of one size, but for that of every pixel if it is left to a
// convolution (TailKernel).
struct TailShape {
  const TailAxis& axis;
  int64_t channels, outputs, height, width;
  bool convolved;
  std::vector<TailFootprint> footprints;
  int64_t packed_taps = 0;  // of all summands, each padded to whole panels

  TailShape(const TailAxis& axis, int64_t channels, int64_t outputs, int64_t height, int64_t width,
            bool convolved)
      : axis(axis),
        channels(channels),
        outputs(outputs),
        height(height),
        width(width),
        convolved(convolved) {
    for (const TailSegment& rows : axis.segments) {
      if (!rows.exists(height)) continue;
      footprints.push_back({.rows = rows, .column = rows.count * outputs, .summands = {}});
      for (const TailSegment& columns : axis.segments) {
        if (!columns.exists(width) || (convolved && rows.every && columns.every)) continue;
        const int64_t taps = columns.count * rows.count * outputs;
        footprints.back().summands.push_back(
            {.columns = columns, .taps = taps, .first = packed_taps});
        packed_taps += round_up(taps, kTileCols);
      }
    }
  }

  // Columns of the output that a summand's pixels reach.
  struct Columns {
    int64_t first, count;
  };
  Columns reached(const TailSummand& summand) const {
    if (summand.columns.every) return {0, axis.upscale * width};
    return {axis.target(summand.columns, 0, width), summand.columns.count};
  }

  int64_t taps() const { return axis.segments[0].count; }
  int64_t composed_size() const { return axis.size() * axis.size() * outputs; }  // of a channel
  // Columns of a footprint: from those that the first pixel reaches on, and what whole products
  // touch.
  int64_t footprint_columns() const {
    return axis.upscale * (round_up(width, kRowStep) + kRowStep) + taps();
  }
  int64_t footprint_size() const { return footprint_columns() * taps() * outputs + 2 * kTileCols; }
  // Where in a footprint the taps of a summand's first pixel begin.
  int64_t offset(const TailFootprint& footprint, const TailSummand& summand) const {
    return (axis.target(summand.columns, 0, width) + axis.padding) * footprint.column;
  }
  int64_t pixel_stride(const TailFootprint& footprint) const {
    return axis.upscale * footprint.column;
  }

  // Call visit(packed, composed, count) for each column of a summand's taps: its place among the
  // summand's, and among those of a channel of the composed weight.
  template <class Visit>
  void visit_columns(const TailFootprint& footprint, const TailSummand& summand,
                     const Visit& visit) const {
    for (int64_t x = 0; x < summand.columns.count; ++x) {
      const int64_t tap = (summand.columns.begin + x) * axis.size() + footprint.rows.begin;
      visit(x * footprint.column, tap * outputs, footprint.column);
    }
  }
};

// The taps of every pixel as a kernel of 5x5: the transposed convolution, seen from the output at the
// input's resolution, is a convolution from the C channels to those that a pixel shuffle takes,
// K r^2, as `shuffled` images have them. Transposed, it is the gradient of that one's input.
template <class T>
class TailKernel {
 public:
  static constexpr int64_t kSide = 5, kTaps = kSide * kSide;

  TailKernel(const TailShape& shape, const T* composed, const std::vector<int64_t>& channel_order,
             const std::vector<int64_t>& shuffled_order, bool transposed)
      : outputs(static_cast<int64_t>((transposed ? channel_order : shuffled_order).size())),
        inputs(static_cast<int64_t>((transposed ? shuffled_order : channel_order).size())),
        composed_(composed),
        channel_size_(shape.composed_size()),
        channel_order_(channel_order),
        transposed_(transposed) {
    for (const int64_t shuffled : shuffled_order) add_places(shape, shuffled);
  }

  int64_t outputs, inputs;

  T at(int64_t k, int64_t c, int64_t tap) const {
    const int64_t at = transposed_ ? index(k, c, kTaps - 1 - tap) : index(c, k, tap);
    return at < 0 ? T(0) : composed_[at];
  }

  // Where in the composed weight the tap of two channels, counted in their orders, is, or -1.
  int64_t index(int64_t channel, int64_t shuffled, int64_t tap) const {
    const int64_t place = places_[static_cast<size_t>(shuffled * kTaps + tap)];
    return place < 0 ? -1 : channel_order_[static_cast<size_t>(channel)] * channel_size_ + place;
  }

 private:
  void add_places(const TailShape& shape, int64_t shuffled) {
    const TailAxis& axis = shape.axis;
    const int64_t square = axis.upscale * axis.upscale, phase = shuffled % square;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      // The taps of both axes by which a pixel reaches this phase of the one that sees it there.
      const int64_t y = phase / axis.upscale + axis.padding - axis.upscale * (tap / kSide - 2);
      const int64_t x = phase % axis.upscale + axis.padding - axis.upscale * (tap % kSide - 2);
      const bool exists = std::min(x, y) >= 0 && std::max(x, y) < shape.taps();
      const int64_t place = (x * axis.size() + y) * shape.outputs + shuffled / square;
      places_.push_back(exists ? place : -1);
    }
  }

  const T* composed_;
  int64_t channel_size_;
  const std::vector<int64_t>& channel_order_;
  std::vector<int64_t> places_;  // [K r^2][taps], of a channel, or -1
  bool transposed_;
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
               std::min<int64_t>(shape.width, 3), false) {}

  int64_t column_size() const { return small_.axis.upscale * small_.height * small_.outputs; }
  int64_t size() const { return small_.axis.upscale * small_.width * column_size(); }

  // table [columns][rows][K] from the last channel of the composed weight
  void write(const T* composed, T* table) const {
    visit([&](int64_t pixel, int64_t tap) { table[pixel] += composed[tap]; });
  }
  void backward(const T* grad_table, T* grad_composed) const {
    visit([&](int64_t pixel, int64_t tap) { grad_composed[tap] += grad_table[pixel]; });
  }

 private:
  template <class Visit>
  void visit(const Visit& visit) const {
    for (int64_t y = 0; y < small_.height; ++y) {
      for (int64_t x = 0; x < small_.width; ++x) {
        for (const TailFootprint& footprint : small_.footprints) {
          if (!footprint.rows.has(y, small_.height)) continue;
          for (const TailSummand& summand : footprint.summands) {
            if (summand.columns.has(x, small_.width)) visit_pixel(footprint, summand, y, x, visit);
          }
        }
      }
    }
  }

  template <class Visit>
  void visit_pixel(const TailFootprint& footprint, const TailSummand& summand, int64_t y, int64_t x,
                   const Visit& visit) const {
    const TailAxis& axis = small_.axis;
    const int64_t outputs = small_.outputs;
    const int64_t top = axis.target(footprint.rows, y, small_.height);
    const int64_t left = axis.target(summand.columns, x, small_.width);
    for (int64_t j = 0; j < summand.columns.count; ++j) {
      for (int64_t i = 0; i < footprint.rows.count; ++i) {
        const int64_t row = top + i, column = left + j;
        const bool inside = row >= 0 && row < axis.upscale * small_.height && column >= 0 &&
                            column < axis.upscale * small_.width;
        if (!inside) continue;
        const int64_t tap = (summand.columns.begin + j) * axis.size() + footprint.rows.begin + i;
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

// The way of a row's pixels into the products of a footprint's summands.
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

  const int64_t channels;  // whole panels

  void read(int64_t n, int64_t y) {
    const auto row = reader_.read(n, y);
    data_ = row.data;
    stride_ = row.stride;
  }

  struct Pixels {
    const T* data;
    int64_t stride, count;
  };

  // The pixels of a summand, and zeros to whole steps of rows.
  Pixels pixels(const TailSummand& summand) const {
    if (summand.columns.every) return {data_, stride_, shape_.width};
    std::copy_n(data_ + summand.columns.first(shape_.width) * stride_, shape_.channels, edge_);
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
