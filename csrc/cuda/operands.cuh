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
// added. Zeros stand outside the image.
template <class T, int kTileH, int kTileW, int kThreads, int kBorder = 1,
          int kPieces = kSlicePieces>
class InputLoader {
 public:
  static constexpr int kWidth = kTileW + 2 * kBorder, kPixels = (kTileH + 2 * kBorder) * kWidth;
  using Tile = PieceLayout<kPixels, kPieces>;

  __device__ __forceinline__ InputLoader(const Convolution<T>& conv, const Grid& grid,
                                         const Place& place) {
    const ImageSteps& steps = grid.input;
    const int width = static_cast<int>(conv.width), height = static_cast<int>(conv.height);
    const int64_t first_row = static_cast<int64_t>(place.n) * height + (place.y - kBorder);
    // Of the tile's corner, which may lie outside.
    const Global<const T> corner =
        conv.input + (first_row * steps.row + (place.x - kBorder) * int64_t{1} * steps.column +
                      static_cast<int>(threadIdx.x) % kPieces * kPiece);
#pragma unroll
    for (int k = 0; k < kTurns; ++k) {
      const int pixel = index(k) / kPieces, row = pixel / kWidth, column = pixel % kWidth;
      inside_[k] = is_inside(place.y - kBorder + row, height) &&
                   is_inside(place.x - kBorder + column, width);
      source_[k] = corner + (static_cast<uint64_t>(row) * steps.row +
                             static_cast<uint64_t>(column) * steps.column);
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
    const uint32_t first = target + Tile::offset(threadIdx.x / kPieces, threadIdx.x % kPieces);
#pragma unroll
    for (int k = 0; k < kTurns; ++k) {
      if ((k + 1) * kThreads > Tile::kCount && index(k) >= Tile::kCount) break;
      cp_async<kLoad * kLoaded>(first + k * (kThreads / kPieces * kPieceBytes), source_[k],
                                inside_[k]);
    }
  }

 private:
  static constexpr int kTurns = (Tile::kCount + kThreads - 1) / kThreads;
  static constexpr int kLoaded = kPieces * kPiece;  // channels
  static_assert(kThreads % kPieces == 0);

  __device__ static int index(int turn) { return static_cast<int>(threadIdx.x) + turn * kThreads; }

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

}  // namespace clsd::cuda
