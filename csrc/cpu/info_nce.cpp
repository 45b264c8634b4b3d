// The logits [N, M] are never stored: forward keeps a running maximum and sum of each row,
// backward computes the tiles again.
#include <limits>

#include "ops.h"
#include "rows.h"

namespace clsd::cpu {

namespace {

void check_contrast(const char* op, const Tensor& query, const Tensor& positive_key,
                    const std::optional<Tensor>& negative_keys, double temperature) {
  check(temperature > 0, op, "temperature > 0", std::to_string(temperature));
  check_rows(op, "query", query);
  check_shape(op, "positive_key", positive_key, shape_of(query));
  check_like(op, "positive_key", query, positive_key);
  if (negative_keys) {
    check_rows(op, "negative_keys", *negative_keys);
    check_shape(op, "negative_keys", *negative_keys,
                {query.size(0), negative_keys->size(1), query.size(2)});
    check_like(op, "negative_keys", query, *negative_keys);
  }
}

// One batch entry: unit rows, and the keys that rows are contrasted with. Without given negatives
// those are the positives themselves, row i's own among them.
template <class S>
struct Contrast {
  using T = Accumulator<S>;
  T inverse_temperature;
  PackedMatrix<T> query, positive, negative;
  bool in_batch;

  Contrast(const Tensor& query_rows, const Tensor& positive_rows,
           const std::optional<Tensor>& negative_rows, double temperature, int64_t b)
      : inverse_temperature(static_cast<T>(1 / temperature)),
        query(pack_rows<S>(rows<const S>(query_rows), b, true)),
        positive(pack_rows<S>(rows<const S>(positive_rows), b, true)),
        in_batch(!negative_rows) {
    if (negative_rows) negative = pack_rows<S>(rows<const S>(*negative_rows), b, true);
  }

  const PackedMatrix<T>& keys() const { return in_batch ? positive : negative; }

  T positive_logit(int64_t i) const {
    double sum = 0;
    for (int64_t d = 0; d < query.features; ++d) {
      sum += static_cast<double>(query.row(i)[d]) * static_cast<double>(positive.row(i)[d]);
    }
    return static_cast<T>(sum) * inverse_temperature;
  }

  // Logits of left[i ...] against the rows whose transposed tiles are `columns`.
  void logits(const PackedMatrix<T>& left, const std::vector<T>& columns, int64_t i, int64_t j,
              T* tile) const {
    tile_kernels<T>().multiply(tile, {left.row(i), left.stride, 1,
                                      columns.data() + j * left.features, kTileCols,
                                      left.features, kChain, false});
    for (int64_t e = 0; e < kTileSize; ++e) tile[e] *= inverse_temperature;
  }
};

// Maximum, sum of exp(logit - maximum), and the positive's logit of a row, while it is scanned.
template <class T>
struct RunningSoftmax {
  T maximum = -std::numeric_limits<T>::infinity();
  T sum = 0;
  T positive = 0;

  void add(const T* logits, int64_t count) {
    T largest = maximum;
    // A NaN wins, so that it reaches the loss.
    for (int64_t v = 0; v < count; ++v) largest = logits[v] <= largest ? largest : logits[v];
    if (sum > 0) sum *= std::exp(maximum - largest);
    maximum = largest;
    for (int64_t v = 0; v < count; ++v) sum += std::exp(logits[v] - maximum);
  }

  // Not log-sum-exp minus the positive's logit: both can be 1e4, and their difference 0.
  T loss() const { return std::log(sum) - (positive - maximum); }
};

template <class S>
void scan_rows(const Contrast<S>& contrast, const std::vector<Accumulator<S>>& columns,
               int64_t first, RunningSoftmax<Accumulator<S>>* softmax) {
  using T = Accumulator<S>;
  const int64_t rows = std::min(kTileRows, contrast.query.count - first);
  const int64_t keys = contrast.keys().count;
  if (!contrast.in_batch) {
    for (int64_t r = 0; r < rows; ++r) {
      softmax[r].positive = contrast.positive_logit(first + r);
      softmax[r].add(&softmax[r].positive, 1);
    }
  }
  for (int64_t j = 0; j < keys; j += kTileCols) {
    T tile[kTileSize];
    contrast.logits(contrast.query, columns, first, j, tile);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t own = first + r - j;
      const T* logits = tile + r * kTileCols;
      if (contrast.in_batch && own >= 0 && own < kTileCols) softmax[r].positive = logits[own];
      softmax[r].add(logits, std::min(kTileCols, keys - j));
    }
  }
}

template <class S>
void forward(const Contrast<S>& contrast, S* loss, Accumulator<S>* maximum,
             Accumulator<S>* sum_exp) {
  const auto columns = transpose_tiles(contrast.keys());
  const int64_t count = contrast.query.count;
  torch::stable::parallel_for(0, ceil_div(count, kTileRows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kTileRows; first < std::min(end * kTileRows, count);
         first += kTileRows) {
      RunningSoftmax<Accumulator<S>> softmax[kTileRows];
      scan_rows(contrast, columns, first, softmax);
      for (int64_t i = first; i < std::min(first + kTileRows, count); ++i) {
        const auto& row = softmax[i - first];
        loss[i] = static_cast<S>(row.loss());
        maximum[i] = row.maximum;
        sum_exp[i] = row.sum;
      }
    }
  });
}

