// 3x3 convolution where the input or the output has up to 3 channels: the ends of a network, and
// their gradients. Blocks and their pixels are those of mma_tiles.cuh.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::few {

using mma_tiles::kThreads;
using mma_tiles::kTileH;
using mma_tiles::kTileW;
using mma_tiles::kWarps;

static_assert(kTaps * kFewChannels <= kFewDepth);
static_assert(kThreads == kTileH * kTileW);  // a thread for each pixel

// From few channels: a pixel's depths are those of its taps.
using Patches = PieceLayout<kThreads, kFewDepthPieces>;
template <class T>
using DepthWeights = WeightLoader<T, kThreads, kGroup, kFewDepthPieces>;
constexpr uint32_t kDepthWeights = Patches::kBytes;
constexpr uint32_t kResults = kDepthWeights + DepthWeights<Bf16>::kBytes;
constexpr uint32_t kFromFewBytes = kResults + mma_tiles::Results::kBytes;

// To few: slices of the input, in two stages, each with the weights of 8 rows, as many as a product
// has columns.
constexpr int kWarpRows = kTileH / kWarps;
template <class T>
using Input = InputLoader<T, kTileH, kTileW, kThreads>;
using Halo = Input<Bf16>::Tile;
template <class T>
using ColumnWeights = WeightLoader<T, kThreads, kFewRows>;
constexpr uint32_t kStageBytes = Halo::kBytes + ColumnWeights<Bf16>::kBytes;
constexpr uint32_t kToFewBytes = 2 * kStageBytes;

// The patch around pixel (y, x) of image n, to row `target` of the patches: depth d is channel
// d % kChannels at tap d / kChannels. Images of so few channels have no aligned pieces of 16 bytes.
// Zeros stand outside the image and above the last depth.
template <int kChannels, class T>
__device__ __forceinline__ void gather_channels(int target, Global<const T> image, int64_t height,
                                                int64_t width, int64_t n, int64_t y, int64_t x) {
  const Global<const T> center = image + ((n * height + y) * width + x) * kChannels;
  bool inside[kTaps];
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    const int64_t row = y + tap / 3 - 1, column = x + tap % 3 - 1;
    inside[tap] = row >= 0 && row < height && column >= 0 && column < width;
  }
  const int64_t row_step = width * kChannels;
  const auto depth = [&](int d) -> uint32_t {
    const int tap = d / kChannels;
    if (tap >= kTaps || !inside[tap]) return 0;
    const int beside = (tap % 3 - 1) * kChannels + d % kChannels;
    return load(center + ((tap / 3 - 1) * row_step + beside)).bits;
  };
#pragma unroll
  for (int piece = 0; piece < kFewDepthPieces; ++piece) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int d = piece * kPiece + 2 * i;
      pairs[i] = depth(d) | depth(d + 1) << 16;
    }
    store_shared(Patches::offset(target, piece), uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
  }
}

template <class T>
__device__ __forceinline__ void gather_patch(int target, Global<const T> image, int channels,
                                             int64_t height, int64_t width, int64_t n, int64_t y,
                                             int64_t x) {
  switch (channels) {
    case 1: return gather_channels<1>(target, image, height, width, n, y, x);
    case 2: return gather_channels<2>(target, image, height, width, n, y, x);
    default: return gather_channels<3>(target, image, height, width, n, y, x);
  }
}

// Blocks that a multiprocessor has registers for: with a residual and slopes, not a fourth.
template <Finish kFinish>
constexpr int kFromFewBlocks = kFinish == Finish::kResidualLeaky ? 3 : 4;

template <class T, Finish kFinish>
__global__ void __launch_bounds__(kThreads, kFromFewBlocks<kFinish>)
    conv3x3_from_few_kernel(const __grid_constant__ Convolutions<T> convolutions,
                            const __grid_constant__ Grid grid) {
  const Convolution<T> conv = convolutions[blockIdx.y];
  const Place place = place_of_block<kTileH, kTileW>(grid);
  const int thread = threadIdx.x;
  DepthWeights<T>(conv, 1, place.output_group).load(kDepthWeights);
  const mma_tiles::Pixels<T> pixels(conv, grid, place, thread, 0);
  const mma_tiles::Results results{kResults};
  load_skip<T, kFinish>(conv, pixels, results);
  cp_async_commit();
  mma_tiles::Bias bias;
  mma_tiles::load_bias(conv, place.output_group, bias);
  gather_patch(thread, conv.input, conv.inputs, conv.height, conv.width, place.n,
               place.y + thread / kTileW, place.x + thread % kTileW);
  cp_async_wait<0>();
  __syncthreads();
  mma_tiles::Sums sums{};
  constexpr uint32_t kPitch = Patches::kPitch;
  const uint32_t patches =
      mma_tiles::fragment_offset<kPitch>() + mma_tiles::warp_row() * kTileW * kPieceBytes;
  const uint32_t weights = kDepthWeights + mma_tiles::weight_offset(mma_tiles::warp_channel());
#pragma unroll
  for (int half = 0; half < kFewDepth / 16; ++half) {
    uint32_t rows[mma_tiles::kWarpRows][4];
#pragma unroll
    for (int row = 0; row < mma_tiles::kWarpRows; ++row) {
      ldmatrix(rows[row], patches + 2 * half * kPitch + row * kTileW * kPieceBytes);
    }
    mma_tiles::multiply<T>(sums, rows, weights + 2 * half * mma_tiles::kWeightPitch);
  }
  mma_tiles::finish_sums<T, kFinish>(conv, place.output_group, sums, bias, results);
  __syncthreads();
  write_results<kFinish>(conv, pixels, results);
}

