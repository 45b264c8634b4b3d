// Sums of absolute differences between rows, and their gradients.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../workspace.h"
#include "feature_rows.h"

namespace clsd::cpu {

// `count` rows of one batch entry from row `first_row` on, features [first, first + features), in
// the accumulator's type: target[i * stride + d].
template <class S, class T>
void copy_features(T* target, int64_t stride, const FeatureRows<const S>& source, int64_t b,
                   int64_t first_row, int64_t count, int64_t first, int64_t features) {
  for (int64_t i = 0; i < count; ++i) {
    const S* row = source.row(b, first_row + i) + first * source.stride_d;
    const auto copy = [&](int64_t step) {
      for (int64_t d = 0; d < features; ++d) target[i * stride + d] = static_cast<T>(row[d * step]);
    };
    source.stride_d == 1 ? copy(1) : copy(source.stride_d);  // the former becomes vectors
  }
}

// The distances of one batch entry. They are summed in the accumulator's type over kStep features,
// and in double beyond: a sum of positive terms drifts, and its users compare sums of like size.
template <class S>
class DistanceTable {
 public:
  using T = Accumulator<S>;

  DistanceTable(const FeatureRows<const S>& query, const FeatureRows<const S>& key, int64_t b)
      : kernels_(tile_kernels<T>()),
        query_(query),
        key_(key),
        b_(b),
        slices_(ceil_div(query.features, kSlice)),
        blocks_(ceil_div(query.count, kBlockRows)) {}

  // write(i, j, distance) for all pairs. Long rows (flattened maps) are cut into slices of features
  // for parallelism; their partials are added up in order.
  template <class Write>
  void compute(const Write& write) const {
    if (slices_ == 1) {
      parallel_for(0, blocks_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) scan(0, block, write);
      });
      return;
    }
    const int64_t size = query_.count * key_.count;
    LargeVector<double> partials(static_cast<size_t>(slices_ * size));
    parallel_for(0, slices_ * blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        double* partial = partials.data() + task / blocks_ * size;
        scan(task / blocks_, task % blocks_, [&](int64_t i, int64_t j, double distance) {
          partial[i * key_.count + j] = distance;
        });
      }
    });
    for (int64_t index = 0; index < size; ++index) {
      double sum = 0;
      for (int64_t slice = 0; slice < slices_; ++slice) sum += partials[slice * size + index];
      write(index / key_.count, index % key_.count, sum);
    }
  }

 private:
  static constexpr int64_t kStep = 256, kSlice = 4 * kStep;
  static constexpr int64_t kBlockRows = 10 * kTileRows;

  template <class Write>
  void scan(int64_t slice, int64_t block, const Write& write) const {
    Workspace workspace;
    const int64_t first = slice * kSlice, features = std::min(kSlice, query_.features - first);
    const int64_t first_row = block * kBlockRows;
    const int64_t count = std::min(kBlockRows, query_.count - first_row);
    const int64_t padded = round_up(count, kRowStep);
    T* rows = workspace.take<T>(padded * kSlice);
    T* panel = workspace.take<T>(kSlice * kTileCols);
    T* keys = workspace.take<T>(kTileCols * kSlice);
    T* sums = workspace.take<T>(padded * kTileCols);
    double* totals = workspace.take<double>(padded * kTileCols);
    std::fill_n(rows + count * kSlice, (padded - count) * kSlice, T(0));
    copy_features(rows, kSlice, query_, b_, first_row, count, first, features);
    std::fill_n(keys, kTileCols * kSlice, T(0));
    for (int64_t j = 0; j < key_.count; j += kTileCols) {
      const int64_t width = std::min(kTileCols, key_.count - j);
      copy_features(keys, kSlice, key_, b_, j, width, first, features);
      transpose_panel(panel, keys, kSlice, features);
      std::fill_n(totals, padded * kTileCols, 0.0);
      for (int64_t d = 0; d < features; d += kStep) {
        const int64_t steps = std::min(kStep, features - d);
        kernels_.distance(sums, {.a = rows + d,
                                 .a_row = kSlice,
                                 .a_step = 1,
                                 .b = panel + d * kTileCols,
                                 .b_step = kTileCols,
                                 .steps = steps,
                                 .chain = kChain,
                                 .add = false,
                                 .rows = padded});
        for (int64_t index = 0; index < padded * kTileCols; ++index) {
          totals[index] += static_cast<double>(sums[index]);
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t v = 0; v < width; ++v) write(first_row + i, j + v, totals[i * kTileCols + v]);
      }
    }
  }

  const TileKernels<T>& kernels_;
  const FeatureRows<const S>& query_;
  const FeatureRows<const S>& key_;
  int64_t b_, slices_, blocks_;
};

