// What the kernels of weight gradients share: a launch's tasks, and the sum of what they leave.
//
// The sum over all pixels is cut into splits, each of which writes a partial, its sums as floats,
// into the workspace. A second kernel adds partials in a fixed order and rounds once. Neither has
// atomics, so repeated results are bit-equal.
#pragma once

#include "platform.cuh"
#include "tiles.cuh"
#include "wgrad.h"

namespace clsd::cuda::wgrad {

constexpr int kPieces = kGroup / kPiece;  // of a pixel's channels that a block works on

// One convolution, and how its pixels are cut. A step is what a kernel works on at a time: a
// tile, or some pixels that follow each other.
template <class T>
struct Task : WeightGradient<T> {
  Global<float> weight_partials;  // [splits][outputs][3][3][inputs], where grad_weight is wanted
  Global<float> bias_partials;    // [splits][outputs], where grad_bias is
  int64_t steps, steps_of_split;
  int splits, input_groups, output_groups;

  __host__ __device__ int blocks() const { return splits * input_groups * output_groups; }
  __host__ __device__ int64_t weights() const {
    return static_cast<int64_t>(this->outputs) * kTaps * this->inputs;
  }
};

template <class T>
struct Tasks {
  Task<T> at[kMaxWeightGradients];
  int count = 0;
};

// What a block works on. Blocks of the same pixels follow each other: they share the cache.
struct Place {
  int task, split, outputs, inputs;  // the latter two count groups of channels
};

template <class T>
__device__ Place place_of_block(const Tasks<T>& tasks) {
  int task = 0, block = static_cast<int>(blockIdx.x);
  while (block >= tasks.at[task].blocks()) block -= tasks.at[task++].blocks();
  const int inputs = tasks.at[task].input_groups, outputs = tasks.at[task].output_groups;
  return {task, block / (inputs * outputs), block / inputs % outputs, block % inputs};
}

// A thread adds partials, of which it loads so many splits at once. Where there are many, eight
// threads share an element, of which each has every eighth split; else a thread has four elements.
constexpr int kReducedAtOnce = 8;
constexpr int kReducingThreads = 256;
constexpr uint32_t kReducingBytes = 4 * kReducingThreads;

template <class T>
__device__ __forceinline__ void store_parameter(const Parameter<T>& to, int64_t index,
                                                float value) {
  if (to.wide) {
    store(to.wide + index, value);
  } else {
    store(to.narrow + index, from_float<T>(value));
  }
}

// Where element [k][tap][c] of the workspace goes.
template <class T>
__device__ __forceinline__ int64_t weight_index(const Task<T>& task, int64_t element) {
  if (task.channels_last) return element;
  const int64_t c = element % task.inputs, row = element / task.inputs;
  return (row / kTaps * task.inputs + c) * kTaps + row % kTaps;
}

template <int kElements>
struct PartialSums {
  float at[kElements] = {};

  __device__ __forceinline__ void add(const PartialSums& others) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) at[i] += others.at[i];
  }
};

// Of one element alone, or of kElements consecutive ones.
template <int kElements>
__device__ __forceinline__ PartialSums<kElements> load_partials(Global<const float> from,
                                                                bool alone) {
  PartialSums<kElements> sums;
  if constexpr (kElements == 4) {
    if (!alone) {
      const float4 values = load_floats(from);
      return {{values.x, values.y, values.z, values.w}};
    }
  }
  sums.at[0] = load(from);
  return sums;
}

// Add every kLanes-th split from one on, `stride` floats apart.
template <int kElements, int kLanes>
__device__ __forceinline__ PartialSums<kElements> sum_of_partials(Global<const float> partials,
                                                                  int64_t stride, int splits,
                                                                  int lane, bool alone) {
  PartialSums<kElements> sum;
  Global<const float> from = partials + lane * stride;
  for (int split = lane; split < splits; split += kReducedAtOnce * kLanes) {
    PartialSums<kElements> values[kReducedAtOnce];
#pragma unroll
    for (int i = 0; i < kReducedAtOnce; ++i, from = from + kLanes * stride) {
      if (split + i * kLanes < splits) values[i] = load_partials<kElements>(from, alone);
    }
#pragma unroll
    for (int i = 0; i < kReducedAtOnce; ++i) sum.add(values[i]);
  }
  return sum;
}

// kElements of the weight a thread, then the biases, one each; kLanes threads for the same.
template <class T, int kElements, int kLanes>
__global__ void __launch_bounds__(kReducingThreads)
    wgrad_reduce_kernel(const __grid_constant__ Tasks<T> tasks) {
  static_assert(kElements == 1 || kLanes == 1);
  constexpr int kColumns = kReducingThreads / kLanes;
  const Task<T>& task = tasks.at[blockIdx.y];
  const int column = threadIdx.x % kColumns, lane = threadIdx.x / kColumns;
  const int64_t weights = task.grad_weight ? task.weights() : 0;
  const int64_t biases = task.grad_bias ? task.outputs : 0;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  const int64_t element = index * kElements, bias = index - weights / kElements;
  const bool is_weight = element < weights, exists = is_weight || bias < biases;
  PartialSums<kElements> sum;
  if (exists) {
    const Global<const float> partials =
        is_weight ? task.weight_partials + element : task.bias_partials + bias;
    const int64_t stride = is_weight ? weights : task.outputs;
    sum = sum_of_partials<kElements, kLanes>(partials, stride, task.splits, lane, !is_weight);
  }
  if constexpr (kLanes > 1) {
    store_shared(4 * threadIdx.x, sum.at[0]);
    __syncthreads();
    if (lane > 0) return;
    for (int i = 1; i < kLanes; ++i) {
      sum.at[0] += load_shared<float>(4 * (i * kColumns + column));
    }
  }
  if (!exists) return;
  if (!is_weight) return store_parameter(task.grad_bias, bias, sum.at[0] * task.scale);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    store_parameter(task.grad_weight, weight_index(task, element + i), sum.at[i] * task.scale);
  }
}

}  // namespace clsd::cuda::wgrad
