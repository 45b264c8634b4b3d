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

// A row with a smaller Euclidean norm counts as zero (NORM_EPS of clsd_fast/reference.py).
constexpr double kNormEps = 1e-12;

// The rows of one batch entry in the accumulator's type, zero-padded to whole tiles both ways and
// scaled to unit length if asked for.
template <class T>
struct PackedMatrix {
  int64_t count, features;
  int64_t padded_count, stride;
  std::vector<T> values;   // [padded_count, stride]
  std::vector<T> inverse;  // 1 / norm of each row, 0 for a zero row; empty unless normalized

  const T* row(int64_t i) const { return values.data() + i * stride; }
};

template <class S>
PackedMatrix<Accumulator<S>> pack_rows(const Rows<const S>& source, int64_t b, bool normalize) {
  using T = Accumulator<S>;
  // 48 is a whole number of tile rows and of tile columns.
  PackedMatrix<T> packed{source.count, source.features, round_up(source.count, 48),
                         round_up(source.features, kTileCols), {}, {}};
  packed.values.resize(static_cast<size_t>(packed.padded_count * packed.stride));
  if (normalize) packed.inverse.resize(static_cast<size_t>(source.count));
  torch::stable::parallel_for(0, source.count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const S* from = source.row(b, i);
      T* to = packed.values.data() + i * packed.stride;
      double squared = 0;
      for (int64_t d = 0; d < source.features; ++d) {
        to[d] = static_cast<T>(from[d * source.stride_d]);
        squared += static_cast<double>(to[d]) * static_cast<double>(to[d]);
      }
      if (!normalize) continue;
      const double norm = std::sqrt(squared);
      packed.inverse[i] = norm <= kNormEps ? T(0) : static_cast<T>(1 / norm);
      for (int64_t d = 0; d < source.features; ++d) to[d] *= packed.inverse[i];
    }
  });
  return packed;
}

// The same values as [tiles of rows][features][kTileCols]: the right side of a product.
template <class T>
std::vector<T> transpose_tiles(const PackedMatrix<T>& matrix) {
  std::vector<T> columns(static_cast<size_t>(matrix.padded_count * matrix.features));
  const int64_t tiles = matrix.padded_count / kTileCols;
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
//   sum over j of G[i, j] * others[j] + paired_weight[i] * paired[i],
// taken back through the normalisation if `rows` are normalized.
//
// `coefficients(i, j, tile)` writes the tile of G whose corner is (i, j), with zeros outside of
// G. Each block of rows belongs to one task: nothing is shared, and the sum has one order.
template <class S>
struct RowGradient {
  using T = Accumulator<S>;
  const PackedMatrix<T>& rows;
  const PackedMatrix<T>* others = nullptr;
  const PackedMatrix<T>* paired = nullptr;
  const T* paired_weight = nullptr;

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
        for (int64_t j = 0; others && j < others->count; j += kTileCols) {
          coefficients(i, j, table);
          for (int64_t d = 0; d < rows.stride; d += kTileCols) {
            tile.multiply(sums.data() + d * kTileRows, {table, kTileCols, 1, others->row(j) + d,
                                                        others->stride, kTileCols});
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
      if (paired) sums[at(d)] += paired_weight[i] * paired->row(i)[d];
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

// [N, M] table of the sums of absolute differences.
template <class S>
std::vector<Accumulator<S>> l1_table(const Rows<const S>& query, const Rows<const S>& key,
                                     int64_t b) {
  using T = Accumulator<S>;
  // Long rows (flattened maps) are cut, for parallelism and for the accuracy of shorter sums.
  constexpr int64_t kChunk = 4096;
  const auto& tile = tile_kernels<T>();
  const auto queries = pack_rows<S>(query, b, false);
  const auto columns = transpose_tiles(pack_rows<S>(key, b, false));
  const int64_t chunks = ceil_div(query.features, kChunk);
  const int64_t blocks = ceil_div(query.count, kTileRows);
  const int64_t width = round_up(key.count, kTileCols);
  const int64_t size = blocks * kTileRows * width;
  std::vector<T> partials(static_cast<size_t>(chunks * size));
  torch::stable::parallel_for(0, chunks * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / blocks * kChunk;
      const int64_t steps = std::min(kChunk, query.features - first);
      const T* rows = queries.row(task % blocks * kTileRows) + first;
      for (int64_t j = 0; j < width; j += kTileCols) {
        T* sums = partials.data() + task * kTileRows * width + j * kTileRows;
        tile.distance(sums, {rows, queries.stride, 1,
                             columns.data() + j * query.features + first * kTileCols, kTileCols,
                             steps});
      }
    }
  });
  std::vector<T> table(static_cast<size_t>(query.count * key.count));
  for (int64_t i = 0; i < query.count; ++i) {
    for (int64_t j = 0; j < key.count; ++j) {
      const int64_t index = i / kTileRows * kTileRows * width + j / kTileCols * kTileSize +
                            i % kTileRows * kTileCols + j % kTileCols;
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * size + index];
      table[i * key.count + j] = sum;
    }
  }
  return table;
}

// Pairs (query i, rows i) whose distance has the gradient weight[i], beside a table's.
template <class S>
struct PairedDistance {
  const std::vector<Accumulator<S>>& weight;
  Rows<const S> rows;
  Rows<S> grad;
};

// kFeatures features of all rows in the accumulator's type, with their gradient.
template <class T>
struct FeatureSlice {
  static constexpr int64_t kFeatures = 64;
  int64_t count;
  std::vector<T> values, grad;

  explicit FeatureSlice(int64_t count)
      : count(count),
        values(static_cast<size_t>(count * kFeatures)),
        grad(static_cast<size_t>(count * kFeatures)) {}

  template <class S>
  void load(const Rows<const S>& source, int64_t b, int64_t first, int64_t features) {
    for (int64_t i = 0; i < count; ++i) {
      const S* row = source.row(b, i) + first * source.stride_d;
      for (int64_t d = 0; d < features; ++d) {
        values[i * kFeatures + d] = static_cast<T>(row[d * source.stride_d]);
      }
    }
    std::fill(grad.begin(), grad.end(), T(0));
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

  void add_distance_grad(int64_t i, FeatureSlice& other, int64_t j, T weight, int64_t features) {
    tile_kernels<T>().distance_backward(
        grad.data() + i * kFeatures, other.grad.data() + j * kFeatures,
        values.data() + i * kFeatures, other.values.data() + j * kFeatures, weight, features);
  }
};

// Gradients of the rows given those of the L1 table, [N, M]. A task owns some features of all
// rows, so that each gradient has one writer and one order of summation.
template <class S>
void l1_table_backward(const std::vector<Accumulator<S>>& grad_table, const Rows<const S>& query,
                       const Rows<const S>& key, int64_t b, const Rows<S>& grad_query,
                       const Rows<S>& grad_key,
                       const std::optional<PairedDistance<S>>& paired = std::nullopt) {
  using Slice = FeatureSlice<Accumulator<S>>;
  const int64_t tasks = ceil_div(query.features, Slice::kFeatures);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Slice queries(query.count), keys(key.count), pairs(paired ? query.count : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * Slice::kFeatures;
      const int64_t features = std::min(Slice::kFeatures, query.features - first);
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
