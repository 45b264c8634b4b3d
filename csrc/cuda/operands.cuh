// How the operands of a convolution get into shared memory.
//
// A matrix lies there as pieces: a row's 8 channels, 16 bytes, and the next row's behind them. Any 8
// rows that follow each other are 128 bytes, so that ldmatrix and wgmma read them without bank
// conflicts wherever they start: a tap is a constant step of an address. That is why nothing is
// swizzled: swizzled rows are bound to blocks of 8, which a tap's step breaks.
#pragma once

#include <utility>

#include "tiles.cuh"

namespace clsd::cuda {

constexpr uint32_t kPieceBytes = 16;

// 8 lanes copy the pieces of 8 / kPieces rows, as global memory has them. With that many rows more
// between two pieces, modulo 8, they write to all banks once.
template <int kRows, int kPieces>
struct PieceLayout {
  static constexpr int kCount = kRows * kPieces;
  static constexpr uint32_t kPitch = ((kRows + 7) / 8 * 8 + 8 / kPieces) * kPieceBytes;
  static constexpr uint32_t kBytes = kPieces * kPitch;

  __device__ static uint32_t offset(int row, int piece) {
    return piece * kPitch + row * kPieceBytes;
  }
};

// Copies a block's tile of the input, with kBorder pixels around it, kPieces pieces of each pixel at
// a time: a slice, or several. Threads find their pixels once; from slice to slice one step is
// added. Zeros stand outside the image. kTiles: of the block, each of which kThreads threads copy.
template <class T, int kTileH, int kTileW, int kThreads, int kBorder = 1,
          int kPieces = kSlicePieces, int kTiles = 1>
class InputLoader {
 public:
  static constexpr int kWidth = kTileW + 2 * kBorder, kPixels = (kTileH + 2 * kBorder) * kWidth;
  using Tile = PieceLayout<kPixels, kPieces>;

  __device__ __forceinline__ InputLoader(const Convolution<T>& conv, const Grid& grid,
                                         const Place& place) {
    const ImageSteps& steps = grid.input;
    const int width = static_cast<int>(conv.width), height = static_cast<int>(conv.height);
    const int pixel_step = static_cast<int>(steps.column), row_step = static_cast<int>(steps.row);
    // A product of 64 bits for the image, others of 32.
    const int64_t image = multiply_add(place.n, height, 0) * row_step + piece() * kPiece;
    const int row = pixel() * kInverse >> kInverseBits, column = pixel() - row * kWidth;
    const int y = place.y - kBorder + row, x = place.x - kBorder + column;
#pragma unroll
    for (int k = 0; k < kTurns; ++k) {
      const int rows = k * kStep / kWidth, columns = k * kStep % kWidth;
      const bool wraps = columns > 0 && column >= kWidth - columns;  // over the end of the row
      const int y_k = y + (wraps ? rows + 1 : rows), x_k = x + (wraps ? columns - kWidth : columns);
      inside_[k] = is_inside(y_k, height) && is_inside(x_k, width);
      // Which may lie outside.
      source_[k] = conv.input + multiply_add(y_k, row_step, multiply_add(x_k, pixel_step, image));
    }
    // The phases of a row of a shuffled image follow each other.
    loads_of_row_ = static_cast<int>(steps.column / kLoaded);
    row_skip_ = steps.phase_row - steps.column;
  }

  // Copy the channels that follow those of the last call.
  __device__ __forceinline__ void load(uint32_t target) {
    copy<0>(target);
#pragma unroll
    for (int k = 0; k < kTurns; ++k) source_[k] = source_[k] + kLoaded;
    if (++loads_ < loads_of_row_) return;
    loads_ = 0;
#pragma unroll
    for (int k = 0; k < kTurns; ++k) source_[k] = source_[k] + row_skip_;
  }

  // Copy those of the kLoad-th call, where load has not been called, of an image without a shuffle.
  template <int kLoad>
  __device__ __forceinline__ void copy(uint32_t target) const {
    const uint32_t first = target + Tile::offset(pixel(), piece());
#pragma unroll
    for (int k = 0; k < kTurns; ++k) {
      if ((k + 1) * kStep > kPixels && pixel() >= kPixels - k * kStep) break;
      cp_async<kLoad * kLoaded>(first + k * (kThreads / kPieces * kPieceBytes), source_[k],
                                inside_[k]);
    }
  }

