// Rows of features packed for the register tile.
//
// Kernels are looked up before work is handed to threads: an error of one loses its sentence.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../tensor_util.h"
#include "../kernels.h"
#include "../parallel.h"
#include "../workspace.h"

namespace clsd::cpu {

// Steps of one summation chain (kernels.h): similarities are compared with each other, and divided
// by small temperatures.
constexpr int64_t kChain = 16;
// Gradients are summed up block by block, which keeps chains short as it is.
constexpr int64_t kGradChain = 64;

// A row with a smaller Euclidean norm counts as zero (NORM_EPS of clsd_fast/reference/contrast.py).
constexpr double kNormEps = 1e-12;

// The rows of one batch entry in the accumulator's type, zero-padded to whole tiles both ways and
// scaled to unit length if asked for.
template <class T>
struct PackedMatrix {
  int64_t count, features, stride;
  LargeVector<T> values;   // [rows of whole tiles, stride]
  LargeVector<T> inverse;  // 1 / norm of each row, 0 for a zero row; empty unless normalized

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
double inverse_norm(const TileKernels<T>& kernels, const T* row, int64_t count) {
  const double norm = std::sqrt(kernels.square_sum(row, count));
  return norm <= kNormEps ? 0 : 1 / norm;
}

template <class S, class T = Accumulator<S>>
PackedMatrix<T> pack_matrix(const FeatureRows<const S>& source, int64_t b, bool normalize) {
  const auto& kernels = tile_kernels<T>();
  PackedMatrix<T> packed{.count = source.count,
                         .features = source.features,
                         .stride = round_up(source.features, kTileCols),
                         .values = {},
                         .inverse = {}};
  const int64_t padded =
      std::max(round_up(source.count, kTileRows), round_up(source.count, kTileCols));
  packed.values.resize(static_cast<size_t>(padded * packed.stride));
  if (normalize) packed.inverse.resize(static_cast<size_t>(source.count));
  parallel_for(0, source.count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* to = packed.values.data() + i * packed.stride;
      const T* from = row_values(source, b, i, to);
      if (!normalize) {
        if (from != to) std::copy_n(from, source.features, to);
        continue;
      }
      const double inverse = inverse_norm(kernels, from, source.features);
      packed.inverse[i] = static_cast<T>(inverse);
      kernels.scale(to, from, inverse, source.features);
    }
  });
  return packed;
}

// kTileCols rows as a panel: panel[d * kTileCols + v] = rows[v * stride + d].
template <class T>
void transpose_panel(T* panel, const T* rows, int64_t stride, int64_t features) {
  for (int64_t d = 0; d < features; ++d) {
    for (int64_t v = 0; v < kTileCols; ++v) panel[d * kTileCols + v] = rows[v * stride + d];
  }
}

// A matrix as [panels][features][kTileCols]: the right side of a product.
template <class T>
LargeVector<T> transpose_panels(const PackedMatrix<T>& matrix) {
  const int64_t panels = ceil_div(matrix.count, kTileCols), size = matrix.features * kTileCols;
  LargeVector<T> values(static_cast<size_t>(panels * size));
  parallel_for(0, panels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      transpose_panel(values.data() + panel * size, matrix.row(panel * kTileCols), matrix.stride,
                      matrix.features);
    }
  });
  return values;
}

}  // namespace clsd::cpu
