// The forward of info_nce: statistics of each query over the chunks of keys, joined to its loss.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "info_nce_tables.h"

namespace clsd::cpu {

// Statistics [width] of a round's queries for one chunk of keys, and their positives' logits in it.
template <class T>
struct ChunkStatistics {
  SoftmaxStatistics<T> softmax;
  T* positive;

  ChunkStatistics(T* memory, int64_t width)
      : softmax{memory, memory + width, memory + 2 * width}, positive(memory + 3 * width) {}
  static int64_t size(int64_t width) { return 4 * width; }

  void clear(int64_t width) const {
    std::fill_n(softmax.maximum, width, -std::numeric_limits<T>::infinity());
    std::fill_n(softmax.sum_exp, 3 * width, T(0));
  }
};

// One query's statistics, joined from those of the chunks.
template <class T>
struct QuerySoftmax {
  T maximum = -std::numeric_limits<T>::infinity(), sum_exp = 0, weighted = 0;

  void add(T other_maximum, T other_sum, T other_weighted) {
    const T largest = other_maximum > maximum ? other_maximum : maximum;
    rescale(maximum - largest, sum_exp, weighted);
    rescale(other_maximum - largest, other_sum, other_weighted);
    maximum = largest;
    sum_exp += other_sum;
    weighted += other_weighted;
  }

 private:
  static void rescale(T moved, T& sum, T& weighted) {
    if (!(sum != 0)) return;  // nothing there, and moved may be inf - inf
    const T kept = std::exp(moved);
    weighted = (weighted + sum * moved) * kept;
    sum *= kept;
  }
};

// The losses of a round's queries, and what is saved of them.
template <class S>
struct InfoNceForward {
  using T = Accumulator<S>;
  const Contrast<S>& contrast;
  T* loss;
  SavedStatistics<T> saved;

  void operator()(const Round<S>& round, const StoredTables<T>& stored = {}) const {
    Workspace workspace;
    const int64_t entries = round.entries, count = round.count;
    const int64_t chunks = contrast.plan.chunks, size = ChunkStatistics<T>::size(round.width);
    T* partials = workspace.take<T>(entries * chunks * size);
    const int64_t grain = contrast.grain(count, std::min(contrast.plan.keys, contrast.keys.count));
    parallel_for(0, entries * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        scan(round, stored, task / chunks, task % chunks, {partials + task * size, round.width});
      }
    });
    const int64_t row_grain = contrast.grain(1, 4 * chunks);
    parallel_for(0, entries * count, row_grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        finish(round, task / count, task % count, partials + task / count * chunks * size);
      }
    });
  }

 private:
  void scan(const Round<S>& round, const StoredTables<T>& stored, int64_t entry, int64_t chunk,
            const ChunkStatistics<T>& statistics) const {
    statistics.clear(round.width);
    Workspace workspace;
    TableScan<S> tables(workspace, round, entry, chunk, stored);
    for (int64_t key = tables.first; key < tables.last; key += kKeyBlock) {
      tables.take_keys(key, std::min(kKeyBlock, tables.last - key));
      for (int64_t q = 0; q < round.width; q += kQueryBlock) {
        const auto table = tables.table(q);
        const auto& all = statistics.softmax;
        contrast.kernels.softmax_scan(
            {.maximum = all.maximum + q, .sum_exp = all.sum_exp + q, .weighted = all.weighted + q},
            table);
        for (int64_t v = 0; v < std::min(table.queries, round.count - q); ++v) {
          const T* own = tables.positive(q, round.first + q + v);
          if (own) statistics.positive[q + v] = *own;
        }
      }
    }
  }

  void finish(const Round<S>& round, int64_t entry, int64_t i, T* partials) const {
    QuerySoftmax<T> softmax;
    T positive = 0;
    if (!contrast.in_batch()) {
      positive = round.positive_logit(entry, i);
      softmax.add(positive, 1, 0);
    }
    for (int64_t chunk = 0; chunk < contrast.plan.chunks; ++chunk) {
      const ChunkStatistics<T> partial(partials + chunk * ChunkStatistics<T>::size(round.width),
                                       round.width);
      const auto& sums = partial.softmax;
      softmax.add(sums.maximum[i], sums.sum_exp[i], sums.weighted[i]);
      if (contrast.in_batch()) positive += partial.positive[i];
    }
    const int64_t row = (round.b + entry) * contrast.query.count + round.first + i;
    const T behind = positive - softmax.maximum;
    // Not log-sum-exp minus the positive's logit: both can be 1e4, and their difference 0.
    loss[row] = std::log(softmax.sum_exp) - behind;
    saved.maximum[row] = softmax.maximum;
    saved.sum_exp[row] = softmax.sum_exp;
    saved.spread[row] = softmax.weighted / softmax.sum_exp - behind;
  }
};

}  // namespace clsd::cpu
