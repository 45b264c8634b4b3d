// The backward of info_nce: gradients of rows, given those of their losses and the forward's
// statistics.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "info_nce_tables.h"

namespace clsd::cpu {

// Gradients of all keys [B, M, D] in the accumulator's type: the output itself, if it can be.
template <class S>
struct KeyGradients {
  using T = Accumulator<S>;
  LargeVector<T> sums;
  T* values;
  int64_t batch, count, features;

  explicit KeyGradients(const FeatureRows<S>& output)
      : batch(output.batch), count(output.count), features(output.features) {
    if constexpr (std::is_same_v<S, T>) {
      values = output.data;
    } else {
      sums.resize(static_cast<size_t>(output.batch * count * features));
      values = sums.data();
    }
  }

  T* row(int64_t b, int64_t j) const { return values + (b * count + j) * features; }
  void clear() const { std::fill_n(values, batch * count * features, T(0)); }
};

// The gradient of each row's loss, given that of their reduction, or null for 1.
template <class S>
struct LossGradient {
  const S* data = nullptr;
  int64_t stride_b = 0, stride_n = 0;
  double share = 1;  // of a row in the reduction

  LossGradient(const Tensor* grad, const std::string& reduction, int64_t rows) {
    if (grad) data = const_data<S>(*grad);
    if (grad && reduction == "none") {
      stride_b = grad->stride(0);
      stride_n = grad->stride(1);
    }
    if (reduction == "mean") share = 1 / static_cast<double>(rows);
  }

  double of(int64_t b, int64_t i) const {
    return data ? share * static_cast<double>(data[b * stride_b + i * stride_n]) : share;
  }
};

// The gradients of queries, positives and keys.
template <class S>
struct InfoNceBackward {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  const KeyGradients<S>& key_grads;
  const LossGradient<S>& grad_loss;
  SavedStatistics<const T> saved;
  FeatureRows<S> grad_query, grad_positive;  // the latter without negatives: the keys'

