// The logits [N, M] are never stored. A round takes some hundred queries; its tasks scan one chunk of
// keys each, with a table of logits that stays in the cache. Forward keeps running statistics of each
// query, backward computes the tables again, once for both gradients.
//
// Rounds and chunks are cut by the shape alone and added up in order: no result depends on the number
// of threads.
#include <limits>

#include "ops.h"
#include "rows.h"
#include "workspace.h"

namespace clsd::cpu {

namespace {

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
    const int64_t batch = query.dim() > 0 ? query.size(0) : 0;
    check_rows(op, "query", query);
    check_rows(op, "positive_key", positive_key);
    const int64_t rows = in_batch() ? positive_key.size(1) : query.size(1);
    check(rows >= query.size(1), op, "a positive_key for each row of query",
          std::to_string(rows) + " for " + std::to_string(query.size(1)));
    check_shape(op, "positive_key", positive_key, {batch, rows, query.size(2)});
    check_like(op, "positive_key", query, positive_key);
    if (negative_keys) {
      check_rows(op, "negative_keys", *negative_keys);
      check_shape(op, "negative_keys", *negative_keys,
                  {batch, negative_keys->size(1), query.size(2)});
      check_like(op, "negative_keys", query, *negative_keys);
    }
    if (mask) {
      check_shape(op, "mask", *mask, {batch, query.size(1), keys().size(1)});
      check_dtype(op, "mask", *mask, ScalarType::Bool, "bool");
    }
    if (labels) {
      check(in_batch(), op, "no labels beside negative_keys", "both");
      check_shape(op, "labels", *labels, {batch, keys().size(1)});
      check_dtype(op, "labels", *labels, ScalarType::Long, "int64");
    }
    if (learned_temperature) {
      check_shape(op, "learned_temperature", *learned_temperature, {});
      const auto dtype = accumulator_dtype(query.scalar_type());
      check_dtype(op, "learned_temperature", *learned_temperature, dtype, dtype_name(dtype));
    } else {
      check(temperature > 0, op, "temperature > 0", std::to_string(temperature));
    }
  }

  template <class T>
  double inverse_temperature() const {
    return 1 / (learned_temperature ? *const_data<T>(*learned_temperature) : temperature);
  }

 private:
  static void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                          const std::string& expected) {
    check(tensor.scalar_type() == dtype, op, std::string(name) + " of dtype " + expected,
          dtype_name(tensor.scalar_type()));
    check(tensor.is_cpu(), op, std::string(name) + " on query's device", "another");
  }
};

// How a call is cut. Rounds cover `queries` rows of `entries` batch entries, chunks `keys` rows.
struct Plan {
  int64_t entries, queries, keys, chunks;

  Plan(const Inputs& inputs) {
    constexpr int64_t kRoundElements = 5 * kQueryBlock * 128;  // of an entry, 240 KiB of float
    constexpr int64_t kRoundBlocks = 16;  // about as many tasks; their partial sums are kept
    const int64_t stride = round_up(inputs.query.size(2), kTileCols);
    const int64_t whole = kRoundElements / stride / kQueryBlock * kQueryBlock;
    queries = std::min(std::max(whole, kQueryBlock), round_up(inputs.query.size(1), kTileCols));
    queries = std::min(queries, 5 * kQueryBlock);
    entries = std::max<int64_t>(1, 8 * kRoundElements / std::max<int64_t>(1, queries * stride));
    entries = std::min(entries, inputs.query.size(0));
    const int64_t parts = std::max<int64_t>(1, kRoundBlocks / std::max<int64_t>(1, entries));
    keys = round_up(std::max<int64_t>(1, ceil_div(inputs.keys().size(1), parts)), kKeyBlock);
    chunks = std::max<int64_t>(1, ceil_div(inputs.keys().size(1), keys));
  }
};

// 1 / norm of each row [B, N], 0 for a zero row.
template <class S>
std::vector<double> inverse_norms(const Rows<const S>& rows) {
  std::vector<double> inverse(static_cast<size_t>(rows.batch * rows.count));
  torch::stable::parallel_for(0, rows.batch * rows.count, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      inverse[i] = inverse_norm(rows.row(i / rows.count, i % rows.count), rows.features,
                                rows.stride_d);
    }
  });
  return inverse;
}

