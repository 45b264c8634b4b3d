// 3x3 convolution on the tensor cores of sm_90a (wgmma).
//
// A block computes 12 x 24 pixels of 64 output channels: 16 images of 48 x 48 are 128 blocks, one
// for nearly each of the 132 multiprocessors of an H100 or H200. Weights are the products' A, its
// 64 rows output channels, and pixels their B: each of the block's 2 warpgroups takes 6 rows of the
// halo tile as one run of 156 columns, so that a tap is a constant step of a descriptor's address.
// The last 2 columns of each row wrap around to the next; they and the 4 up to 160 are dropped.
//
// The block goes through the input channels in slices of 16, each with the weights of all taps. The
// first four, 64 channels, are asked for at once, so that products wait for global memory only once.
// Of more, the next one arrives in the buffer of one whose products are done, while those of the one
// after it still run.
//
// Sums are finished in registers: a thread has two output channels, so that their biases are two
// numbers, and what is added to results waits in shared memory by then. There they are turned around
// by stmatrix, to be written 16 bytes at a time. What is added to rounded results comes last, behind all
// else that is asked for, in groups: each is added as it arrives.
#pragma once

#include <type_traits>
#include <utility>

#include "epilogue.cuh"

namespace clsd::cuda::sm90 {

constexpr int kTileH = 12, kTileW = 24, kWarpgroups = 2, kWarpgroupThreads = 128;
constexpr int kThreads = kWarpgroups * kWarpgroupThreads;
constexpr int kRunRows = kTileH / kWarpgroups, kColumns = 160;

template <class T>
using Input = InputLoader<T, kTileH, kTileW, kThreads>;
template <class T>
using Weights = WeightLoader<T, kThreads>;
using Halo = Input<Bf16>::Tile;
constexpr int kHaloW = Input<Bf16>::kWidth, kRun = kRunRows * kHaloW;
constexpr uint32_t kCoreBytes = 8 * kPieceBytes, kWeightPitch = Weights<Bf16>::kPitch;
static_assert(kRun <= kColumns);
// The dropped columns of the last tap read beyond the tile, but nothing beyond a piece's room.
static_assert(kRun * (kWarpgroups - 1) + kColumns + 2 * kHaloW + 2 <= Halo::kPitch / kPieceBytes);

constexpr int kBuffers = 4;
constexpr uint32_t kBufferBytes = Halo::kBytes + Weights<Bf16>::kBytes;
// A row for every column of the products, dropped ones included.
using Results = ResultTile<kWarpgroups * kColumns, kHaloW>;
constexpr uint32_t kResults = kBuffers * kBufferBytes;
constexpr uint32_t kBias = kResults + Results::kBytes;
// From the arguments, the compiler would read the scale some thirty times, before all else.
constexpr uint32_t kScale = kBias + kGroup * sizeof(float), kAdded = kScale + kPieceBytes;

template <class T>
using Pixels = ResultPixels<T, kRunRows, kTileW, 8, 2>;
static_assert(Pixels<Bf16>::kThreads == kWarpgroupThreads);
using Added = AddedPieces<kThreads, Pixels<Bf16>::kCount, 3>;
constexpr uint32_t kSharedBytes = kAdded + Pixels<Bf16>::kCount * Added::kBytes;

using Sums = float[kColumns / 2];

__device__ __forceinline__ uint32_t buffer_of(int slice) { return slice % kBuffers * kBufferBytes; }

__device__ __forceinline__ Results results_of(int warpgroup) {
  return {kResults + warpgroup * kColumns * kPieceBytes};
}

// Round the warp's results to where its residual or mask lies.
template <class T, Finish kFinish>
__device__ __forceinline__ void finish_sums(const Convolution<T>& conv, int output_group,
                                            const Sums& sums, const Results& results) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroupThreads / 32;
  const float scale = load_shared<float>(kScale);
  float bias[2], slopes[2] = {};  // of a thread's channels in either half of the warp's 16
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int channel = 16 * warp + 8 * half + lane / 4;
    bias[half] = load_shared<float>(kBias + channel * sizeof(float)) * scale;
    if constexpr (kIsLeaky<kFinish>) slopes[half] = slope_of(conv, output_group * kGroup + channel);
  }
  // Matrix i of four is that of half i % 2 of the channels and of columns 8 (i / 2) on.
  const uint32_t at = results.at(0, lane % 8 + lane / 16 * 8, 2 * warp + lane / 8 % 2);
  constexpr int kSixteens = kColumns / 16;
  uint32_t pairs[kSixteens][4] = {};
  if constexpr (kHasSkip<kFinish>) {  // all at once: each takes its time
#pragma unroll
    for (int j = 0; j < kSixteens; ++j) ldmatrix_transposed(pairs[j], at + 16 * j * kPieceBytes);
  }
#pragma unroll
  for (int j = 0; j < kSixteens; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* sum = &sums[8 * j + 2 * i];
      finish_pair<T, kFinish>(pairs[j][i], sum[0], sum[1], scale, bias[i % 2], bias[i % 2],
                              slopes[i % 2], slopes[i % 2]);
    }
    stmatrix_transposed(at + 16 * j * kPieceBytes, pairs[j]);
  }
}

