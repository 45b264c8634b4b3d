// 3x3 convolution on the tensor cores of sm_90a (wgmma), for input and output channels in multiples
// of 64.
//
// A block computes 12 x 24 pixels of 64 output channels: 16 images of 48 x 48 are 128 blocks, one
// for nearly each of the 132 multiprocessors of an H100 or H200. Weights are the products' A, its
// 64 rows output channels, and pixels their B: each of the block's 2 warpgroups takes 6 rows of the
// halo tile as one span of 156 columns, so that a tap is a constant step of a descriptor's address.
// The last 2 columns of each row wrap around to the next; they and the 4 up to 160 are dropped.
//
// The block goes through the input channels in slices of 16: their halo tile, and their weights of
// all taps. While a slice's 9 products run, the next slice arrives in another buffer, and so that
// the tensor cores have work while warps wait at a barrier, the slice before may still be read:
// that makes three buffers. A slice is small so that two blocks fit into a multiprocessor, where
// the epilogue and first loads of one run beside the products of the other.
//
// Operands lie without swizzle, as [piece of 8 channels][row of 16 bytes]: swizzled rows are bound
// to blocks of 8, which a tap's step breaks. Products read 8 rows, 128 bytes, at a time, without
// bank conflicts wherever they start. Neighbouring lanes copy neighbouring pieces of a row, as
// global memory has them, and the pieces' distance spreads these over the banks.
#pragma once

#include "platform.cuh"
#include "tiles.cuh"

namespace clsd::cuda::sm90 {

constexpr int kTileH = 12, kTileW = 24, kWarpgroups = 2, kWarpgroupThreads = 128;
constexpr int kThreads = kWarpgroups * kWarpgroupThreads;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kHaloW = kTileW + 2, kHaloPixels = (kTileH + 2) * kHaloW;
constexpr int kSpanRows = kTileH / kWarpgroups, kSpan = kSpanRows * kHaloW, kColumns = 160;
constexpr int kGroup = ChannelGroup::kChannels, kDepth = 16, kSlices = kGroup / kDepth;
constexpr int kBuffers = 3;
constexpr uint32_t kPieceBytes = 16, kCoreBytes = 8 * kPieceBytes;

// A matrix in shared memory: kRows rows of kPieces pieces. 8 lanes copy 8 / kPieces rows; with that
// many rows between two pieces, modulo 8, they write to all banks once.
template <int kRows, int kPieces>
struct Layout {
  static constexpr int kCount = kRows * kPieces;
  static constexpr uint32_t kPitch = ((kRows + 7) / 8 * 8 + 8 / kPieces) * kPieceBytes;
  static constexpr uint32_t kBytes = kPieces * kPitch;

  __device__ static int row(int i) { return i / kPieces % kRows; }
  __device__ static int piece(int i) { return i % kPieces; }
  __device__ static uint32_t offset(int i) { return piece(i) * kPitch + row(i) * kPieceBytes; }
};

using Halo = Layout<kHaloPixels, kDepth / 8>;
static_assert(kSpan <= kColumns);
// The dropped columns of the last tap read beyond the tile, but nothing beyond a piece's room.
static_assert(kSpan * (kWarpgroups - 1) + kColumns + 2 * kHaloW + 2 <= Halo::kPitch / kPieceBytes);

// Weights of a tap: a row for each output channel or, transposed, for each input channel, as they
// lie in memory. Products read either.
template <bool kTransposed>
using Weights = Layout<kTransposed ? kDepth : kGroup, (kTransposed ? kGroup : kDepth) / 8>;
constexpr uint32_t kTapBytes = Weights<false>::kBytes;
static_assert(kTapBytes == Weights<true>::kBytes);

constexpr uint32_t kBufferBytes = Halo::kBytes + kTaps * kTapBytes;
constexpr uint32_t kSharedBytes = kBuffers * kBufferBytes;

// Sums on their way out, after the last product: a float row for each column in place of the
// operands. Its padding keeps the 4 columns that a warp writes at a time apart.
constexpr uint32_t kSumRowBytes = 4 * kGroup + 16;
static_assert(kWarpgroups * kColumns * kSumRowBytes <= kSharedBytes);

__device__ __forceinline__ uint32_t buffer_of(int slice) { return slice % kBuffers * kBufferBytes; }

// Ask for 16 input channels, from `first` of the group on, of the halo tile. Zeros stand outside
// the image.
template <class T>
__device__ __forceinline__ void load_halo(const Convolution<T>& conv, const Place& place,
                                          const ChannelGroup& inputs, int first, uint32_t target) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Halo::kCount; i += kThreads) {
    const int pixel = Halo::row(i);
    const int y = place.y + pixel / kHaloW - 1, x = place.x + pixel % kHaloW - 1;
    const bool valid = y >= 0 && y < conv.height && x >= 0 && x < conv.width;
    const int64_t offset = pixel_offset(place.n, y, x, conv.height, conv.width, conv.inputs,
                                        conv.input_upscale, inputs) + first + 8 * Halo::piece(i);
    cp_async(target + Halo::offset(i), conv.input + (valid ? offset : 0), valid);
  }
}

