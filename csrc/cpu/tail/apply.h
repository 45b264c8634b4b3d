// The products of a collapsed tail, forward and backward (tail_map.h).
#pragma once

#include <algorithm>
#include <vector>

#include "map.h"

namespace clsd::cpu {

constexpr int64_t kTailLeastRows = 8;          // of a band
constexpr int64_t kTailCanvasBytes = 8 << 20;  // of the canvas of a band, at most

// Rows of the input in a band, to cut all images into `tasks` bands.
template <class T>
int64_t tail_band(const TailShape& shape, int64_t batch, int64_t tasks) {
  const int64_t row = shape.axis.upscale * shape.axis.upscale * shape.width * shape.outputs;
  const int64_t fitting = kTailCanvasBytes / (row * static_cast<int64_t>(sizeof(T)));
  const int64_t fair = ceil_div(shape.height * batch, tasks);
  return std::clamp(std::min(fitting, fair), std::min(kTailLeastRows, shape.height), shape.height);
}

template <class S>
class TailForward {
 public:
  using T = Accumulator<S>;

  TailForward(const TailShape& shape, const Images<const S>& input, const Images<S>& output)
      : shape_(shape),
        input_(input),
        output_(output),
        bias_(shape),
        band_(tail_band<T>(shape, input.batch, tasks(input.batch))) {}

  void write(const T* kernel, const T* out_bias) const {
    Workspace workspace;
    const T* packed = pack(workspace, kernel);
    T* table = workspace.take<T>(bias_.size());
    for (int64_t i = 0; i < bias_.size(); ++i) table[i] = out_bias[i % shape_.outputs];
    bias_.write(kernel + shape_.channels * shape_.kernel_size(), table);
    const int64_t bands = ceil_div(shape_.height, band_), factor = shape_.axis.upscale;
    torch::stable::parallel_for(0, input_.batch * bands, 1, [&](int64_t begin, int64_t end) {
      Workspace scratch;
      TailRow<S> row(scratch, shape_, input_);
      TailCanvas<T> canvas(scratch, output_.width, factor * band_, shape_.outputs);
      T* strip = scratch.take<T>(shape_.strip_size());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / bands, first = task % bands * band_;
        const int64_t last = std::min(first + band_, shape_.height);
        canvas.first = factor * first, canvas.rows = factor * (last - first);
        start(table, canvas);
        const int64_t above = std::max<int64_t>(first - kTailReach, 0);
        for (int64_t y = above; y < std::min(last + kTailReach, shape_.height); ++y) {
          row.read(n, y);
          add_row(row, packed, y, strip, canvas);
        }
        canvas.move(output_, n);
      }
    });
  }

 private:
  // A pixel is the same sum in every band, so the number of threads may choose the bands. The rows
  // beside one are computed twice: whole images are best, if all threads get as many.
  static int64_t tasks(int64_t batch) {
    const int64_t threads = torch::stable::get_num_threads();
    return batch % threads == 0 ? std::max<int64_t>(batch, 1) : 4 * threads;
  }