 private:
  static constexpr int kTurns = (Tile::kCount + kThreads - 1) / kThreads;
  static constexpr int kLoaded = kPieces * kPiece;  // channels
  // From turn to turn, a thread goes on by so many pixels, of which the first turn has this many.
  static constexpr int kStep = kThreads / kPieces;
  // Dividing them by the width is multiplying and shifting.
  static constexpr int kInverseBits = 16, kInverse = (1 << kInverseBits) / kWidth + 1;
  static_assert(kStep * (kInverse * kWidth - (1 << kInverseBits)) < 1 << kInverseBits);
  static_assert(kThreads % kPieces == 0);

  // Of the tile's threads: its first pixel, and its piece of each.
  __device__ static int pixel() {
    return static_cast<int>((kTiles == 1 ? threadIdx.x : threadIdx.x % kThreads) / kPieces);
  }
  __device__ static int piece() { return static_cast<int>(threadIdx.x % kPieces); }

  Global<const T> source_[kTurns];
  bool inside_[kTurns];
  uint32_t row_skip_;
  int loads_ = 0, loads_of_row_;
};

// Copies the packed weights of one group of output channels, a matrix of kRows rows and kMatrixPieces
// pieces at a time. Shared memory has them as they are packed, without room between the pieces.
template <class T, int kThreads, int kRows = kGroup, int kMatrixPieces = kTaps * kSlicePieces>
class WeightLoader {
 public:
  static constexpr int kCount = kRows * kMatrixPieces;
  static constexpr uint32_t kPitch = kRows * kPieceBytes, kTapBytes = kSlicePieces * kPitch;
  static constexpr uint32_t kBytes = kCount * kPieceBytes;

  __device__ __forceinline__ WeightLoader(const Convolution<T>& conv, int matrices,
                                          int output_group)
      : source_(conv.weight + ((static_cast<int64_t>(output_group) * matrices * kCount +
                                static_cast<int>(threadIdx.x)) *
                               kPiece)) {}

  // Copy the matrix that follows that of the last call.
  __device__ __forceinline__ void load(uint32_t target) {
    copy<0>(target);
    source_ = source_ + kCount * kPiece;
  }

  // Copy the kMatrix-th one, where load has not been called.
  template <int kMatrix>
  __device__ __forceinline__ void copy(uint32_t target) const {
    copy_turns<kMatrix>(target + threadIdx.x * kPieceBytes,
                        std::make_integer_sequence<int, kTurns>{});
  }

 private:
  static constexpr int kTurns = (kCount + kThreads - 1) / kThreads;

  template <int kMatrix, int... kTurn>
  __device__ __forceinline__ void copy_turns(uint32_t target,
                                             std::integer_sequence<int, kTurn...>) const {
    (copy_turn<kMatrix, kTurn>(target), ...);
  }

  template <int kMatrix, int kTurn>
  __device__ __forceinline__ void copy_turn(uint32_t target) const {
    constexpr int kDone = kTurn * kThreads;
    if (kDone + kThreads > kCount && static_cast<int>(threadIdx.x) + kDone >= kCount) return;
    cp_async<(kMatrix * kCount + kDone) * kPiece>(target + kDone * kPieceBytes, source_, true);
  }

  Global<const T> source_;
};

// Ask for the biases of a group of output channels, to byte `target` on: what is loaded into registers
// waits behind all copies, and the compiler has products wait for it. The caller commits.
template <class T>
__device__ __forceinline__ void load_bias(const Convolution<T>& conv, int output_group,
                                          uint32_t target) {
  constexpr int kFloats = kPieceBytes / sizeof(float);
  const int first = threadIdx.x * kFloats;
  if (first >= kGroup) return;
  cp_async(target + first * sizeof(float), conv.bias + (output_group * kGroup + first), true);
}

}  // namespace clsd::cuda
