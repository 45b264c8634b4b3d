// Tiles of a convolution for mma.sync, which its kernels share.
//
// A block's tile is 8 x 16 pixels of 64 output channels, each of its 4 warps two rows of pixels. It
// takes 64 input channels at a time: their halo tile, 10 x 18 pixels, and the weights of one tap.
// Both lie in rows of 64 channels (128 bytes), a pixel's and a weight's. A row's 16-byte pieces are
// permuted by the row number, so that the 8 rows of a ldmatrix hit all banks once.
#pragma once

#include "platform.cuh"
#include "tiles.cuh"

namespace clsd::cuda::mma_tiles {

constexpr int kTileH = 8, kTileW = 16, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kWarpRows = kTileH / kWarps;
constexpr int kHaloW = kTileW + 2, kHaloPixels = (kTileH + 2) * kHaloW;
constexpr int kGroup = ChannelGroup::kChannels, kPieces = kGroup / 8;
constexpr uint32_t kRowBytes = 2 * kGroup;
constexpr uint32_t kHaloBytes = kHaloPixels * kRowBytes;
constexpr uint32_t kTapBytes = kGroup * kRowBytes;
// Sums of a warp on their way out, after the last product: float rows in place of the operands.
constexpr uint32_t kSumRowBytes = 4 * kGroup;
constexpr uint32_t kWarpSumBytes = kWarpRows * kTileW * kSumRowBytes;

__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
  return row * kRowBytes + ((piece ^ (row & 7)) << 4);
}

// Ask for pieces [first, last) of a tile with a border, by default of a halo tile. Zeros stand
// outside the image, and for channels that the group has not.
template <int kWidth = kHaloW, int kBorder = 1, class T>
__device__ __forceinline__ void load_halo(const Convolution<T>& conv, const Place& place,
                                          ChannelGroup inputs, uint32_t halo, int first,
                                          int last) {
  for (int i = first + static_cast<int>(threadIdx.x); i < last; i += kThreads) {
    const int pixel = i / kPieces, piece = i % kPieces;
    const int y = place.y + pixel / kWidth - kBorder, x = place.x + pixel % kWidth - kBorder;
    const bool valid = y >= 0 && y < conv.height && x >= 0 && x < conv.width &&
                       8 * piece < inputs.count;
    const int64_t offset = pixel_offset(place.n, y, x, conv.height, conv.width, conv.inputs,
                                        conv.input_upscale, inputs) + 8 * piece;
    cp_async(halo + swizzled(pixel, piece), conv.input + (valid ? offset : 0), valid);
  }
}

// Ask for one tap's weights: a row for each output channel with its input channels or, transposed,
// for each channel that is summed over with those of the output, as they lie in memory.
template <class T, bool kTransposed>
__device__ __forceinline__ void load_tap(const Convolution<T>& conv, ChannelGroup inputs,
                                         ChannelGroup outputs, uint32_t target, int tap) {
  const ChannelGroup rows = kTransposed ? inputs : outputs;
  const ChannelGroup columns = kTransposed ? outputs : inputs;
  const int row_length = kTransposed ? conv.outputs : conv.inputs;
  const int source_tap = kTransposed ? kTaps - 1 - tap : tap;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kGroup * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool valid = row < rows.count && 8 * piece < columns.count;
    const int64_t offset = (rows.channel(row) * kTaps + source_tap) * row_length + columns.first +
                           8 * piece;
    cp_async(target + swizzled(row, piece), conv.weight + (valid ? offset : 0), valid);
  }
}

using Sums = float[kWarpRows][kGroup / 8][4];

// Fragments of 16 input channels of output channels [8 j, 8 j + 16): registers 0, 1 of the first 8.
template <bool kTransposed>
__device__ __forceinline__ void load_weights(uint32_t (&weights)[4], uint32_t taps, int depth,
                                             int j) {
  const int lane = threadIdx.x % 32;
  if constexpr (kTransposed) {
    ldmatrix_transposed(weights, taps + swizzled(16 * depth + lane % 16, j + lane / 16));
  } else {
    ldmatrix(weights, taps + swizzled(8 * j + lane % 8 + lane / 16 * 8, 2 * depth + lane / 8 % 2));
  }
}

// Add the products of a depth of 16 for output channels [8 j, 8 j + 16).
template <class T, int kFragments>
__device__ __forceinline__ void multiply_pair(float (&sums)[kFragments][kGroup / 8][4],
                                              const uint32_t (&pixels)[kFragments][4],
                                              const uint32_t (&weights)[4], int j) {
  const uint32_t even[2] = {weights[0], weights[1]}, odd[2] = {weights[2], weights[3]};
#pragma unroll
  for (int i = 0; i < kFragments; ++i) {
    mma<T>(sums[i][j], pixels[i], even);
    mma<T>(sums[i][j + 1], pixels[i], odd);
  }
}

// Add the products of one tap. kWhole: the group has all 64 input channels.
template <class T, bool kTransposed, bool kWhole>
__device__ __forceinline__ void multiply_tap(Sums& sums, uint32_t halo, uint32_t taps, int tap,
                                             int input_channels) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int pixel = (kWarpRows * warp + tap / 3) * kHaloW + tap % 3 + lane % 16;
#pragma unroll
  for (int depth = 0; depth < kGroup / 16; ++depth) {
    if (!kWhole && 16 * depth >= input_channels) break;
    uint32_t pixels[kWarpRows][4];
#pragma unroll
    for (int row = 0; row < kWarpRows; ++row) {
      ldmatrix(pixels[row], halo + swizzled(pixel + row * kHaloW, 2 * depth + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < kGroup / 8; j += 2) {
      uint32_t weights[4];
      load_weights<kTransposed>(weights, taps, depth, j);
      multiply_pair<T>(sums, pixels, weights, j);
    }
  }
}

// Byte of a 16-byte piece of a warp's sums; the permutation keeps the quarter warps that write to
// four rows at a time apart.
__device__ __forceinline__ uint32_t sum_offset(int pixel, int piece) {
  return threadIdx.x / 32 * kWarpSumBytes + pixel * kSumRowBytes +
         ((piece ^ (2 * (pixel & 3))) << 4);
}

__device__ __forceinline__ void stage(const Sums& sums) {
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int row = 0; row < kWarpRows; ++row) {
#pragma unroll
    for (int j = 0; j < kGroup / 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t offset = sum_offset(row * kTileW + group + 8 * half, 2 * j + pair / 2);
        store_shared(offset + 8 * (pair % 2),
                     float2{sums[row][j][2 * half], sums[row][j][2 * half + 1]});
      }
    }
  }
}

// Write the warp's staged sums: 8 lanes a pixel, so that its 64 channels are one write.
template <class T>
__device__ void write_staged(const Convolution<T>& conv, const Place& place) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = 8 * (lane % 8);
  if (first >= place.outputs.count) return;
  const Epilogue<T> epilogue(conv, place.outputs, first);
#pragma unroll 2
  for (int pixel = lane / 8; pixel < kWarpRows * kTileW; pixel += 4) {
    const int y = place.y + kWarpRows * warp + pixel / kTileW, x = place.x + pixel % kTileW;
    if (y >= conv.height || x >= conv.width) continue;
    const auto low = load_shared<float4>(sum_offset(pixel, first / 4));
    const auto high = load_shared<float4>(sum_offset(pixel, first / 4 + 1));
    float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    epilogue.store_at(pixel_offset(place.n, y, x, conv.height, conv.width, conv.outputs,
                                   conv.output_upscale, place.outputs) + first,
                      values);
  }
}

}  // namespace clsd::cuda::mma_tiles
