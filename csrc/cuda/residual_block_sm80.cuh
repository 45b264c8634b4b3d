// x + scale * conv(relu(conv(x))) of 64 channels in one launch, for inference: nothing keeps the
// hidden image, of which each block computes what its own pixels see.
//
// A block's 8 x 16 pixels see 10 x 18 of the hidden image, 12 fragments of 16 where 8 would do:
// 1.25 times the work of two launches. In exchange it saves one of them, and 2 of 5 passes over an
// image. The second half is conv3x3_sm80.cuh's kernel with the hidden tile as its halo.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::residual {

using mma_tiles::kPieces;
using mma_tiles::kRowBytes;
using mma_tiles::kTapBytes;
using mma_tiles::kThreads;
using mma_tiles::kTileH;
using mma_tiles::kTileW;
using mma_tiles::kWarps;

constexpr int kChannels = ChannelGroup::kChannels;
constexpr int kHiddenW = mma_tiles::kHaloW, kHiddenPixels = mma_tiles::kHaloPixels;
constexpr int kInputW = kTileW + 4, kInputPixels = (kTileH + 4) * kInputW;
constexpr int kFragments = (kHiddenPixels + 16 * kWarps - 1) / (16 * kWarps);  // of a warp
constexpr uint32_t kInput = 2 * kTapBytes, kHidden = kInput + kInputPixels * kRowBytes;
constexpr uint32_t kSharedBytes = kHidden + kHiddenPixels * kRowBytes;
static_assert(kWarps * mma_tiles::kWarpSumBytes <= kSharedBytes);

using HiddenSums = float[kFragments][kChannels / 8][4];

// Number of the hidden tile's pixel in row `row` of a warp's fragment.
__device__ __forceinline__ int hidden_pixel(int fragment, int row) {
  const int warp = threadIdx.x / 32;
  return 16 * (kFragments * warp + fragment) + row;
}

// Add the products of one tap of the first convolution. The last fragments have rows beyond the
// tile, which compute its last pixel once more.
template <class T>
__device__ __forceinline__ void multiply_hidden_tap(HiddenSums& sums, uint32_t taps, int tap) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int depth = 0; depth < kChannels / 16; ++depth) {
    uint32_t pixels[kFragments][4];
#pragma unroll
    for (int fragment = 0; fragment < kFragments; ++fragment) {
      int pixel = hidden_pixel(fragment, lane % 16);
      pixel = pixel < kHiddenPixels ? pixel : kHiddenPixels - 1;
      const int source = (pixel / kHiddenW + tap / 3) * kInputW + pixel % kHiddenW + tap % 3;
      ldmatrix(pixels[fragment], kInput + mma_tiles::swizzled(source, 2 * depth + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < kChannels / 8; j += 2) {
      uint32_t weights[4];
      mma_tiles::load_weights<false>(weights, taps, depth, j);
      mma_tiles::multiply_pair<T>(sums, pixels, weights, j);
    }
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
    const float low_bias = first.bias ? to_float(load(first.bias + channel)) : 0;
    const float high_bias = first.bias ? to_float(load(first.bias + channel + 1)) : 0;
#pragma unroll
    for (int i = 0; i < 2 * kFragments; ++i) {
      const int fragment = i / 2, half = i % 2;
      const int pixel = hidden_pixel(fragment, lane / 4 + 8 * half);
      if (pixel >= kHiddenPixels) continue;
      const int y = place.y + pixel / kHiddenW - 1, x = place.x + pixel % kHiddenW - 1;
      const bool inside = y >= 0 && y < first.height && x >= 0 && x < first.width;
      const float low = finish(first, sums[fragment][j][2 * half], low_bias, 0, inside);
      const float high = finish(first, sums[fragment][j][2 * half + 1], high_bias, 0, inside);
      store_shared(kHidden + mma_tiles::swizzled(pixel, j) + 4 * pair, pack<T>(low, high));
    }
  }
}

// The second convolution's input is the first one's output, which is not written. There are no more
// blocks than multiprocessors, so that each may have all registers.
template <class T>
__global__ void __launch_bounds__(kThreads)
    residual_block_kernel(const Convolution<T> first, const Convolution<T> second,
                          const Grid grid) {
  const Place place = place_of_block<kTileH, kTileW>(second, grid);
  const ChannelGroup channels = place.outputs;  // all, of every image
  const auto tap_at = [](int step) { return (step & 1) * kTapBytes; };
  const auto load_tap = [&](const Convolution<T>& conv, int step) {
    mma_tiles::load_tap<T, false>(conv, channels, channels, tap_at(step), step % kTaps);
    cp_async_commit();
  };
  // Of 2 x 9 steps, each with the weights of one tap. After the barrier all see these, and all have
  // left what is loaded next.
  const auto start = [&](int step) {
    cp_async_wait<0>();
    __syncthreads();
    const int next = step + 1;
    if (next < kTaps) {
      load_tap(first, next);
    } else if (next < 2 * kTaps) {
      load_tap(second, next);
    }
  };

  mma_tiles::load_halo<kInputW, 2>(first, place, channels, kInput, 0, kInputPixels * kPieces);
  load_tap(first, 0);
  HiddenSums hidden{};
#pragma unroll 1
  for (int step = 0; step < kTaps; ++step) {
    start(step);
    multiply_hidden_tap<T>(hidden, tap_at(step), step);
  }
  store_hidden(first, place, hidden);
  mma_tiles::Sums sums{};
#pragma unroll 1
  for (int step = kTaps; step < 2 * kTaps; ++step) {
    start(step);
    mma_tiles::multiply_tap<T, false, true>(sums, kHidden, tap_at(step), step - kTaps, kChannels);
  }
  __syncthreads();  // all have read the operands, where the sums go now
  mma_tiles::stage(sums);
  __syncwarp();
  mma_tiles::write_staged(second, place);
}

}  // namespace clsd::cuda::residual
