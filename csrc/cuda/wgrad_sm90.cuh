// Gradient of a 3x3 convolution's weight and bias on the tensor cores of sm_90a (wgmma).
//
// grad_weight[k][dy][dx][c] is the product of grad_output [k, pixels] and the input [pixels, c],
// moved by the tap: pixels are what is summed over. A block computes all taps of 64 x 64 channels,
// each of its 3 warpgroups those of one dx, 96 sums a thread. It walks through tiles of 8 x 16
// pixels, with those of the input around them. The 16 pixels of a row are the depth of a product:
// its A is grad_output, 64 channels, and its B the input's rows above, at and below them, 3 x 64
// channels. Channels are neighbours in memory, not pixels: both operands are MN-major.
//
// In shared memory, a row of pixels is 8 pieces, of 8 channels each, of all its pixels. The pieces
// of the next row follow at the same distance, so that three rows are one operand of 192 columns,
// and dx is a constant step of a descriptor's address.
//
// The 24 products of a tile take 2304 clocks, in which 38.5 KiB come from global memory; they read
// 85 of the 128 bytes that shared memory has in a clock: the tensor cores are the bound.
#pragma once

#include "operands.cuh"
#include "wgrad_tasks.cuh"

namespace clsd::cuda::wgrad_sm90 {

using wgrad::kPieces;
using wgrad::Task;
using wgrad::Tasks;

constexpr int kWarpgroups = 3, kWarpgroupThreads = 128;  // a warpgroup for each dx
constexpr int kThreads = kWarpgroups * kWarpgroupThreads;
constexpr int kTileH = 8, kTileW = 16;
constexpr int kColumns = 3 * kGroup;
constexpr int kPixelsAtOnce = kThreads / kPieces;  // that a block copies
constexpr uint32_t kCoreBytes = 8 * kPieceBytes;

// A tile with kBorder pixels around it. 8 lanes copy the pieces of a pixel: an odd number of pixels
// between two pieces has them write to all banks once.
template <int kBorder>
struct TileLayout {
  static constexpr int kHeight = kTileH + 2 * kBorder, kWidth = kTileW + 2 * kBorder;
  static constexpr uint32_t kPitch = (kWidth | 1) * kPieceBytes, kRowBytes = kPieces * kPitch;
  static constexpr uint32_t kBytes = kHeight * kRowBytes;
};
using InputLayout = TileLayout<1>;
using OutputLayout = TileLayout<0>;

// Of the tiles in shared memory, one is multiplied, one may still be, and the others arrive.
constexpr int kStages = 4, kAhead = kStages - 2;
constexpr uint32_t kStageBytes = InputLayout::kBytes + OutputLayout::kBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;

// Of the channels of a piece, those pixels that a thread has copied.
using BiasSums = float[kPiece];

// An image, and what of it a block works on. Channels are counted before a shuffle.
template <class T>
struct Side {
  Global<const T> image;
  int channels, upscale;
  ChannelGroup group;
};

// The tiles of a block, in turn: down a swath of an image, the next swath, the next image.
struct Walk {
  int64_t n;
  int y, x;  // first pixel
  int64_t left;

  template <class T>
  __device__ static Walk of(const Task<T>& task, int split) {
    const int64_t begin = split * task.steps_of_split, left = task.steps - begin;
    const int64_t column = begin / tiles(task.height, kTileH);
    const int64_t n = column / tiles(task.width, kTileW);
    return {n, static_cast<int>(begin - column * tiles(task.height, kTileH)) * kTileH,
            static_cast<int>(column - n * tiles(task.width, kTileW)) * kTileW,
            left < task.steps_of_split ? left : task.steps_of_split};
  }

  __host__ __device__ static int64_t tiles(int64_t size, int tile) {
    return (size + tile - 1) / tile;
  }
};

// Copies the tiles of one image, some rows at once: a thread one piece of the same pixels of each,
// which lie in a column. Zeros stand outside the image, and for channels beyond the group's.
template <class T, int kBorder>
class TileLoader {
 public:
  using Layout = TileLayout<kBorder>;

