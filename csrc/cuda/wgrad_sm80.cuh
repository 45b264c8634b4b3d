// Gradient of a 3x3 convolution's weight and bias on the tensor cores of sm_80 and later.
//
// A block computes all taps of 64 x 64 channels, each of its 8 warps those of 32 output and 16 input
// channels, 144 sums a thread. It goes down the rows of a tile's input: each is multiplied with the
// rows of grad_output above, beside and below it, which stay in registers. The 288 products of a tile
// and warp, m16n8k16, take an sm_80 4608 clocks, in which 38.5 KiB come from global memory and shared
// memory moves 184 of the 576 KiB it could: the tensor cores are the bound. The next tile arrives
// meanwhile.
#pragma once

#include "wgrad_tiles.cuh"

namespace clsd::cuda::wgrad_sm80 {

using wgrad::InputLayout;
using wgrad::kTileH;
using wgrad::OutputLayout;
using wgrad::Task;
using wgrad::Tasks;

constexpr int kThreads = 256;
constexpr int kWarpFragmentsM = 2, kWarpFragmentsN = 2;  // of 16 output and 8 input channels
constexpr int kWarpM = 16 * kWarpFragmentsM, kWarpsM = kGroup / kWarpM;
constexpr int kWarpN = 8 * kWarpFragmentsN, kWarpsN = kGroup / kWarpN;
static_assert(32 * kWarpsM * kWarpsN == kThreads);
constexpr int kStages = 2;
constexpr uint32_t kSharedBytes = kStages * wgrad::kTileBytes;

// Of a tile's rows, those before the next tile is asked for: while a warp does that, the other one of
// its scheduler has products left.
constexpr int kEarlyRows = 2;

using Sums = float[kTaps][kWarpFragmentsM][kWarpFragmentsN][4];

// A warp's rows of grad_output, each in the place of its number modulo 3.
using Rows = uint32_t[3][kWarpFragmentsM][4];

// Add the products of rows kBegin to kEnd of a tile's input, counted from the border on, in turn: those
// of row y are, for taps dy, with row y - dy of grad_output.
template <class T, int kBegin, int kEnd>
__device__ __forceinline__ void multiply_rows(Sums& sums, Rows& rows, uint32_t stage,
                                              int first_output, int first_input) {
  const int lane = threadIdx.x % 32;
  const uint32_t input =
      stage + (first_input / kPiece + lane / 16) * InputLayout::kPitch + lane % 16 * kPieceBytes;
  const uint32_t output = stage + InputLayout::kBytes +
                          (first_output / kPiece + lane / 8 % 2) * OutputLayout::kPitch +
                          (lane % 8 + lane / 16 * 8) * kPieceBytes;
#pragma unroll
  for (int y = kBegin; y < kEnd; ++y) {
    if (y < kTileH) {
#pragma unroll
      for (int m = 0; m < kWarpFragmentsM; ++m) {
        ldmatrix_transposed(rows[y % 3][m], output + y * OutputLayout::kRowBytes +
                                                16 / kPiece * m * OutputLayout::kPitch);
      }
    }
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) {
      uint32_t pixels[2 * kWarpFragmentsN];
      ldmatrix_transposed(pixels, input + y * InputLayout::kRowBytes + dx * kPieceBytes);
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        if (y - dy < 0 || y - dy >= kTileH) continue;
#pragma unroll
        for (int m = 0; m < kWarpFragmentsM; ++m) {
#pragma unroll
          for (int n = 0; n < kWarpFragmentsN; ++n) {
            const uint32_t columns[2] = {pixels[2 * n], pixels[2 * n + 1]};
            mma<T>(sums[3 * dy + dx][m][n], rows[(y - dy) % 3][m], columns);
          }
        }
      }
    }
  }
}

template <class T>
__device__ void write_weight_partial(const Task<T>& task, int split, const Sums& sums,
                                     const ChannelGroup& outputs, int first_output,
                                     const ChannelGroup& inputs, int first_input) {
  const int lane = threadIdx.x % 32;
  if (first_input >= inputs.count) return;
#pragma unroll
  for (int m = 0; m < kWarpFragmentsM; ++m) {
    if (first_output + 16 * m >= outputs.count) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t k = outputs.channel(first_output + 16 * m + 8 * half + lane / 4);
      const int64_t row = (split * static_cast<int64_t>(task.outputs) + k) * kTaps;
      const int c = inputs.first + first_input + 2 * (lane % 4);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
        for (int n = 0; n < kWarpFragmentsN; ++n) {
          const float* pair = &sums[tap][m][n][2 * half];
          store_pair(task.weight_partials + ((row + tap) * task.inputs + c + 8 * n),
                     float2{pair[0], pair[1]});
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    wgrad_kernel(const __grid_constant__ Tasks<T> tasks) {
  const wgrad::Place place = wgrad::place_of_block(tasks);
  const Task<T>& task = tasks.at[place.task];
  auto inputs = ChannelGroup::of(place.inputs, task.inputs, 1);
  if (!task.grad_weight) inputs.count = 0;  // none is read
  const auto outputs = ChannelGroup::of(place.outputs, task.outputs, task.upscale);
  const bool has_bias = task.grad_bias && place.inputs == 0;
  const int warp = threadIdx.x / 32;
  const int first_output = warp / kWarpsN * kWarpM, first_input = warp % kWarpsN * kWarpN;
  const bool has_weights = first_input < inputs.count && first_output < outputs.count;
  const auto walk = wgrad::Walk::of(task, place.split);
  wgrad::Loader<T, kThreads> loader(task, {task.input, task.inputs, 1, inputs},
                                    {task.grad_output, task.outputs, task.upscale, outputs}, walk);
  loader.load(0);
  Sums sums{};
  wgrad::BiasSums bias_sums{};
#pragma unroll 1
  for (unsigned step = 0; step < walk.left; ++step) {
    // After the barrier, all see this tile, and all have left the one before, in whose place the
    // next one goes.
    cp_async_wait<0>();
    __syncthreads();
    const uint32_t stage = step % kStages * wgrad::kTileBytes;
    Rows rows{};
    if (has_weights) multiply_rows<T, 0, kEarlyRows>(sums, rows, stage, first_output, first_input);
    loader.load((step + 1) % kStages * wgrad::kTileBytes);
    if (has_bias) loader.add_to(bias_sums, stage);
    if (has_weights) {
      multiply_rows<T, kEarlyRows, InputLayout::kHeight>(sums, rows, stage, first_output,
                                                         first_input);
    }
  }
  cp_async_wait<0>();  // for none; a thread ends with nothing under way
  if (has_weights) {
    write_weight_partial(task, place.split, sums, outputs, first_output, inputs, first_input);
  }
  if (has_bias) {
    __syncthreads();  // all have left the tiles
    wgrad::write_bias_partial<kThreads>(task, place.split, bias_sums, outputs);
  }
}

}  // namespace clsd::cuda::wgrad_sm80