// Ask for their weights, of all taps.
template <class T, bool kTransposed>
__device__ __forceinline__ void load_weights(const Convolution<T>& conv, const Place& place,
                                             const ChannelGroup& inputs, int first,
                                             uint32_t target) {
  using Tap = Weights<kTransposed>;
  static_assert(Tap::kCount == kWarpgroupThreads);  // the warpgroups take taps in turn
  const int i = threadIdx.x % kWarpgroupThreads, row = Tap::row(i), column = 8 * Tap::piece(i);
  const int64_t source_row =
      kTransposed ? inputs.channel(first + row) : place.outputs.channel(row);
  const int row_length = kTransposed ? conv.outputs : conv.inputs;
  const int first_column = kTransposed ? place.outputs.first : inputs.first + first;
  const Global<const T> source = conv.weight + (source_row * kTaps * row_length + first_column +
                                                column);
#pragma unroll
  for (int k = 0; k < (kTaps + kWarpgroups - 1) / kWarpgroups; ++k) {
    const int tap = kWarpgroups * k + static_cast<int>(threadIdx.x) / kWarpgroupThreads;
    if (tap >= kTaps) break;
    const int64_t source_tap = kTransposed ? kTaps - 1 - tap : tap;
    cp_async(target + tap * kTapBytes + Tap::offset(i), source + source_tap * row_length, true);
  }
}

template <class T, bool kTransposed>
__device__ __forceinline__ void load_slice(const Convolution<T>& conv, const Place& place,
                                           int slice) {
  const ChannelGroup inputs = ChannelGroup::of(slice / kSlices, conv.inputs, conv.input_upscale);
  const int first = slice % kSlices * kDepth;
  const uint32_t buffer = buffer_of(slice);
  load_halo(conv, place, inputs, first, buffer);
  load_weights<T, kTransposed>(conv, place, inputs, first, buffer + Halo::kBytes);
  cp_async_commit();
}

using Sums = float[kColumns / 2];

// Where 4 of the 8 channels [8 eight, 8 eight + 8) of a column's sums lie. Halves are apart so that
// 8 lanes that read one half of all 64 channels read 128 bytes, rotated so that 8 lanes that write
// the sums of 8 channels write to 8 banks.
__device__ __forceinline__ uint32_t sum_offset(int column, int eight, int half) {
  return column * kSumRowBytes + half * (2 * kGroup) + (eight + half) % 8 * 16;
}

__device__ __forceinline__ void stage(const Sums& sums, int first_column) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroupThreads / 32;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const int column = first_column + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    store_shared(sum_offset(column, 2 * warp + i / 2 % 2, lane / 16) + 4 * (lane / 4 % 4), sums[i]);
  }
}

// Write the warpgroup's staged sums: 8 lanes a pixel, so that its 64 channels are one write.
template <class T>
__device__ __forceinline__ void write_staged(const Convolution<T>& conv, const Place& place,
                                             int warpgroup) {
  const int thread = threadIdx.x % kWarpgroupThreads, eight = thread % 8;
  const Epilogue<T> epilogue(conv, place.outputs, 8 * eight);
#pragma unroll 3
  for (int pixel = thread / 8; pixel < kSpanRows * kTileW; pixel += kWarpgroupThreads / 8) {
    const int row = pixel / kTileW, y = place.y + warpgroup * kSpanRows + row;
    const int x = place.x + pixel % kTileW;
    if (y >= conv.height || x >= conv.width) continue;
    const int column = warpgroup * kColumns + row * kHaloW + pixel % kTileW;
    const auto low = load_shared<float4>(sum_offset(column, eight, 0));
    const auto high = load_shared<float4>(sum_offset(column, eight, 1));
    float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    epilogue.store_at(pixel_offset(place.n, y, x, conv.height, conv.width, conv.outputs,
                                   conv.output_upscale, place.outputs) + 8 * eight,
                      values);
  }
}

#ifdef CLSD_SM90A

// Start the products of a slice: its group is left uncompleted.
template <class T, bool kTransposed>
__device__ __forceinline__ void multiply_slice(Sums& sums, int slice, int warpgroup) {
  using Tap = Weights<kTransposed>;
  const uint32_t halo = buffer_of(slice), weights = halo + Halo::kBytes;
  const uint64_t a = kTransposed ? wgmma_descriptor<kCoreBytes, Tap::kPitch>(weights)
                                 : wgmma_descriptor<Tap::kPitch, kCoreBytes>(weights);
  const uint64_t b =
      wgmma_descriptor<Halo::kPitch, kCoreBytes>(halo + warpgroup * kSpan * kPieceBytes);
  wgmma_fence();
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    // Descriptors count addresses in pieces: of a tap's weights, and of a pixel.
    wgmma<T, kColumns, kTransposed>(sums, a + tap * (kTapBytes / kPieceBytes),
                                    b + (tap / 3 * kHaloW + tap % 3));
  }
  wgmma_commit();
}

#endif

template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    conv3x3_kernel(const Convolution<T> conv, const Grid grid) {
#ifdef CLSD_SM90A
  const auto place = place_of_block<kTileH, kTileW>(conv, grid);
  const int warpgroup = threadIdx.x / kWarpgroupThreads, slices = grid.input_groups * kSlices;
  Sums sums{};
#pragma unroll 1
  for (int slice = 0; slice < 2; ++slice) load_slice<T, kTransposed>(conv, place, slice);
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    slice == 0 ? cp_async_wait<1>() : cp_async_wait<0>();
    fence_proxy_async();
    wgmma_wait<1>();
    // After the barrier, all see this slice, and all have left the one before the last, in whose
    // place the next one goes.
    __syncthreads();
    if (slice > 0 && slice + 1 < slices) load_slice<T, kTransposed>(conv, place, slice + 1);
    multiply_slice<T, kTransposed>(sums, slice, warpgroup);
  }
  wgmma_wait<0>();
  __syncthreads();  // all have read the operands, where the sums go now
  stage(sums, warpgroup * kColumns);
  __syncthreads();
  write_staged(conv, place, warpgroup);
#else
  __trap();  // convolve launches it where there is code for sm_90a alone
#endif
}

}  // namespace clsd::cuda::sm90
