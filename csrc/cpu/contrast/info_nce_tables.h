// The tables of logits that the forward and the backward of info_nce scan: a round's queries
// against a chunk of keys, table by table.
//
// Forward keeps running statistics of each query. Backward reads the round's tables where the
// forward has stored them (StoredTables), else computes them again, once for both gradients.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "../workspace.h"
#include "feature_rows.h"
#include "info_nce_plan.h"

namespace clsd::cpu {

// Rows [B, N, D] with 1 / norm of each: logits are products of rows at unit length.
template <class S>
struct NormedRows : FeatureRows<const S> {
  using T = Accumulator<S>;
  const TileKernels<T>& kernels;
  int64_t stride;               // of packed rows
  LargeVector<double> inverse;  // 1 / norm [B, N], 0 for a zero row

  NormedRows(const TileKernels<T>& kernels, const Tensor& tensor)
      : FeatureRows<const S>(feature_rows<const S>(tensor)),
        kernels(kernels),
        stride(round_up(this->features, kTileCols)),
        inverse(static_cast<size_t>(this->batch * this->count)) {
    const int64_t rows = this->batch * this->count;
    parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
      Workspace workspace;
      T* scratch = workspace.take<T>(this->features);
      for (int64_t i = begin; i < end; ++i) {
        const T* row = row_values(*this, i / this->count, i % this->count, scratch);
        inverse[i] = inverse_norm(kernels, row, this->features);
      }
    });
  }

  double inverse_at(int64_t b, int64_t i) const { return inverse[b * this->count + i]; }

  // Some rows of a batch entry times scale / norm, [rows][stride], with zeros up to the stride.
  void pack(T* target, int64_t b, int64_t first, int64_t rows, double scale = 1) const {
    for (int64_t i = 0; i < rows; ++i, target += stride) {
      const T* source = row_values(*this, b, first + i, target);
      kernels.scale(target, source, inverse_at(b, first + i) * scale, this->features);
      std::fill(target + this->features, target + stride, T(0));
    }
  }

  // The gradient of row i, consecutive in memory. That of its unit row is `scale` times `grad`,
  // which is overwritten.
  void write_grad(const FeatureRows<S>& target, int64_t b, int64_t i, T* grad, const T* unit,
                  double scale = 1) const {
    kernels.normalize_grad(grad, unit, inverse_at(b, i) * scale, stride);
    store_row(target.row(b, i), grad, target.features);
  }
};

// A call's inputs as views, and what all its rounds share.
template <class S>
struct Contrast {
  using T = Accumulator<S>;
  const TileKernels<T>& kernels = tile_kernels<T>();
  Plan plan;
  NormedRows<S> query, positive;
  std::optional<NormedRows<S>> negatives;
  const NormedRows<S>& keys;
  double inverse_temperature;
  std::optional<FeatureRows<const bool>> mask;
  const int64_t* labels = nullptr;
  int64_t label_stride_b = 0, label_stride = 0;
  int64_t stride;
  int64_t chain;  // of the logits, which are divided by small temperatures

  explicit Contrast(const Inputs& inputs, bool stores_tables = false)
      : plan(inputs, stores_tables),
        query(kernels, inputs.query),
        positive(kernels, inputs.positive_key),
        keys(inputs.in_batch() ? positive : negatives.emplace(kernels, *inputs.negative_keys)),
        inverse_temperature(inputs.inverse_temperature<T>()),
        stride(query.stride),
        chain(std::clamp<int64_t>(query.features / 4, kChain, kGradChain)) {
    if (inputs.mask) mask = feature_rows<const bool>(*inputs.mask);
    if (inputs.labels) {
      labels = const_data<int64_t>(*inputs.labels);
      label_stride_b = inputs.labels->stride(0);
      label_stride = inputs.labels->stride(1);
    }
  }
  Contrast(const Contrast&) = delete;
  Contrast& operator=(const Contrast&) = delete;

  bool in_batch() const { return !negatives; }

  bool excludes(int64_t b, int64_t i, int64_t j) const {
    if (in_batch() && i == j) return false;
    if (mask && mask->row(b, i)[j * mask->stride_d]) return true;
    const int64_t* entry = labels + b * label_stride_b;
    return labels && entry[i * label_stride] == entry[j * label_stride];
  }

  // Tasks worth a thread of their own.
  int64_t grain(int64_t task_queries, int64_t task_keys) const {
    constexpr int64_t kThreadProducts = 1 << 18;
    return std::max<int64_t>(1, kThreadProducts / (1 + task_queries * task_keys * stride));
  }
};

// The queries of a round at unit length, and the same as the columns of its tables:
// [panels][features][kTileCols].
template <class S>
struct Round : RoundQueries {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  int64_t width;  // count, rounded up to whole panels
  T *rows, *panels;

