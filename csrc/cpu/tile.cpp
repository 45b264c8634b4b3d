// Built once per instruction set, with CLSD_ISA naming it. Nothing from the standard library is
// used here: a shared inline function compiled for AVX-512 could be the one the linker keeps.
#include "tile.h"

#include <cstring>

#if defined(__AVX512F__)
#define CLSD_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CLSD_VECTOR_BYTES 32
#else
#define CLSD_VECTOR_BYTES 16
#endif

namespace clsd::cpu::CLSD_ISA {

namespace {

template <class T>
struct Vector {
  typedef T Type __attribute__((vector_size(CLSD_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Vector<T>::Type;

template <class T>
constexpr int kLanes = CLSD_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int kVectors = kTileCols / kLanes<T>;

template <class T>
struct MultiplyAdd {
  static constexpr int64_t kChain = 16;
  static Vec<T> apply(Vec<T> sum, Vec<T> a, Vec<T> b) { return sum + a * b; }
};

template <class T>
struct AddDistance {
  static constexpr int64_t kChain = 16;
  static Vec<T> apply(Vec<T> sum, Vec<T> a, Vec<T> b) {
    const Vec<T> difference = a - b;
    // A NaN compares false and is kept.
    return sum + (difference < 0 ? -difference : difference);
  }
};

// Sums of at most Step::kChain steps are added up: a single chain of hundreds of additions would
// lose two to four times as much to rounding as PyTorch's blocked products and pairwise sums.
template <class T, class Step>
inline void accumulate(T* acc, const TileOperands<T>& operands) {
  const T* a = operands.a;
  const T* b = operands.b;
  for (int64_t left = operands.steps; left > 0; left -= Step::kChain) {
    Vec<T> sums[kTileRows][kVectors<T>] = {};
    for (int64_t s = left < Step::kChain ? left : Step::kChain; s > 0; --s) {
      Vec<T> columns[kVectors<T>];
      std::memcpy(columns, b, sizeof(columns));
#pragma GCC unroll 6
      for (int r = 0; r < kTileRows; ++r) {
        const Vec<T> broadcast = a[r * operands.a_row] - Vec<T>{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors<T>; ++v) {
          sums[r][v] = Step::apply(sums[r][v], broadcast, columns[v]);
        }
      }
      a += operands.a_step;
      b += operands.b_step;
    }
    Vec<T> total[kTileRows][kVectors<T>];
    std::memcpy(total, acc, sizeof(total));
    for (int r = 0; r < kTileRows; ++r) {
      for (int v = 0; v < kVectors<T>; ++v) total[r][v] += sums[r][v];
    }
    std::memcpy(acc, total, sizeof(total));
  }
}

template <class T>
void multiply(T* acc, const TileOperands<T>& operands) {
  accumulate<T, MultiplyAdd<T>>(acc, operands);
}

template <class T>
void distance(T* acc, const TileOperands<T>& operands) {
  accumulate<T, AddDistance<T>>(acc, operands);
}

template <class T>
void distance_backward(T* __restrict grad_a, T* __restrict grad_b, const T* __restrict a,
                       const T* __restrict b, T coefficient, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T difference = a[i] - b[i];
    const T step = difference > 0 ? coefficient : (difference < 0 ? -coefficient : T(0));
    grad_a[i] += step;
    grad_b[i] -= step;
  }
}

}  // namespace

extern const TileKernels<float> kFloatKernels;
extern const TileKernels<double> kDoubleKernels;
const TileKernels<float> kFloatKernels = {multiply<float>, distance<float>,
                                          distance_backward<float>};
const TileKernels<double> kDoubleKernels = {multiply<double>, distance<double>,
                                            distance_backward<double>};

}  // namespace clsd::cpu::CLSD_ISA