  __device__ __forceinline__ TileLoader(const Task<T>& task, const Side<T>& side, const Walk& walk)
      : width_(static_cast<int>(task.width)) {
    const int pixel = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    const int row = pixel / Layout::kWidth, column = pixel % Layout::kWidth;
    row_ = row - kBorder, column_ = column - kBorder;
    target_ = row * Layout::kRowBytes + piece * Layout::kPitch + column * kPieceBytes;
    source_ = side.image + (pixel_offset(walk.n, walk.y + row_, walk.x + column_, task.height,
                                         task.width, side.channels, side.upscale, side.group) +
                            kPiece * piece);
    // Of no rows, all pixels are outside.
    height_ = kPiece * piece < side.group.count ? static_cast<int>(task.height) : 0;
    const int64_t row_step = task.width * side.channels;
    const int64_t column_step = side.channels / side.upscale;
    turn_step_ = kRowsAtOnce * row_step;
    tile_step_ = kTileH * row_step;
    swath_step_ = kTileW * column_step - Walk::tiles(task.height, kTileH) * tile_step_;
    image_step_ = task.height * row_step - Walk::tiles(task.width, kTileW) * kTileW * column_step;
  }

  __device__ __forceinline__ void copy(uint32_t tile, const Walk& walk) const {
    const bool is_column = is_inside(walk.x + column_, width_);
    Global<const T> source = source_;
#pragma unroll
    for (int row = 0; row < Layout::kHeight; row += kRowsAtOnce) {
      if (!copies(row)) return;
      cp_async(tile + target_ + row * Layout::kRowBytes, source,
               is_column && is_inside(walk.y + row_ + row, height_));
      source = source + turn_step_;
    }
  }

  __device__ __forceinline__ void next(bool is_other_swath, bool is_other_image) {
    source_ = source_ + tile_step_;
    if (is_other_swath) source_ = source_ + swath_step_;
    if (is_other_image) source_ = source_ + image_step_;
  }

  // Add up the pixels that this thread has copied.
  __device__ __forceinline__ void add_to(BiasSums& sums, uint32_t tile) const {
#pragma unroll
    for (int row = 0; row < Layout::kHeight; row += kRowsAtOnce) {
      if (!copies(row)) return;
      const uint4 piece = load_shared<uint4>(tile + target_ + row * Layout::kRowBytes);
      const uint32_t pairs[] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
      for (int i = 0; i < kPiece / 2; ++i) {
        const float2 channels = unpack<T>(pairs[i]);
        sums[2 * i] += channels.x, sums[2 * i + 1] += channels.y;
      }
    }
  }

 private:
  static constexpr int kRowsAtOnce = kPixelsAtOnce / Layout::kWidth;

  // Whether there is a pixel for this thread among kRowsAtOnce rows from `row` on.
  __device__ static bool copies(int row) {
    const int left = Layout::kHeight - row, rows = left < kRowsAtOnce ? left : kRowsAtOnce;
    return rows * Layout::kWidth == kPixelsAtOnce ||
           static_cast<int>(threadIdx.x) < rows * Layout::kWidth * kPieces;
  }

  Global<const T> source_;  // of the first pixel in the tile, which may lie outside
  int64_t turn_step_, tile_step_, swath_step_, image_step_;
  uint32_t target_;
  int row_, column_, height_, width_;
};

// Copies a block's tiles of both images.
template <class T>
class Loader {
 public:
  __device__ __forceinline__ Loader(const Task<T>& task, const Side<T>& input,
                                    const Side<T>& grad_output, const Walk& walk)
      : walk_(walk),
        height_(static_cast<int>(task.height)),
        width_(static_cast<int>(task.width)),
        input_(task, input, walk),
        grad_output_(task, grad_output, walk) {}

