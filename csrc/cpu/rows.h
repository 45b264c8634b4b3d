// Products of rows on register tiles: tables of similarities, and the gradients that flow back
// through them to the rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "../tensor_util.h"
#include "tile.h"

namespace clsd::cpu {

// Steps of one summation chain (tile.h): similarities are compared with each other, and divided
// by small temperatures.
constexpr int64_t kChain = 16;

// A row with a smaller Euclidean norm counts as zero (NORM_EPS of clsd_fast/reference.py).
constexpr double kNormEps = 1e-12;

// The rows of one batch entry in the accumulator's type, zero-padded to whole tiles both ways and
// scaled to unit length if asked for.
template <class T>
struct PackedMatrix {
  int64_t count, features, stride;
  std::vector<T> values;   // [rows of whole tiles, stride]
  std::vector<T> inverse;  // 1 / norm of each row, 0 for a zero row; empty unless normalized

  const T* row(int64_t i) const { return values.data() + i * stride; }
};

// Row i as consecutive numbers of the accumulator's type: itself if it is that, else in `scratch`.
template <class T, class S>
const T* row_values(const Rows<const S>& rows, int64_t b, int64_t i, T* scratch) {
  const S* row = rows.row(b, i);
  if constexpr (std::is_same_v<S, T>) {
    if (rows.stride_d == 1) return row;
  }
  for (int64_t d = 0; d < rows.features; ++d) scratch[d] = static_cast<T>(row[d * rows.stride_d]);
  return scratch;
}

// 1 / norm of a row of `count` elements, 0 if it counts as zero.
template <class T>
double inverse_norm(const T* row, int64_t count) {
  const double norm = std::sqrt(tile_kernels<T>().square_sum(row, count));
  return norm <= kNormEps ? 0 : 1 / norm;
}

template <class S, class T = Accumulator<S>>
PackedMatrix<T> pack_rows(const Rows<const S>& source, int64_t b, bool normalize) {
  PackedMatrix<T> packed{source.count, source.features, round_up(source.features, kTileCols),
                         {}, {}};
  const int64_t padded =
      std::max(round_up(source.count, kTileRows), round_up(source.count, kTileCols));
  packed.values.resize(static_cast<size_t>(padded * packed.stride));
  if (normalize) packed.inverse.resize(static_cast<size_t>(source.count));
  torch::stable::parallel_for(0, source.count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* to = packed.values.data() + i * packed.stride;
      const T* from = row_values(source, b, i, to);
      const double scale = normalize ? inverse_norm(from, source.features) : 1;
      if (normalize) packed.inverse[i] = static_cast<T>(scale);
      tile_kernels<T>().scale(to, from, scale, source.features);
    }
  });
  return packed;
}

// The same values as [tiles of rows][features][kTileCols]: the right side of a product.
template <class T>
std::vector<T> transpose_tiles(const PackedMatrix<T>& matrix) {
  const int64_t tiles = ceil_div(matrix.count, kTileCols);
  std::vector<T> columns(static_cast<size_t>(tiles * kTileCols * matrix.features));
  torch::stable::parallel_for(0, tiles, 4, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      T* to = columns.data() + tile * matrix.features * kTileCols;
      for (int64_t v = 0; v < kTileCols; ++v) {
        const T* from = matrix.row(tile * kTileCols + v);
        for (int64_t d = 0; d < matrix.features; ++d) to[d * kTileCols + v] = from[d];
      }
    }
  });
  return columns;
}

// Gradient with respect to the rows that a table was made from, for one batch entry:
//   sum over j of G[i, j] * others[j],
// taken back through the normalisation if `rows` are normalized.
//
// `coefficients(i, j, tile)` writes the tile of G whose corner is (i, j), with zeros outside of
// G. Each block of rows belongs to one task: nothing is shared, and the sum has one order.
template <class S>
struct RowGradient {
  using T = Accumulator<S>;
  const PackedMatrix<T>& rows;
  const PackedMatrix<T>& others;

  template <class Coefficients>
  void write(const Rows<S>& target, int64_t b, const Coefficients& coefficients) const {
    const auto& tile = tile_kernels<T>();
    const int64_t blocks = ceil_div(rows.count, kTileRows);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> sums(static_cast<size_t>(rows.stride * kTileRows));
      T table[kTileSize];
      for (int64_t block = begin; block < end; ++block) {
        const int64_t i = block * kTileRows;
        std::fill(sums.begin(), sums.end(), T(0));
        for (int64_t j = 0; j < others.count; j += kTileCols) {
          coefficients(i, j, table);
          for (int64_t d = 0; d < rows.stride; d += kTileCols) {
            tile.multiply(sums.data() + d * kTileRows, {table, kTileCols, 1, others.row(j) + d,
                                                        others.stride, kTileCols, kChain, true});
          }
        }
        for (int64_t r = 0; r < kTileRows && i + r < rows.count; ++r) {
          finish_row(sums.data() + r * kTileCols, target.row(b, i + r), target.stride_d, i + r);
        }
      }
    });
  }

 private:
  // sums holds the row's features in groups of kTileCols, a tile apart.
  void finish_row(T* sums, S* target, int64_t stride, int64_t i) const {
    const auto at = [](int64_t d) { return d / kTileCols * kTileSize + d % kTileCols; };
    const T* row = rows.row(i);
    double along = 0;
    for (int64_t d = 0; d < rows.features; ++d) {
      along += static_cast<double>(sums[at(d)]) * static_cast<double>(row[d]);
    }
    const bool normalized = !rows.inverse.empty();
    for (int64_t d = 0; d < rows.features; ++d) {
      T grad = sums[at(d)];
      if (normalized) grad = (grad - static_cast<T>(along) * row[d]) * rows.inverse[i];
      target[d * stride] = static_cast<S>(grad);
    }
  }
};