  // One round: its queries' gradients whole, and its share of the keys'.
  void operator()(const Round<S>& round, const StoredTables<T>& stored = {}) const {
    Workspace workspace;
    const int64_t entries = round.entries, count = round.count;
    const int64_t chunks = contrast.plan.chunks;
    const int64_t size = round_up(round.width, kRowStep) * contrast.stride;
    // Per query: maximum, and the gradients of a logit over its exponential, and of the positive's.
    T* weights = workspace.take<T>(entries * 3 * round.width);
    for (int64_t entry = 0; entry < entries; ++entry) weigh(round, entry, weights);
    T* partials = workspace.take<T>(entries * chunks * size);
    const int64_t grain = contrast.grain(count, std::min(contrast.plan.keys, contrast.keys.count));
    parallel_for(0, entries * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t entry = task / chunks;
        scan(round, stored, entry, task % chunks, weights + entry * 3 * round.width,
             partials + task * size);
      }
    });
    const int64_t row_grain = contrast.grain(1, 4 * chunks);
    parallel_for(0, entries * count, row_grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t entry = task / count;
        finish_query(round, entry, task % count, weights + entry * 3 * round.width,
                     partials + entry * chunks * size, size);
      }
    });
  }

  void finish_keys(const FeatureRows<S>& output) const {
    const int64_t rows = contrast.keys.batch * contrast.keys.count;
    parallel_for(0, rows, contrast.grain(1, 4), [&](int64_t begin, int64_t end) {
      Workspace workspace;
      T* unit = workspace.take<T>(contrast.stride);
      T* grad = workspace.take<T>(contrast.stride);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / contrast.keys.count, j = row % contrast.keys.count;
        contrast.keys.pack(unit, b, j, 1);
        T* const padding = std::copy_n(key_grads.row(b, j), key_grads.features, grad);
        std::fill(padding, grad + contrast.stride, T(0));  // which the last one's NaN is in
        contrast.keys.write_grad(output, b, j, grad, unit, contrast.inverse_temperature);
      }
    });
  }

 private:
  void weigh(const Round<S>& round, int64_t entry, T* all) const {
    T* weights = all + entry * 3 * round.width;
    std::fill_n(weights, 3 * round.width, T(0));
    for (int64_t i = 0; i < round.count; ++i) {
      const int64_t n = round.first + i, row = (round.b + entry) * contrast.query.count + n;
      const T grad = static_cast<T>(grad_loss.of(round.b + entry, n));
      weights[i] = saved.maximum[row];
      weights[round.width + i] = grad / saved.sum_exp[row];
      weights[2 * round.width + i] = grad;
    }
  }

  void scan(const Round<S>& round, const StoredTables<T>& stored, int64_t entry, int64_t chunk,
            const T* weights, T* query_sums) const {
    const int64_t stride = contrast.stride;
    Workspace workspace;
    TableScan<S> tables(workspace, round, entry, chunk, stored);
    T* key_sums = workspace.take<T>(kKeyBlock * stride);
    if (tables.first >= tables.last) std::fill_n(query_sums, round.width * stride, T(0));
    for (int64_t key = tables.first; key < tables.last; key += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, tables.last - key);
      tables.take_keys(key, keys);
      for (int64_t q = 0; q < round.width; q += kQueryBlock) {
        const auto table = tables.table(q);
        contrast.kernels.softmax_grad(table, weights + q, weights + round.width + q);
        for (int64_t v = 0; v < std::min(table.queries, round.count - q); ++v) {
          T* own = tables.positive(q, round.first + q + v);
          if (own) *own -= weights[2 * round.width + q + v];
        }
        contrast.kernels.multiply(query_sums + q * stride, {.a = table.logits,
                                                            .a_row = 1,
                                                            .a_step = kQueryBlock,
                                                            .b = tables.keys,
                                                            .b_step = stride,
                                                            .steps = keys,
                                                            .chain = kGradChain,
                                                            .add = key > tables.first,
                                                            .rows = table.queries,
                                                            .acc_row = stride,
                                                            .panels = stride / kTileCols,
                                                            .b_panel = kTileCols});
        contrast.kernels.multiply(key_sums, {.a = table.logits,
                                             .a_row = kQueryBlock,
                                             .a_step = 1,
                                             .b = round.entry_rows(entry) + q * stride,
                                             .b_step = stride,
                                             .steps = table.queries,
                                             .chain = kGradChain,
                                             .add = q > 0,
                                             .rows = round_up(keys, kRowStep),
                                             .acc_row = stride,
                                             .panels = stride / kTileCols,
                                             .b_panel = kTileCols});
      }
      add_key_sums(key_sums, round.b + entry, key, keys, round.first > 0);
    }
  }

  void add_key_sums(const T* sums, int64_t b, int64_t first, int64_t count, bool add) const {
    for (int64_t j = 0; j < count; ++j) {
      T* row = key_grads.row(b, first + j);
      const T* sum = sums + j * contrast.stride;
      for (int64_t d = 0; d < key_grads.features; ++d) row[d] = add ? row[d] + sum[d] : sum[d];
    }
  }

  void finish_query(const Round<S>& round, int64_t entry, int64_t i, const T* weights, T* partials,
                    int64_t size) const {
    const int64_t stride = contrast.stride, b = round.b + entry, n = round.first + i;
    T* sums = partials + i * stride;
    for (int64_t chunk = 1; chunk < contrast.plan.chunks; ++chunk) {
      const T* partial = sums + chunk * size;
      for (int64_t d = 0; d < stride; ++d) sums[d] += partial[d];
    }
    const T* unit = round.entry_rows(entry) + i * stride;
    if (!contrast.in_batch()) add_positive(round, entry, i, weights, sums, unit);
    contrast.query.write_grad(grad_query, b, n, sums, unit);
  }

  // Of given negatives: the positive's share of a query's gradient, and the positive's own.
  void add_positive(const Round<S>& round, int64_t entry, int64_t i, const T* weights, T* sums,
                    const T* unit) const {
    const int64_t stride = contrast.stride, b = round.b + entry, n = round.first + i;
    Workspace workspace;
    T* positive = workspace.take<T>(stride);
    T* grad = workspace.take<T>(stride);
    contrast.positive.pack(positive, b, n, 1);
    const T logit = round.positive_logit(entry, i);
    const T share = weights[round.width + i] * std::exp(logit - weights[i]);
    const T coefficient = share - weights[2 * round.width + i];
    const T query_coefficient = coefficient * static_cast<T>(contrast.inverse_temperature);
    for (int64_t d = 0; d < stride; ++d) {
      sums[d] += query_coefficient * positive[d];
      grad[d] = coefficient * unit[d];
    }
    contrast.positive.write_grad(grad_positive, b, n, grad, positive, contrast.inverse_temperature);
  }
};

// -sum(grad_loss * spread) / temperature
template <class S, class T>
T temperature_grad(const Contrast<S>& contrast, const LossGradient<S>& grad_loss, const T* spread) {
  double sum = 0;
  for (int64_t b = 0; b < contrast.query.batch; ++b) {
    for (int64_t i = 0; i < contrast.query.count; ++i) {
      sum += grad_loss.of(b, i) * static_cast<double>(spread[b * contrast.query.count + i]);
    }
  }
  return static_cast<T>(-sum * contrast.inverse_temperature);
}

}  // namespace clsd::cpu
