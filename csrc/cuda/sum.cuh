// The kernel that adds up images (sum.h).
#pragma once

#include "packing.h"
#include "platform.cuh"
#include "sum.h"

namespace clsd::cuda {

constexpr int kSumThreads = 256;

// A piece of 8 numbers a thread.
template <class T>
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const __grid_constant__ Sum<T> task) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * kPiece;
  if (at + kPiece > task.elements) {  // the last one may be of fewer
    for (int64_t i = at; i < task.elements; ++i) {
      float total = 0;
      for (int64_t j = 0; j < task.count; ++j) total += to_float(load(task.summands[j] + i));
      store(task.sum + i, from_float<T>(total));
    }
    return;
  }
  uint4 pieces[kMaxSummands] = {};
#pragma unroll
  for (size_t j = 0; j < kMaxSummands; ++j) {
    if (j < static_cast<size_t>(task.count)) pieces[j] = load_vector(task.summands[j] + at);
  }
  float2 totals[kPiece / 2] = {};
#pragma unroll
  for (size_t j = 0; j < kMaxSummands; ++j) {
    const uint32_t pairs[] = {pieces[j].x, pieces[j].y, pieces[j].z, pieces[j].w};
#pragma unroll
    for (int i = 0; i < kPiece / 2; ++i) {
      const float2 numbers = unpack<T>(pairs[i]);
      totals[i].x += numbers.x, totals[i].y += numbers.y;
    }
  }
  store_vector(task.sum + at,
               uint4{pack<T>(totals[0].x, totals[0].y), pack<T>(totals[1].x, totals[1].y),
                     pack<T>(totals[2].x, totals[2].y), pack<T>(totals[3].x, totals[3].y)});
}

}  // namespace clsd::cuda
