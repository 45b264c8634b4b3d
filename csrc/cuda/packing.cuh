// The kernel that packs parameters (packing.h).
#pragma once

#include "convolution.h"
#include "packing.h"
#include "platform.cuh"
#include "tiles.cuh"

namespace clsd::cuda {

constexpr int kPackingThreads = 256;
constexpr int kMaxPackings = 16;  // of a launch, whose parameters may be 4 KiB

// The groups that an image's channels are packed in.
struct PackedGroups {
  Divisor of_phase;
  int size, per_phase, square;

  PackedGroups() = default;
  PackedGroups(const ChannelOrder& order, int size)
      : of_phase(order.groups(size) / order.square),
        size(size),
        per_phase(order.per_phase()),
        square(order.square) {}

  // The channel that stands at row `row` of group `group`, or -1 if there is none.
  __device__ __forceinline__ int channel(int group, int row) const {
    const int phase = of_phase.quotient(group), channel = of_phase.rest(group, phase) * size + row;
    return channel < per_phase ? channel * square + phase : -1;
  }
};

template <class T>
struct PackingTask : Packing<T> {
  PackedGroups output_groups, input_groups;
  Divisor slices, few_inputs, rows;
  int pieces;          // of the weight, one a thread; behind them come the biases
  int64_t input_step;  // from an input channel to the next of its phase, in elements
  int64_t threads;
};

template <class T>
struct PackingTasks {
  PackingTask<T> at[kMaxPackings];
};

template <class T>
__device__ __forceinline__ float load_parameter(const Parameter<const T>& from, int64_t index) {
  return from.wide ? load(from.wide + index) : to_float(load(from.narrow + index));
}

// 8 numbers as a piece of 16 bytes.
template <class T, class Number>
__device__ __forceinline__ uint4 piece_of(const Number& number) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = pack<T>(number(2 * i), number(2 * i + 1));
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Where the taps of an output channel begin.
template <class T>
__device__ __forceinline__ int64_t taps_of(const PackingTask<T>& task, int output) {
  return task.weight_start + output * task.output_stride;
}

template <class T>
__device__ __forceinline__ int64_t tap_offset(const PackingTask<T>& task, int tap) {
  return tap / 3 * task.y_stride + tap % 3 * task.x_stride;
}

// 8 depths of a row, from `first` on: depth d is channel d % inputs at tap d / inputs.
template <class T>
__device__ __forceinline__ uint4 depths_piece(const PackingTask<T>& task, int output, int first) {
  const int64_t taps = taps_of(task, output);
  return piece_of<T>([&](int i) {
    const int tap = task.few_inputs.quotient(first + i);
    if (output < 0 || tap >= kTaps) return 0.0f;
    const int input = task.few_inputs.rest(first + i, tap);
    return load_parameter(task.weight, taps + tap_offset(task, tap) + input * task.input_stride);
  });
}

// 8 input channels of a row, of slice `slice` from `first` on, at a tap. There are as many in every
// slice.
template <class T>
__device__ __forceinline__ uint4 channels_piece(const PackingTask<T>& task, int output, int slice,
                                                int tap, int first) {
  const int input = task.input_groups.channel(slice, first);
  const int64_t at = taps_of(task, output) + tap_offset(task, tap) + input * task.input_stride;
  return piece_of<T>([&](int i) {
    return output < 0 ? 0.0f : load_parameter(task.weight, at + i * task.input_step);
  });
}

// Piece `index` of the packed weight.
template <class T>
__device__ __forceinline__ uint4 packed_piece(const PackingTask<T>& task, int index) {
  const int rest = task.rows.quotient(index), row = task.rows.rest(index, rest);
  if (task.has_few_inputs()) {
    const int output = task.output_groups.channel(rest / kFewDepthPieces, row);
    return depths_piece(task, output, rest % kFewDepthPieces * kPiece);
  }
  const int matrix = rest / (kSlicePieces * kTaps), group = task.slices.quotient(matrix);
  return channels_piece(task, task.output_groups.channel(group, row),
                        task.slices.rest(matrix, group), rest / kSlicePieces % kTaps,
                        rest % kSlicePieces * kPiece);
}

template <class T>
__global__ void __launch_bounds__(kPackingThreads)
    pack_kernel(const __grid_constant__ PackingTasks<T> tasks) {
  const PackingTask<T>& task = tasks.at[blockIdx.y];
  const int index = static_cast<int>(blockIdx.x * kPackingThreads + threadIdx.x);
  if (index < task.pieces) {
    store_vector(task.packed_weight + int64_t{index} * kPiece, packed_piece(task, index));
  } else if (index < task.threads) {
    const int at = index - task.pieces, group = task.rows.quotient(at);
    const int channel = task.output_groups.channel(group, task.rows.rest(at, group));
    const bool given = task.bias && channel >= 0;
    store(task.packed_bias + at,
          given ? load_parameter(task.bias, channel * task.bias_stride) : 0.0f);
  }
}

}  // namespace clsd::cuda
