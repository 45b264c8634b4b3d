// Rows of features: their norms, scaling, and the gradients of both and of their distances.
#pragma once

#include "vector.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

// Rows of b whose values and gradients stay in registers.
template <class T>
constexpr int kDistanceColumns = CLSD_VECTOR_REGISTERS / 4;

template <class T, int kColumns>
inline void distance_backward_columns(const DistanceGradients<T>& operands, int64_t feature,
                                      int64_t first_b) {
  Vec<T> values[kColumns], grads[kColumns];
#pragma GCC unroll 8
  for (int j = 0; j < kColumns; ++j) {
    values[j] = load(operands.b + (first_b + j) * operands.features + feature);
    grads[j] = Vec<T>{};
  }
  for (int64_t i = 0; i < operands.count_a; ++i) {
    const Vec<T> value = load(operands.a + i * operands.features + feature);
    const T* weights = operands.weights + i * operands.weight_stride + first_b;
    Vec<T> grad = {};
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      const Vec<T> weight = weights[j] - Vec<T>{};
      // Not 0 in place of the product: the weight may be a NaN.
      const Vec<T> step = value > values[j] ? weight : (value < values[j] ? -weight : weight * 0);
      grad += step;
      grads[j] += step;
    }
    T* target = operands.grad_a + i * operands.features + feature;
    store(target, load(target) + grad);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kColumns; ++j) {
    T* target = operands.grad_b + (first_b + j) * operands.features + feature;
    store(target, load(target) - grads[j]);
  }
}

template <class T>
void distance_backward(const DistanceGradients<T>& operands) {
  constexpr int kColumns = kDistanceColumns<T>;
  for (int64_t d = 0; d < operands.features; d += kLanes<T>) {
    int64_t j = 0;
    for (; j + kColumns <= operands.count_b; j += kColumns) {
      distance_backward_columns<T, kColumns>(operands, d, j);
    }
    for (; j < operands.count_b; ++j) distance_backward_columns<T, 1>(operands, d, j);
  }
}

// As many numbers as a vector of double has.
template <class T>
struct DoubleLanes {
  typedef T Type __attribute__((vector_size(kLanes<double> * sizeof(T))));
};

template <class T>
inline Vec<double> load_wide(const T* source) {
  typename DoubleLanes<T>::Type numbers;
  __builtin_memcpy(&numbers, source, sizeof(numbers));
  return __builtin_convertvector(numbers, Vec<double>);
}

template <class T>
double square_sum(const T* row, int64_t count) {
  constexpr int64_t kStep = kLanes<double>;
  Vec<double> sums[2] = {};
  int64_t d = 0;
  for (; d + 2 * kStep <= count; d += 2 * kStep) {
    const Vec<double> first = load_wide(row + d), second = load_wide(row + d + kStep);
    sums[0] += first * first;
    sums[1] += second * second;
  }
  double sum = sum_lanes<double>(sums[0] + sums[1]);
  for (; d < count; ++d) sum += static_cast<double>(row[d]) * static_cast<double>(row[d]);
  return sum;
}

#ifdef __FMA__
// value * factor, as if rounded once: the factor is a sum of two numbers.
template <class T>
struct ExactFactor {
  T high, low;

  explicit ExactFactor(double factor)
      : high(static_cast<T>(factor)), low(static_cast<T>(factor - static_cast<double>(high))) {}
  template <class V>
  V times(V value) const {
    return value * high + value * low;
  }
};
#else
template <class T>
struct ExactFactor {
  double factor;

  explicit ExactFactor(double factor) : factor(factor) {}
  T times(T value) const { return static_cast<T>(static_cast<double>(value) * factor); }
  Vec<T> times(Vec<T> value) const {
    for (int v = 0; v < kLanes<T>; ++v) value[v] = times(value[v]);
    return value;
  }
};
#endif

template <class T>
void scale(T* target, const T* source, double factor, int64_t count) {
  const ExactFactor<T> exact(factor);
  int64_t d = 0;
  for (; d + kLanes<T> <= count; d += kLanes<T>) store(target + d, exact.times(load(source + d)));
  for (; d < count; ++d) target[d] = exact.times(source[d]);
}

template <class T>
void normalize_grad(T* grad, const T* unit, double inverse, int64_t count) {
  constexpr int64_t kVectors = kPanelVectors<T>;
  Vec<T> sums[kVectors] = {};
  for (int64_t d = 0; d < count; d += kTileCols) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
      sums[v] += load(grad + d + v * kLanes<T>) * load(unit + d + v * kLanes<T>);
    }
  }
  Vec<T> sum = sums[0];
  for (int64_t v = 1; v < kVectors; ++v) sum += sums[v];
  const T along = sum_lanes<T>(sum), factor = static_cast<T>(inverse);
  for (int64_t d = 0; d < count; d += kLanes<T>) {
    store(grad + d, (load(grad + d) - along * load(unit + d)) * factor);
  }
}

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
