// Products of register tiles, and the same with distances in place of products.
#pragma once

#include "vector.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

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

// One chain of `steps` steps.
//
// Arrays of vectors are only touched one element at a time, under constant indices: that is what
// lets the compiler keep them in registers.
template <class T, class Step, int kRows, int kPanels>
inline void accumulate_rows(T* acc, const T* a, const T* b, int64_t steps, bool add,
                            const TileOperands<T>& operands) {
  constexpr int kVectors = kPanels * kPanelVectors<T>, kPointers = (kRows + 2) / 3;
  const int64_t a_row = operands.a_row, a_step = operands.a_step;
  const int64_t b_panel = operands.b_panel, b_step = operands.b_step;
  Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>{};
  }
  const T* rows[kPointers];  // every third one
#pragma GCC unroll 4
  for (int g = 0; g < kPointers; ++g) rows[g] = opaque(a + 3 * g * a_row);
  for (; steps > 0; --steps) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = load(b + v / kPanelVectors<T> * b_panel + v % kPanelVectors<T> * kLanes<T>);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> broadcast = rows[r / 3][r % 3 * a_row] - Vec<T>{};
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = Step::apply(sums[r][v], broadcast, columns[v]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < kPointers; ++g) rows[g] += a_step;
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
}

// Chain by chain, so that all rows find its part of b in the first cache.
template <class T, class Step, int kPanels>
inline void accumulate_panels(T* acc, const T* b, const TileOperands<T>& operands) {
  constexpr int kRows = rows_at_once<T>();
  constexpr int kRest = kRows < kRowStep ? kRows : kRowStep;
  const int64_t whole = operands.rows - operands.rows % kTileRows;
  const T* a = operands.a;
  bool add = operands.add;
  for (int64_t left = operands.steps; left > 0; left -= operands.chain) {
    const int64_t steps = left < operands.chain ? left : operands.chain;
    int64_t r = 0;
    for (; r < whole; r += kRows) {
      accumulate_rows<T, Step, kRows, kPanels>(acc + r * operands.acc_row, a + r * operands.a_row,
                                               b, steps, add, operands);
    }
    for (; r < operands.rows; r += kRest) {
      accumulate_rows<T, Step, kRest, kPanels>(acc + r * operands.acc_row, a + r * operands.a_row,
                                               b, steps, add, operands);
    }
    a += steps * operands.a_step;
    b += steps * operands.b_step;
    add = true;
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
    accumulate_panels<T, Step, 1>(acc + panel * kTileCols, operands.b + panel * operands.b_panel,
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

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
