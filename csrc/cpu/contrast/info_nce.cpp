#include <numeric>

#include "contrast.h"
#include "../ops.h"

namespace clsd::cpu {

namespace {

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

// What a call saves of each query, [B, N] each, one after the other: largest logit, sum of
// exp(logit - largest), and spread (clsd_fast/reference.py).
template <class T>
struct SavedStatistics {
  T *maximum, *sum_exp, *spread;

  SavedStatistics(T* memory, int64_t rows)
      : maximum(memory), sum_exp(memory + rows), spread(memory + 2 * rows) {}
};

template <class S>
struct Forward {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  T* loss;
  SavedStatistics<T> saved;

  void operator()(const Round<S>& round, const StoredTables<T>& stored = {}) const {
    Workspace workspace;
    const int64_t entries = round.entries, count = round.count;
    const int64_t chunks = contrast.plan.chunks, size = RowStatistics<T>::size(round.width);
    T* partials = workspace.take<T>(entries * chunks * size);
    const int64_t grain = contrast.grain(count, std::min(contrast.plan.keys, contrast.keys.count));
    torch::stable::parallel_for(0, entries * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        scan(round, stored, task / chunks, task % chunks, {partials + task * size, round.width});
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
  void scan(const Round<S>& round, const StoredTables<T>& stored, int64_t entry, int64_t chunk,
            const RowStatistics<T>& statistics) const {
    statistics.clear(round.width);
    Workspace workspace;
    TableScan<S> tables(workspace, round, entry, chunk, stored);
    for (int64_t key = tables.first; key < tables.last; key += kKeyBlock) {
      tables.take_keys(key, std::min(kKeyBlock, tables.last - key));
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
    loss[row] = std::log(softmax.sum_exp) - behind;
    saved.maximum[row] = softmax.maximum;
    saved.sum_exp[row] = softmax.sum_exp;
    saved.spread[row] = softmax.weighted / softmax.sum_exp - behind;
  }
};

// Gradients of all keys [B, M, stride] in the accumulator's type: the output itself, if it can be.
template <class S>
struct KeyGradients {
  using T = Accumulator<S>;
  std::vector<T> sums;
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

template <class S>
struct Backward {
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
    const int64_t chunks = contrast.plan.chunks, size = round_up(round.width, kRowStep) * contrast.stride;
    // Per query: maximum, and the gradients of a logit, over its exponential, and of the positive's.
    T* weights = workspace.take<T>(entries * 3 * round.width);
    for (int64_t entry = 0; entry < entries; ++entry) weigh(round, entry, weights);
    T* partials = workspace.take<T>(entries * chunks * size);
    const int64_t grain = contrast.grain(count, std::min(contrast.plan.keys, contrast.keys.count));
    torch::stable::parallel_for(0, entries * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t entry = task / chunks;
        scan(round, stored, entry, task % chunks, weights + entry * 3 * round.width,
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

  void finish_keys(const FeatureRows<S>& output) const {
    const int64_t rows = contrast.keys.batch * contrast.keys.count;
    torch::stable::parallel_for(0, rows, contrast.grain(1, 4), [&](int64_t begin, int64_t end) {
      Workspace workspace;
      T* unit = workspace.take<T>(contrast.stride);
      T* grad = workspace.take<T>(contrast.stride);
      std::fill_n(grad, contrast.stride, T(0));
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / contrast.keys.count, j = row % contrast.keys.count;
        pack_rows<S>(unit, contrast.stride, contrast.keys, contrast.inverse_keys(), 1, b, j, 1);
        std::copy_n(key_grads.row(b, j), key_grads.features, grad);
        write_row_grad(output, b, j, grad, unit,
                       contrast.inverse_keys()[row] * contrast.inverse_temperature);
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
    const auto& tile = tile_kernels<T>();
    const int64_t stride = contrast.stride, panels = stride / kTileCols;
    Workspace workspace;
    TableScan<S> tables(workspace, round, entry, chunk, stored);
    T* key_sums = workspace.take<T>(kKeyBlock * stride);
    if (tables.first >= tables.last) std::fill_n(query_sums, round.width * stride, T(0));
    for (int64_t key = tables.first; key < tables.last; key += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, tables.last - key);
      tables.take_keys(key, keys);
      for (int64_t q = 0; q < round.width; q += kQueryBlock) {
        const auto table = tables.table(q);
        tile.softmax_grad(table, weights + q, weights + round.width + q);
        for (int64_t v = 0; v < std::min(table.queries, round.count - q); ++v) {
          T* own = tables.positive(q, round.first + q + v);
          if (own) *own -= weights[2 * round.width + q + v];
        }
        tile.multiply(query_sums + q * stride, {table.logits, 1, kQueryBlock, tables.keys, stride,
                                                keys, kGradChain, key > tables.first, table.queries, stride,
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
    const T query_coefficient = coefficient * static_cast<T>(contrast.inverse_temperature);
    for (int64_t d = 0; d < stride; ++d) {
      sums[d] += query_coefficient * positive[d];
      grad[d] = coefficient * unit[d];
    }
    const double inverse = contrast.inverse_positive[b * contrast.positive.count + n];
    write_row_grad(grad_positive, b, n, grad, positive, inverse * contrast.inverse_temperature);
  }
};

// -sum(grad_loss * spread) / temperature
template <class S, class T>
T temperature_grad(const Contrast<S>& contrast, const LossGradient<S>& grad_loss,
                   const T* spread) {
  double sum = 0;
  for (int64_t b = 0; b < contrast.query.batch; ++b) {
    for (int64_t i = 0; i < contrast.query.count; ++i) {
      sum += grad_loss.of(b, i) * static_cast<double>(spread[b * contrast.query.count + i]);
    }
  }
  return static_cast<T>(-sum * contrast.inverse_temperature);
}

Shape loss_shape(const Tensor& query, const std::string& reduction) {
  return reduction == "none" ? Shape{query.size(0), query.size(1)} : Shape{};
}

template <class S, class T>
void reduce(S* target, const std::vector<T>& losses, const std::string& reduction) {
  if (reduction == "none") {
    store_row(target, losses.data(), static_cast<int64_t>(losses.size()));
    return;
  }
  const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
  *target = static_cast<S>(reduction == "mean" ? sum / static_cast<double>(losses.size()) : sum);
}

void check_reduction(const char* op, const std::string& reduction) {
  check(reduction == "none" || reduction == "mean" || reduction == "sum", op,
        "reduction none, mean or sum", reduction);
}

// The gradients of the inputs that a call has: of query, positive_key, negative_keys and
// learned_temperature.
struct Gradients {
  std::vector<Tensor> all;
  bool in_batch, temperature;

  explicit Gradients(const Inputs& inputs)
      : in_batch(inputs.in_batch()), temperature(inputs.learned_temperature) {
    all.reserve(4);
    for (const Tensor* input : {&inputs.query, &inputs.positive_key}) add(*input);
    if (inputs.negative_keys) add(*inputs.negative_keys);
    if (inputs.learned_temperature) add(*inputs.learned_temperature);
  }

  // Compute them: with `run`, called with each round and with what differentiates it.
  template <class S, class Run>
  void compute(const Contrast<S>& contrast, const LossGradient<S>& grad_loss,
               const SavedStatistics<const Accumulator<S>>& saved, const Run& run) const {
    using T = Accumulator<S>;
    const auto key_output = feature_rows<S>(all[in_batch ? 1 : 2]);
    const KeyGradients<S> key_grads(key_output);
    const Backward<S> backward{contrast, key_grads,       grad_loss,
                               saved,    feature_rows<S>(all[0]), feature_rows<S>(all[1])};
    if (contrast.query.count == 0) key_grads.clear();  // no round writes them
    contrast.for_rounds([&](const Round<S>& round) { run(round, backward); });
    backward.finish_keys(key_output);
    if (temperature) {
      *data<T>(all.back()) = temperature_grad(contrast, grad_loss, saved.spread);
    }
  }

 private:
  void add(const Tensor& input) { all.push_back(empty(input, shape_of(input))); }
};

}  // namespace

std::tuple<Tensor, std::vector<Tensor>> info_nce(
    Tensor query, Tensor positive_key, std::optional<Tensor> negative_keys,
    std::optional<Tensor> mask, std::optional<Tensor> labels,
    std::optional<Tensor> learned_temperature, double temperature, std::string reduction,
    bool save_gradients) {
  const char* op = "info_nce";
  const Inputs inputs{query, positive_key, negative_keys, mask, labels, learned_temperature,
                      temperature};
  inputs.check_all(op);
  check_reduction(op, reduction);
  check(!save_gradients || reduction != "none", op, "a reduction to save gradients of", "none");
  const int64_t count = query.size(0) * query.size(1);
  Tensor loss = empty(query, loss_shape(query, reduction));
  std::optional<Gradients> grads;
  std::vector<Tensor> statistics;
  if (save_gradients) {
    grads.emplace(inputs);
  } else {
    statistics.push_back(empty_statistic(query, {3}));
  }
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    std::vector<T> losses(static_cast<size_t>(count)), scratch;
    if (grads) scratch.resize(static_cast<size_t>(3 * count));
    const SavedStatistics<T> saved(grads ? scratch.data() : data<T>(statistics[0]), count);
    const Contrast<S> contrast(inputs, save_gradients);
    const Forward<S> forward{contrast, losses.data(), saved};
    if (grads) {
      const LossGradient<S> grad_loss(nullptr, reduction, count);
      grads->compute(contrast, grad_loss, {scratch.data(), count},
                     [&](const Round<S>& round, const Backward<S>& backward) {
                       Workspace workspace;
                       const int64_t tasks = round.entries * contrast.plan.chunks;
                       StoredTables<T> stored;
                       stored.memory = workspace.take<T>(
                           tasks * StoredTables<T>::size(contrast.plan, round.width));
                       forward(round, stored);
                       stored.filled = true;
                       backward(round, stored);
                     });
    } else {
      contrast.for_rounds([&](const Round<S>& round) { forward(round); });
    }
    reduce(data<S>(loss), losses, reduction);
  });
  return {loss, grads ? std::move(grads->all) : std::move(statistics)};
}

std::vector<Tensor> info_nce_backward(
    Tensor grad_loss, Tensor statistics, Tensor query, Tensor positive_key,
    std::optional<Tensor> negative_keys, std::optional<Tensor> mask, std::optional<Tensor> labels,
    std::optional<Tensor> learned_temperature, double temperature, std::string reduction) {
  const char* op = "info_nce_backward";
  const Inputs inputs{query, positive_key, negative_keys, mask, labels, learned_temperature,
                      temperature};
  inputs.check_all(op);
  check_reduction(op, reduction);
  check_shape(op, "grad_loss", grad_loss, loss_shape(query, reduction));
  check_like(op, "grad_loss", query, grad_loss);
  check_statistic(op, "statistics", query, statistics, {3});
  Gradients grads(inputs);
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const int64_t count = query.size(0) * query.size(1);
    grads.compute(Contrast<S>(inputs), LossGradient<S>(&grad_loss, reduction, count),
                  {const_data<T>(statistics), count},
                  [](const Round<S>& round, const Backward<S>& backward) { backward(round); });
  });
  return std::move(grads.all);
}

}  // namespace clsd::cpu