  // Each part's taps as the right side of a product, [tiles of taps][C][kTileCols].
  const T* pack(Workspace& workspace, const T* kernel) const {
    const int64_t channels = shape_.channels;
    T* packed = workspace.take<T>(shape_.tiles * channels);
    std::fill_n(packed, shape_.tiles * channels, T(0));
    torch::stable::parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const T* source = kernel + c * shape_.kernel_size();
        for (const TailStrip& strip : shape_.strips) {
          for (const TailPart& part : strip.parts) {
            T* target = packed + part.first * channels + c * kTileCols;
            shape_.visit_runs(strip, part, [&](int64_t tap, int64_t from, int64_t count) {
              for (int64_t i = 0; i < count; ++i, ++tap) {
                target[tap / kTileCols * channels * kTileCols + tap % kTileCols] = source[from + i];
              }
            });
          }
        }
      }
    });
    return packed;
  }

  // The canvas with what the biases add.
  void start(const T* table, const TailCanvas<T>& canvas) const {
    const int64_t factor = shape_.axis.upscale, height = shape_.height;
    const int64_t run = factor * shape_.outputs, top = canvas.first / factor;
    for (int64_t x = 0; x < output_.width; ++x) {
      const int64_t like = factor * tail_like(x / factor, shape_.width) + x % factor;
      const T* source = table + like * bias_.column_size();
      T* target = canvas.values + x * canvas.column;
      for (int64_t y = top; y < top + canvas.rows / factor; ++y, target += run) {
        std::copy_n(source + tail_like(y, height) * run, run, target);
      }
    }
  }

  void add_row(const TailRow<S>& row, const T* packed, int64_t y, T* values,
               const TailCanvas<T>& canvas) const {
    for (const TailStrip& strip : shape_.strips) {
      if (!strip.rows.has(y, shape_.height)) continue;
      std::fill_n(values, shape_.strip_columns() * strip.run + 2 * kTileCols, T(0));
      for (const TailPart& part : strip.parts) {
        const auto pixels = row.pixels(part);
        const T* taps = packed + part.first * shape_.channels;
        TileOperands<T> operands{pixels.data, pixels.stride,    1,          taps,
                                 kTileCols,   shape_.channels, kTailChain, true};
        operands.rows = round_up(pixels.count, kRowStep);
        operands.acc_row = shape_.pixel_stride(strip);
        operands.panels = part.panels();
        operands.b_panel = shape_.channels * kTileCols;
        kernels_.multiply(values + shape_.offset(strip, part), operands);
      }
      add_strip(strip, values, y, canvas);
    }
  }

  // Those of a strip's rows that are the canvas's.
  void add_strip(const TailStrip& strip, const T* values, int64_t y,
                 const TailCanvas<T>& canvas) const {
    const int64_t top = shape_.axis.target(strip.rows, y, shape_.height) - canvas.first;
    const int64_t from = std::max<int64_t>(0, -top);
    const int64_t count = std::min(strip.rows.count, canvas.rows - top) - from;
    const T* source = values + shape_.axis.padding * strip.run + from * shape_.outputs;
    T* target = canvas.values + (top + from) * shape_.outputs;
    for (int64_t x = 0; x < output_.width; ++x, source += strip.run, target += canvas.column) {
      for (int64_t i = 0; i < count * shape_.outputs; ++i) target[i] += source[i];
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const TailShape& shape_;
  const Images<const S>& input_;
  const Images<S>& output_;
  TailBias<T> bias_;
  int64_t band_;
};

// The gradients of the input, and of kernel and output bias, each if there is a place for it.
template <class S>
class TailGradient {
 public:
  using T = Accumulator<S>;

  TailGradient(const TailShape& shape, const Images<const S>& input, const Images<const S>& grad)
      : shape_(shape),
        input_(input),
        grad_(grad),
        bias_(shape),
        band_(tail_band<T>(shape, input.batch, kTailGroups)),
        bands_(ceil_div(shape.height, band_)),
        groups_(std::min(input.batch * bands_, kTailGroups)),
        size_(shape.tiles * round_up(shape.channels, kRowStep)) {}

  void write(const T* kernel, const Images<S>* grad_x, T* grad_kernel, T* grad_bias) const {
    Workspace workspace;
    const T* packed = grad_x ? pack(workspace, kernel) : nullptr;
    T* partials = workspace.take<T>(grad_kernel ? groups_ * size_ : 0);
    double* tables = workspace.take<double>(grad_kernel ? groups_ * bias_.size() : 0);
    const int64_t bands = input_.batch * bands_;
    torch::stable::parallel_for(0, groups_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        Sums sums{nullptr, nullptr};
        if (grad_kernel) sums = {partials + group * size_, tables + group * bias_.size()};
        add_bands(group * bands / groups_, (group + 1) * bands / groups_, packed, grad_x, sums);
      }
    });
    if (!grad_kernel) return;
    collect(partials, grad_kernel);
    collect_bias(tables, grad_kernel + shape_.channels * shape_.kernel_size(), grad_bias);
  }

 private:
  // Of a group, or null: of each part's taps, [C][tiles of taps], and of the table of biases.
  struct Sums {
    T* taps;
    double* table;
  };

  // Each part's taps as the right side of a product, [tiles of C][taps][kTileCols].
  const T* pack(Workspace& workspace, const T* kernel) const {
    const int64_t channels = round_up(shape_.channels, kTileCols);
    T* packed = workspace.take<T>(shape_.tiles * channels);
    std::fill_n(packed, shape_.tiles * channels, T(0));
    torch::stable::parallel_for(0, channels / kTileCols, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin * kTileCols; c < std::min(end * kTileCols, shape_.channels); ++c) {
        const T* source = kernel + c * shape_.kernel_size();
        for (const TailStrip& strip : shape_.strips) {
          for (const TailPart& part : strip.parts) {
            T* target = packed + part.first * channels +
                        c / kTileCols * part.taps * kTileCols + c % kTileCols;
            shape_.visit_runs(strip, part, [&](int64_t tap, int64_t from, int64_t count) {
              for (int64_t i = 0; i < count; ++i) target[(tap + i) * kTileCols] = source[from + i];
            });
          }
        }
      }
    });
    return packed;
  }

  void add_bands(int64_t begin, int64_t end, const T* packed, const Images<S>* grad_x,
                 const Sums& sums) const {
    Workspace scratch;
    const int64_t factor = shape_.axis.upscale, outside = shape_.taps() - factor;
    TailRow<S> row(scratch, shape_, input_);
    TailCanvas<T> canvas(scratch, grad_.width, factor * band_ + outside, shape_.outputs);
    T* strip = scratch.take<T>(shape_.strip_size());
    const PackedRows<T> result(scratch, 1, 0, round_up(shape_.width, kRowStep), row.channels);
    T* edge = scratch.take<T>(kRowStep * row.channels);
    std::fill_n(strip, shape_.strip_size(), T(0));
    if (sums.taps) {
      std::fill_n(sums.taps, size_, T(0));
      std::fill_n(sums.table, bias_.size(), 0.0);
    }
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / bands_, first = task % bands_ * band_;
      const int64_t last = std::min(first + band_, shape_.height);
      canvas.first = factor * first - shape_.axis.padding;
      canvas.rows = factor * (last - first) + outside;
      canvas.move(grad_, n);
      if (sums.table) add_table(canvas, first, last, sums.table);
      for (int64_t y = first; y < last; ++y) {
        row.read(n, y);
        add_row(row, packed, y, canvas, strip, sums.taps, grad_x ? &result : nullptr, edge);
        if (grad_x) result.flush(*grad_x, n, y, 1);
      }
    }
  }

  void add_row(const TailRow<S>& row, const T* packed, int64_t y, const TailCanvas<T>& canvas,
               T* values, T* taps, const PackedRows<T>* result, T* edge) const {
    for (const TailStrip& strip : shape_.strips) {
      if (!strip.rows.has(y, shape_.height)) continue;
      load_strip(strip, y, canvas, values);
      for (const TailPart& part : strip.parts) {
        const T* patches = values + shape_.offset(strip, part);
        if (result) add_input(strip, part, patches, packed, *result, edge);
        if (taps) add_taps(strip, part, patches, row.pixels(part), taps);
      }
    }
  }

  void load_strip(const TailStrip& strip, int64_t y, const TailCanvas<T>& canvas,
                  T* values) const {
    const int64_t top = shape_.axis.target(strip.rows, y, shape_.height) - canvas.first;
    const T* source = canvas.values + top * shape_.outputs;
    T* target = values + shape_.axis.padding * strip.run;
    std::fill(values, target, T(0));
    for (int64_t x = 0; x < grad_.width; ++x, source += canvas.column, target += strip.run) {
      std::copy_n(source, strip.run, target);
    }
    std::fill(target, values + shape_.strip_columns() * strip.run, T(0));
  }

  // To the gradient of a row of the input. The first part has all of its pixels.
  void add_input(const TailStrip& strip, const TailPart& part, const T* patches, const T* packed,
                 const PackedRows<T>& result, T* edge) const {
    const bool every = part.columns.every;
    TileOperands<T> operands{patches,   shape_.pixel_stride(strip), 1,
                             packed + part.first * result.channels,
                             kTileCols, part.taps,                  kTailChain,
                             every && !strip.rows.every};
    operands.rows = round_up(part.columns.pixels(shape_.width), kRowStep);
    operands.acc_row = result.channels;
    operands.panels = result.channels / kTileCols;
    operands.b_panel = part.taps * kTileCols;
    kernels_.multiply(every ? result.values : edge, operands);
    if (every) return;
    T* pixel = result.pixel(0, part.columns.first(shape_.width));
    for (int64_t c = 0; c < result.channels; ++c) pixel[c] += edge[c];
  }

  void add_taps(const TailStrip& strip, const TailPart& part, const T* patches,
                const typename TailRow<S>::Pixels& pixels, T* taps) const {
    const int64_t channels = round_up(shape_.channels, kRowStep);
    TileOperands<T> operands{pixels.data, 1,
                             pixels.stride,               patches,
                             shape_.pixel_stride(strip),  pixels.count,
                             kTailChain,                  true};
    operands.rows = channels;
    operands.acc_row = part.panels() * kTileCols;
    operands.panels = part.panels();
    operands.b_panel = kTileCols;
    kernels_.multiply(taps + part.first * channels, operands);
  }

  // The band's own pixels, each with its like.
  void add_table(const TailCanvas<T>& canvas, int64_t first, int64_t last, double* table) const {
    const int64_t factor = shape_.axis.upscale, run = factor * shape_.outputs;
    for (int64_t x = 0; x < grad_.width; ++x) {
      const int64_t like = factor * tail_like(x / factor, shape_.width) + x % factor;
      double* target = table + like * bias_.column_size();
      const T* source = canvas.values + x * canvas.column + shape_.axis.padding * shape_.outputs;
      for (int64_t y = first; y < last; ++y, source += run) {
        double* sums = target + tail_like(y, shape_.height) * run;
        for (int64_t i = 0; i < run; ++i) sums[i] += source[i];
      }
    }
  }

  // The groups' sums of taps, in order, as the gradient of the composed kernel.
  void collect(const T* partials, T* grad_kernel) const {
    torch::stable::parallel_for(0, shape_.channels, 4, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        T* target = grad_kernel + c * shape_.kernel_size();
        std::fill_n(target, shape_.kernel_size(), T(0));  // of parts that the image has not
        for (int64_t group = 0; group < groups_; ++group) {
          for (const TailStrip& strip : shape_.strips) {
            for (const TailPart& part : strip.parts) {
              const T* source = partials + group * size_ +
                                part.first * round_up(shape_.channels, kRowStep) +
                                c * part.panels() * kTileCols;
              shape_.visit_runs(strip, part, [&](int64_t tap, int64_t to, int64_t count) {
                for (int64_t i = 0; i < count; ++i) target[to + i] += source[tap + i];
              });
            }
          }
        }
      }
    });
  }

  void collect_bias(const double* tables, T* grad_kernel, T* grad_bias) const {
    Workspace workspace;
    T* table = workspace.take<T>(bias_.size());
    std::vector<double> bias(static_cast<size_t>(shape_.outputs));
    for (int64_t i = 0; i < bias_.size(); ++i) {
      double sum = 0;
      for (int64_t group = 0; group < groups_; ++group) sum += tables[group * bias_.size() + i];
      table[i] = static_cast<T>(sum);
      bias[static_cast<size_t>(i % shape_.outputs)] += sum;
    }
    std::copy(bias.begin(), bias.end(), grad_bias);
    std::fill_n(grad_kernel, shape_.kernel_size(), T(0));
    bias_.backward(table, grad_kernel);
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const TailShape& shape_;
  const Images<const S>&input_, &grad_;
  TailBias<T> bias_;
  int64_t band_, bands_, groups_, size_;
};

}  // namespace clsd::cpu
