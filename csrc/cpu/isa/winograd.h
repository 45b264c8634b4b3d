// The transforms of Winograd F(4x4, 3x3) and F(2x2, 5x5), which have the same points.
#pragma once

#include "epilogue.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

// The matrices for the interpolation points 0, +-a, +-b and infinity, each as a product with a
// vector of kIn numbers. With a = 11/16 and b = 3/2 the largest error is a quarter of what the usual
// 1 and 2 give, and every constant of the transforms is exact in float.
constexpr float kA = 0.6875f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;
constexpr float kA4 = kA2 * kA2, kB4 = kB2 * kB2;
// Products of a point's differences to the other points, inverted.
constexpr double kNorm0 = 1.0 / (kA2 * kB2);
constexpr double kNormA = 1.0 / (2.0 * kA2 * (kA2 - kB2));
constexpr double kNormB = 1.0 / (2.0 * kB2 * (kB2 - kA2));

template <class T>
struct InputTransform {  // B^T
  static constexpr int kIn = 6, kOut = 6;
  static void apply(const Vec<T>* d, Vec<T>* out) {
    const Vec<T> even_a = d[4] - T(kB2) * d[2], odd_a = T(kA) * (d[3] - T(kB2) * d[1]);
    const Vec<T> even_b = d[4] - T(kA2) * d[2], odd_b = T(kB) * (d[3] - T(kA2) * d[1]);
    out[0] = T(kA2 * kB2) * d[0] + (d[4] - T(kA2 + kB2) * d[2]);
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = T(kA2 * kB2) * d[1] + (d[5] - T(kA2 + kB2) * d[3]);
  }
};

// Outputs of a Winograd tile, kTile, and taps of the kernel, together 7 along an axis.
template <class T, int kTile>
struct OutputTransform {  // A^T
  static constexpr int kIn = 6, kOut = kTile;
  static void apply(const Vec<T>* m, Vec<T>* out) {
    const Vec<T> sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const Vec<T> sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    out[0] = m[0] + sum_a + sum_b;
    out[1] = T(kA) * difference_a + T(kB) * difference_b;
    if constexpr (kTile == 4) {
      out[2] = T(kA2) * sum_a + T(kB2) * sum_b;
      out[3] = T(kA3) * difference_a + T(kB3) * difference_b;
    }
    out[kOut - 1] += m[5];
  }
};

template <class T, int kTile>
struct GradOutputTransform {  // A
  static constexpr int kIn = kTile, kOut = 6;
  static void apply(const Vec<T>* y, Vec<T>* out) {
    Vec<T> even_a = y[0], odd_a = T(kA) * y[1], even_b = y[0], odd_b = T(kB) * y[1];
    if constexpr (kTile == 4) {
      even_a += T(kA2) * y[2], odd_a += T(kA3) * y[3];
      even_b += T(kB2) * y[2], odd_b += T(kB3) * y[3];
    }
    out[0] = y[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = y[kIn - 1];
  }
};

template <class T, int kTile>
struct WeightTransform {  // G
  static constexpr int kIn = 7 - kTile, kOut = 6;
  static void apply(const Vec<T>* g, Vec<T>* out) {
    Vec<T> even_a = g[0] + T(kA2) * g[2], odd_a = T(kA) * g[1];
    Vec<T> even_b = g[0] + T(kB2) * g[2], odd_b = T(kB) * g[1];
    if constexpr (kTile == 2) {
      even_a += T(kA4) * g[4], odd_a += T(kA3) * g[3];
      even_b += T(kB4) * g[4], odd_b += T(kB3) * g[3];
    }
    out[0] = T(kNorm0) * g[0];
    out[1] = T(kNormA) * (even_a + odd_a);
    out[2] = T(kNormA) * (even_a - odd_a);
    out[3] = T(kNormB) * (even_b + odd_b);
    out[4] = T(kNormB) * (even_b - odd_b);
    out[5] = g[kIn - 1];
  }
};

template <class T, int kTile>
struct GradWeightTransform {  // G^T
  static constexpr int kIn = 6, kOut = 7 - kTile;
  static void apply(const Vec<T>* u, Vec<T>* out) {
    const Vec<T> sum_a = T(kNormA) * (u[1] + u[2]), difference_a = T(kNormA) * (u[1] - u[2]);
    const Vec<T> sum_b = T(kNormB) * (u[3] + u[4]), difference_b = T(kNormB) * (u[3] - u[4]);
    out[0] = T(kNorm0) * u[0] + sum_a + sum_b;
    out[1] = T(kA) * difference_a + T(kB) * difference_b;
    out[2] = T(kA2) * sum_a + T(kB2) * sum_b;
    if constexpr (kTile == 2) {
      out[3] = T(kA3) * difference_a + T(kB3) * difference_b;
      out[4] = T(kA4) * sum_a + T(kB4) * sum_b;
    }
    out[kOut - 1] += u[5];
  }
};

// Transform both dimensions of a square of vectors. Row i of the result, an array of vectors, goes
// to finish_row(i, row).
template <class Matrix, class T, class FinishRow>
CLSD_INLINE void transform_rows(const PixelGrid<const T> source, const FinishRow& finish_row) {
  Vec<T> halfway[Matrix::kOut][Matrix::kIn], in[Matrix::kIn], out[Matrix::kOut];
  const T* column = source.data;
#pragma GCC unroll 6
  for (int j = 0; j < Matrix::kIn; ++j) {
#pragma GCC unroll 6
    for (int i = 0; i < Matrix::kIn; ++i) in[i] = load(column + i * source.row);
    column = opaque(column + source.column);
    Matrix::apply(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < Matrix::kOut; ++i) halfway[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < Matrix::kOut; ++i) {
    Matrix::apply(halfway[i], out);
    finish_row(i, out);
  }
}

template <class Matrix, class T>
inline void transform_square(const PixelGrid<const T> source, const PixelGrid<T> target) {
  transform_rows<Matrix, T>(source, [target](int i, const Vec<T>* row) {
    T* const columns = opaque(target.data + i * target.row);
#pragma GCC unroll 6
    for (int j = 0; j < Matrix::kOut; ++j) store(columns + j * target.column, row[j]);
  });
}

// The columns that the next patch of a row has and this one does not.
template <class T>
void prefetch_patch(const T* next, int64_t row_stride, int64_t column_stride, int rows) {
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < 4; ++j) __builtin_prefetch(next + i * row_stride + j * column_stride);
  }
}