  Round(Workspace& workspace, const Contrast<S>& contrast, const RoundQueries& queries)
      : RoundQueries(queries),
        contrast(contrast),
        width(round_up(count, kTileCols)),
        rows(workspace.take<T>(entries * width * contrast.stride)),
        panels(workspace.take<T>(entries * width * contrast.query.features)) {
    const int64_t per_entry = width / kTileCols;
    const int64_t grain = contrast.grain(kTileCols, 16);
    parallel_for(0, entries * per_entry, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) pack(task / per_entry, task % per_entry);
    });
  }

  // Of given negatives, which are in no table.
  T positive_logit(int64_t entry, int64_t i) const {
    const T* row = entry_rows(entry) + i * contrast.stride;
    const S* key = contrast.positive.row(b + entry, first + i);
    double sum = 0;
    for (int64_t d = 0; d < contrast.query.features; ++d) {
      sum += static_cast<double>(row[d]) * static_cast<double>(key[d * contrast.positive.stride_d]);
    }
    return static_cast<T>(sum * contrast.positive.inverse_at(b + entry, first + i) *
                          contrast.inverse_temperature);
  }

  const T* entry_rows(int64_t entry) const { return rows + entry * width * contrast.stride; }
  const T* entry_panels(int64_t entry) const {
    return panels + entry * width * contrast.query.features;
  }

 private:
  void pack(int64_t entry, int64_t panel) const {
    const int64_t features = contrast.query.features, stride = contrast.stride;
    const int64_t begin = panel * kTileCols, filled = std::min(kTileCols, count - begin);
    T* target = rows + (entry * width + begin) * stride;
    contrast.query.pack(target, b + entry, first + begin, filled);
    std::fill(target + filled * stride, target + kTileCols * stride, T(0));
    transpose_panel(panels + (entry * width + begin) * features, target, stride, features);
  }
};

// Call run(round) for rounds over all queries.
template <class S, class F>
void for_rounds(const Contrast<S>& contrast, const F& run) {
  const Plan& plan = contrast.plan;
  const int64_t batch = contrast.query.batch, count = contrast.query.count;
  for (int64_t b = 0; b < batch; b += plan.entries) {
    for (int64_t first = 0; first < count; first += plan.queries) {
      Workspace workspace;
      run(Round<S>(workspace, contrast,
                   {.b = b,
                    .entries = std::min(plan.entries, batch - b),
                    .first = first,
                    .count = std::min(plan.queries, count - first)}));
    }
  }
}

// The tables of all tasks of a round, kept from the forward for the backward.
template <class T>
struct StoredTables {
  T* memory = nullptr;  // or null: each task has one table at a time
  bool filled = false;

  // Of one task (entry, chunk).
  static int64_t size(const Plan& plan, int64_t width) {
    return ceil_div(width, kQueryBlock) * kQueryBlock * plan.keys;
  }
};

// A chunk of the keys of one batch entry against the queries of a round, table by table.
template <class S>
struct TableScan {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  const Round<S>& round;
  int64_t entry, first, last;  // keys of the chunk
  StoredTables<T> stored;
  T *keys, *logits;  // kKeyBlock unit rows over the temperature; a table
  int64_t first_key = 0, key_count = 0;

  TableScan(Workspace& workspace, const Round<S>& round, int64_t entry, int64_t chunk,
            StoredTables<T> stored)
      : contrast(round.contrast),
        round(round),
        entry(entry),
        first(chunk * contrast.plan.keys),
        last(std::min(first + contrast.plan.keys, contrast.keys.count)),
        stored(stored),
        keys(workspace.take<T>(kKeyBlock * round.contrast.stride)),
        logits(stored.memory ? nullptr : workspace.take<T>(kKeyBlock * kQueryBlock)) {
    const int64_t task = entry * contrast.plan.chunks + chunk;
    if (stored.memory) {
      this->stored.memory += task * StoredTables<T>::size(contrast.plan, round.width);
    }
  }

  void take_keys(int64_t first, int64_t count) {
    first_key = first;
    key_count = count;
    contrast.keys.pack(keys, round.b + entry, first, count, contrast.inverse_temperature);
    // Whole steps are read; what is beyond the last key is not used.
    std::fill(keys + count * contrast.stride, keys + round_up(count, kRowStep) * contrast.stride,
              T(0));
  }

  // The table of these keys and of the round's queries [q, q + kQueryBlock).
  LogitTable<T> table(int64_t q) {
    const int64_t width = std::min(kQueryBlock, round.width - q);
    const int64_t features = contrast.query.features;
    if (stored.memory) {
      const int64_t across = ceil_div(round.width, kQueryBlock) * kQueryBlock;
      logits = stored.memory + (first_key - first) * across + q * kKeyBlock;
    }
    if (!stored.filled) {
      contrast.kernels.multiply(logits, {.a = keys,
                                         .a_row = contrast.stride,
                                         .a_step = 1,
                                         .b = round.entry_panels(entry) + q * features,
                                         .b_step = kTileCols,
                                         .steps = features,
                                         .chain = contrast.chain,
                                         .add = false,
                                         .rows = round_up(key_count, kRowStep),
                                         .acc_row = kQueryBlock,
                                         .panels = width / kTileCols,
                                         .b_panel = features * kTileCols});
      exclude(q, std::min(width, round.count - q));
    }
    return {.logits = logits, .stride = kQueryBlock, .keys = key_count, .queries = width};
  }

  // The element of query `i` (of the batch entry) and its positive, if that is in the table.
  T* positive(int64_t q, int64_t i) const {
    const int64_t k = i - first_key;
    const bool inside = contrast.in_batch() && k >= 0 && k < key_count;
    return inside ? logits + k * kQueryBlock + i - round.first - q : nullptr;
  }

 private:
  void exclude(int64_t q, int64_t width) const {
    if (!contrast.mask && !contrast.labels) return;
    for (int64_t k = 0; k < key_count; ++k) {
      for (int64_t v = 0; v < width; ++v) {
        if (contrast.excludes(round.b + entry, round.first + q + v, first_key + k)) {
          logits[k * kQueryBlock + v] = -std::numeric_limits<T>::infinity();
        }
      }
    }
  }
};

}  // namespace clsd::cpu