  // Copy the next tile, if there is one.
  __device__ __forceinline__ void load(uint32_t stage) {
    if (walk_.left > 0) {
      input_.copy(stage, walk_);
      grad_output_.copy(stage + InputLayout::kBytes, walk_);
      next();
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void add_to(BiasSums& sums, uint32_t stage) const {
    grad_output_.add_to(sums, stage + InputLayout::kBytes);
  }

 private:
  __device__ __forceinline__ void next() {
    --walk_.left;
    walk_.y += kTileH;
    const bool is_other_swath = walk_.y >= height_;
    if (is_other_swath) walk_.y = 0, walk_.x += kTileW;
    const bool is_other_image = walk_.x >= width_;
    if (is_other_image) walk_.x = 0;
    input_.next(is_other_swath, is_other_image);
    grad_output_.next(is_other_swath, is_other_image);
  }

  Walk walk_;
  int height_, width_;
  TileLoader<T, 1> input_;
  TileLoader<T, 0> grad_output_;
};

using Sums = float[kColumns / 2];

#ifdef CLSD_SM90A

// Start the products of a tile's rows: their group is left uncompleted.
template <class T>
__device__ __forceinline__ void multiply_tile(Sums& sums, uint32_t stage, int dx) {
  constexpr uint32_t kInputRow = InputLayout::kRowBytes, kOutputRow = OutputLayout::kRowBytes;
  const uint64_t a =
      wgmma_descriptor<kCoreBytes, OutputLayout::kPitch>(stage + InputLayout::kBytes);
  const uint64_t b = wgmma_descriptor<kCoreBytes, InputLayout::kPitch>(stage + dx * kPieceBytes);
  wgmma_fence();
#pragma unroll
  for (int row = 0; row < kTileH; ++row) {
    wgmma<T, kColumns, true, true>(sums, a + row * (kOutputRow / kPieceBytes),
                                   b + row * (kInputRow / kPieceBytes));
  }
  wgmma_commit();
}

#endif

template <class T>
__device__ __forceinline__ void write_weight_partial(const Task<T>& task, int split,
                                                     const Sums& sums, const ChannelGroup& outputs,
                                                     const ChannelGroup& inputs, int dx) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroupThreads / 32;
  if (16 * warp >= outputs.count) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t k = outputs.channel(16 * warp + lane / 4 + 8 * half);
    const int64_t row = (split * static_cast<int64_t>(task.outputs) + k) * kTaps + dx;
    const Global<float> target =
        task.weight_partials + (row * task.inputs + inputs.first + 2 * (lane % 4));
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (kPiece * piece >= inputs.count) break;
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        const float* pair = &sums[4 * (kPieces * dy + piece) + 2 * half];
        store_pair(target + (3 * dy * static_cast<int64_t>(task.inputs) + kPiece * piece),
                   float2{pair[0], pair[1]});
      }
    }
  }
}

// Threads that have the same piece of other pixels add up, in shared memory.
template <class T>
__device__ __forceinline__ void write_bias_partial(const Task<T>& task, int split,
                                                   const BiasSums& sums,
                                                   const ChannelGroup& outputs) {
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPiece; i += 4) {
    store_shared(4 * (kPiece * thread + i), float4{sums[i], sums[i + 1], sums[i + 2], sums[i + 3]});
  }
  __syncthreads();
  if (thread >= outputs.count) return;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPixelsAtOnce; ++i) sum += load_shared<float>(4 * (kGroup * i + thread));
  store(task.bias_partials + (split * static_cast<int64_t>(task.outputs) + outputs.channel(thread)),
        sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    wgrad_kernel(const __grid_constant__ Tasks<T> tasks) {
#ifdef CLSD_SM90A
  const wgrad::Place place = wgrad::place_of_block(tasks);
  const Task<T>& task = tasks.at[place.task];
  auto inputs = ChannelGroup::of(place.inputs, task.inputs, 1);
  if (!task.grad_weight) inputs.count = 0;  // none is read: products are of zeros
  const auto outputs = ChannelGroup::of(place.outputs, task.outputs, task.upscale);
  const bool has_bias = task.grad_bias && place.inputs == 0;
  const int dx = threadIdx.x / kWarpgroupThreads;
  const Walk walk = Walk::of(task, place.split);
  Loader<T> loader(task, {task.input, task.inputs, 1, inputs},
                   {task.grad_output, task.outputs, task.upscale, outputs}, walk);
  for (int stage = 0; stage < kAhead; ++stage) loader.load(stage * kStageBytes);
  Sums sums{};
  BiasSums bias_sums{};
#pragma unroll 1
  for (unsigned step = 0; step < walk.left; ++step) {
    cp_async_wait<kAhead - 1>();
    fence_proxy_async();
    wgmma_wait<1>();
    // After the barrier, all see this tile, and the products of the one before the last are done,
    // in whose place the next one goes.
    __syncthreads();
    const uint32_t stage = step % kStages * kStageBytes;
    loader.load((step + kAhead) % kStages * kStageBytes);
    multiply_tile<T>(sums, stage, dx);
    if (has_bias) loader.add_to(bias_sums, stage);
  }
  wgmma_wait<0>(sums);
  cp_async_wait<0>();  // for none; a thread ends with nothing under way
  if (task.grad_weight) write_weight_partial(task, place.split, sums, outputs, inputs, dx);
  if (has_bias) {
    __syncthreads();  // all have left the tiles
    write_bias_partial(task, place.split, bias_sums, outputs);
  }
#else
  __trap();  // weight_gradients launches it where there is code for sm_90a alone
#endif
}

}  // namespace clsd::cuda::wgrad_sm90