// Rows of one batch entry times scale / norm, [count][stride], with zeros up to the stride.
template <class S, class T>
void pack_rows(T* target, int64_t stride, const Rows<const S>& rows,
               const std::vector<double>& inverse, double scale, int64_t b, int64_t first,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i, target += stride) {
    const S* source = rows.row(b, first + i);
    const double factor = inverse[b * rows.count + first + i] * scale;
    const auto pack = [&](int64_t step) {
      for (int64_t d = 0; d < rows.features; ++d) {
        target[d] = static_cast<T>(static_cast<double>(source[d * step]) * factor);
      }
    };
    rows.stride_d == 1 ? pack(1) : pack(rows.stride_d);  // the former becomes vectors
    std::fill(target + rows.features, target + stride, T(0));
  }
}

// The gradient of a row from that of its unit row.
template <class S, class T>
void write_row_grad(const Rows<S>& target, int64_t b, int64_t i, const T* grad, const T* unit,
                    double inverse) {
  double along = 0;
  for (int64_t d = 0; d < target.features; ++d) {
    along += static_cast<double>(grad[d]) * static_cast<double>(unit[d]);
  }
  S* row = target.row(b, i);
  for (int64_t d = 0; d < target.features; ++d) {
    row[d * target.stride_d] =
        static_cast<S>((grad[d] - static_cast<T>(along) * unit[d]) * static_cast<T>(inverse));
  }
}

// A call's inputs as views, and what all its rounds share.
template <class S>
struct Contrast {
  using T = Accumulator<S>;
  Plan plan;
  Rows<const S> query, positive, keys;
  std::vector<double> inverse_query, inverse_positive, inverse_negative;
  bool in_batch;
  double inverse_temperature;
  std::optional<Rows<const bool>> mask;
  const int64_t* labels = nullptr;
  int64_t label_stride_b = 0, label_stride = 0;
  int64_t stride;
  int64_t chain;  // of the logits, which are divided by small temperatures

  explicit Contrast(const Inputs& inputs)
      : plan(inputs),
        query(rows<const S>(inputs.query)),
        positive(rows<const S>(inputs.positive_key)),
        keys(rows<const S>(inputs.keys())),
        inverse_query(inverse_norms<S>(query)),
        inverse_positive(inverse_norms<S>(positive)),
        in_batch(inputs.in_batch()),
        inverse_temperature(inputs.inverse_temperature<T>()),
        stride(round_up(query.features, kTileCols)),
        chain(std::clamp<int64_t>(query.features / 4, kChain, kGradChain)) {
    if (!in_batch) inverse_negative = inverse_norms<S>(keys);
    if (inputs.mask) mask = rows<const bool>(*inputs.mask);
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

  // Run round(b, first, entries, queries) over all queries.
  template <class F>
  void for_rounds(const F& round) const {
    for (int64_t b = 0; b < query.batch; b += plan.entries) {
      for (int64_t first = 0; first < query.count; first += plan.queries) {
        round(b, first, std::min(plan.entries, query.batch - b),
              std::min(plan.queries, query.count - first));
      }
    }
  }

  // Tasks worth a thread of their own.
  int64_t grain(int64_t task_queries, int64_t task_keys) const {
    constexpr int64_t kThreadProducts = 1 << 18;
    return std::max<int64_t>(1, kThreadProducts / (1 + task_queries * task_keys * stride));
  }
};

// The queries of a round: entries [b, b + entries), rows [first, first + count), at unit length
// as rows, and over the temperature as columns of the tables: [groups][features][kTileCols].
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
    const auto pack = [&](double scale) {
      pack_rows<S>(target, contrast.stride, contrast.query, contrast.inverse_query, scale,
                   b + entry, first + begin, filled);
    };
    std::fill(target + filled * contrast.stride, target + kTileCols * contrast.stride, T(0));
    pack(contrast.inverse_temperature);
    T* column = columns + (entry * width + begin) * features;
    for (int64_t d = 0; d < features; ++d) {
      for (int64_t v = 0; v < kTileCols; ++v) {
        column[d * kTileCols + v] = target[v * contrast.stride + d];
      }
    }
    pack(1);
  }
};

