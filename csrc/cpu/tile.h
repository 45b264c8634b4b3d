// The register tile that every CPU kernel is built on, compiled once per instruction set
// (tile.cpp) and chosen at run time.
#pragma once

#include <cstdint>

namespace clsd::cpu {

// A tile is kTileRows x kTileCols accumulators, row-major: 12 of 32 AVX-512 registers at once, or
// two halves of 12 of 16 AVX2 registers.
constexpr int64_t kTileRows = 12;
constexpr int64_t kTileCols = 16;
constexpr int64_t kTileSize = kTileRows * kTileCols;

// a[r * a_row + s * a_step] is broadcast against the kTileCols elements at b[s * b_step].
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
};

template <class T>
struct TileKernels {
  // acc[r][v] += sum over s of a[r, s] * b[s, v]
  void (*multiply)(T* acc, const TileOperands<T>& operands);
  // acc[r][v] += sum over s of |a[r, s] - b[s, v]|
  void (*distance)(T* acc, const TileOperands<T>& operands);
  // For s = coefficient * sign(a - b): grad_a += s, grad_b -= s
  void (*distance_backward)(T* grad_a, T* grad_b, const T* a, const T* b, T coefficient,
                            int64_t count);
};

// The kernels of the widest instruction set that this processor has, or of the one that the
// environment variable CLSD_FAST_ISA (avx512, avx2, portable) names.
template <class T>
const TileKernels<T>& tile_kernels();

}  // namespace clsd::cpu
