// 3x3 convolution where the input or the output has up to 3 channels: the ends of a network, and
// their gradients. Blocks, their pixels and sums are those of mma_tiles.cuh.
//
// Such images have no aligned pieces of 16 bytes, and neither have most of the weights: they are
// gathered by single elements into shared memory, once for each block.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::few {

using mma_tiles::kHaloBytes;
using mma_tiles::kHaloPixels;
using mma_tiles::kHaloW;
using mma_tiles::kPieces;
using mma_tiles::kThreads;
using mma_tiles::kTileH;
using mma_tiles::kTileW;
using mma_tiles::kWarpRows;
using mma_tiles::kWarps;

// Two 16-deep products take all taps of all channels of a pixel.
constexpr int kDepth = 32, kDepthPieces = kDepth / 8;
constexpr uint32_t kDepthBytes = 2 * kDepth;
static_assert(kTaps * kFewChannels <= kDepth);
static_assert(kThreads == kTileH * kTileW);  // a thread for each pixel
constexpr uint32_t kPatchBytes = kThreads * kDepthBytes;
// Patches and weights fit, too.
constexpr uint32_t kFromFewBytes = kWarps * mma_tiles::kWarpSumBytes;
static_assert(kPatchBytes + ChannelGroup::kChannels * kDepthBytes <= kFromFewBytes);

// Products are 8 columns wide at least.
constexpr int kColumns = 8;
constexpr uint32_t kColumnTapBytes = kColumns * mma_tiles::kRowBytes;
constexpr uint32_t kToFewBytes = kHaloBytes + kTaps * kColumnTapBytes;

template <class T>
__device__ __forceinline__ T zero() {
  return T{0};
}

// The weight from input channel `input` to `output`, at a tap of the input.
template <class T, bool kTransposed>
__device__ __forceinline__ T weight_at(const Convolution<T>& conv, int64_t output, int tap,
                                       int64_t input) {
  const int64_t index = kTransposed
                            ? (input * kTaps + kTaps - 1 - tap) * conv.outputs + output
                            : (output * kTaps + tap) * conv.inputs + input;
  return load(conv.weight + index);
}

// 8 elements, element(i) each, as a piece of 16 bytes.
template <class Element>
__device__ __forceinline__ uint4 gather(const Element& element) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = element(2 * i).bits | static_cast<uint32_t>(element(2 * i + 1).bits) << 16;
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Rows of 64 bytes, permuted so that 8 of them hit all banks once.
__device__ __forceinline__ uint32_t depth_offset(int row, int piece) {
  return row * kDepthBytes + ((piece ^ (row >> 1 & 3)) << 4);
}

// The patch around pixel (y, x) of image n, to a row of shared memory: depth d is channel
// d % channels at tap d / channels. Zeros stand outside the image and above the last depth.
template <class T>
__device__ void gather_patch(int row_of_shared, Global<const T> image, int channels, int64_t height,
                             int64_t width, int64_t n, int64_t y, int64_t x) {
  const auto element = [&](int depth) {
    const int tap = depth / channels;
    const int64_t row = y + tap / 3 - 1, column = x + tap % 3 - 1;
    const bool valid = tap < kTaps && row >= 0 && row < height && column >= 0 && column < width;
    if (!valid) return zero<T>();
    return load(image + (((n * height + row) * width + column) * channels + depth % channels));
  };
#pragma unroll
  for (int piece = 0; piece < kDepthPieces; ++piece) {
    store_shared(depth_offset(row_of_shared, piece),
                 gather([&](int i) { return element(8 * piece + i); }));
  }
}

template <class T, bool kTransposed>
__device__ void gather_depth_weights(const Convolution<T>& conv, const ChannelGroup& outputs) {
  for (int i = threadIdx.x; i < ChannelGroup::kChannels * kDepthPieces; i += kThreads) {
    const int row = i / kDepthPieces, piece = i % kDepthPieces;
    const auto element = [&](int j) {
      const int depth = 8 * piece + j, tap = depth / conv.inputs;
      if (tap >= kTaps || row >= outputs.count) return zero<T>();
      return weight_at<T, kTransposed>(conv, outputs.channel(row), tap, depth % conv.inputs);
    };
    store_shared(kPatchBytes + depth_offset(row, piece), gather(element));
  }
}