// Some keys of one batch entry against the queries of a round, table by table.
template <class S>
struct TableScan {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  const Round<S>& round;
  int64_t entry;
  T *keys, *logits;  // unit rows of kKeyBlock keys; a table
  int64_t first_key = 0, key_count = 0;

  TableScan(Workspace& workspace, const Round<S>& round, int64_t entry)
      : contrast(round.contrast),
        round(round),
        entry(entry),
        keys(workspace.take<T>(kKeyBlock * round.contrast.stride)),
        logits(workspace.take<T>(kKeyBlock * kQueryBlock)) {
    // Whole tiles are read; what is beyond the last key is not used.
    std::fill_n(keys, kKeyBlock * contrast.stride, T(0));
  }

  void take_keys(int64_t first, int64_t count) {
    first_key = first;
    key_count = count;
    pack_rows<S>(keys, contrast.stride, contrast.keys, contrast.inverse_keys(), 1,
                 round.b + entry, first, count);
  }

  // The table of these keys and of the round's queries [q, q + kQueryBlock).
  LogitTable<T> table(int64_t q) const {
    const int64_t width = std::min(kQueryBlock, round.width - q);
    const int64_t features = contrast.query.features;
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

// Statistics [width] of the queries of a round, and their positives' logits.
template <class T>
struct RowStatistics {
  SoftmaxStatistics<T> softmax;
  T* positive;

  RowStatistics(T* memory, int64_t width)
      : softmax{memory, memory + width, memory + 2 * width}, positive(memory + 3 * width) {}
  static int64_t size(int64_t width) { return 4 * width; }

  void clear(int64_t width) const {
    std::fill_n(softmax.maximum, width, -std::numeric_limits<T>::infinity());
    std::fill_n(softmax.sum_exp, 3 * width, T(0));
  }
};

// One query's statistics, joined from those of the chunks.
template <class T>
struct Softmax {
  T maximum = -std::numeric_limits<T>::infinity(), sum_exp = 0, weighted = 0;

  void add(T other_maximum, T other_sum, T other_weighted) {
    const T largest = other_maximum > maximum ? other_maximum : maximum;
    rescale(maximum - largest, sum_exp, weighted);
    rescale(other_maximum - largest, other_sum, other_weighted);
    maximum = largest;
    sum_exp += other_sum;
    weighted += other_weighted;
  }

 private:
  static void rescale(T moved, T& sum, T& weighted) {
    if (!(sum != 0)) return;  // nothing there, and moved may be inf - inf
    const T kept = std::exp(moved);
    weighted = (weighted + sum * moved) * kept;
    sum *= kept;
  }
};

template <class S>
struct Forward {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  S* loss;
  T *maximum, *sum_exp, *spread;

  void operator()(int64_t b, int64_t first, int64_t entries, int64_t count) const {
    Workspace workspace;
    const Round<S> round(workspace, contrast, b, first, entries, count);
    const int64_t chunks = contrast.plan.chunks, size = RowStatistics<T>::size(round.width);
    T* partials = workspace.take<T>(entries * chunks * size);
    const int64_t grain = contrast.grain(count, std::min(contrast.plan.keys, contrast.keys.count));
    torch::stable::parallel_for(0, entries * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        scan(round, task / chunks, task % chunks, {partials + task * size, round.width});
      }
    });
    const int64_t row_grain = contrast.grain(1, 4 * chunks);
    torch::stable::parallel_for(0, entries * count, row_grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        finish(round, task / count, task % count, partials + task / count * chunks * size);
      }
    });
  }

 private:
  void scan(const Round<S>& round, int64_t entry, int64_t chunk,
            const RowStatistics<T>& statistics) const {
    statistics.clear(round.width);
    Workspace workspace;
    TableScan<S> tables(workspace, round, entry);
    const int64_t end = std::min((chunk + 1) * contrast.plan.keys, contrast.keys.count);
    for (int64_t key = chunk * contrast.plan.keys; key < end; key += kKeyBlock) {
      tables.take_keys(key, std::min(kKeyBlock, end - key));
      for (int64_t q = 0; q < round.width; q += kQueryBlock) {
        const auto table = tables.table(q);
        const auto& all = statistics.softmax;
        tile_kernels<T>().softmax_scan({all.maximum + q, all.sum_exp + q, all.weighted + q},
                                       table);
        for (int64_t v = 0; v < std::min(table.queries, round.count - q); ++v) {
          const T* own = tables.positive(q, round.first + q + v);
          if (own) statistics.positive[q + v] = *own;
        }
      }
    }
  }

  void finish(const Round<S>& round, int64_t entry, int64_t i, T* partials) const {
    Softmax<T> softmax;
    T positive = 0;
    if (!contrast.in_batch) {
      positive = round.positive_logit(entry, i);
      softmax.add(positive, 1, 0);
    }
    for (int64_t chunk = 0; chunk < contrast.plan.chunks; ++chunk) {
      const RowStatistics<T> part(partials + chunk * RowStatistics<T>::size(round.width),
                                  round.width);
      softmax.add(part.softmax.maximum[i], part.softmax.sum_exp[i], part.softmax.weighted[i]);
      if (contrast.in_batch) positive += part.positive[i];
    }
    const int64_t row = (round.b + entry) * contrast.query.count + round.first + i;
    const T behind = positive - softmax.maximum;
    // Not log-sum-exp minus the positive's logit: both can be 1e4, and their difference 0.
    loss[row] = static_cast<S>(std::log(softmax.sum_exp) - behind);
    maximum[row] = softmax.maximum;
    sum_exp[row] = softmax.sum_exp;
    spread[row] = softmax.weighted / softmax.sum_exp - behind;
  }
};

