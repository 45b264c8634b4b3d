// Built once per instruction set, with CLSD_ISA naming it. Nothing from the standard library is
// used here: a shared inline function compiled for AVX-512 could be the one the linker keeps.
#include "../kernels.h"

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

// For what is called with vectors in registers and would pass them through memory otherwise.
#define CLSD_ALWAYS_INLINE __attribute__((always_inline))
#define CLSD_INLINE CLSD_ALWAYS_INLINE inline

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
constexpr int kPanelVectors = kTileCols / kLanes<T>;

// Rows whose accumulators stay in registers beside the operands: a divisor of kTileRows.
template <class T>
constexpr int rows_at_once() {
  for (int rows = kTileRows; rows > 1; --rows) {
    const int needed = (rows + 1) * kPanelVectors<T>;
    if (kTileRows % rows == 0 && needed < CLSD_VECTOR_REGISTERS) return rows;
  }
  return 1;
}

// Panels whose accumulators do: each broadcast of a is used for all of them.
template <class T>
constexpr int kPanelsAtOnce =
    2 * (kTileRows + 1) * kPanelVectors<T> < CLSD_VECTOR_REGISTERS ? 2 : 1;

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

template <class T>
Vec<T> load(const T* source) {
  Vec<T> vector;
  std::memcpy(&vector, source, sizeof(vector));
  return vector;
}

template <class T>
void store(T* target, Vec<T> vector) {
  std::memcpy(target, &vector, sizeof(vector));
}

// Arrays of vectors are only touched one element at a time, under constant indices: that is what
// lets the compiler keep them in registers.
template <class T, class Step, int kRows, int kPanels>
inline void accumulate_rows(T* acc, const T* a, const T* b, const TileOperands<T>& operands) {
  constexpr int kVectors = kPanels * kPanelVectors<T>;
  const int64_t a_row = operands.a_row, a_step = operands.a_step;
  const int64_t b_panel = operands.b_panel, b_step = operands.b_step;
  bool add = operands.add;
  for (int64_t left = operands.steps; left > 0; left -= operands.chain) {
    Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>{};
    }
    for (int64_t s = left < operands.chain ? left : operands.chain; s > 0; --s) {
      Vec<T> columns[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = load(b + v / kPanelVectors<T> * b_panel + v % kPanelVectors<T> * kLanes<T>);
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> broadcast = a[r * a_row] - Vec<T>{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = Step::apply(sums[r][v], broadcast, columns[v]);
        }
      }
      a += a_step;
      b += b_step;
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        T* target = acc + r * operands.acc_row + v * kLanes<T>;
        store(target, add ? sums[r][v] + load(target) : sums[r][v]);
      }
    }
    add = true;
  }
}

template <class T, class Step, int kPanels>
inline void accumulate_panels(T* acc, const T* b, const TileOperands<T>& operands) {
  constexpr int kRows = rows_at_once<T>();
  constexpr int kRest = kRows < kRowStep ? kRows : kRowStep;
  const int64_t whole = operands.rows - operands.rows % kTileRows;
  int64_t r = 0;
  for (; r < whole; r += kRows) {
    accumulate_rows<T, Step, kRows, kPanels>(acc + r * operands.acc_row,
                                             operands.a + r * operands.a_row, b, operands);
  }
  for (; r < operands.rows; r += kRest) {
    accumulate_rows<T, Step, kRest, kPanels>(acc + r * operands.acc_row,
                                             operands.a + r * operands.a_row, b, operands);
  }
}

template <class T, class Step>
inline void accumulate(T* acc, const TileOperands<T>& operands) {
  constexpr int kPanels = kPanelsAtOnce<T>;
  int64_t panel = 0;
  for (; panel + kPanels <= operands.panels; panel += kPanels) {
    accumulate_panels<T, Step, kPanels>(acc + panel * kTileCols,
                                        operands.b + panel * operands.b_panel, operands);
  }
  if (panel < operands.panels) {
    accumulate_panels<T, Step, 1>(acc + panel * kTileCols,
                                  operands.b + panel * operands.b_panel, operands);
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
      const Vec<T> zero = {}, weight = weights[j] - zero;
      const Vec<T> step = value > values[j] ? weight : (value < values[j] ? -weight : zero);
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

// As many numbers as fit a vector of double.
template <class T>
struct Narrow {
  typedef T Type __attribute__((vector_size(kLanes<double> * sizeof(T))));
};

template <class T>
inline Vec<double> load_wide(const T* source) {
  typename Narrow<T>::Type narrow;
  std::memcpy(&narrow, source, sizeof(narrow));
  return __builtin_convertvector(narrow, Vec<double>);
}

template <class T>
inline T sum_lanes(Vec<T> vector) {
  T sums[2] = {};  // which do not wait for each other
  for (int v = 0; v < kLanes<T>; ++v) sums[v % 2] += vector[v];
  return sums[0] + sums[1];
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
  constexpr double kInverseFactorials[] = {1.,          1.,           1. / 2,        1. / 6,
                                           1. / 24,     1. / 120,     1. / 720,      1. / 5040,
                                           1. / 40320,  1. / 362880,  1. / 3628800,  1. / 39916800,
                                           1. / 479001600, 1. / 6227020800};
  Vec<T> series = T(kInverseFactorials[E::kDegree]) - Vec<T>{};
#pragma GCC unroll 13
  for (int k = E::kDegree - 1; k >= 0; --k) series = series * r + T(kInverseFactorials[k]);
  typename E::Integers bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + E::kBias) << E::kMantissa;  // which shifts the rest of kRound out
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof(power));
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
    store(statistics.weighted + q,
          (load(statistics.weighted + q) + old_sum * moved) * kept +
              ((weighted[0] + weighted[1]) + (weighted[2] + weighted[3])));
  }
}

