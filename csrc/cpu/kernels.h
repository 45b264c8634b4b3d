// The kernels that every CPU operator is built on: products of register tiles, and what belongs to
// them. They are compiled once per instruction set (isa/kernels.cpp) and chosen at run time
// (isa/dispatch.cpp).
#pragma once

#include <cstdint>

namespace clsd::cpu {

// A tile is kTileRows x kTileCols accumulators, row-major: 12 of 32 AVX-512 registers at once, or
// two halves of 12 of 16 AVX2 registers. A panel is kTileCols consecutive columns of a product's
// right side.
constexpr int64_t kTileRows = 12;
constexpr int64_t kTileCols = 16;
constexpr int64_t kTileSize = kTileRows * kTileCols;
constexpr int64_t kRowStep = 4;  // taller products are whole tiles and a rest of whole steps

// Output pixels of a side of a Winograd tile, for kernels of 3x3 and of 5x5 taps.
constexpr int64_t kWinogradTile3x3 = 4, kWinogradTile5x5 = 2;

// acc[r * acc_row + v] (+)= sum over s of a[r * a_row + s * a_step] * b[s * b_step + v] for
// `rows` rows and the kTileCols columns of a panel; further panels start b_panel elements later in
// b.
//
// Sums of at most `chain` steps are added up: a single chain of hundreds of additions would lose
// two to four times as much to rounding as PyTorch's blocked products and pairwise sums.
template <class T>
struct TileOperands {
  const T* a;
  int64_t a_row, a_step;
  const T* b;
  int64_t b_step, steps;
  int64_t chain;
  bool add;                  // to what acc holds, or replace it
  int64_t rows = kTileRows;  // a multiple of kRowStep
  int64_t acc_row = kTileCols;
  int64_t panels = 1, b_panel = 0;
};

// Rows of `features` numbers (a multiple of kTileCols), one after the other, their gradients, and
// the weight of each pair of rows: weights[i * weight_stride + j].
template <class T>
struct DistanceGradients {
  T* grad_a;
  const T* a;
  int64_t count_a;
  T* grad_b;
  const T* b;
  int64_t count_b;
  int64_t features;
  const T* weights;
  int64_t weight_stride;
};

// Rows and columns of pixels, each of them some channels that follow each other.
template <class T>
struct PixelGrid {
  T* data;
  int64_t row, column;  // from pixel to pixel
};

// What a convolution does with its sums before they are stored, in this order.
template <class T>
struct TileEpilogue {
  const T* bias;                // [channels] or null
  T scale;                      // of sum and bias
  PixelGrid<const T> residual;  // added, if there is data
  bool relu;
  const T* slopes;              // [channels] or null: what is < 0 is multiplied by them
  PixelGrid<const T> positive;  // 0 where this is <= 0, if there is data
};

// Running softmax statistics of queries, for the keys scanned so far: largest logit, sum of
// exp(logit - largest), and sum of exp(logit - largest) * (logit - largest). They start as -inf, 0
// and 0.
template <class T>
struct SoftmaxStatistics {
  T *maximum, *sum_exp, *weighted;
};

// A table [keys][queries] of logits, `stride` from row to row, -inf for excluded pairs. Their
// number of queries is a multiple of kTileCols.
template <class T>
struct LogitTable {
  T* logits;
  int64_t stride, keys, queries;
};

// A 2-d transform of `channels` channels (whole panels): rows and columns of `source` are strided,
// the 36 results of a Winograd tile lie target_stride apart.
template <class T>
using WinogradTransform = void (*)(T* target, int64_t target_stride, const T* source,
                                   int64_t row_stride, int64_t column_stride, int64_t channels);

// What Winograd convolutions of one size of kernel need beside their input's transform, with the
// matrices of isa/winograd.h. A Winograd tile is 4x4 outputs of a 3x3 kernel, or 2x2 of a 5x5 one:
// both have inputs of 6x6.
template <class T>
struct WinogradKernels {
  // A d A^T of a tile of the output's gradient
  WinogradTransform<T> grad_output;
  // G g G^T of the taps of kTileCols output channels, [taps][kTileCols]
  void (*weight)(T* target, int64_t target_stride, const T* taps);
  // output = epilogue(A^T m A) of the 36 products of one Winograd tile, for the first rows and
  // columns of its pixels, of `channels` channels (whole panels)
  void (*output)(const PixelGrid<T>& output, int64_t rows, int64_t columns, const T* products,
                 int64_t product_stride, int64_t channels, const TileEpilogue<T>& epilogue);
  // G^T u G: [taps][kTileCols] of 36 sums
  void (*grad_weight)(T* taps, const T* sums, int64_t sum_stride);
};

template <class T>
struct TileKernels {
  // acc (+)= a * b
  void (*multiply)(T* acc, const TileOperands<T>& operands);
  // The same with |a - b| in place of a * b.
  void (*distance)(T* acc, const TileOperands<T>& operands);
  // For all pairs of rows and s = weight * sign(a - b): grad_a += s, grad_b -= s. The sign of a NaN
  // is 0.
  void (*distance_backward)(const DistanceGradients<T>& operands);
  // Sum of the squares of a row, in double.
  double (*square_sum)(const T* row, int64_t count);
  // target = factor * source, as if rounded once
  void (*scale)(T* target, const T* source, double factor, int64_t count);
  // grad = inverse * (grad - (grad . unit) unit): from the gradient of the unit row to the row's.
  // Both are zero up to `count`, a multiple of kTileCols.
  void (*normalize_grad)(T* grad, const T* unit, double inverse, int64_t count);
  // Add the table's keys to its queries' statistics.
  void (*softmax_scan)(const SoftmaxStatistics<T>& statistics, const LogitTable<T>& table);
  // logit = exp(logit - maximum[query]) * scale[query], and 0 for excluded pairs of any scale
  void (*softmax_grad)(const LogitTable<T>& table, const T* maximum, const T* scale);
  // output = epilogue(sums[p * sums_stride + v]) for the first `pixels` pixels of a row, of
  // `channels` channels (whole panels)
  void (*finish)(const PixelGrid<T>& output, const T* sums, int64_t sums_stride, int64_t pixels,
                 int64_t channels, const TileEpilogue<T>& epilogue);

  // B^T d B of a 6x6 patch of a Winograd convolution's input
  WinogradTransform<T> winograd_input;
  WinogradKernels<T> winograd_3x3, winograd_5x5;
  // sums[c] += the sum of a 4x4 patch
  void (*add_patch)(double* sums, const T* source, int64_t row_stride, int64_t column_stride,
                    int64_t channels);

  // Those of Winograd tiles of `tile` x `tile` pixels.
  const WinogradKernels<T>& winograd(int64_t tile) const {
    return tile == kWinogradTile3x3 ? winograd_3x3 : winograd_5x5;
  }
};

// The kernels of the widest instruction set that this processor has, or of the one that the
// environment variable CLSD_FAST_ISA (avx512, avx2, portable) names. It throws where that names
// none, so operators ask before any parallel_for, whose tasks would lose the message.
template <class T>
const TileKernels<T>& tile_kernels();

}  // namespace clsd::cpu
