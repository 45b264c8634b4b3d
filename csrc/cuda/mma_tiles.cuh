// Tiles of mma.sync (sm_80 and later): what the kernels that multiply with it share.
//
// A block's 4 warps compute 8 x 16 pixels of 64 output channels, each of them 4 rows of 32 channels:
// so square a part needs the fewest bytes of shared memory for a product. The six rows of pixels
// that the taps of a column see are read once for all three of them.
#pragma once

#include "epilogue.cuh"

namespace clsd::cuda::mma_tiles {

constexpr int kTileH = 8, kTileW = 16, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kWarpRows = 4, kWarpChannels = 32, kWarpsAcross = kGroup / kWarpChannels;
constexpr int kEights = kWarpChannels / 8;
static_assert(kTileH / kWarpRows * kWarpsAcross == kWarps);

constexpr uint32_t kWeightPitch = kGroup * kPieceBytes, kTapBytes = kSlicePieces * kWeightPitch;

// Of a warp: rows of 16 pixels, eights of channels, the four numbers that a thread has of them.
using Sums = float[kWarpRows][kEights][4];

__device__ __forceinline__ int warp_row() {
  return threadIdx.x / 32 % kWarps / kWarpsAcross * kWarpRows;
}
__device__ __forceinline__ int warp_channel() {
  return threadIdx.x / 32 % kWarpsAcross * kWarpChannels;
}

// Where a lane reads the 16 pixels and 2 pieces of a fragment, from the tile's pixel 0 on.
template <uint32_t kPitch>
__device__ __forceinline__ uint32_t fragment_offset() {
  const int lane = threadIdx.x % 32;
  return lane / 16 * kPitch + lane % 16 * kPieceBytes;
}

// The same of 16 rows of weights, from the warp's channels on.
__device__ __forceinline__ uint32_t weight_offset(int first_channel) {
  const int lane = threadIdx.x % 32;
  return lane / 8 % 2 * kWeightPitch + (first_channel + lane % 8 + lane / 16 * 8) * kPieceBytes;
}

// Add the products of kFragments fragments of pixels with the weights of kCount eights, at
// `weights`, 16 deep.
template <class T, int kFragments, int kCount>
__device__ __forceinline__ void multiply(float (&sums)[kFragments][kCount][4],
                                         const uint32_t (*pixels)[4], uint32_t weights) {
#pragma unroll
  for (int j = 0; j < kCount; j += 2) {
    uint32_t columns[4];
    ldmatrix(columns, weights + 8 * j * kPieceBytes);
    const uint32_t even[2] = {columns[0], columns[1]}, odd[2] = {columns[2], columns[3]};
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      mma<T>(sums[i][j], pixels[i], even);
      mma<T>(sums[i][j + 1], pixels[i], odd);
    }
  }
}

// Add the products of a column of taps of a slice, of a halo tile kWidth pixels wide whose pieces are
// kPitch apart.
template <class T, int kWidth, uint32_t kPitch>
__device__ __forceinline__ void multiply_column(Sums& sums, int kx, uint32_t halo,
                                                uint32_t weights) {
  halo += fragment_offset<kPitch>() + (warp_row() * kWidth + kx) * kPieceBytes;
  weights += weight_offset(warp_channel()) + kx * kTapBytes;
  uint32_t rows[kWarpRows + 2][4];
#pragma unroll
  for (int row = 0; row < kWarpRows + 2; ++row) {
    ldmatrix(rows[row], halo + row * kWidth * kPieceBytes);
  }
#pragma unroll
  for (int ky = 0; ky < 3; ++ky) multiply<T>(sums, rows + ky, weights + 3 * ky * kTapBytes);
}

// The same of all taps.
template <class T, int kWidth, uint32_t kPitch>
__device__ __forceinline__ void multiply_slice(Sums& sums, uint32_t halo, uint32_t weights) {
#pragma unroll
  for (int kx = 0; kx < 3; ++kx) multiply_column<T, kWidth, kPitch>(sums, kx, halo, weights);
}

using Results = ResultTile<kTileH * kTileW, kTileW>;
template <class T>
using Pixels = ResultPixels<T, kTileH, kTileW, kTileW>;
static_assert(Pixels<Bf16>::kThreads == kThreads);

// A thread's first channel; it has 8 j + 0 and 1 beyond.
__device__ __forceinline__ int thread_channel(int output_group) {
  return output_group * kGroup + warp_channel() + threadIdx.x % 4 * 2;
}

using Bias = float[kEights][2];

template <class T>
__device__ __forceinline__ void load_bias(const Convolution<T>& conv, int output_group,
                                          Bias& bias) {
  const Global<const float> source = conv.bias + thread_channel(output_group);
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) bias[j][i] = load(source + (8 * j + i)) * conv.scale;
  }
}

// The same from shared memory, where they lie from `at` on.
__device__ __forceinline__ void read_bias(uint32_t at, float scale, Bias& bias) {
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      bias[j][i] = load_shared<float>(at + (thread_channel(0) + 8 * j + i) * sizeof(float)) * scale;
    }
  }
}

// Round the warp's results to where its residual or mask lies.
template <class T, Finish kFinish>
__device__ __forceinline__ void finish_sums(const Convolution<T>& conv, int output_group,
                                            const Sums& sums, const Bias& bias,
                                            const Results& results) {
  const int lane = threadIdx.x % 32, piece = warp_channel() / kPiece;
  float slopes[kEights][2] = {};
  if constexpr (kIsLeaky<kFinish>) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        slopes[j][i] = slope_of(conv, thread_channel(output_group) + 8 * j + i);
      }
    }
  }
  uint32_t pairs[kWarpRows][kEights / 2][4] = {};  // of pixels 0 and 8 on, for either eight
  if constexpr (kHasSkip<kFinish>) {               // all at once: each takes its time
#pragma unroll
    for (int i = 0; i < kWarpRows; ++i) {
#pragma unroll
      for (int j = 0; j < kEights; j += 2) {
        ldmatrix(pairs[i][j / 2], results.at(warp_row() + i, lane % 16, piece + j + lane / 16));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpRows; ++i) {
    const int row = warp_row() + i;
#pragma unroll
    for (int j = 0; j < kEights; j += 2) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int eight = j + k / 2, column = lane / 4 + k % 2 * 8;
        const float* sum = &sums[i][eight][k % 2 * 2];
        uint32_t& pair = pairs[i][j / 2][k];
        finish_pair<T, kFinish>(pair, sum[0], sum[1], conv.scale, bias[eight][0], bias[eight][1],
                                slopes[eight][0], slopes[eight][1]);
        store_shared(results.at(row, column, piece + eight) + lane % 4 * 4, pair);
      }
    }
  }
}

}  // namespace clsd::cuda::mma_tiles
