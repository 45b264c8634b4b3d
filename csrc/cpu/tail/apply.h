// The products of a composed tail, forward and backward (map.h).
#pragma once

#include <algorithm>
#include <vector>

#include "../../tail_arguments.h"
#include "../conv/algorithm.h"
#include "../conv/winograd_gradient.h"
#include "../parallel.h"
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

// The taps of every pixel are left to a Winograd convolution where that, with half as much again for
// the transforms, has fewer multiplications; it adds to what the edges have left in images.
template <class S>
TailShape tail_shape(const TailArguments& tail) {
  const TailAxis& axis = tail.axis();
  const int64_t channels = tail.x.size(1), height = tail.x.size(2), width = tail.x.size(3);
  const int64_t shuffled = axis.upscale * axis.upscale * tail.outputs();
  const int64_t taps = axis.segments[0].count * axis.segments[0].count * tail.outputs();
  const int64_t numbers = WinogradBands(height, width, kWinogradTile5x5).padded_numbers();
  const bool multiplies_less =
      3 * numbers * round_up(shuffled, kTileCols) < 2 * taps * height * width;
  const bool convolved =
      std::is_same_v<S, float> && allows_winograd() && channels >= kTileCols && multiplies_less;
  return {axis, channels, tail.outputs(), height, width, convolved};
}

template <class S>
class TailForward {
 public:
  using T = Accumulator<S>;

  TailForward(const TailShape& shape, const Tensor& x, const Tensor& output)
      : shape_(shape),
        input_(images<const S>(x)),
        output_(images<S>(output)),
        shuffled_(images<S>(output, shape.axis.upscale)),
        bias_(shape),
        band_(tail_band<T>(shape, input_.batch, tasks(input_.batch))) {}

  void write(const Tensor& composed_weight, const T* out_bias) const {
    const T* composed = const_data<T>(composed_weight);
    Workspace workspace;
    const T* packed = pack(workspace, composed);
    T* table = workspace.take<T>(bias_.size());
    for (int64_t i = 0; i < bias_.size(); ++i) table[i] = out_bias[i % shape_.outputs];
    bias_.write(composed + shape_.channels * shape_.composed_size(), table);
    const int64_t bands = ceil_div(shape_.height, band_), factor = shape_.axis.upscale;
    parallel_tasks(0, input_.batch * bands, [&](const auto& take) {
      Workspace scratch;
      TailRow<S> row(scratch, shape_, input_);
      TailCanvas<T> canvas(scratch, output_.width, factor * band_, shape_.outputs);
      T* values = scratch.take<T>(shape_.footprint_size());
      T* rest = scratch.take<T>(round_up(shape_.width, kRowStep) * kTileCols);
      for (int64_t task; take(task);) {
        const int64_t n = task / bands, first = task % bands * band_;
        const int64_t last = std::min(first + band_, shape_.height);
        canvas.first = factor * first, canvas.rows = factor * (last - first);
        start(table, canvas);
        const int64_t above = std::max<int64_t>(first - kTailReach, 0);
        for (int64_t y = above; y < std::min(last + kTailReach, shape_.height); ++y) {
          row.read(n, y);
          add_row(row, packed, y, values, rest, canvas);
        }
        canvas.move(output_, n);
      }
    });
    if (!shape_.convolved) return;
    const auto edges = constant(shuffled_);
    winograd_convolve<S>(
        {
            .input = input_,
            .weight = composed_weight,
            .epilogue = {.residual = &edges},
            .output = shuffled_,
        },
        TailKernel<T>(shape_, composed, input_.order, shuffled_.order, false), kWinogradTile5x5);
  }

 private:
  // A pixel is the same sum in every band, so the number of threads may choose the bands. The rows
  // beside one are computed twice: whole images are best, if all threads get as many.
  static int64_t tasks(int64_t batch) {
    const int64_t threads = torch::stable::get_num_threads();
    return batch % threads == 0 ? std::max<int64_t>(batch, 1) : 4 * threads;
  }