template <class T>
void softmax_grad(const LogitTable<T>& table, const T* maximum, const T* scale) {
  for (int64_t k = 0; k < table.keys; ++k) {
    for (int64_t q = 0; q < table.queries; q += kLanes<T>) {
      T* logits = table.logits + k * table.stride + q;
      store(logits, exponential<T>(load(logits) - load(maximum + q)) * load(scale + q));
    }
  }
}

// Pixels are worked on in pieces of a row, so what comes next lies beyond the present piece, and is
// requested while that is computed: no prefetcher of a processor sees so many short streams.
template <class T>
inline void prefetch_pixel(const PixelGrid<T>& output, const TileEpilogue<T>& epilogue, int64_t i,
                           int64_t j, int64_t channel) {
  __builtin_prefetch(output.at(i, j) + channel, 1);
  if (epilogue.residual.data) __builtin_prefetch(epilogue.residual.at(i, j) + channel);
  if (epilogue.positive.data) __builtin_prefetch(epilogue.positive.at(i, j) + channel);
}

// Store the sums of some channels of pixel (i, j).
template <class T>
CLSD_INLINE void finish_vector(const PixelGrid<T>& output, const TileEpilogue<T>& epilogue,
                               int64_t i, int64_t j, int64_t channel, Vec<T> value) {
  const Vec<T> zero = {};
  if (epilogue.bias) value += load(epilogue.bias + channel);
  value *= epilogue.scale;
  if (epilogue.residual.data) value += load(epilogue.residual.at(i, j) + channel);
  if (epilogue.relu) value = value < 0 ? zero : value;  // a NaN is kept
  if (epilogue.positive.data) {
    value = load(epilogue.positive.at(i, j) + channel) > 0 ? value : zero;
  }
  store(output.at(i, j) + channel, value);
}

// Here and below, what says where things are is copied: a store could change what lies behind a
// reference, as far as the compiler knows, and it would load that again each time.
template <class T>
void finish(const PixelGrid<T>& output, const T* sums, int64_t sums_stride, int64_t pixels,
            int64_t channels, const TileEpilogue<T>& epilogue) {
  const PixelGrid<T> target = output;
  const TileEpilogue<T> last = epilogue;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t v = 0; v < channels; v += kLanes<T>) {
      if (v % kTileCols == 0) prefetch_pixel(target, last, 0, p + pixels, v);
      finish_vector(target, last, 0, p, v, load(sums + p * sums_stride + v));
    }
  }
}

// The matrices of F(4x4, 3x3) for the interpolation points 0, +-a, +-b and infinity, each as a
// product with a vector of kIn numbers. With a = 11/16 and b = 3/2 the largest error is a quarter
// of what the usual 1 and 2 give, and every constant of the transforms is exact in float.
constexpr float kA = 0.6875f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;
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

template <class T>
struct OutputTransform {  // A^T
  static constexpr int kIn = 6, kOut = 4;
  static void apply(const Vec<T>* m, Vec<T>* out) {
    const Vec<T> sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const Vec<T> sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    out[0] = m[0] + sum_a + sum_b;
    out[1] = T(kA) * difference_a + T(kB) * difference_b;
    out[2] = T(kA2) * sum_a + T(kB2) * sum_b;
    out[3] = T(kA3) * difference_a + T(kB3) * difference_b + m[5];
  }
};

template <class T>
struct GradOutputTransform {  // A
  static constexpr int kIn = 4, kOut = 6;
  static void apply(const Vec<T>* y, Vec<T>* out) {
    const Vec<T> even_a = y[0] + T(kA2) * y[2], odd_a = T(kA) * y[1] + T(kA3) * y[3];
    const Vec<T> even_b = y[0] + T(kB2) * y[2], odd_b = T(kB) * y[1] + T(kB3) * y[3];
    out[0] = y[0];
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = y[3];
  }
};

template <class T>
struct WeightTransform {  // G
  static constexpr int kIn = 3, kOut = 6;
  static void apply(const Vec<T>* g, Vec<T>* out) {
    const Vec<T> even_a = g[0] + T(kA2) * g[2], odd_a = T(kA) * g[1];
    const Vec<T> even_b = g[0] + T(kB2) * g[2], odd_b = T(kB) * g[1];
    out[0] = T(kNorm0) * g[0];
    out[1] = T(kNormA) * (even_a + odd_a);
    out[2] = T(kNormA) * (even_a - odd_a);
    out[3] = T(kNormB) * (even_b + odd_b);
    out[4] = T(kNormB) * (even_b - odd_b);
    out[5] = g[2];
  }
};