// [N, M] table of the sums of absolute differences. Distances are computed in double: a sum of
// positive terms drifts, and its users compare sums of like size.
template <class S>
std::vector<double> l1_table(const Rows<const S>& query, const Rows<const S>& key, int64_t b) {
  // Long rows (flattened maps) are cut, for parallelism.
  constexpr int64_t kChunk = 4096;
  const auto& tile = tile_kernels<double>();
  const auto queries = pack_rows<S, double>(query, b, false);
  const auto columns = transpose_tiles(pack_rows<S, double>(key, b, false));
  const int64_t chunks = ceil_div(query.features, kChunk);
  const int64_t blocks = ceil_div(query.count, kTileRows);
  const int64_t width = round_up(key.count, kTileCols);
  const int64_t size = blocks * kTileRows * width;
  std::vector<double> partials(static_cast<size_t>(chunks * size));
  torch::stable::parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / blocks * kChunk;
      const int64_t steps = std::min(kChunk, query.features - first);
      const double* rows = queries.row(task % blocks * kTileRows) + first;
      for (int64_t j = 0; j < width; j += kTileCols) {
        double* sums = partials.data() + task * kTileRows * width + j * kTileRows;
        tile.distance(sums, {rows, queries.stride, 1,
                             columns.data() + j * query.features + first * kTileCols, kTileCols,
                             steps, kChain, true});
      }
    }
  });
  std::vector<double> table(static_cast<size_t>(query.count * key.count));
  for (int64_t i = 0; i < query.count; ++i) {
    for (int64_t j = 0; j < key.count; ++j) {
      const int64_t index = i / kTileRows * kTileRows * width + j / kTileCols * kTileSize +
                            i % kTileRows * kTileCols + j % kTileCols;
      double& sum = table[i * key.count + j];
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * size + index];
    }
  }
  return table;
}

// Pairs (query i, rows i) whose distance has the gradient weight[i], beside a table's.
template <class S>
struct PairedDistance {
  const std::vector<double>& weight;
  Rows<const S> rows;
  Rows<S> grad;
};

// kFeatures features of all rows, with their gradient.
struct FeatureSlice {
  static constexpr int64_t kFeatures = 64;
  int64_t count;
  std::vector<double> values, grad;

  explicit FeatureSlice(int64_t count)
      : count(count),
        values(static_cast<size_t>(count * kFeatures)),
        grad(static_cast<size_t>(count * kFeatures)) {}

  template <class S>
  void load(const Rows<const S>& source, int64_t b, int64_t first, int64_t features) {
    for (int64_t i = 0; i < count; ++i) {
      const S* row = source.row(b, i) + first * source.stride_d;
      for (int64_t d = 0; d < features; ++d) {
        values[i * kFeatures + d] = static_cast<double>(row[d * source.stride_d]);
      }
    }
    std::fill(grad.begin(), grad.end(), 0.0);
  }

  template <class S>
  void store_grad(const Rows<S>& target, int64_t b, int64_t first, int64_t features) const {
    for (int64_t i = 0; i < count; ++i) {
      S* row = target.row(b, i) + first * target.stride_d;
      for (int64_t d = 0; d < features; ++d) {
        row[d * target.stride_d] = static_cast<S>(grad[i * kFeatures + d]);
      }
    }
  }

  void add_distance_grad(int64_t i, FeatureSlice& other, int64_t j, double weight,
                         int64_t features) {
    tile_kernels<double>().distance_backward(
        grad.data() + i * kFeatures, other.grad.data() + j * kFeatures,
        values.data() + i * kFeatures, other.values.data() + j * kFeatures, weight, features);
  }
};

// Gradients of the rows given those of the L1 table, [N, M]. A task owns some features of all
// rows, so that each gradient has one writer and one order of summation.
template <class S>
void l1_table_backward(const std::vector<double>& grad_table, const Rows<const S>& query,
                       const Rows<const S>& key, int64_t b, const Rows<S>& grad_query,
                       const Rows<S>& grad_key,
                       const std::optional<PairedDistance<S>>& paired = std::nullopt) {
  const int64_t tasks = ceil_div(query.features, FeatureSlice::kFeatures);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    FeatureSlice queries(query.count), keys(key.count), pairs(paired ? query.count : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * FeatureSlice::kFeatures;
      const int64_t features = std::min(FeatureSlice::kFeatures, query.features - first);
      queries.load(query, b, first, features);
      keys.load(key, b, first, features);
      for (int64_t i = 0; i < query.count; ++i) {
        for (int64_t j = 0; j < key.count; ++j) {
          queries.add_distance_grad(i, keys, j, grad_table[i * key.count + j], features);
        }
      }
      if (paired) {
        pairs.load(paired->rows, b, first, features);
        for (int64_t i = 0; i < query.count; ++i) {
          queries.add_distance_grad(i, pairs, i, paired->weight[i], features);
        }
        pairs.store_grad(paired->grad, b, first, features);
      }
      queries.store_grad(grad_query, b, first, features);
      keys.store_grad(grad_key, b, first, features);
    }
  });
}

}  // namespace clsd::cpu
