// 3x3 convolution on the tensor cores of sm_80 and later (mma.sync, cp.async).
//
// A block computes a tile of mma_tiles.cuh. It goes through the input channels in slices of 16: their
// halo tile (10 x 18 pixels), so that each pixel is read once, not 9 times, and their weights of all
// taps. While a slice is multiplied, the next one arrives, and after the last one what is added to
// the results.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::sm80 {

using mma_tiles::kThreads;
using mma_tiles::kTileH;
using mma_tiles::kTileW;
using mma_tiles::Results;

template <class T>
using Input = InputLoader<T, kTileH, kTileW, kThreads>;
template <class T>
using Weights = WeightLoader<T, kThreads>;
using Halo = Input<Bf16>::Tile;

constexpr int kStages = 2;
constexpr uint32_t kStageBytes = Halo::kBytes + Weights<Bf16>::kBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;
// What is added to rounded results comes where the last slice was, while sums are finished.
using Added = AddedPieces<kThreads, kTileH, kTileH>;
static_assert(kTileH * Added::kBytes <= kStageBytes);

// Blocks that a multiprocessor's shared memory has room for: it has 164 KiB and more on the data
// centres' GPUs (8.0, 9.0, 10.0), 100 KiB on others. The compiler keeps to registers for as many.
#ifdef __CUDA_ARCH__
constexpr int kCapability = __CUDA_ARCH__ / 10;
#else
constexpr int kCapability = 0;  // of the host's pass
#endif
constexpr bool kIsDataCentre = kCapability == 80 || kCapability == 90 || kCapability == 100;
constexpr int kBlocksPerMultiprocessor = kIsDataCentre ? 3 : 2;

__device__ __forceinline__ uint32_t stage_of(int slice) { return slice % kStages * kStageBytes; }

template <class T, Finish kFinish>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    conv3x3_kernel(const __grid_constant__ Convolutions<T> convolutions,
                   const __grid_constant__ Grid grid) {
  const Convolution<T> conv = convolutions[blockIdx.y];
  const Place place = place_of_block<kTileH, kTileW>(grid);
  Input<T> input(conv, grid, place);
  Weights<T> weights(conv, grid.slices, place.output_group);
  const auto load_slice = [&](int slice) {
    input.load(stage_of(slice));
    weights.load(stage_of(slice) + Halo::kBytes);
    cp_async_commit();
  };
  load_slice(0);
  const mma_tiles::Pixels<T> pixels(conv, grid, place, threadIdx.x, 0);
  mma_tiles::Bias bias;
  mma_tiles::load_bias(conv, place.output_group, bias);
  const bool has_channels = first_output(grid, place) + mma_tiles::warp_channel() <
                            static_cast<int>(grid.output.phase_column);
  mma_tiles::Sums sums{};
  // After the barrier, all see a slice, and all have left the one before, in whose place the next
  // one goes.
  const auto wait = [] {
    cp_async_wait<0>();
    __syncthreads();
  };
  const auto multiply_slice = [&](int slice) {
    const uint32_t stage = stage_of(slice);
    if (!has_channels) return;
    mma_tiles::multiply_slice<T, Input<T>::kWidth, Halo::kPitch>(sums, stage, stage + Halo::kBytes);
  };
  const int last = grid.slices - 1;
#pragma unroll 1
  for (int slice = 0; slice < last; ++slice) {
    wait();
    load_slice(slice + 1);
    multiply_slice(slice);
  }
  wait();
  const Results results{stage_of(grid.slices)};
  load_skip<T, kFinish>(conv, pixels, results);
  if constexpr (kHasSkip<kFinish>) cp_async_commit();
  multiply_slice(last);
  if constexpr (kHasSkip<kFinish>) wait();
  const Added added{stage_of(last)};
  load_added<kFinish>(conv, pixels, added);
  mma_tiles::finish_sums<T, kFinish>(conv, place.output_group, sums, bias, results);
  __syncthreads();
  write_results<kFinish>(conv, pixels, results, added);
}

}  // namespace clsd::cuda::sm80
