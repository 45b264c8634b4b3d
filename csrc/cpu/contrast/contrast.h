// What the forward and the backward of info_nce share: how a call is cut, and the tables of logits.
//
// The logits [N, M] are never stored whole. A round takes some hundred queries; its tasks scan one
// chunk of keys each, table by table. Forward keeps running statistics of each query. Backward reads
// the round's tables where the forward has stored them (StoredTables), else computes them again,
// once for both gradients.
//
// Rounds and chunks are cut by the shape alone and added up in order: no result depends on the number
// of threads.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "feature_rows.h"
#include "../workspace.h"

namespace clsd::cpu {

// A table of logits has kKeyBlock x kQueryBlock elements: whole register tiles both ways.
constexpr int64_t kKeyBlock = 5 * kTileRows;
constexpr int64_t kQueryBlock = 6 * kTileCols;
// Gradients are summed up table by table, which keeps chains short (tile.h) as it is.
constexpr int64_t kGradChain = 64;

struct Inputs {
  Tensor query, positive_key;
  std::optional<Tensor> negative_keys, mask, labels, learned_temperature;
  double temperature;

  bool in_batch() const { return !negative_keys; }
  const Tensor& keys() const { return negative_keys ? *negative_keys : positive_key; }

  void check_all(const char* op) const {
    check_rows(op, "query", query);
    check_rows(op, "positive_key", positive_key);
    const int64_t batch = query.size(0), count = query.size(1), features = query.size(2);
    const int64_t positives = in_batch() ? positive_key.size(1) : count;
    if (positives < count) {
      fail(op, "a positive_key for each row of query",
           std::to_string(positives) + " for " + std::to_string(count));
    }
    check_shape(op, "positive_key", positive_key, {batch, positives, features});
    check_like(op, "positive_key", query, positive_key);
    if (negative_keys) {
      check_rows(op, "negative_keys", *negative_keys);
      check_shape(op, "negative_keys", *negative_keys, {batch, negative_keys->size(1), features});
      check_like(op, "negative_keys", query, *negative_keys);
    }
    if (mask) {
      check_shape(op, "mask", *mask, {batch, count, keys().size(1)});
      check_option(op, "mask", *mask, ScalarType::Bool, "bool");
    }
    if (labels) {
      check(in_batch(), op, "no labels beside negative_keys", "both");
      check_shape(op, "labels", *labels, {batch, keys().size(1)});
      check_option(op, "labels", *labels, ScalarType::Long, "int64");
    }
    if (learned_temperature) {
      check_shape(op, "learned_temperature", *learned_temperature, {});
      const auto dtype = accumulator_dtype(query.scalar_type());
      check_option(op, "learned_temperature", *learned_temperature, dtype, dtype_name(dtype));
    } else if (!(temperature > 0)) {
      fail(op, "temperature > 0", std::to_string(temperature));
    }
  }

  template <class T>
  double inverse_temperature() const {
    return 1 / (learned_temperature ? *const_data<T>(*learned_temperature) : temperature);
  }

 private:
  static void check_option(const char* op, const char* name, const Tensor& tensor,
                           ScalarType dtype, const char* expected) {
    check_dtype(op, name, tensor, dtype, expected);
    if (!tensor.is_cpu()) fail(op, std::string(name) + " on query's device", "another");
  }
};

// How a call is cut. Rounds cover `queries` rows of `entries` batch entries, chunks `keys` rows.
struct Plan {
  int64_t entries, queries, keys, chunks;

