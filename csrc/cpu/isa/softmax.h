// The exponential, and the running softmax over tables of logits.
#pragma once

#include "vector.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  typedef int32_t Integers __attribute__((vector_size(CLSD_VECTOR_BYTES)));
  static constexpr float kRound = 0x1.8p23f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  static constexpr float kLow = -87.3f, kHigh = 88.3f;
  static constexpr int kDegree = 7, kMantissa = 23, kBias = 127;
};
template <>
struct Exponential<double> {
  typedef int64_t Integers __attribute__((vector_size(CLSD_VECTOR_BYTES)));
  static constexpr double kRound = 0x1.8p52, kLn2High = 0x1.62e42feep-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33, kLow = -708.3, kHigh = 709.4;
  static constexpr int kDegree = 13, kMantissa = 52, kBias = 1023;
};

// e^x to an ulp or two: 2^n times the series of e^r, |r| <= ln(2) / 2. Zero where it is no normal
// number; a NaN, which compares false, stays one.
template <class T>
inline Vec<T> exponential(Vec<T> x) {
  using E = Exponential<T>;
  const Vec<T> clamped = x < E::kLow ? E::kLow - Vec<T>{} : x > E::kHigh ? E::kHigh - Vec<T>{} : x;
  const Vec<T> shifted = clamped * T(1.4426950408889634) + E::kRound;  // n in its low bits
  const Vec<T> n = shifted - E::kRound;
  const Vec<T> r = (clamped - n * E::kLn2High) - n * E::kLn2Low;
  // clang-format off
  constexpr double kInverseFactorials[] = {1.,          1.,           1. / 2,        1. / 6,
                                           1. / 24,     1. / 120,     1. / 720,      1. / 5040,
                                           1. / 40320,  1. / 362880,  1. / 3628800,  1. / 39916800,
                                           1. / 479001600, 1. / 6227020800};
  // clang-format on
  Vec<T> series = T(kInverseFactorials[E::kDegree]) - Vec<T>{};
#pragma GCC unroll 13
  for (int k = E::kDegree - 1; k >= 0; --k) series = series * r + T(kInverseFactorials[k]);
  typename E::Integers bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + E::kBias) << E::kMantissa;  // which shifts the rest of kRound out
  Vec<T> power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return x < E::kLow ? Vec<T>{} : series * power;
}

constexpr int64_t kScanSums = 4;

template <class T>
void softmax_scan(const SoftmaxStatistics<T>& statistics, const LogitTable<T>& table) {
  constexpr T kInfinity = __builtin_huge_val();
  for (int64_t q = 0; q < table.queries; q += kLanes<T>) {
    const T* column = table.logits + q;
    const Vec<T> before = load(statistics.maximum + q);
    Vec<T> largest = before;
    for (int64_t k = 0; k < table.keys; ++k) {
      const Vec<T> logit = load(column + k * table.stride);
      largest = logit > largest ? logit : largest;
    }
    // Where all so far are excluded, there is nothing to subtract.
    const Vec<T> shift = largest == -kInfinity ? Vec<T>{} : largest;
    // Several short sums, for the same reason as TileOperands::chain.
    Vec<T> sums[kScanSums] = {}, weighted[kScanSums] = {};
    for (int64_t k = 0; k < table.keys; k += kScanSums) {
#pragma GCC unroll 4
      for (int64_t p = 0; p < kScanSums; ++p) {
        if (k + p >= table.keys) break;
        const Vec<T> difference = load(column + (k + p) * table.stride) - shift;
        const Vec<T> term = exponential<T>(difference);
        sums[p] += term;
        weighted[p] += term == 0 ? Vec<T>{} : term * difference;  // not 0 * inf
      }
    }
    const Vec<T> moved = before == -kInfinity ? Vec<T>{} : before - shift;
    const Vec<T> kept = exponential<T>(moved), old_sum = load(statistics.sum_exp + q);
    store(statistics.maximum + q, largest);
    store(statistics.sum_exp + q, old_sum * kept + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
    store(statistics.weighted + q, (load(statistics.weighted + q) + old_sum * moved) * kept +
                                       ((weighted[0] + weighted[1]) + (weighted[2] + weighted[3])));
  }
}

template <class T>
void softmax_grad(const LogitTable<T>& table, const T* maximum, const T* scale) {
  constexpr T kInfinity = __builtin_huge_val();
  for (int64_t k = 0; k < table.keys; ++k) {
    for (int64_t q = 0; q < table.queries; q += kLanes<T>) {
      T* logits = table.logits + k * table.stride + q;
      const Vec<T> logit = load(logits);
      const Vec<T> grad = exponential<T>(logit - load(maximum + q)) * load(scale + q);
      store(logits, logit == -kInfinity ? Vec<T>{} : grad);
    }
  }
}

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