template <class T>
struct GradWeightTransform {  // G^T
  static constexpr int kIn = 6, kOut = 3;
  static void apply(const Vec<T>* u, Vec<T>* out) {
    const Vec<T> sum_a = T(kNormA) * (u[1] + u[2]), difference_a = T(kNormA) * (u[1] - u[2]);
    const Vec<T> sum_b = T(kNormB) * (u[3] + u[4]), difference_b = T(kNormB) * (u[3] - u[4]);
    out[0] = T(kNorm0) * u[0] + sum_a + sum_b;
    out[1] = T(kA) * difference_a + T(kB) * difference_b;
    out[2] = T(kA2) * sum_a + T(kB2) * sum_b + u[5];
  }
};

// Transform both dimensions of a square of vectors. Row i of the result, an array of vectors, goes
// to finish_row(i, row).
template <class T, template <class> class Transform, class FinishRow>
CLSD_INLINE void transform_rows(const PixelGrid<const T> source, const FinishRow& finish_row) {
  using Matrix = Transform<T>;
  Vec<T> halfway[Matrix::kOut][Matrix::kIn], in[Matrix::kIn], out[Matrix::kOut];
#pragma GCC unroll 6
  for (int j = 0; j < Matrix::kIn; ++j) {
#pragma GCC unroll 6
    for (int i = 0; i < Matrix::kIn; ++i) in[i] = load(source.at(i, j));
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

template <class T, template <class> class Transform>
inline void transform_square(const PixelGrid<const T> source, const PixelGrid<T> target) {
  transform_rows<T, Transform>(source, [target](int i, const Vec<T>* row) {
#pragma GCC unroll 6
    for (int j = 0; j < Transform<T>::kOut; ++j) store(target.at(i, j), row[j]);
  });
}

// The columns that the next patch of a row has and this one does not.
template <class T>
void prefetch_patch(const T* next, int64_t row_stride, int64_t column_stride, int rows) {
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < 4; ++j) __builtin_prefetch(next + i * row_stride + j * column_stride);
  }
}

template <class T, template <class> class Transform>
void transform_patch(T* target, int64_t target_stride, const T* source, int64_t row_stride,
                     int64_t column_stride, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    if (c % kTileCols == 0) {
      prefetch_patch(source + c + Transform<T>::kIn * column_stride, row_stride, column_stride,
                     Transform<T>::kIn);
    }
    transform_square<T, Transform>({source + c, row_stride, column_stride},
                                   {target + c, 6 * target_stride, target_stride});
  }
}

template <class T>
void winograd_weight(T* target, int64_t target_stride, const T* taps) {
  for (int v = 0; v < kTileCols; v += kLanes<T>) {
    transform_square<T, WeightTransform>({taps + v, 3 * kTileCols, kTileCols},
                                         {target + v, 6 * target_stride, target_stride});
  }
}

template <class T>
void winograd_output(const PixelGrid<T>& output, int64_t rows, int64_t columns, const T* products,
                     int64_t product_stride, int64_t channels, const TileEpilogue<T>& epilogue) {
  const PixelGrid<T> target = output;
  const TileEpilogue<T> last = epilogue;
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const auto finish_row = [&](int i, const Vec<T>* row) CLSD_ALWAYS_INLINE {
      if (i >= rows) return;
#pragma GCC unroll 4
      for (int j = 0; j < OutputTransform<T>::kOut; ++j) {
        if (j >= columns) return;
        if (c % kTileCols == 0) prefetch_pixel(target, last, i, j + columns, c);
        finish_vector(target, last, i, j, c, row[j]);
      }
    };
    transform_rows<T, OutputTransform>({products + c, 6 * product_stride, product_stride},
                                       finish_row);
  }
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

template <class T>
void winograd_grad_weight(T* taps, const T* sums, int64_t sum_stride) {
  for (int v = 0; v < kTileCols; v += kLanes<T>) {
    transform_square<T, GradWeightTransform>({sums + v, 6 * sum_stride, sum_stride},
                                             {taps + v, 3 * kTileCols, kTileCols});
  }
}

template <class T>
constexpr TileKernels<T> kKernels = {multiply<T>,
                                     distance<T>,
                                     distance_backward<T>,
                                     square_sum<T>,
                                     scale<T>,
                                     normalize_grad<T>,
                                     softmax_scan<T>,
                                     softmax_grad<T>,
                                     finish<T>,
                                     transform_patch<T, InputTransform>,
                                     transform_patch<T, GradOutputTransform>,
                                     winograd_weight<T>,
                                     winograd_output<T>,
                                     add_patch<T>,
                                     winograd_grad_weight<T>};

}  // namespace

extern const TileKernels<float> kFloatKernels;
extern const TileKernels<double> kDoubleKernels;
const TileKernels<float> kFloatKernels = kKernels<float>;
const TileKernels<double> kDoubleKernels = kKernels<double>;

}  // namespace clsd::cpu::CLSD_ISA
