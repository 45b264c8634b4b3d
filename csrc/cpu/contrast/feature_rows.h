// Rows of features packed for the register tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../tensor_util.h"
#include "../kernels.h"

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
const T* row_values(const FeatureRows<const S>& rows, int64_t b, int64_t i, T* scratch) {
  const S* row = rows.row(b, i);
  if constexpr (std::is_same_v<S, T>) {
    if (rows.stride_d == 1) return row;
  }
  for (int64_t d = 0; d < rows.features; ++d) scratch[d] = static_cast<T>(row[d * rows.stride_d]);
  return scratch;
}

// The other way: consecutive numbers of the accumulator's type to a consecutive row.
template <class S, class T>
void store_row(S* target, const T* values, int64_t count) {
  if constexpr (std::is_same_v<S, T>) {
    std::copy_n(values, count, target);
  } else {
    std::transform(values, values + count, target, [](T value) { return static_cast<S>(value); });
  }
}

// 1 / norm of a row of `count` elements, 0 if it counts as zero.
template <class T>
double inverse_norm(const T* row, int64_t count) {
  const double norm = std::sqrt(tile_kernels<T>().square_sum(row, count));
  return norm <= kNormEps ? 0 : 1 / norm;
}

template <class S, class T = Accumulator<S>>
PackedMatrix<T> pack_rows(const FeatureRows<const S>& source, int64_t b, bool normalize) {
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

}  // namespace clsd::cpu
