#include <utility>

#include "../ops.h"
#include "distances.h"

namespace clsd::cpu {

namespace {

void check_pair(const char* op, const Tensor& query, const Tensor& key, const std::string& metric) {
  check(metric == "cosine" || metric == "dot" || metric == "l1", op, "metric cosine, dot or l1",
        metric);
  check_rows(op, "query", query);
  check_shape(op, "key", key, {query.size(0), key.dim() > 1 ? key.size(1) : 0, query.size(2)});
  check_like(op, "key", query, key);
}

// A block of a product: whole tiles on both sides, so that a's rows are read from the cache.
constexpr int64_t kBlockRows = 5 * kTileRows;
constexpr int64_t kBlockColumns = 6 * kTileCols;

// table[i, j] = queries[i] . keys[j]
template <class S>
void write_products(const PackedMatrix<Accumulator<S>>& queries,
                    const PackedMatrix<Accumulator<S>>& keys, S* table) {
  using T = Accumulator<S>;
  const auto& kernels = tile_kernels<T>();
  const auto panels = transpose_panels(keys);
  const int64_t blocks = ceil_div(queries.count, kBlockRows);
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    T* sums = workspace.take<T>(kBlockRows * kBlockColumns);
    for (int64_t i = begin * kBlockRows; i < std::min(end * kBlockRows, queries.count);
         i += kBlockRows) {
      const int64_t rows = std::min(kBlockRows, queries.count - i);
      for (int64_t j = 0; j < keys.count; j += kBlockColumns) {
        const int64_t width = std::min(kBlockColumns, keys.count - j);
        kernels.multiply(sums, {.a = queries.row(i),
                                .a_row = queries.stride,
                                .a_step = 1,
                                .b = panels.data() + j * keys.features,
                                .b_step = kTileCols,
                                .steps = keys.features,
                                .chain = kChain,
                                .add = false,
                                .rows = round_up(rows, kRowStep),
                                .acc_row = kBlockColumns,
                                .panels = ceil_div(width, kTileCols),
                                .b_panel = keys.features * kTileCols});
        for (int64_t r = 0; r < rows; ++r) {
          store_row(table + (i + r) * keys.count + j, sums + r * kBlockColumns, width);
        }
      }
    }
  });
}

// Gradients of `rows` given those of their products with `others`:
//   sum over j of grad[i, j] * others[j],
// taken back through the normalisation if the rows are normalized. Each block of rows belongs to
// one task: nothing is shared, and the sum has one order.
template <class S>
struct RowGradient {
  using T = Accumulator<S>;
  static constexpr int64_t kSteps = 256;
  const PackedMatrix<T>& rows;
  const PackedMatrix<T>& others;
  FeatureRows<const S> grad;
  bool transposed;  // grad is [others, rows]
  const TileKernels<T>& kernels = tile_kernels<T>();

  void write(const FeatureRows<S>& target, int64_t b) const {
    const int64_t blocks = ceil_div(rows.count, kBlockRows);
    parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      Workspace workspace;
      T* sums = workspace.take<T>(kBlockRows * rows.stride);
      T* coefficients = workspace.take<T>(kBlockRows * kSteps);
      for (int64_t block = begin; block < end; ++block) {
        write_block(target, b, block * kBlockRows, sums, coefficients);
      }
    });
  }

 private:
  void write_block(const FeatureRows<S>& target, int64_t b, int64_t i, T* sums,
                   T* coefficients) const {
    const int64_t count = std::min(kBlockRows, rows.count - i);
    if (others.count == 0) std::fill_n(sums, count * rows.stride, T(0));
    for (int64_t j = 0; j < others.count; j += kSteps) {
      const int64_t steps = std::min(kSteps, others.count - j);
      const auto [row, step] = load(coefficients, b, i, count, j, steps);
      kernels.multiply(sums, {.a = coefficients,
                              .a_row = row,
                              .a_step = step,
                              .b = others.row(j),
                              .b_step = others.stride,
                              .steps = steps,
                              .chain = kGradChain,
                              .add = j > 0,
                              .rows = round_up(count, kRowStep),
                              .acc_row = rows.stride,
                              .panels = rows.stride / kTileCols,
                              .b_panel = kTileCols});
    }
    for (int64_t r = 0; r < count; ++r) {
      T* sum = sums + r * rows.stride;
      if (!rows.inverse.empty()) {
        kernels.normalize_grad(sum, rows.row(i + r), rows.inverse[i + r], rows.stride);
      }
      store_row(target.row(b, i + r), sum, rows.features);
    }
  }

  // The block of grad for `count` rows and `steps` others, and its strides between them.
  std::pair<int64_t, int64_t> load(T* coefficients, int64_t b, int64_t i, int64_t count, int64_t j,
                                   int64_t steps) const {
    std::fill_n(coefficients, kBlockRows * kSteps, T(0));  // whole steps of rows are read
    if (transposed) {
      copy_features(coefficients, kBlockRows, grad, b, j, steps, i, count);
      return {1, kBlockRows};
    }
    copy_features(coefficients, kSteps, grad, b, i, count, j, steps);
    return {kSteps, 1};
  }
};

}  // namespace

Tensor pairwise_similarity(Tensor query, Tensor key, std::string metric) {
  const char* op = "pairwise_similarity";
  check_pair(op, query, key, metric);
  Tensor output = empty(query, {query.size(0), query.size(1), key.size(1)});
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto queries = feature_rows<const S>(query), keys = feature_rows<const S>(key);
    for (int64_t b = 0; b < queries.batch; ++b) {
      S* table = data<S>(output) + b * queries.count * keys.count;
      if (metric == "l1") {
        DistanceTable<S>(queries, keys, b).compute([&](int64_t i, int64_t j, double distance) {
          table[i * keys.count + j] = static_cast<S>(distance);
        });
      } else {
        const bool normalize = metric == "cosine";
        write_products<S>(pack_matrix<S>(queries, b, normalize), pack_matrix<S>(keys, b, normalize),
                          table);
      }
    }
  });
  return output;
}

std::tuple<Tensor, Tensor> pairwise_similarity_backward(Tensor grad_output, Tensor query,
                                                        Tensor key, std::string metric) {
  const char* op = "pairwise_similarity_backward";
  check_pair(op, query, key, metric);
  check_shape(op, "grad_output", grad_output, {query.size(0), query.size(1), key.size(1)});
  check_like(op, "grad_output", query, grad_output);
  Tensor grad_query = empty(query, shape_of(query));
  Tensor grad_key = empty(key, shape_of(key));
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto queries = feature_rows<const S>(query), keys = feature_rows<const S>(key);
    const auto grad = feature_rows<const S>(grad_output);
    for (int64_t b = 0; b < queries.batch; ++b) {
      if (metric == "l1") {
        LargeVector<double> table(static_cast<size_t>(queries.count * keys.count));
        copy_features(table.data(), keys.count, grad, b, 0, queries.count, 0, keys.count);
        distance_table_backward<S>(table, queries, keys, b, feature_rows<S>(grad_query),
                                   feature_rows<S>(grad_key));
        continue;
      }
      const bool normalize = metric == "cosine";
      const auto q = pack_matrix<S>(queries, b, normalize), k = pack_matrix<S>(keys, b, normalize);
      RowGradient<S>{.rows = q, .others = k, .grad = grad, .transposed = false}.write(
          feature_rows<S>(grad_query), b);
      RowGradient<S>{.rows = k, .others = q, .grad = grad, .transposed = true}.write(
          feature_rows<S>(grad_key), b);
    }
  });
  return {grad_query, grad_key};
}

}  // namespace clsd::cpu
