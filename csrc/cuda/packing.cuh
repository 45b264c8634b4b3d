// The kernel that packs parameters (packing.h).
#pragma once

#include "convolution.h"
#include "packing.h"
#include "platform.cuh"

namespace clsd::cuda {

constexpr int kPackingThreads = 256;
constexpr int kMaxPackings = 16;  // of a launch, whose parameters may be 4 KiB

template <class T>
struct PackingTask : Packing<T> {
  int64_t pieces;  // of the weight, one a thread; behind them come the biases
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

// The channel that stands at row `row` of a group of `size`, or a negative number if there is none.
__device__ __forceinline__ int64_t packed_channel(const ChannelOrder& order, int group, int size,
                                                  int row) {
  const int per_phase = order.per_phase(), groups = (per_phase + size - 1) / size;
  const int channel = group % groups * size + row;
  return channel < per_phase ? static_cast<int64_t>(channel) * order.square + group / groups : -1;
}

// Where a weight is and whether it is: of an output channel, a tap and an input channel.
template <class T>
__device__ __forceinline__ float packed_weight(const Packing<T>& packing, int64_t output, int tap,
                                               int64_t input) {
  if (output < 0 || input < 0 || tap >= kTaps) return 0;
  return load_parameter(packing.weight, packing.weight_start + output * packing.output_stride +
                                            input * packing.input_stride +
                                            tap / 3 * packing.y_stride +
                                            tap % 3 * packing.x_stride);
}

// 8 numbers as a piece of 16 bytes.
template <class T, class Number>
__device__ __forceinline__ uint4 piece_of(const Number& number) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) pairs[i] = pack<T>(number(2 * i), number(2 * i + 1));
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Piece `index` of the packed weight.
template <class T>
__device__ __forceinline__ uint4 packed_piece(const Packing<T>& packing, int64_t index) {
  const int rows = packing.rows(), row = static_cast<int>(index % rows);
  const int64_t rest = index / rows;
  if (packing.kind() == PackingKind::kFewInputs) {
    const int64_t output =
        packed_channel(packing.outputs, static_cast<int>(rest / kFewDepthPieces), rows, row);
    const int first = static_cast<int>(rest % kFewDepthPieces) * kPiece;
    const int channels = packing.inputs.channels;
    return piece_of<T>([&](int i) {
      return packed_weight(packing, output, (first + i) / channels, (first + i) % channels);
    });
  }
  const int slices = packing.inputs.groups(kSlice);
  const int first = static_cast<int>(rest % kSlicePieces) * kPiece;
  const int tap = static_cast<int>(rest / kSlicePieces % kTaps);
  const auto matrix = static_cast<int>(rest / (kSlicePieces * kTaps));
  const int64_t output = packed_channel(packing.outputs, matrix / slices, rows, row);
  return piece_of<T>([&](int i) {
    const int64_t input = packed_channel(packing.inputs, matrix % slices, kSlice, first + i);
    return packed_weight(packing, output, tap, input);
  });
}

template <class T>
__global__ void __launch_bounds__(kPackingThreads)
    pack_kernel(const __grid_constant__ PackingTasks<T> tasks) {
  const PackingTask<T>& task = tasks.at[blockIdx.y];
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPackingThreads + threadIdx.x;
  if (index < task.pieces) {
    store_vector(task.packed_weight + index * kPiece, packed_piece(task, index));
  } else if (index < task.threads) {
    const int64_t at = index - task.pieces;
    const int rows = task.rows();
    const int64_t channel = packed_channel(task.outputs, static_cast<int>(at / rows), rows,
                                           static_cast<int>(at % rows));
    const bool given = task.bias && channel >= 0;
    store(task.packed_bias + at,
          given ? load_parameter(task.bias, channel * task.bias_stride) : 0.0f);
  }
}

}  // namespace clsd::cuda
