// 3x3 convolution of 64 input channels by mma.sync on GPUs with much shared memory: three tiles of
// mma_tiles.cuh in a block, which share the weights. Of what blocks of one tile load, three quarters
// are weights; these take half as long of the L2 cache.
//
// All four slices of 16 channels are asked for at once, side by side, so that products wait for global
// memory only once. Of the first one, a column of taps comes first, and products begin with it. What is
// added to the results comes where slices have been multiplied, and while others are.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::trio {

using mma_tiles::kTapBytes;
using mma_tiles::kTileH;
using mma_tiles::kTileW;
using mma_tiles::Results;

constexpr int kTiles = 3, kSlices = 4, kChannels = kSlices * kSlice;
constexpr int kTileThreads = mma_tiles::kThreads, kThreads = kTiles * kTileThreads;

template <class T>
using Input = InputLoader<T, kTileH, kTileW, kTileThreads, 1, kSlicePieces, kTiles>;
using Halo = Input<Bf16>::Tile;

constexpr uint32_t kWeights = kTiles * Halo::kBytes, kSliceBytes = kWeights + kTaps * kTapBytes;
constexpr uint32_t kBias = kSlices * kSliceBytes;
constexpr uint32_t kSharedBytes = kBias + kGroup * sizeof(float);

// The results lie where the first two slices were, and what is added behind them, before the last one.
using Added = AddedPieces<kThreads, kTileH, kTileH / 2>;
constexpr uint32_t kAdded = kTiles * Results::kBytes;
static_assert(kAdded <= 2 * kSliceBytes);
static_assert(kAdded + kTileH * Added::kBytes <= (kSlices - 1) * kSliceBytes);

// With a residual and slopes there are not registers enough.
template <Finish kFinish>
constexpr bool kHasTrio = kFinish != Finish::kResidualLeaky;

// Copies packed weights, a column of three taps at a time: the threads of a tile, a tap.
template <class T>
class WeightLoader {
 public:
  __device__ __forceinline__ WeightLoader(const Convolution<T>& conv, int output_group) {
    const int row = threadIdx.x / kTileThreads, piece = threadIdx.x % kTileThreads;
    at_ = (3 * row * kTileThreads + piece) * kPieceBytes;
    source_ = conv.weight + (int64_t{output_group} * kSlices * kMatrix + at_ / sizeof(T));
  }

  template <int kSlice, int kColumn>
  __device__ __forceinline__ void copy() const {
    constexpr uint32_t kColumnBytes = kColumn * kTapBytes;
    cp_async<kSlice * kMatrix + kColumnBytes / sizeof(T)>(
        at_ + (kSlice * kSliceBytes + kWeights + kColumnBytes), source_, true);
  }

 private:
  static constexpr int kMatrix = kTaps * kTapBytes / sizeof(T);
  static_assert(kTileThreads * kPieceBytes == kTapBytes);

  Global<const T> source_;
  uint32_t at_;
};

// Ask for all slices, each in a group of its own, but the first, which has two. The warps wait for each
// other: else the first copies of some would queue up behind the last of others.
template <class T>
__device__ __forceinline__ void load_slices(const Input<T>& input, const WeightLoader<T>& weights,
                                            int tile) {
  const auto load = [&](auto slice) {
    constexpr int kIndex = decltype(slice)::value;
    input.template copy<kIndex>(kIndex * kSliceBytes + tile * Halo::kBytes);
    weights.template copy<kIndex, 0>();
    if (kIndex == 0) {
      cp_async_commit();
      __syncthreads();
    }
    weights.template copy<kIndex, 1>();
    weights.template copy<kIndex, 2>();
    cp_async_commit();
    if (kIndex < kSlices - 1) __syncthreads();
  };
  load(std::integral_constant<int, 0>{});
  load(std::integral_constant<int, 1>{});
  load(std::integral_constant<int, 2>{});
  load(std::integral_constant<int, 3>{});
}

// Wait until all but the kPending groups of copies committed last have arrived, and all see them. All
// have left the products before.
template <int kPending>
__device__ __forceinline__ void wait_for_all() {
  cp_async_wait<kPending>();
  __syncthreads();
}

template <class T, Finish kFinish>
__global__ void __launch_bounds__(kThreads, 1)
    conv3x3_kernel(const __grid_constant__ Convolutions<T> convolutions,
                   const __grid_constant__ Grid grid) {
  const Convolution<T> conv = convolutions[blockIdx.y];
  const int tile = static_cast<int>(threadIdx.x / kTileThreads);
  Place place = place_of_block<kTileH, kTileW, kTiles>(grid, tile);
  if (place.n >= conv.batch) place.y = static_cast<int>(conv.height) + 1;  // outside, with its halo
  const Input<T> input(conv, grid, place);
  const WeightLoader<T> weights(conv, place.output_group);
  load_bias(conv, place.output_group, kBias);
  load_slices(input, weights, tile);
  const mma_tiles::Pixels<T> pixels(conv, grid, place, threadIdx.x % kTileThreads, 0);
  const Results results{tile * Results::kBytes};
  const Added added{kAdded};
  mma_tiles::Sums sums{};
  const auto multiply = [&](int slice, int column) {
    const uint32_t at = slice * kSliceBytes;
    mma_tiles::multiply_column<T, Input<T>::kWidth, Halo::kPitch>(
        sums, column, at + tile * Halo::kBytes, at + kWeights);
  };
  wait_for_all<4>();
  multiply(0, 0);
  wait_for_all<3>();
  multiply(0, 1);
  multiply(0, 2);
  wait_for_all<2>();
  multiply(1, 0);
  multiply(1, 1);
  multiply(1, 2);
  wait_for_all<1>();
  multiply(2, 0);
  load_skip<T, kFinish>(conv, pixels, results);
  if constexpr (kHasSkip<kFinish>) cp_async_commit();
  multiply(2, 1);
  multiply(2, 2);
  wait_for_all<kHasSkip<kFinish> ? 1 : 0>();
  multiply(3, 0);
  load_added<kFinish>(conv, pixels, added, 0);
  multiply(3, 1);
  load_added<kFinish>(conv, pixels, added, 1);
  multiply(3, 2);
  if constexpr (kHasSkip<kFinish>) wait_for_all<kAddedGroups<kFinish, Added>>();
  mma_tiles::Bias bias;
  mma_tiles::read_bias(kBias, conv.scale, bias);
  mma_tiles::finish_sums<T, kFinish>(conv, place.output_group, sums, bias, results);
  __syncthreads();
  write_results<kFinish>(conv, pixels, results, added);
}

}  // namespace clsd::cuda::trio
