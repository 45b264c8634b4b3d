// What a call of info_nce is given, what it saves, and how it is cut.
//
// The logits [N, M] are never stored whole. A round takes some hundred queries; its tasks scan one
// chunk of keys each. Rounds and chunks are cut by the shape alone and added up in order: no result
// depends on the number of threads.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "../../tensor_util.h"
#include "../kernels.h"

namespace clsd::cpu {

// A table of logits has kKeyBlock x kQueryBlock elements: whole register tiles both ways.
constexpr int64_t kKeyBlock = 5 * kTileRows;
constexpr int64_t kQueryBlock = 6 * kTileCols;

struct Inputs {
  Tensor query, positive_key;
  std::optional<Tensor> negative_keys, mask, labels, learned_temperature;
  double temperature;

  bool in_batch() const { return !negative_keys; }
  const Tensor& keys() const { return negative_keys ? *negative_keys : positive_key; }

  void check_all(const char* op) const {
    check_rows(op, "query", query);
    check_rows(op, "positive_key", positive_key);
    const int64_t batch = query.size(0), count = query.size(1), features = query.size(2);
    const int64_t positives = in_batch() ? positive_key.size(1) : count;
    if (positives < count) {
      fail(op, "a positive_key for each row of query",
           std::to_string(positives) + " for " + std::to_string(count));
    }
    check_shape(op, "positive_key", positive_key, {batch, positives, features});
    check_like(op, "positive_key", query, positive_key);
    if (negative_keys) {
      check_rows(op, "negative_keys", *negative_keys);
      check_shape(op, "negative_keys", *negative_keys, {batch, negative_keys->size(1), features});
      check_like(op, "negative_keys", query, *negative_keys);
    }
    if (mask) {
      check_shape(op, "mask", *mask, {batch, count, keys().size(1)});
      check_option(op, "mask", *mask, ScalarType::Bool, "bool");
    }
    if (labels) {
      check(in_batch(), op, "no labels beside negative_keys", "both");
      check_shape(op, "labels", *labels, {batch, keys().size(1)});
      check_option(op, "labels", *labels, ScalarType::Long, "int64");
    }
    if (learned_temperature) {
      check_shape(op, "learned_temperature", *learned_temperature, {});
      const auto dtype = accumulator_dtype(query.scalar_type());
      check_option(op, "learned_temperature", *learned_temperature, dtype, dtype_name(dtype));
    } else if (!(temperature > 0)) {
      fail(op, "temperature > 0", std::to_string(temperature));
    }
  }

  template <class T>
  double inverse_temperature() const {
    return 1 / (learned_temperature ? *const_data<T>(*learned_temperature) : temperature);
  }

 private:
  static void check_option(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                           const char* expected) {
    check_dtype(op, name, tensor, dtype, expected);
    if (!tensor.is_cpu()) fail(op, std::string(name) + " on query's device", "another");
  }
};

// What a call saves of each query, [B, N] each, one after the other: largest logit, sum of
// exp(logit - largest), and spread (clsd_fast/reference/contrast.py).
template <class T>
struct SavedStatistics {
  T *maximum, *sum_exp, *spread;

  SavedStatistics(T* memory, int64_t rows)
      : maximum(memory), sum_exp(memory + rows), spread(memory + 2 * rows) {}
};

// The queries of a round: rows [first, first + count) of batch entries [b, b + entries).
struct RoundQueries {
  int64_t b, entries, first, count;
};

// How a call is cut. Rounds cover `queries` rows of `entries` batch entries, chunks `keys` rows.
struct Plan {
  int64_t entries, queries, keys, chunks;

  // With stored tables, a round has fewer queries: its tables should stay in the cache.
  Plan(const Inputs& inputs, bool stores_tables) {
    constexpr int64_t kRoundElements = 5 * kQueryBlock * 128;  // of an entry, 240 KiB of float
    constexpr int64_t kRoundTasks = 16;  // about as many; the partial of each is kept
    const int64_t stride = round_up(inputs.query.size(2), kTileCols);
    const int64_t whole = kRoundElements / stride / kQueryBlock * kQueryBlock;
    queries = std::min(std::max(whole, kQueryBlock), round_up(inputs.query.size(1), kTileCols));
    queries = std::min(queries, (stores_tables ? 2 : 5) * kQueryBlock);
    entries = std::max<int64_t>(1, 8 * kRoundElements / std::max<int64_t>(1, queries * stride));
    entries = std::min(entries, inputs.query.size(0));
    if (stores_tables) {
      constexpr int64_t kStored = 4 << 20;  // elements, 16 MiB of float
      const int64_t table = std::max<int64_t>(1, queries * inputs.keys().size(1));
      entries = std::min(entries, std::max<int64_t>(1, kStored / table));
    }
    const int64_t wanted = std::max<int64_t>(1, kRoundTasks / std::max<int64_t>(1, entries));
    keys = round_up(std::max<int64_t>(1, ceil_div(inputs.keys().size(1), wanted)), kKeyBlock);
    chunks = std::max<int64_t>(1, ceil_div(inputs.keys().size(1), keys));
  }
};

}  // namespace clsd::cpu