  // Each summand's taps as the right side of a product, [panels of taps][C][kTileCols].
  const T* pack(Workspace& workspace, const T* composed) const {
    const int64_t channels = shape_.channels;
    T* packed = workspace.take<T>(shape_.packed_taps * channels);
    std::fill_n(packed, shape_.packed_taps * channels, T(0));
    parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const T* source = composed + c * shape_.composed_size();
        for (const TailFootprint& footprint : shape_.footprints) {
          for (const TailSummand& summand : footprint.summands) {
            T* target = packed + summand.first * channels + c * kTileCols;
            shape_.visit_columns(footprint, summand, [&](int64_t tap, int64_t from, int64_t count) {
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

  void add_row(const TailRow<S>& row, const T* packed, int64_t y, T* values, T* rest,
               const TailCanvas<T>& canvas) const {
    for (const TailFootprint& footprint : shape_.footprints) {
      if (!footprint.rows.has(y, shape_.height)) continue;
      for (const TailSummand& summand : footprint.summands) {
        const auto [first, count] = shape_.reached(summand);
        T* columns = values + (first + shape_.axis.padding) * footprint.column;
        if (summand.columns.every) {
          std::fill_n(values, shape_.footprint_columns() * footprint.column, T(0));
        } else {
          std::fill_n(columns, count * footprint.column, T(0));
        }
        add_summand(footprint, summand, row.pixels(summand), packed, values, rest);
        add_columns(footprint, columns, first, count, y, canvas);
      }
    }
  }

  // The last panel may be wider than what is left of the taps. Beyond them it is zeros, which times
  // a NaN would reach pixels that do not see it.
  void add_summand(const TailFootprint& footprint, const TailSummand& summand,
                   const typename TailRow<S>::Pixels& pixels, const T* packed, T* values,
                   T* rest) const {
    const int64_t whole = summand.taps / kTileCols, left = summand.taps % kTileCols;
    TileOperands<T> operands{
        .a = pixels.data,
        .a_row = pixels.stride,
        .a_step = 1,
        .b = packed + summand.first * shape_.channels,
        .b_step = kTileCols,
        .steps = shape_.channels,
        .chain = kTailChain,
        .add = true,
        .rows = round_up(pixels.count, kRowStep),
        .acc_row = shape_.pixel_stride(footprint),
        .panels = whole,
        .b_panel = shape_.channels * kTileCols,
    };
    T* target = values + shape_.offset(footprint, summand);
    kernels_.multiply(target, operands);
    if (left == 0) return;
    operands.b += whole * operands.b_panel;
    operands.add = false, operands.acc_row = kTileCols, operands.panels = 1;
    kernels_.multiply(rest, operands);
    target += whole * kTileCols;
    for (int64_t x = 0; x < pixels.count; ++x, target += shape_.pixel_stride(footprint)) {
      for (int64_t i = 0; i < left; ++i) target[i] += rest[x * kTileCols + i];
    }
  }

  // To columns [first, first + count): those of a footprint's rows that are the canvas's.
  void add_columns(const TailFootprint& footprint, const T* source, int64_t first, int64_t count,
                   int64_t y, const TailCanvas<T>& canvas) const {
    const int64_t top = shape_.axis.target(footprint.rows, y, shape_.height) - canvas.first;
    const int64_t from = std::max<int64_t>(0, -top);
    const int64_t rows = std::min(footprint.rows.count, canvas.rows - top) - from;
    source += from * shape_.outputs;
    T* target = canvas.values + first * canvas.column + (top + from) * shape_.outputs;
    for (int64_t x = 0; x < count; ++x, source += footprint.column, target += canvas.column) {
      for (int64_t i = 0; i < rows * shape_.outputs; ++i) target[i] += source[i];
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const TailShape& shape_;
  Images<const S> input_;
  Images<S> output_, shuffled_;
  TailBias<T> bias_;
  int64_t band_;
};

// The gradients of the input, and of composed weight and output bias, each if there is a place for
// it.
template <class S>
class TailGradient {
 public:
  using T = Accumulator<S>;

  TailGradient(const TailShape& shape, const Tensor& x, const Tensor& grad_output)
      : shape_(shape),
        input_(images<const S>(x)),
        grad_(images<const S>(grad_output)),
        shuffled_(images<const S>(grad_output, shape.axis.upscale)),
        bias_(shape),
        band_(tail_band<T>(shape, input_.batch, kTailGroups)),
        bands_(ceil_div(shape.height, band_)),
        groups_(std::clamp<int64_t>(input_.batch * bands_, 1, kTailGroups)),
        size_(shape.packed_taps * round_up(shape.channels, kRowStep)) {}

  void write(const Tensor& composed_weight, const Images<S>* grad_x, T* grad_composed,
             T* grad_bias) const {
    const T* composed = const_data<T>(composed_weight);
    Workspace workspace;
    const T* packed = grad_x ? pack(workspace, composed) : nullptr;
    T* partials = workspace.take<T>(grad_composed ? groups_ * size_ : 0);
    double* tables = workspace.take<double>(grad_composed ? groups_ * bias_.size() : 0);
    const int64_t bands = input_.batch * bands_;
    parallel_tasks(0, groups_, [&](const auto& take) {
      for (int64_t group; take(group);) {
        Sums sums{nullptr, nullptr};
        if (grad_composed) sums = {partials + group * size_, tables + group * bias_.size()};
        add_bands(group * bands / groups_, (group + 1) * bands / groups_, packed, grad_x, sums);
      }
    });
    if (shape_.convolved && grad_x) {
      const auto edges = constant(*grad_x);
      winograd_convolve<S>(
          {
              .input = shuffled_,
              .weight = composed_weight,
              .epilogue = {.residual = &edges},
              .output = *grad_x,
          },
          TailKernel<T>(shape_, composed, grad_x->order, shuffled_.order, true), kWinogradTile5x5);
    }
    if (!grad_composed) return;
    collect(partials, grad_composed);
    if (shape_.convolved) collect_every_pixel(grad_composed);
    collect_bias(tables, grad_composed + shape_.channels * shape_.composed_size(), grad_bias);
  }

 private:
  // Of a group, or null: of each summand's taps, [C][panels of taps], and of the table of biases.
  struct Sums {
    T* taps;
    double* table;
  };

  // Each summand's taps as the right side of a product, [panels of C][taps][kTileCols].
  const T* pack(Workspace& workspace, const T* composed) const {
    const int64_t channels = round_up(shape_.channels, kTileCols);
    T* packed = workspace.take<T>(shape_.packed_taps * channels);
    std::fill_n(packed, shape_.packed_taps * channels, T(0));
    parallel_for(0, channels / kTileCols, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin * kTileCols; c < std::min(end * kTileCols, shape_.channels); ++c) {
        const T* source = composed + c * shape_.composed_size();
        for (const TailFootprint& footprint : shape_.footprints) {
          for (const TailSummand& summand : footprint.summands) {
            T* target = packed + summand.first * channels +
                        c / kTileCols * summand.taps * kTileCols + c % kTileCols;
            shape_.visit_columns(footprint, summand, [&](int64_t tap, int64_t from, int64_t count) {
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
    T* values = scratch.take<T>(shape_.footprint_size());
    const PackedRows<T> result(scratch, 1, 0, round_up(shape_.width, kRowStep), row.channels);
    T* edge = scratch.take<T>(kRowStep * row.channels);
    std::fill_n(values, shape_.footprint_size(), T(0));
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
        add_row(row, packed, y, canvas, values, sums.taps, grad_x ? &result : nullptr, edge);
        if (grad_x) result.flush(*grad_x, n, y, 1);
      }
    }
  }

  void add_row(const TailRow<S>& row, const T* packed, int64_t y, const TailCanvas<T>& canvas,
               T* values, T* taps, const PackedRows<T>* result, T* edge) const {
    if (result && shape_.convolved) {
      std::fill_n(result->values, shape_.width * result->channels, T(0));
    }
    for (const TailFootprint& footprint : shape_.footprints) {
      if (!footprint.rows.has(y, shape_.height)) continue;
      for (const TailSummand& summand : footprint.summands) {
        load_columns(footprint, summand, y, canvas, values);
        const T* patches = values + shape_.offset(footprint, summand);
        if (result) add_input(footprint, summand, patches, packed, *result, edge);
        if (taps) add_taps(footprint, summand, patches, row.pixels(summand), taps);
      }
    }
  }

  // What a summand's pixels reach, with zeros beside the image.
  void load_columns(const TailFootprint& footprint, const TailSummand& summand, int64_t y,
                    const TailCanvas<T>& canvas, T* values) const {
    const auto [first, count] = shape_.reached(summand);
    const int64_t top = shape_.axis.target(footprint.rows, y, shape_.height) - canvas.first;
    const T* source = canvas.values + first * canvas.column + top * shape_.outputs;
    T* target = values + (first + shape_.axis.padding) * footprint.column;
    if (summand.columns.every) std::fill(values, target, T(0));
    for (int64_t x = 0; x < count; ++x, source += canvas.column, target += footprint.column) {
      std::copy_n(source, footprint.column, target);
    }
    if (!summand.columns.every) return;
    std::fill(target, values + shape_.footprint_columns() * footprint.column, T(0));
  }

  // To the gradient of a row of the input. The first summand has all of its pixels, if it is not left
  // to a convolution.
  void add_input(const TailFootprint& footprint, const TailSummand& summand, const T* patches,
                 const T* packed, const PackedRows<T>& result, T* edge) const {
    const bool every = summand.columns.every;
    const TileOperands<T> operands{
        .a = patches,
        .a_row = shape_.pixel_stride(footprint),
        .a_step = 1,
        .b = packed + summand.first * result.channels,
        .b_step = kTileCols,
        .steps = summand.taps,
        .chain = kTailChain,
        .add = every && !footprint.rows.every,
        .rows = round_up(summand.columns.pixels(shape_.width), kRowStep),
        .acc_row = result.channels,
        .panels = result.channels / kTileCols,
        .b_panel = summand.taps * kTileCols,
    };
    kernels_.multiply(every ? result.values : edge, operands);
    if (every) return;
    T* pixel = result.pixel(0, summand.columns.first(shape_.width));
    for (int64_t c = 0; c < result.channels; ++c) pixel[c] += edge[c];
  }

  void add_taps(const TailFootprint& footprint, const TailSummand& summand, const T* patches,
                const typename TailRow<S>::Pixels& pixels, T* taps) const {
    const int64_t channels = round_up(shape_.channels, kRowStep);
    const TileOperands<T> operands{
        .a = pixels.data,
        .a_row = 1,
        .a_step = pixels.stride,
        .b = patches,
        .b_step = shape_.pixel_stride(footprint),
        .steps = pixels.count,
        .chain = kTailChain,
        .add = true,
        .rows = channels,
        .acc_row = summand.panels() * kTileCols,
        .panels = summand.panels(),
        .b_panel = kTileCols,
    };
    kernels_.multiply(taps + summand.first * channels, operands);
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

  // The groups' partials of taps, added in order, as the gradient of the composed weight.
  void collect(T* partials, T* grad_composed) const {
    constexpr int64_t kGrain = 1 << 12;
    parallel_for(0, size_, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t group = 1; group < groups_; ++group) {
        const T* partial = partials + group * size_;
        for (int64_t i = begin; i < end; ++i) partials[i] += partial[i];
      }
    });
    parallel_for(0, shape_.channels, 4, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) collect_channel(partials, c, grad_composed);
    });
  }

  void collect_channel(const T* sums, int64_t c, T* grad_composed) const {
    T* target = grad_composed + c * shape_.composed_size();
    std::fill_n(target, shape_.composed_size(), T(0));  // of summands that the image has not
    for (const TailFootprint& footprint : shape_.footprints) {
      for (const TailSummand& summand : footprint.summands) {
        const T* source = sums + summand.first * round_up(shape_.channels, kRowStep) +
                          c * summand.panels() * kTileCols;
        shape_.visit_columns(footprint, summand, [&](int64_t tap, int64_t to, int64_t count) {
          std::copy_n(source + tap, count, target + to);
        });
      }
    }
  }

  // The gradient of the taps of every pixel.
  void collect_every_pixel(T* grad_composed) const {
    constexpr int64_t kTaps = TailKernel<T>::kTaps;
    Workspace workspace;
    const WinogradGradient<S> gradient(input_, shuffled_, kWinogradTile5x5);
    const T* partials = gradient.add_groups(workspace);
    const TailKernel<T> kernel(shape_, grad_composed, input_.order, shuffled_.order, false);
    parallel_for(0, kernel.inputs, 4, [&](int64_t begin, int64_t end) {
      T values[kTaps * kTileCols];
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t k = 0; k < kernel.outputs; k += kTileCols) {
          gradient.total(partials, c, k, values);
          for (int64_t v = 0; v < std::min(kTileCols, kernel.outputs - k); ++v) {
            for (int64_t tap = 0; tap < kTaps; ++tap) {
              const int64_t at = kernel.index(c, k + v, tap);
              if (at >= 0) grad_composed[at] = values[tap * kTileCols + v];
            }
          }
        }
      }
    });
  }

  void collect_bias(const double* tables, T* grad_composed, T* grad_bias) const {
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
    std::fill_n(grad_composed, shape_.composed_size(), T(0));
    bias_.backward(table, grad_composed);
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const TailShape& shape_;
  Images<const S> input_, grad_, shuffled_;
  TailBias<T> bias_;
  int64_t band_, bands_, groups_, size_;
};

}  // namespace clsd::cpu