template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 4)
    conv3x3_from_few_kernel(const Convolution<T> conv, const Grid grid) {
  const Place place = place_of_block<kTileH, kTileW>(conv, grid);
  const int thread = threadIdx.x;
  gather_patch(thread, conv.input, conv.inputs, conv.height, conv.width, place.n,
               place.y + thread / kTileW, place.x + thread % kTileW);
  gather_depth_weights<T, kTransposed>(conv, place.outputs);
  __syncthreads();
  mma_tiles::Sums sums{};
  const int lane = thread % 32, warp = thread / 32;
#pragma unroll
  for (int depth = 0; depth < kDepth / 16; ++depth) {
    uint32_t pixels[kWarpRows][4];
#pragma unroll
    for (int row = 0; row < kWarpRows; ++row) {
      const int pixel = (kWarpRows * warp + row) * kTileW + lane % 16;
      ldmatrix(pixels[row], depth_offset(pixel, 2 * depth + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < ChannelGroup::kChannels / 8; j += 2) {
      uint32_t weights[4];
      const int row = 8 * j + lane % 8 + lane / 16 * 8;
      ldmatrix(weights, kPatchBytes + depth_offset(row, 2 * depth + lane / 8 % 2));
      mma_tiles::multiply_pair<T>(sums, pixels, weights, j);
    }
  }
  __syncthreads();  // all have read the patches, where the sums go now
  mma_tiles::stage(sums);
  __syncwarp();
  mma_tiles::write_staged(conv, place);
}

// Weights of a group of input channels: for each tap a row of 64 for each column, zeros where there
// is no such channel. Only those of a gradient do not lie in pieces.
template <class T, bool kTransposed>
__device__ void load_column_weights(const Convolution<T>& conv, const ChannelGroup& inputs) {
  for (int i = threadIdx.x; i < kTaps * kColumns * kPieces; i += kThreads) {
    const int tap = i / (kColumns * kPieces), row = i / kPieces % kColumns, piece = i % kPieces;
    const bool valid = row < conv.outputs && 8 * piece < inputs.count;
    const uint32_t target = kHaloBytes + tap * kColumnTapBytes + mma_tiles::swizzled(row, piece);
    if constexpr (kTransposed) {
      const auto element = [&](int j) {
        return valid ? weight_at<T, kTransposed>(conv, row, tap, inputs.channel(8 * piece + j))
                     : zero<T>();
      };
      store_shared(target, gather(element));
    } else {
      const int64_t offset = (static_cast<int64_t>(row) * kTaps + tap) * conv.inputs +
                             inputs.first + 8 * piece;
      cp_async(target, conv.weight + (valid ? offset : 0), valid);
    }
  }
}

template <class T>
__device__ __forceinline__ void multiply_column_tap(float (&sums)[kWarpRows][4], int tap) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pixel = (kWarpRows * warp + tap / 3) * kHaloW + tap % 3 + lane % 16;
#pragma unroll
  for (int depth = 0; depth < ChannelGroup::kChannels / 16; depth += 2) {
    uint32_t weights[4];  // of two depths
    ldmatrix(weights, kHaloBytes + tap * kColumnTapBytes +
                          mma_tiles::swizzled(lane % 8, 2 * depth + lane / 8));
    const uint32_t even[2] = {weights[0], weights[1]}, odd[2] = {weights[2], weights[3]};
#pragma unroll
    for (int row = 0; row < kWarpRows; ++row) {
      uint32_t pixels[4];
      ldmatrix(pixels, mma_tiles::swizzled(pixel + row * kHaloW, 2 * depth + lane / 16));
      mma<T>(sums[row], pixels, even);
      ldmatrix(pixels, mma_tiles::swizzled(pixel + row * kHaloW, 2 * depth + 2 + lane / 16));
      mma<T>(sums[row], pixels, odd);
    }
  }
}

template <class T>
__device__ void write_columns(const Convolution<T>& conv, const Place& place,
                              const float (&sums)[kWarpRows][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int row = 0; row < kWarpRows; ++row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int y = place.y + kWarpRows * warp + row, x = place.x + lane / 4 + i / 2 * 8;
      const int channel = 2 * (lane % 4) + i % 2;
      if (channel >= conv.outputs || y >= conv.height || x >= conv.width) continue;
      const int64_t pixel = (place.n * conv.height + y) * conv.width + x;
      store_result(conv, pixel * conv.outputs + channel, channel, sums[row][i]);
    }
  }
}

template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads, 4)
    conv3x3_to_few_kernel(const Convolution<T> conv, const Grid grid) {
  const Place place = place_of_block<kTileH, kTileW>(conv, grid);
  float sums[kWarpRows][4] = {};
  for (int group = 0; group < grid.input_groups; ++group) {
    const ChannelGroup inputs = ChannelGroup::of(group, conv.inputs, conv.input_upscale);
    if (group > 0) __syncthreads();  // all have left the group before
    mma_tiles::load_halo(conv, place, inputs, 0, 0, kHaloPixels * kPieces);
    load_column_weights<T, kTransposed>(conv, inputs);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int tap = 0; tap < kTaps; ++tap) multiply_column_tap<T>(sums, tap);
  }
  write_columns(conv, place, sums);
}

}  // namespace clsd::cuda::few