// Gradients of all keys [B, M, stride] in the accumulator's type: the output itself, if it can be.
template <class S>
struct KeyGradients {
  using T = Accumulator<S>;
  std::vector<T> sums;
  T* values;
  int64_t count, features;

  explicit KeyGradients(const Rows<S>& output) : count(output.count), features(output.features) {
    if constexpr (std::is_same_v<S, T>) {
      values = output.data;
    } else {
      sums.resize(static_cast<size_t>(output.batch * count * features));
      values = sums.data();
    }
  }

  T* row(int64_t b, int64_t j) const { return values + (b * count + j) * features; }
};

template <class S>
struct Backward {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  const KeyGradients<S>& key_grads;
  Rows<const S> grad_loss;  // [1, B, N]
  const T *maximum, *sum_exp;
  Rows<S> grad_query, grad_positive;  // the latter without negatives: the keys'

  // One round: its queries' gradients whole, and its share of the keys'.
  void operator()(int64_t b, int64_t first, int64_t entries, int64_t count) const {
    Workspace workspace;
    const Round<S> round(workspace, contrast, b, first, entries, count);
    const int64_t chunks = contrast.plan.chunks, size = round_up(round.width, kRowStep) * contrast.stride;
    // Per query: maximum, and the gradient of the logit over the softmax and of the positive's.
    T* weights = workspace.take<T>(entries * 3 * round.width);
    for (int64_t entry = 0; entry < entries; ++entry) weigh(round, entry, weights);
    T* partials = workspace.take<T>(entries * chunks * size);
    const int64_t grain = contrast.grain(count, std::min(contrast.plan.keys, contrast.keys.count));
    torch::stable::parallel_for(0, entries * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t entry = task / chunks;
        scan(round, entry, task % chunks, weights + entry * 3 * round.width,
             partials + task * size);
      }
    });
    const int64_t row_grain = contrast.grain(1, 4 * chunks);
    torch::stable::parallel_for(0, entries * count, row_grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t entry = task / count;
        finish_query(round, entry, task % count, weights + entry * 3 * round.width,
                     partials + entry * chunks * size, size);
      }
    });
  }

  void finish_keys(const Rows<S>& output) const {
    const int64_t rows = contrast.keys.batch * contrast.keys.count;
    torch::stable::parallel_for(0, rows, contrast.grain(1, 4), [&](int64_t begin, int64_t end) {
      Workspace workspace;
      T* unit = workspace.take<T>(contrast.stride);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / contrast.keys.count, j = row % contrast.keys.count;
        pack_rows<S>(unit, contrast.stride, contrast.keys, contrast.inverse_keys(), 1, b, j, 1);
        write_row_grad(output, b, j, key_grads.row(b, j), unit, contrast.inverse_keys()[row]);
      }
    });
  }

 private:
  void weigh(const Round<S>& round, int64_t entry, T* all) const {
    T* weights = all + entry * 3 * round.width;
    std::fill_n(weights, 3 * round.width, T(0));
    for (int64_t i = 0; i < round.count; ++i) {
      const int64_t n = round.first + i, row = (round.b + entry) * contrast.query.count + n;
      const T grad = static_cast<T>(
          static_cast<double>(grad_loss.row(0, round.b + entry)[n * grad_loss.stride_d]) *
          contrast.inverse_temperature);
      weights[i] = maximum[row];
      weights[round.width + i] = grad / sum_exp[row];
      weights[2 * round.width + i] = grad;
    }
  }

  void scan(const Round<S>& round, int64_t entry, int64_t chunk, const T* weights,
            T* query_sums) const {
    const auto& tile = tile_kernels<T>();
    const int64_t stride = contrast.stride, panels = stride / kTileCols;
    Workspace workspace;
    TableScan<S> tables(workspace, round, entry);
    T* key_sums = workspace.take<T>(kKeyBlock * stride);
    const int64_t begin = chunk * contrast.plan.keys;
    const int64_t end = std::min(begin + contrast.plan.keys, contrast.keys.count);
    if (begin >= end) std::fill_n(query_sums, round.width * stride, T(0));
    for (int64_t key = begin; key < end; key += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, end - key);
      tables.take_keys(key, keys);
      for (int64_t q = 0; q < round.width; q += kQueryBlock) {
        const auto table = tables.table(q);
        tile.softmax_grad(table, weights + q, weights + round.width + q);
        for (int64_t v = 0; v < std::min(table.queries, round.count - q); ++v) {
          T* own = tables.positive(q, round.first + q + v);
          if (own) *own -= weights[2 * round.width + q + v];
        }
        tile.multiply(query_sums + q * stride, {table.logits, 1, kQueryBlock, tables.keys, stride,
                                                keys, kGradChain, key > begin, table.queries, stride,
                                                panels, kTileCols});
        tile.multiply(key_sums, {table.logits, kQueryBlock, 1,
                                 round.entry_rows(entry) + q * stride, stride, table.queries,
                                 kGradChain, q > 0, round_up(keys, kRowStep), stride, panels,
                                 kTileCols});
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
      const T* part = sums + chunk * size;
      for (int64_t d = 0; d < stride; ++d) sums[d] += part[d];
    }
    const T* unit = round.entry_rows(entry) + i * stride;
    if (!contrast.in_batch) add_positive(round, entry, i, weights, sums, unit);
    write_row_grad(grad_query, b, n, sums, unit,
                   contrast.inverse_query[b * contrast.query.count + n]);
  }

  // Of given negatives: the positive's share of a query's gradient, and the positive's own.
  void add_positive(const Round<S>& round, int64_t entry, int64_t i, const T* weights, T* sums,
                    const T* unit) const {
    const int64_t stride = contrast.stride, b = round.b + entry, n = round.first + i;
    Workspace workspace;
    T* positive = workspace.take<T>(stride);
    T* grad = workspace.take<T>(stride);
    pack_rows<S>(positive, stride, contrast.positive, contrast.inverse_positive, 1, b, n, 1);
    const T share = weights[round.width + i] * std::exp(round.positive_logit(entry, i) - weights[i]);
    const T coefficient = share - weights[2 * round.width + i];
    for (int64_t d = 0; d < stride; ++d) {
      sums[d] += coefficient * positive[d];
      grad[d] = coefficient * unit[d];
    }
    write_row_grad(grad_positive, b, n, grad, positive,
                   contrast.inverse_positive[b * contrast.positive.count + n]);
  }
};