// Pairs (query i, rows i) whose distance has the gradient weight[i], beside a table's.
template <class S>
struct PairedDistance {
  const LargeVector<double>& weight;
  FeatureRows<const S> rows;
  FeatureRows<S> grad;
};

// Some features of all rows of one batch entry, with their gradient, in double: a gradient is a sum
// of as many weights of like size as there are rows.
struct FeatureSlice {
  int64_t count, stride;
  double *values, *grad;

  FeatureSlice(Workspace& workspace, int64_t count, int64_t stride)
      : count(count),
        stride(stride),
        values(workspace.take<double>(count * stride)),
        grad(workspace.take<double>(count * stride)) {
    std::fill_n(values, count * stride, 0.0);  // whole vectors are read
  }

  template <class S>
  void load(const FeatureRows<const S>& source, int64_t b, int64_t first, int64_t features) {
    copy_features(values, stride, source, b, 0, count, first, features);
    std::fill_n(grad, count * stride, 0.0);
  }

  // To consecutive features.
  template <class S>
  void store_grad(const FeatureRows<S>& target, int64_t b, int64_t first, int64_t features) const {
    for (int64_t i = 0; i < count; ++i) {
      store_row(target.row(b, i) + first, grad + i * stride, features);
    }
  }
};

// Gradients of the rows given those of their distances, [N, M]. A task owns some features of all
// rows, so that each gradient has one writer and one order of summation.
template <class S>
void distance_table_backward(const LargeVector<double>& grad_table,
                             const FeatureRows<const S>& query, const FeatureRows<const S>& key,
                             int64_t b, const FeatureRows<S>& grad_query,
                             const FeatureRows<S>& grad_key,
                             const std::optional<PairedDistance<S>>& paired = std::nullopt) {
  constexpr int64_t kSliceElements = 1 << 12;  // of the larger side; a slice has four of them
  const int64_t rows = std::max<int64_t>(1, std::max(query.count, key.count));
  const int64_t width =
      std::clamp(kSliceElements / rows / kTileCols, int64_t{1}, int64_t{16}) * kTileCols;
  const auto& kernels = tile_kernels<double>();
  const int64_t slices = ceil_div(query.features, width);
  parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    FeatureSlice queries(workspace, query.count, width), keys(workspace, key.count, width);
    FeatureSlice pairs(workspace, paired ? query.count : 0, width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * width, features = std::min(width, query.features - first);
      queries.load(query, b, first, features);
      keys.load(key, b, first, features);
      kernels.distance_backward({.grad_a = queries.grad,
                                 .a = queries.values,
                                 .count_a = query.count,
                                 .grad_b = keys.grad,
                                 .b = keys.values,
                                 .count_b = key.count,
                                 .features = width,
                                 .weights = grad_table.data(),
                                 .weight_stride = key.count});
      if (paired) {
        pairs.load(paired->rows, b, first, features);
        for (int64_t i = 0; i < query.count; ++i) {
          kernels.distance_backward({.grad_a = queries.grad + i * width,
                                     .a = queries.values + i * width,
                                     .count_a = 1,
                                     .grad_b = pairs.grad + i * width,
                                     .b = pairs.values + i * width,
                                     .count_b = 1,
                                     .features = width,
                                     .weights = paired->weight.data() + i,
                                     .weight_stride = 1});
        }
        pairs.store_grad(paired->grad, b, first, features);
      }
      queries.store_grad(grad_query, b, first, features);
      keys.store_grad(grad_key, b, first, features);
    }
  });
}

}  // namespace clsd::cpu