// Gradients of one batch entry. `weight[i]` is the gradient of row i's loss over the temperature.
template <class S>
struct Backward {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  const T* maximum;
  const T* sum_exp;
  std::vector<T> weight;

  // Gradient of query i's logit, times the temperature.
  T coefficient(T logit, int64_t i, bool is_positive) const {
    return weight[i] * (std::exp(logit - maximum[i]) / sum_exp[i] - (is_positive ? 1 : 0));
  }

  // Tile (i, j) of the gradient of the logits, with queries as rows or, transposed, as columns.
  template <bool kTransposed>
  void tile(const std::vector<T>& columns, int64_t i, int64_t j, T* values) const {
    const auto& left = kTransposed ? contrast.keys() : contrast.query;
    const auto& right = kTransposed ? contrast.query : contrast.keys();
    contrast.logits(left, columns, i, j, values);
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t v = 0; v < kTileCols; ++v) {
        T& value = values[r * kTileCols + v];
        const bool inside = i + r < left.count && j + v < right.count;
        const int64_t query = kTransposed ? j + v : i + r;
        const bool is_positive = contrast.in_batch && i + r == j + v;
        value = inside ? coefficient(value, query, is_positive) : T(0);
      }
    }
  }

  void write(const Rows<S>& grad_query, const Rows<S>& grad_positive,
             const std::optional<Rows<S>>& grad_negative, int64_t b) const {
    const auto key_columns = transpose_tiles(contrast.keys());
    const auto query_columns = transpose_tiles(contrast.query);
    const auto by_query = [&](int64_t i, int64_t j, T* values) {
      tile<false>(key_columns, i, j, values);
    };
    const auto by_key = [&](int64_t i, int64_t j, T* values) {
      tile<true>(query_columns, i, j, values);
    };
    const auto& keys = contrast.keys();
    if (contrast.in_batch) {
      RowGradient<S>{contrast.query, &keys}.write(grad_query, b, by_query);
      RowGradient<S>{keys, &contrast.query}.write(grad_positive, b, by_key);
      return;
    }
    std::vector<T> own(weight.size());
    for (size_t i = 0; i < own.size(); ++i) {
      own[i] = coefficient(contrast.positive_logit(i), i, true);
    }
    RowGradient<S>{contrast.query, &keys, &contrast.positive, own.data()}.write(grad_query, b,
                                                                                by_query);
    RowGradient<S>{contrast.positive, nullptr, &contrast.query, own.data()}.write(grad_positive,
                                                                                  b, by_query);
    RowGradient<S>{keys, &contrast.query}.write(*grad_negative, b, by_key);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> info_nce(Tensor query, Tensor positive_key,
                                            std::optional<Tensor> negative_keys,
                                            double temperature) {
  const char* op = "info_nce";
  check_contrast(op, query, positive_key, negative_keys, temperature);
  Tensor loss = empty(query, {query.size(0), query.size(1)});
  Tensor maximum = empty_statistic(query), sum_exp = empty_statistic(query);
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    for (int64_t b = 0; b < query.size(0); ++b) {
      const int64_t offset = b * query.size(1);
      forward(Contrast<S>(query, positive_key, negative_keys, temperature, b),
              data<S>(loss) + offset, data<T>(maximum) + offset, data<T>(sum_exp) + offset);
    }
  });
  return {loss, maximum, sum_exp};
}

std::tuple<Tensor, Tensor, Tensor> info_nce_backward(Tensor grad_loss, Tensor maximum,
                                                     Tensor sum_exp, Tensor query,
                                                     Tensor positive_key,
                                                     std::optional<Tensor> negative_keys,
                                                     double temperature) {
  const char* op = "info_nce_backward";
  check_contrast(op, query, positive_key, negative_keys, temperature);
  check_shape(op, "grad_loss", grad_loss, {query.size(0), query.size(1)});
  check_like(op, "grad_loss", query, grad_loss);
  check_statistic(op, "maximum", query, maximum);
  check_statistic(op, "sum_exp", query, sum_exp);
  Tensor grad_query = empty(query, shape_of(query));
  Tensor grad_positive = empty(query, shape_of(query));
  Tensor grad_negative = negative_keys ? empty(query, shape_of(*negative_keys)) : absent(query);
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    for (int64_t b = 0; b < query.size(0); ++b) {
      const Contrast<S> contrast(query, positive_key, negative_keys, temperature, b);
      const int64_t offset = b * query.size(1);
      Backward<S> backward{contrast, const_data<T>(maximum) + offset,
                           const_data<T>(sum_exp) + offset, {}};
      for (int64_t i = 0; i < query.size(1); ++i) {
        const S* grad = const_data<S>(grad_loss) + b * grad_loss.stride(0);
        backward.weight.push_back(static_cast<T>(grad[i * grad_loss.stride(1)]) *
                                  contrast.inverse_temperature);
      }
      std::optional<Rows<S>> negative_rows;
      if (negative_keys) negative_rows = rows<S>(grad_negative);
      backward.write(rows<S>(grad_query), rows<S>(grad_positive), negative_rows, b);
    }
  });
  return {grad_query, grad_positive, grad_negative};
}

}  // namespace clsd::cpu