// -sum(grad_loss * spread) / temperature
template <class T, class S>
void write_temperature_grad(T* target, const Rows<const S>& grad_loss, const T* spread,
                            double inverse_temperature) {
  double sum = 0;
  for (int64_t b = 0; b < grad_loss.count; ++b) {
    for (int64_t i = 0; i < grad_loss.features; ++i) {
      sum += static_cast<double>(grad_loss.row(0, b)[i * grad_loss.stride_d]) *
             static_cast<double>(spread[b * grad_loss.features + i]);
    }
  }
  *target = static_cast<T>(-sum * inverse_temperature);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce(
    Tensor query, Tensor positive_key, std::optional<Tensor> negative_keys,
    std::optional<Tensor> mask, std::optional<Tensor> labels,
    std::optional<Tensor> learned_temperature, double temperature) {
  const Inputs inputs{query, positive_key, negative_keys, mask, labels, learned_temperature,
                      temperature};
  inputs.check_all("info_nce");
  Tensor loss = empty(query, {query.size(0), query.size(1)});
  Tensor maximum = empty_statistic(query), sum_exp = empty_statistic(query);
  Tensor spread = empty_statistic(query);
  dispatch("info_nce", query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const Contrast<S> contrast(inputs);
    contrast.for_rounds(Forward<S>{contrast, data<S>(loss), data<T>(maximum), data<T>(sum_exp),
                                   data<T>(spread)});
  });
  return {loss, maximum, sum_exp, spread};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    Tensor grad_loss, Tensor maximum, Tensor sum_exp, Tensor spread, Tensor query,
    Tensor positive_key, std::optional<Tensor> negative_keys, std::optional<Tensor> mask,
    std::optional<Tensor> labels, std::optional<Tensor> learned_temperature, double temperature) {
  const char* op = "info_nce_backward";
  const Inputs inputs{query, positive_key, negative_keys, mask, labels, learned_temperature,
                      temperature};
  inputs.check_all(op);
  check_shape(op, "grad_loss", grad_loss, {query.size(0), query.size(1)});
  check_like(op, "grad_loss", query, grad_loss);
  check_statistic(op, "maximum", query, maximum);
  check_statistic(op, "sum_exp", query, sum_exp);
  check_statistic(op, "spread", query, spread);
  Tensor grad_query = empty(query, shape_of(query));
  Tensor grad_positive = empty(query, shape_of(positive_key));
  Tensor grad_negatives = negative_keys ? empty(query, shape_of(*negative_keys)) : absent(query);
  Tensor grad_temperature =
      learned_temperature ? empty(*learned_temperature, {}) : absent(query);
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const Contrast<S> contrast(inputs);
    const Rows<const S> grads{const_data<S>(grad_loss), 1, grad_loss.size(0), grad_loss.size(1), 0,
                              grad_loss.stride(0), grad_loss.stride(1)};
    const auto key_output = rows<S>(negative_keys ? grad_negatives : grad_positive);
    const KeyGradients<S> key_grads(key_output);
    const Backward<S> backward{contrast,
                               key_grads,
                               grads,
                               const_data<T>(maximum),
                               const_data<T>(sum_exp),
                               rows<S>(grad_query),
                               rows<S>(grad_positive)};
    if (query.size(1) == 0 && key_output.count > 0) {  // no round writes the keys' gradients
      std::fill_n(key_grads.values, key_output.batch * key_output.count * key_output.features, T(0));
    }
    contrast.for_rounds(backward);
    backward.finish_keys(key_output);
    if (learned_temperature) {
      write_temperature_grad(data<T>(grad_temperature), grads, const_data<T>(spread),
                             contrast.inverse_temperature);
    }
  });
  return {grad_query, grad_positive, grad_negatives, grad_temperature};
}

}  // namespace clsd::cpu
