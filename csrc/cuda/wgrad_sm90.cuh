// Gradient of a 3x3 convolution's weight and bias on the tensor cores of sm_90a (wgmma).
//
// A block computes all taps of 64 x 64 channels, each of its 3 warpgroups those of one dx, 96 sums a
// thread. A product's A is a row of grad_output, 64 channels, and its B the input's rows above, at and
// below it, 3 x 64 channels, which are one operand of 192 columns: both are MN-major, and dx is a
// constant step of a descriptor's address.
//
// The 24 products of a tile take 2304 clocks, in which 38.5 KiB come from global memory; they read
// 85 of the 128 bytes that shared memory has in a clock: the tensor cores are the bound.
#pragma once

#include "wgrad_tiles.cuh"

namespace clsd::cuda::wgrad_sm90 {

using wgrad::InputLayout;
using wgrad::kPieces;
using wgrad::kTileH;
using wgrad::OutputLayout;
using wgrad::Task;
using wgrad::Tasks;

constexpr int kWarpgroups = 3, kWarpgroupThreads = 128;  // a warpgroup for each dx
constexpr int kThreads = kWarpgroups * kWarpgroupThreads;
constexpr int kColumns = 3 * kGroup;
constexpr uint32_t kCoreBytes = 8 * kPieceBytes;

// Of the tiles in shared memory, one is multiplied, one may still be, and the others arrive.
constexpr int kStages = 4, kAhead = kStages - 2;
constexpr uint32_t kSharedBytes = kStages * wgrad::kTileBytes;

using Sums = float[kColumns / 2];

#ifdef CLSD_SM90A

// Start the products of a tile's rows: their group is left uncompleted.
template <class T>
__device__ __forceinline__ void multiply_tile(Sums& sums, uint32_t stage, int dx) {
  constexpr uint32_t kInputRow = InputLayout::kRowBytes, kOutputRow = OutputLayout::kRowBytes;
  const uint64_t a =
      wgmma_descriptor<kCoreBytes, OutputLayout::kPitch>(stage + InputLayout::kBytes);
  const uint64_t b = wgmma_descriptor<kCoreBytes, InputLayout::kPitch>(stage + dx * kPieceBytes);
  wgmma_fence();
#pragma unroll
  for (int row = 0; row < kTileH; ++row) {
    wgmma<T, kColumns, true, true>(sums, a + row * (kOutputRow / kPieceBytes),
                                   b + row * (kInputRow / kPieceBytes));
  }
  wgmma_commit();
}

#endif

template <class T>
__device__ __forceinline__ void write_weight_partial(const Task<T>& task, int split,
                                                     const Sums& sums, const ChannelGroup& outputs,
                                                     const ChannelGroup& inputs, int dx) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroupThreads / 32;
  if (16 * warp >= outputs.count) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t k = outputs.channel(16 * warp + lane / 4 + 8 * half);
    const int64_t row = (split * static_cast<int64_t>(task.outputs) + k) * kTaps + dx;
    const Global<float> target =
        task.weight_partials + (row * task.inputs + inputs.first + 2 * (lane % 4));
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (kPiece * piece >= inputs.count) break;
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        const float* pair = &sums[4 * (kPieces * dy + piece) + 2 * half];
        store_pair(target + (3 * dy * static_cast<int64_t>(task.inputs) + kPiece * piece),
                   float2{pair[0], pair[1]});
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    wgrad_kernel(const __grid_constant__ Tasks<T> tasks) {
#ifdef CLSD_SM90A
  const wgrad::Place place = wgrad::place_of_block(tasks);
  const Task<T>& task = tasks.at[place.task];
  auto inputs = ChannelGroup::of(place.inputs, task.inputs, 1);
  if (!task.grad_weight) inputs.count = 0;  // none is read: products are of zeros
  const auto outputs = ChannelGroup::of(place.outputs, task.outputs, task.upscale);
  const bool has_bias = task.grad_bias && place.inputs == 0;
  const int dx = threadIdx.x / kWarpgroupThreads;
  const auto walk = wgrad::Walk::of(task, place.split);
  wgrad::Loader<T, kThreads> loader(task, {task.input, task.inputs, 1, inputs},
                                    {task.grad_output, task.outputs, task.upscale, outputs}, walk);
  for (int stage = 0; stage < kAhead; ++stage) loader.load(stage * wgrad::kTileBytes);
  Sums sums{};
  wgrad::BiasSums bias_sums{};
#pragma unroll 1
  for (unsigned step = 0; step < walk.left; ++step) {
    cp_async_wait<kAhead - 1>();
    fence_proxy_async();
    wgmma_wait<1>();
    // After the barrier, all see this tile, and the products of the one before the last are done,
    // in whose place the next one goes.
    __syncthreads();
    const uint32_t stage = step % kStages * wgrad::kTileBytes;
    loader.load((step + kAhead) % kStages * wgrad::kTileBytes);
    multiply_tile<T>(sums, stage, dx);
    if (has_bias) loader.add_to(bias_sums, stage);
  }
  wgmma_wait<0>(sums);
  cp_async_wait<0>();  // for none; a thread ends with nothing under way
  if (task.grad_weight) write_weight_partial(task, place.split, sums, outputs, inputs, dx);
  if (has_bias) {
    __syncthreads();  // all have left the tiles
    wgrad::write_bias_partial<kThreads>(task, place.split, bias_sums, outputs);
  }
#else
  __trap();  // weight_gradients launches it where there is code for sm_90a alone
#endif
}

}  // namespace clsd::cuda::wgrad_sm90
