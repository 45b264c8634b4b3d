// Built once per instruction set, with CLSD_ISA naming it. Nothing from the standard library is
// used here: a shared inline function compiled for AVX-512 could be the one the linker keeps.
#include "tile.h"

#include <cstring>

#if defined(__AVX512F__)
#define CLSD_VECTOR_BYTES 64
#define CLSD_VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define CLSD_VECTOR_BYTES 32
#define CLSD_VECTOR_REGISTERS 16
#else
#define CLSD_VECTOR_BYTES 16
#define CLSD_VECTOR_REGISTERS 16
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

// Rows whose accumulators stay in registers beside the operands: a divisor of kTileRows.
template <class T>
constexpr int rows_at_once() {
  for (int rows = kTileRows; rows > 1; --rows) {
    if (kTileRows % rows == 0 && (rows + 1) * kVectors<T> < CLSD_VECTOR_REGISTERS) return rows;
  }
  return 1;
}

template <class T>
struct MultiplyAdd {
  static Vec<T> apply(Vec<T> sum, Vec<T> a, Vec<T> b) { return sum + a * b; }
};

template <class T>
struct AddDistance {
  static Vec<T> apply(Vec<T> sum, Vec<T> a, Vec<T> b) {
    const Vec<T> difference = a - b;
    // A NaN compares false and is kept.
    return sum + (difference < 0 ? -difference : difference);
  }
};

template <class T, class Step, int kRows>
inline void accumulate_rows(T* acc, const T* a, const TileOperands<T>& operands) {
  const T* b = operands.b;
  for (int64_t left = operands.steps; left > 0; left -= operands.chain) {
    Vec<T> sums[kRows][kVectors<T>] = {};
    for (int64_t s = left < operands.chain ? left : operands.chain; s > 0; --s) {
      Vec<T> columns[kVectors<T>];
      std::memcpy(columns, b, sizeof(columns));
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> broadcast = a[r * operands.a_row] - Vec<T>{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors<T>; ++v) {
          sums[r][v] = Step::apply(sums[r][v], broadcast, columns[v]);
        }
      }
      a += operands.a_step;
      b += operands.b_step;
    }
    Vec<T> total[kRows][kVectors<T>];
    std::memcpy(total, acc, sizeof(total));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors<T>; ++v) total[r][v] += sums[r][v];
    }
    std::memcpy(acc, total, sizeof(total));
  }
}

template <class T, class Step>
inline void accumulate(T* acc, const TileOperands<T>& operands) {
  constexpr int kRows = rows_at_once<T>();
  for (int r = 0; r < kTileRows; r += kRows) {
    accumulate_rows<T, Step, kRows>(acc + r * kTileCols, operands.a + r * operands.a_row,
                                    operands);
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