// Of a warp: two rows of 16 pixels by 8 columns.
using ColumnSums = float[kWarpRows][4];

template <class T>
__device__ __forceinline__ void multiply_columns(ColumnSums& sums, uint32_t halo,
                                                 uint32_t weights) {
  constexpr int kWidth = Input<T>::kWidth;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * kWarpRows;
  halo += mma_tiles::fragment_offset<Halo::kPitch>() + row * kWidth * kPieceBytes;
  // Two matrices; the other lanes name them again.
  weights += lane / 8 % 2 * ColumnWeights<T>::kPitch + lane % 8 * kPieceBytes;
#pragma unroll
  for (int kx = 0; kx < 3; ++kx) {
    uint32_t rows[kWarpRows + 2][4];
#pragma unroll
    for (int i = 0; i < kWarpRows + 2; ++i) {
      ldmatrix(rows[i], halo + (i * kWidth + kx) * kPieceBytes);
    }
#pragma unroll
    for (int ky = 0; ky < 3; ++ky) {
      uint32_t columns[4];
      ldmatrix(columns, weights + (3 * ky + kx) * ColumnWeights<T>::kTapBytes);
      const uint32_t pair[2] = {columns[0], columns[1]};
#pragma unroll
      for (int i = 0; i < kWarpRows; ++i) mma<T>(sums[i], rows[i + ky], pair);
    }
  }
}

// Channels of so few have no neighbours to be written with.
template <class T, Finish kFinish>
__device__ __forceinline__ void write_columns(const Convolution<T>& conv, const Place& place,
                                              const ColumnSums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int row = 0; row < kWarpRows; ++row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int y = place.y + kWarpRows * warp + row, x = place.x + lane / 4 + i / 2 * 8;
      const int channel = 2 * (lane % 4) + i % 2;
      if (channel >= conv.outputs || y >= conv.height || x >= conv.width) continue;
      const int64_t at = ((place.n * conv.height + y) * conv.width + x) * conv.outputs + channel;
      uint32_t pair = 0;  // of which the second is no one's
      if constexpr (kHasSkip<kFinish>) pair = load(skip_of<T, kFinish>(conv) + at).bits;
      const float bias = load(conv.bias + channel) * conv.scale;
      const float slope = kIsLeaky<kFinish> ? slope_of(conv, channel) : 0;
      finish_pair<T, kFinish>(pair, sums[row][i], 0, conv.scale, bias, 0, slope);
      store(conv.output + at, T{static_cast<uint16_t>(pair)});
    }
  }
}

template <class T, Finish kFinish>
__global__ void __launch_bounds__(kThreads, 4)
    conv3x3_to_few_kernel(const __grid_constant__ Convolutions<T> convolutions,
                          const __grid_constant__ Grid grid) {
  const Convolution<T> conv = convolutions[blockIdx.y];
  const Place place = place_of_block<kTileH, kTileW>(grid);
  Input<T> input(conv, grid, place);
  ColumnWeights<T> weights(conv, grid.slices, 0);
  const auto load_slice = [&](int slice) {
    const uint32_t stage = slice % 2 * kStageBytes;
    input.load(stage);
    weights.load(stage + Halo::kBytes);
    cp_async_commit();
  };
  load_slice(0);
  ColumnSums sums{};
#pragma unroll 1
  for (int slice = 0; slice < grid.slices; ++slice) {
    cp_async_wait<0>();
    __syncthreads();  // all see this slice, and have left the one before
    if (slice + 1 < grid.slices) load_slice(slice + 1);
    const uint32_t stage = slice % 2 * kStageBytes;
    multiply_columns<T>(sums, stage, stage + Halo::kBytes);
  }
  write_columns<T, kFinish>(conv, place, sums);
}

}  // namespace clsd::cuda::few