// The lines that the results of the next channels go to, one for each number of a Winograd tile: more
// streams than a processor's prefetcher follows.
template <class T>
void prefetch_results(const T* next, int64_t stride) {
#pragma GCC unroll 36
  for (int e = 0; e < 36; ++e) __builtin_prefetch(next + e * stride, 1);
}

template <class Matrix, class T>
void transform_patch(T* target, int64_t target_stride, const T* source, int64_t row_stride,
                     int64_t column_stride, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    if (c % kTileCols == 0) {
      prefetch_patch(source + c + Matrix::kIn * column_stride, row_stride, column_stride,
                     Matrix::kIn);
      if (c + kTileCols < channels) prefetch_results(target + c + kTileCols, target_stride);
    }
    transform_square<Matrix, T>({source + c, row_stride, column_stride},
                                {target + c, 6 * target_stride, target_stride});
  }
}

template <class T, int kTile>
void winograd_weight(T* target, int64_t target_stride, const T* taps) {
  using Matrix = WeightTransform<T, kTile>;
  for (int v = 0; v < kTileCols; v += kLanes<T>) {
    transform_square<Matrix, T>({taps + v, Matrix::kIn * kTileCols, kTileCols},
                                {target + v, 6 * target_stride, target_stride});
  }
}

// Of all pixels of a Winograd tile if kWhole, else of the first rows and columns.
template <int kTile, EpilogueKind kKind, bool kWhole, class T>
CLSD_INLINE void winograd_output_as(const PixelGrid<T>& output, int64_t rows, int64_t columns,
                                    const T* products, int64_t product_stride, int64_t channels,
                                    const TileEpilogue<T>& epilogue) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const auto finish_row = [&](int i, const Vec<T>* row) CLSD_ALWAYS_INLINE {
      if (!kWhole && i >= rows) return;
      const RowEpilogue<kKind, T> pixels(output, epilogue, i, c);
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) {
        if (!kWhole && j >= columns) return;
        if (c % kTileCols == 0) pixels.prefetch(kWhole ? j + kTile : j + columns);
        pixels.store_pixel(j, row[j]);
      }
    };
    transform_rows<OutputTransform<T, kTile>, T>({products + c, 6 * product_stride, product_stride},
                                                 finish_row);
  }
}

template <class T, int kTile>
void winograd_output(const PixelGrid<T>& output, int64_t rows, int64_t columns, const T* products,
                     int64_t product_stride, int64_t channels, const TileEpilogue<T>& epilogue) {
  const PixelGrid<T> target = output;
  const TileEpilogue<T> last = epilogue;
  if (rows < kTile || columns < kTile) {
    winograd_output_as<kTile, EpilogueKind::kAny, false>(target, rows, columns, products,
                                                         product_stride, channels, last);
    return;
  }
  visit_kind(last, [&](auto kind) CLSD_ALWAYS_INLINE {
    winograd_output_as<kTile, kind.value, true>(target, rows, columns, products, product_stride,
                                                channels, last);
  });
}

template <class T>
void add_patch(double* sums, const T* source, int64_t row_stride, int64_t column_stride,
               int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    Vec<T> patch = {};
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) patch += load(source + i * row_stride + j * column_stride + c);
    }
    for (int v = 0; v < kLanes<T>; ++v) sums[c + v] += patch[v];
  }
}

template <class T, int kTile>
void winograd_grad_weight(T* taps, const T* sums, int64_t sum_stride) {
  using Matrix = GradWeightTransform<T, kTile>;
  for (int v = 0; v < kTileCols; v += kLanes<T>) {
    transform_square<Matrix, T>({sums + v, 6 * sum_stride, sum_stride},
                                {taps + v, Matrix::kOut * kTileCols, kTileCols});
  }
}

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
