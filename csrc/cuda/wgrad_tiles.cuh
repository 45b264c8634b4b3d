// The tiles of images that the gradients of weights of many channels are computed from.
//
// grad_weight[k][dy][dx][c] is the product of grad_output [k, pixels] and the input [pixels, c],
// moved by the tap: pixels are what is summed over. A block walks through tiles of 8 x 16 pixels of
// grad_output, with those of the input around them. The 16 pixels of a row are the depth of a
// product. Channels are neighbours in memory, not pixels: operands are read transposed.
//
// In shared memory, a row of pixels is 8 pieces, of 8 channels each, of all its pixels, and the pieces
// of the next row follow at the same distance. Any 8 pixels that follow each other are 128 bytes, so
// that ldmatrix and wgmma read them without bank conflicts wherever they start: a tap is a constant
// step of an address.
#pragma once

#include "operands.cuh"
#include "wgrad_tasks.cuh"

namespace clsd::cuda::wgrad {

constexpr int kTileH = 8, kTileW = 16;

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
constexpr uint32_t kTileBytes = InputLayout::kBytes + OutputLayout::kBytes;

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
template <class T, int kBorder, int kThreads>
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
  static constexpr int kPixelsAtOnce = kThreads / kPieces;
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
template <class T, int kThreads>
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
  TileLoader<T, 1, kThreads> input_;
  TileLoader<T, 0, kThreads> grad_output_;
};

// Threads that have the same piece of other pixels add up, in shared memory.
template <int kThreads, class T>
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
  for (int i = 0; i < kThreads / kPieces; ++i) sum += load_shared<float>(4 * (kGroup * i + thread));
  store(task.bias_partials + (split * static_cast<int64_t>(task.outputs) + outputs.channel(thread)),
        sum);
}

}  // namespace clsd::cuda::wgrad
