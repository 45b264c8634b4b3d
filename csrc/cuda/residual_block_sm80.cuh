// x + scale * conv(relu(conv(x))) of 64 channels in one launch, for inference: nothing keeps the
// hidden image, of which each block computes what its own pixels see.
//
// A block's 8 x 16 pixels see 10 x 18 of the hidden image, 12 fragments of 16 where 8 would do:
// 1.25 times the work of two launches. In exchange it saves one of them, and 2 of 5 passes over an
// image. The second half is conv3x3_sm80.cuh's kernel with the hidden tile as its halo.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::residual {

using mma_tiles::kThreads;
using mma_tiles::kTileH;
using mma_tiles::kTileW;
using mma_tiles::kWarps;

constexpr int kChannels = kGroup, kSlices = kChannels / kSlice;
// All channels at once of the input's tile.
template <class T>
using Input = InputLoader<T, kTileH, kTileW, kThreads, 2, kChannels / kPiece>;
template <class T>
using Weights = WeightLoader<T, kThreads>;
using InputTile = Input<Bf16>::Tile;
constexpr int kInputW = Input<Bf16>::kWidth;
constexpr int kHiddenW = kTileW + 2, kHiddenPixels = (kTileH + 2) * kHiddenW;
using HiddenTile = PieceLayout<kHiddenPixels, kChannels / kPiece>;

constexpr int kFragments = (kHiddenPixels + 16 * kWarps - 1) / (16 * kWarps);  // of a warp
constexpr uint32_t kInput = 2 * Weights<Bf16>::kBytes, kHidden = kInput + InputTile::kBytes;
constexpr uint32_t kSharedBytes = kHidden + HiddenTile::kBytes;
// The residual is asked for when nothing reads the input any more.
constexpr uint32_t kResults = kInput;
static_assert(mma_tiles::Results::kBytes <= InputTile::kBytes);

using HiddenSums = float[kFragments][kChannels / 8][4];

// Number of the hidden tile's pixel in row `row` of a warp's fragment.
__device__ __forceinline__ int hidden_pixel(int fragment, int row) {
  const int warp = threadIdx.x / 32;
  return 16 * (kFragments * warp + fragment) + row;
}

// Add the products of a slice of the first convolution. The last fragments have rows beyond the
// tile, which compute its last pixel once more.
template <class T>
__device__ __forceinline__ void multiply_hidden_slice(HiddenSums& sums, int slice,
                                                      uint32_t weights) {
  const int lane = threadIdx.x % 32;
  uint32_t at[kFragments];
#pragma unroll
  for (int fragment = 0; fragment < kFragments; ++fragment) {
    int pixel = hidden_pixel(fragment, lane % 16);
    pixel = pixel < kHiddenPixels ? pixel : kHiddenPixels - 1;
    at[fragment] = kInput + InputTile::offset(pixel / kHiddenW * kInputW + pixel % kHiddenW,
                                              kSlicePieces * slice + lane / 16);
  }
  weights += mma_tiles::weight_offset(0);
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    uint32_t pixels[kFragments][4];
#pragma unroll
    for (int fragment = 0; fragment < kFragments; ++fragment) {
      ldmatrix(pixels[fragment], at[fragment] + (tap / 3 * kInputW + tap % 3) * kPieceBytes);
    }
    mma_tiles::multiply<T>(sums, pixels, weights + tap * mma_tiles::kTapBytes);
  }
}

// Round the hidden tile and store it as the second convolution's halo: zeros outside the image,
// where there is padding and not the first convolution's result.
template <class T>
__device__ __forceinline__ void store_hidden(const Convolution<T>& first, const Place& place,
                                             const HiddenSums& sums) {
  const int lane = threadIdx.x % 32, pair = lane % 4;
#pragma unroll
  for (int j = 0; j < kChannels / 8; ++j) {
    const int channel = 8 * j + 2 * pair;
    const float low_bias = load(first.bias + channel) * first.scale;
    const float high_bias = load(first.bias + (channel + 1)) * first.scale;
#pragma unroll
    for (int i = 0; i < 2 * kFragments; ++i) {
      const int pixel = hidden_pixel(i / 2, lane / 4 + i % 2 * 8);
      if (pixel >= kHiddenPixels) continue;
      const int y = place.y + pixel / kHiddenW - 1, x = place.x + pixel % kHiddenW - 1;
      const bool inside = y >= 0 && y < first.height && x >= 0 && x < first.width;
      const float* sum = &sums[i / 2][j][i % 2 * 2];
      uint32_t hidden = 0;
      finish_pair<T, Finish::kRelu>(hidden, sum[0], sum[1], first.scale, low_bias, high_bias);
      store_shared(kHidden + HiddenTile::offset(pixel, j) + 4 * pair, inside ? hidden : 0);
    }
  }
}

// The second convolution's input is the first one's output, which is not written. There are no more
// blocks than multiprocessors, so that each may have all registers.
template <class T>
__global__ void __launch_bounds__(kThreads)
    residual_block_kernel(const __grid_constant__ Convolution<T> first,
                          const __grid_constant__ Convolution<T> second,
                          const __grid_constant__ Grid grid) {
  const Place place = place_of_block<kTileH, kTileW>(grid);
  Weights<T> first_weights(first, kSlices, 0), second_weights(second, kSlices, 0);
  const auto stage_of = [](int step) { return step % 2 * Weights<T>::kBytes; };
  // Of 2 x 4 steps, each with a slice's weights. After the barrier all see these, and all have left
  // what is loaded next.
  const auto start = [&](int step) {
    cp_async_wait<0>();
    __syncthreads();
    const int next = step + 1;
    if (next == 2 * kSlices) return;
    next < kSlices ? first_weights.load(stage_of(next)) : second_weights.load(stage_of(next));
    cp_async_commit();
  };

  Input<T>(first, grid, place).load(kInput);
  first_weights.load(stage_of(0));
  cp_async_commit();
  HiddenSums hidden{};
#pragma unroll 1
  for (int step = 0; step < kSlices; ++step) {
    start(step);
    multiply_hidden_slice<T>(hidden, step, stage_of(step));
  }
  store_hidden(first, place, hidden);
  const mma_tiles::Results results{kResults};
  const mma_tiles::Pixels<T> pixels(second, grid, place, threadIdx.x, 0);
  mma_tiles::Bias bias;
  mma_tiles::load_bias(second, 0, bias);
  mma_tiles::Sums sums{};
#pragma unroll 1
  for (int step = 0; step < kSlices; ++step) {
    start(kSlices + step);
    if (step == 0) {
      load_skip<T, Finish::kResidual>(second, pixels, results);
      cp_async_commit();
    }
    const uint32_t halo = kHidden + kSlicePieces * step * HiddenTile::kPitch;
    mma_tiles::multiply_slice<T, kHiddenW, HiddenTile::kPitch>(sums, halo, stage_of(step));
  }
  // The residual is there: the next step's barrier has followed it.
  mma_tiles::finish_sums<T, Finish::kResidual>(second, 0, sums, bias, results);
  __syncthreads();
  write_results<Finish::kResidual>(second, pixels, results);
}

}  // namespace clsd::cuda::residual
