#include "ops.h"
#include "rows.h"

namespace clsd::cpu {

namespace {

void check_pair(const char* op, const Tensor& query, const Tensor& key,
                const std::string& metric) {
  check(metric == "cosine" || metric == "dot" || metric == "l1", op, "metric cosine, dot or l1",
        metric);
  check_rows(op, "query", query);
  check_shape(op, "key", key,
              {query.size(0), key.dim() > 1 ? key.size(1) : 0, query.size(2)});
  check_like(op, "key", query, key);
}

// table[i, j] = queries[i] . keys[j]
template <class S>
void write_products(const PackedMatrix<Accumulator<S>>& queries,
                    const PackedMatrix<Accumulator<S>>& keys, S* table) {
  using T = Accumulator<S>;
  const auto& tile = tile_kernels<T>();
  const auto columns = transpose_tiles(keys);
  const int64_t blocks = ceil_div(queries.count, kTileRows);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kTileRows; i < std::min(end * kTileRows, queries.count);
         i += kTileRows) {
      const int64_t rows = std::min(kTileRows, queries.count - i);
      for (int64_t j = 0; j < keys.count; j += kTileCols) {
        T sums[kTileSize];
        tile.multiply(sums, {queries.row(i), queries.stride, 1,
                             columns.data() + j * keys.features, kTileCols, keys.features,
                             kChain, false});
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t v = 0; v < std::min(kTileCols, keys.count - j); ++v) {
            table[(i + r) * keys.count + j + v] = static_cast<S>(sums[r * kTileCols + v]);
          }
        }
      }
    }
  });
}

// A tile of grad [N, M] (or of its transpose), zero outside.
template <class S>
void read_tile(const Rows<const S>& grad, int64_t b, bool transposed, int64_t i, int64_t j,
               Accumulator<S>* tile) {
  const int64_t rows = transposed ? grad.features : grad.count;
  const int64_t columns = transposed ? grad.count : grad.features;
  const int64_t row_stride = transposed ? grad.stride_d : grad.stride_n;
  const int64_t column_stride = transposed ? grad.stride_n : grad.stride_d;
  const S* source = grad.row(b, 0);
  std::fill(tile, tile + kTileSize, Accumulator<S>(0));
  for (int64_t r = 0; r < std::min(kTileRows, rows - i); ++r) {
    for (int64_t v = 0; v < std::min(kTileCols, columns - j); ++v) {
      tile[r * kTileCols + v] = static_cast<Accumulator<S>>(
          source[(i + r) * row_stride + (j + v) * column_stride]);
    }
  }
}

}  // namespace

Tensor pairwise_similarity(Tensor query, Tensor key, std::string metric) {
  const char* op = "pairwise_similarity";
  check_pair(op, query, key, metric);
  Tensor output = empty(query, {query.size(0), query.size(1), key.size(1)});
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const auto queries = rows<const S>(query), keys = rows<const S>(key);
    for (int64_t b = 0; b < queries.batch; ++b) {
      S* table = data<S>(output) + b * queries.count * keys.count;
      if (metric == "l1") {
        const auto distances = l1_table<S>(queries, keys, b);
        for (size_t i = 0; i < distances.size(); ++i) table[i] = static_cast<S>(distances[i]);
      } else {
        const bool normalize = metric == "cosine";
        write_products<S>(pack_rows<S>(queries, b, normalize), pack_rows<S>(keys, b, normalize),
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
    using T = Accumulator<S>;
    const auto queries = rows<const S>(query), keys = rows<const S>(key);
    const auto grad = rows<const S>(grad_output);
    for (int64_t b = 0; b < queries.batch; ++b) {
      if (metric == "l1") {
        std::vector<double> table(static_cast<size_t>(queries.count * keys.count));
        for (int64_t i = 0; i < queries.count; ++i) {
          for (int64_t j = 0; j < keys.count; ++j) {
            table[i * keys.count + j] = static_cast<double>(grad.row(b, i)[j * grad.stride_d]);
          }
        }
        l1_table_backward<S>(table, queries, keys, b, rows<S>(grad_query), rows<S>(grad_key));
        continue;
      }
      const bool normalize = metric == "cosine";
      const auto q = pack_rows<S>(queries, b, normalize), k = pack_rows<S>(keys, b, normalize);
      RowGradient<S>{q, k}.write(rows<S>(grad_query), b, [&](int64_t i, int64_t j, T* tile) {
        read_tile(grad, b, false, i, j, tile);
      });
      RowGradient<S>{k, q}.write(rows<S>(grad_key), b, [&](int64_t i, int64_t j, T* tile) {
        read_tile(grad, b, true, i, j, tile);
      });
    }
  });
  return {grad_query, grad_key};
}

}  // namespace clsd::cpu