  // With stored tables, a round has fewer queries: its tables should stay in the cache.
  Plan(const Inputs& inputs, bool stores_tables) {
    constexpr int64_t kRoundElements = 5 * kQueryBlock * 128;  // of an entry, 240 KiB of float
    constexpr int64_t kRoundBlocks = 16;  // about as many tasks; their partial sums are kept
    const int64_t stride = round_up(inputs.query.size(2), kTileCols);
    const int64_t whole = kRoundElements / stride / kQueryBlock * kQueryBlock;
    queries = std::min(std::max(whole, kQueryBlock), round_up(inputs.query.size(1), kTileCols));
    queries = std::min(queries, (stores_tables ? 2 : 5) * kQueryBlock);
    entries = std::max<int64_t>(1, 8 * kRoundElements / std::max<int64_t>(1, queries * stride));
    entries = std::min(entries, inputs.query.size(0));
    if (stores_tables) {
      constexpr int64_t kStored = 4 << 20;  // elements, 16 MiB of float
      const int64_t table = std::max<int64_t>(1, queries * inputs.keys().size(1));
      entries = std::min(entries, std::max<int64_t>(1, kStored / table));
    }
    const int64_t parts = std::max<int64_t>(1, kRoundBlocks / std::max<int64_t>(1, entries));
    keys = round_up(std::max<int64_t>(1, ceil_div(inputs.keys().size(1), parts)), kKeyBlock);
    chunks = std::max<int64_t>(1, ceil_div(inputs.keys().size(1), keys));
  }
};

// 1 / norm of each row [B, N], 0 for a zero row.
template <class S, class T = Accumulator<S>>
std::vector<double> inverse_norms(const FeatureRows<const S>& rows) {
  std::vector<double> inverse(static_cast<size_t>(rows.batch * rows.count));
  torch::stable::parallel_for(0, rows.batch * rows.count, 256, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    T* scratch = workspace.take<T>(rows.features);
    for (int64_t i = begin; i < end; ++i) {
      const T* row = row_values(rows, i / rows.count, i % rows.count, scratch);
      inverse[i] = inverse_norm(row, rows.features);
    }
  });
  return inverse;
}

// Rows of one batch entry times scale / norm, [count][stride], with zeros up to the stride.
template <class S, class T>
void pack_rows(T* target, int64_t stride, const FeatureRows<const S>& rows,
               const std::vector<double>& inverse, double scale, int64_t b, int64_t first,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i, target += stride) {
    const T* source = row_values(rows, b, first + i, target);
    const double factor = inverse[b * rows.count + first + i] * scale;
    tile_kernels<T>().scale(target, source, factor, rows.features);
    std::fill(target + rows.features, target + stride, T(0));
  }
}

// The gradient of a row, consecutive in memory, from `grad`, that of its unit row, which is
// overwritten.
template <class S, class T>
void write_row_grad(const FeatureRows<S>& target, int64_t b, int64_t i, T* grad, const T* unit,
                    double inverse) {
  tile_kernels<T>().normalize_grad(grad, unit, inverse, round_up(target.features, kTileCols));
  store_row(target.row(b, i), grad, target.features);
}

// A call's inputs as views, and what all its rounds share.
template <class S>
struct Contrast {
  using T = Accumulator<S>;
  Plan plan;
  FeatureRows<const S> query, positive, keys;
  std::vector<double> inverse_query, inverse_positive, inverse_negative;
  bool in_batch;
  double inverse_temperature;
  std::optional<FeatureRows<const bool>> mask;
  const int64_t* labels = nullptr;
  int64_t label_stride_b = 0, label_stride = 0;
  int64_t stride;
  int64_t chain;  // of the logits, which are divided by small temperatures

  explicit Contrast(const Inputs& inputs, bool stores_tables = false)
      : plan(inputs, stores_tables),
        query(feature_rows<const S>(inputs.query)),
        positive(feature_rows<const S>(inputs.positive_key)),
        keys(feature_rows<const S>(inputs.keys())),
        inverse_query(inverse_norms<S>(query)),
        inverse_positive(inverse_norms<S>(positive)),
        in_batch(inputs.in_batch()),
        inverse_temperature(inputs.inverse_temperature<T>()),
        stride(round_up(query.features, kTileCols)),
        chain(std::clamp<int64_t>(query.features / 4, kChain, kGradChain)) {
    if (!in_batch) inverse_negative = inverse_norms<S>(keys);
    if (inputs.mask) mask = feature_rows<const bool>(*inputs.mask);
    if (inputs.labels) {
      labels = const_data<int64_t>(*inputs.labels);
      label_stride_b = inputs.labels->stride(0);
      label_stride = inputs.labels->stride(1);
    }
  }

  const std::vector<double>& inverse_keys() const {
    return in_batch ? inverse_positive : inverse_negative;
  }

  bool excludes(int64_t b, int64_t i, int64_t j) const {
    if (in_batch && i == j) return false;
    if (mask && mask->row(b, i)[j * mask->stride_d]) return true;
    const int64_t* entry = labels + b * label_stride_b;
    return labels && entry[i * label_stride] == entry[j * label_stride];
  }