// Wait until a slice has arrived. Committed are four slices, what the results wait for, and kAdded
// further groups; then, from the third turn on and before the next one, a further slice.
template <int kAdded>
__device__ __forceinline__ void wait_for_slice(int slice) {
  if (slice < 2) {
    slice < 1 ? cp_async_wait<kAdded + 4>() : cp_async_wait<kAdded + 3>();
  } else if (slice < 4) {
    slice < 3 ? cp_async_wait<kAdded + 2>() : cp_async_wait<kAdded + 1>();
  } else {
    cp_async_wait<1>();
  }
}

// Ask for the slices of 64 channels of an image without a shuffle, each in a group of its own. The
// warps wait for each other: else a slice's last copies would queue up behind further slices of those
// that are ahead, and products begin when all has arrived.
template <class T, int... kSlices>
__device__ __forceinline__ void load_slices(const Input<T>& input, const Weights<T>& weights,
                                            std::integer_sequence<int, kSlices...>) {
  const auto load = [&](auto slice) {
    constexpr int kIndex = decltype(slice)::value;
    input.template copy<kIndex>(kIndex * kBufferBytes);
    weights.template copy<kIndex>(kIndex * kBufferBytes + Halo::kBytes);
    cp_async_commit();
    __syncthreads();
  };
  (load(std::integral_constant<int, kSlices>{}), ...);
}

#ifdef CLSD_SM90A

// Start the products of a slice: its group is left uncompleted.
template <class T>
__device__ __forceinline__ void multiply_slice(Sums& sums, int slice, int run) {
  const uint32_t halo = buffer_of(slice), weights = halo + Halo::kBytes;
  const uint64_t a = wgmma_descriptor<kWeightPitch, kCoreBytes>(weights);
  const uint64_t b = wgmma_descriptor<Halo::kPitch, kCoreBytes>(halo + run * kRun * kPieceBytes);
  wgmma_fence();
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    // Descriptors count addresses in pieces: of a tap's weights, and of a pixel.
    wgmma<T, kColumns>(sums, a + tap * (Weights<T>::kTapBytes / kPieceBytes),
                       b + (tap / 3 * kHaloW + tap % 3));
  }
  wgmma_commit();
}

#endif

// kFour: of 64 input channels, not shuffled. Their slices are known when this is compiled.
template <class T, Finish kFinish, bool kFour>
__global__ void __launch_bounds__(kThreads, 1)
    conv3x3_kernel(const __grid_constant__ Convolutions<T> convolutions,
                   const __grid_constant__ Grid grid) {
#ifdef CLSD_SM90A
  const Convolution<T> conv = convolutions[blockIdx.y];
  const auto place = place_of_block<kTileH, kTileW>(grid);
  const int warpgroup = threadIdx.x / kWarpgroupThreads;
  const int run = uniform(warpgroup);  // of pixels, for descriptors, which are kept once a warp
  Input<T> input(conv, grid, place);
  Weights<T> weights(conv, grid.slices, place.output_group);
  const auto load_slice = [&](int slice) {
    if (slice < grid.slices) {
      input.load(buffer_of(slice));
      weights.load(buffer_of(slice) + Halo::kBytes);
    }
    cp_async_commit();
  };
  if (threadIdx.x == 0) store_shared(kScale, conv.scale);
  load_bias(conv, place.output_group, kBias);
  if constexpr (kFour) {
    load_slices(input, weights, std::make_integer_sequence<int, kBuffers>{});
  } else {
    for (int slice = 0; slice < kBuffers; ++slice) load_slice(slice);
  }
  const Pixels<T> pixels(conv, grid, place, threadIdx.x % kWarpgroupThreads, warpgroup * kRunRows);
  const Results results = results_of(warpgroup);
  load_skip<T, kFinish>(conv, pixels, results);
  cp_async_commit();
  if (kHasAdded<kFinish>) __syncthreads();  // as between slices
  const Added added{kAdded};
  load_added<kFinish>(conv, pixels, added);
  Sums sums{};
  if constexpr (kFour) {
#pragma unroll
    for (int slice = 0; slice < kBuffers; ++slice) {
      wait_for_slice<kAddedGroups<kFinish, Added>>(slice);
      fence_proxy_async();
      __syncthreads();  // all see this slice
      multiply_slice<T>(sums, slice, run);
    }
  } else {
#pragma unroll 1
    for (int slice = 0; slice < grid.slices; ++slice) {
      wait_for_slice<kAddedGroups<kFinish, Added>>(slice);
      fence_proxy_async();
      wgmma_wait<1>();
      // After the barrier, all see this slice, and the products of the one before the last are done,
      // in whose place the next one goes.
      __syncthreads();
      if (slice >= 2) load_slice(slice + 2);
      multiply_slice<T>(sums, slice, run);
    }
  }
  wgmma_wait<0>(sums);
  cp_async_wait<kAddedGroups<kFinish, Added>>();
  if (kHasSkip<kFinish>) __syncthreads();  // all see what is added
  finish_sums<T, kFinish>(conv, place.output_group, sums, results);
  __syncthreads();
  write_results<kFinish>(conv, pixels, results, added);
#else
  __trap();  // convolve launches it where there is code for sm_90a alone
#endif
}

}  // namespace clsd::cuda::sm90