  // Call run(round) for rounds over all queries.
  template <class F>
  void for_rounds(const F& run) const;

  // Tasks worth a thread of their own.
  int64_t grain(int64_t task_queries, int64_t task_keys) const {
    constexpr int64_t kThreadProducts = 1 << 18;
    return std::max<int64_t>(1, kThreadProducts / (1 + task_queries * task_keys * stride));
  }
};

// The queries of a round: entries [b, b + entries), rows [first, first + count), at unit length,
// and the same as columns of the tables: [groups][features][kTileCols].
template <class S>
struct Round {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  int64_t b, first, entries, count;
  int64_t width;  // count, rounded up to whole groups
  T *rows, *columns;

  Round(Workspace& workspace, const Contrast<S>& contrast, int64_t b, int64_t first,
        int64_t entries, int64_t count)
      : contrast(contrast),
        b(b),
        first(first),
        entries(entries),
        count(count),
        width(round_up(count, kTileCols)),
        rows(workspace.take<T>(entries * width * contrast.stride)),
        columns(workspace.take<T>(entries * width * contrast.query.features)) {
    const int64_t groups = width / kTileCols;
    const int64_t grain = contrast.grain(kTileCols, 16);
    torch::stable::parallel_for(0, entries * groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) pack(task / groups, task % groups);
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
    const int64_t index = (b + entry) * contrast.positive.count + first + i;
    return static_cast<T>(sum * contrast.inverse_positive[index] * contrast.inverse_temperature);
  }

  const T* entry_rows(int64_t entry) const { return rows + entry * width * contrast.stride; }
  const T* entry_columns(int64_t entry) const {
    return columns + entry * width * contrast.query.features;
  }

 private:
  void pack(int64_t entry, int64_t group) const {
    const int64_t features = contrast.query.features;
    const int64_t begin = group * kTileCols, filled = std::min(kTileCols, count - begin);
    T* target = rows + (entry * width + begin) * contrast.stride;
    pack_rows<S>(target, contrast.stride, contrast.query, contrast.inverse_query, 1, b + entry,
                 first + begin, filled);
    std::fill(target + filled * contrast.stride, target + kTileCols * contrast.stride, T(0));
    T* column = columns + (entry * width + begin) * features;
    for (int64_t d = 0; d < features; ++d) {
      for (int64_t v = 0; v < kTileCols; ++v) {
        column[d * kTileCols + v] = target[v * contrast.stride + d];
      }
    }
  }
};

template <class S>
template <class F>
void Contrast<S>::for_rounds(const F& run) const {
  for (int64_t b = 0; b < query.batch; b += plan.entries) {
    for (int64_t first = 0; first < query.count; first += plan.queries) {
      Workspace workspace;
      run(Round<S>(workspace, *this, b, first, std::min(plan.entries, query.batch - b),
                   std::min(plan.queries, query.count - first)));
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
    pack_rows<S>(keys, contrast.stride, contrast.keys, contrast.inverse_keys(),
                 contrast.inverse_temperature, round.b + entry, first, count);
    // Whole steps are read; what is beyond the last key is not used.
    std::fill(keys + count * contrast.stride,
              keys + round_up(count, kRowStep) * contrast.stride, T(0));
  }

  // The table of these keys and of the round's queries [q, q + kQueryBlock).
  LogitTable<T> table(int64_t q) {
    const int64_t width = std::min(kQueryBlock, round.width - q);
    const int64_t features = contrast.query.features;
    if (stored.memory) {
      const int64_t across = ceil_div(round.width, kQueryBlock) * kQueryBlock;
      logits = stored.memory + (first_key - first) * across + q * kKeyBlock;
    }
    if (stored.filled) return {logits, kQueryBlock, key_count, width};
    tile_kernels<T>().multiply(
        logits, {keys, contrast.stride, 1, round.entry_columns(entry) + q * features, kTileCols,
               features, contrast.chain, false, round_up(key_count, kRowStep), kQueryBlock,
               width / kTileCols, features * kTileCols});
    exclude(q, std::min(width, round.count - q));
    return {logits, kQueryBlock, key_count, width};
  }

  // The element of query `i` (of the batch entry) and its positive, if that is in the table.
  T* positive(int64_t q, int64_t i) const {
    const int64_t k = i - first_key;
    const bool inside = contrast.in_batch && k >= 0 && k < key_count;
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
