// How the finished sums of a convolution get out.
//
// A block's results lie in shared memory as pieces of 8 channels, like its operands, rounded. Where
// something is added to them or masks them, that is copied there first, while products run, and the
// results replace it in place.
#pragma once

#include "operands.cuh"

namespace clsd::cuda {

// What is done with a sum; bias and scale always are.
enum class Finish {
  kNone,
  kRelu,
  kLeaky,
  kResidual,
  kResidualRelu,
  kResidualLeaky,
  kResidualAdded,
  kMask
};

template <Finish kFinish>
constexpr bool kHasSkip = kFinish >= Finish::kResidual;
template <Finish kFinish>
constexpr bool kHasAdded = kFinish == Finish::kResidualAdded;
template <Finish kFinish>
constexpr bool kHasRelu = kFinish == Finish::kRelu || kFinish == Finish::kResidualRelu;
template <Finish kFinish>
constexpr bool kIsLeaky = kFinish == Finish::kLeaky || kFinish == Finish::kResidualLeaky;

// The one that a convolution asks for. Nothing asks for a mask, or for two residuals, beside another.
template <class T>
Finish finish_of(const Convolution<T>& conv) {
  if (conv.positive) return Finish::kMask;
  if (conv.added) return Finish::kResidualAdded;
  if (!conv.activates) return conv.residual ? Finish::kResidual : Finish::kNone;
  const bool is_leaky = conv.slopes || conv.slope != 0;
  if (conv.residual) return is_leaky ? Finish::kResidualLeaky : Finish::kResidualRelu;
  return is_leaky ? Finish::kLeaky : Finish::kRelu;
}

// The factor of a channel's negative results.
template <class T>
__device__ __forceinline__ float slope_of(const Convolution<T>& conv, int channel) {
  return conv.slopes && channel < conv.outputs ? load(conv.slopes + channel) : conv.slope;
}

__device__ __forceinline__ float leaky(float value, float slope) {
  return value < 0 ? value * slope : value;
}

// Two results from their sums and scaled biases, rounded, in place of what a pair held of the
// residual or mask.
template <class T, Finish kFinish>
__device__ __forceinline__ void finish_pair(uint32_t& pair, float first, float second, float scale,
                                            float first_bias, float second_bias,
                                            float first_slope = 0, float second_slope = 0) {
  if constexpr (kFinish == Finish::kMask) {
    pair =
        positive_mask<T>(pair) & pack<T>(first * scale + first_bias, second * scale + second_bias);
    return;
  }
  float2 sum = {first * scale + first_bias, second * scale + second_bias};
  if constexpr (kHasSkip<kFinish>) {
    const float2 residual = unpack<T>(pair);
    sum.x += residual.x, sum.y += residual.y;
  }
  if constexpr (kIsLeaky<kFinish>) sum = {leaky(sum.x, first_slope), leaky(sum.y, second_slope)};
  pair = pack<T, kHasRelu<kFinish>>(sum.x, sum.y);
}

template <class T, Finish kFinish>
__device__ __forceinline__ Global<const T> skip_of(const Convolution<T>& conv) {
  return kFinish == Finish::kMask ? conv.positive : conv.residual;
}

// The pixels of kRows x kWidth of a block's tile, from `first_row` on, as threads move them between
// global and shared memory: 8 threads a pixel, kRowsAbreast x kAbreast pixels at a time. Pixels and
// channels that the image has not are left out.
template <class T, int kRows, int kWidth, int kAbreast, int kRowsAbreast = 1>
class ResultPixels {
 public:
  static constexpr int kThreads = kRowsAbreast * kAbreast * kGroup / kPiece;
  static constexpr int kCount = kRows / kRowsAbreast * (kWidth / kAbreast);  // of a thread
  static_assert(kWidth % kAbreast == 0 && kRows % kRowsAbreast == 0);

  __device__ __forceinline__ ResultPixels(const Convolution<T>& conv, const Grid& grid,
                                          const Place& place, int thread, int first_row)
      : row_(thread / (8 * kAbreast)), column_(thread / 8 % kAbreast), piece_(thread % 8) {
    const ImageSteps& steps = grid.output;
    const int phase = grid.groups_of_phase.quotient(place.output_group);
    const int phase_y = grid.output_upscale.quotient(phase);
    const int phase_x = grid.output_upscale.rest(phase, phase_y);
    const int channel = first_output(grid, place) + piece_ * kPiece;
    const int y = place.y + first_row + row_, x = place.x + column_;
    rows_ = static_cast<int>(conv.height) - y;
    columns_ =
        channel < static_cast<int>(steps.phase_column) ? static_cast<int>(conv.width) - x : 0;
    offset_ = (static_cast<int64_t>(place.n) * conv.height + y) * steps.row +
              static_cast<uint64_t>(x) * steps.column +
              static_cast<uint64_t>(phase_y) * steps.phase_row +
              static_cast<uint64_t>(phase_x) * steps.phase_column + channel;
    column_step_ = static_cast<int64_t>(kAbreast) * steps.column;
    row_step_ = static_cast<int64_t>(kRowsAbreast) * steps.row;
  }

  // Call visit(number, row, column, piece, offset in global memory) for each.
  template <class Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
    int64_t row_offset = offset_;
#pragma unroll
    for (int row = 0; row < kRows; row += kRowsAbreast, row_offset += row_step_) {
      int64_t offset = row_offset;
#pragma unroll
      for (int column = 0; column < kWidth; column += kAbreast, offset += column_step_) {
        const int number = row / kRowsAbreast * (kWidth / kAbreast) + column / kAbreast;
        if (row >= rows_ || column >= columns_) continue;
        visit(number, row_ + row, column_ + column, piece_, offset);
      }
    }
  }

 private:
  int row_, column_, piece_, rows_, columns_;
  int64_t offset_, row_step_, column_step_;
};

// A block's or warpgroup's results in shared memory, rows of kWidth pixels from byte `base` on.
template <int kPixels, int kWidth>
struct ResultTile {
  using Layout = PieceLayout<kPixels, kGroup / kPiece>;
  static constexpr uint32_t kBytes = Layout::kBytes;

  uint32_t base;

  __device__ __forceinline__ uint32_t at(int row, int column, int piece) const {
    return base + Layout::offset(row * kWidth + column, piece);
  }
};

// Ask for the residual or mask of some pixels, where their results will lie. The caller commits.
template <class T, Finish kFinish, class Pixels, class Tile>
__device__ __forceinline__ void load_skip(const Convolution<T>& conv, const Pixels& pixels,
                                          const Tile& results) {
  if constexpr (kHasSkip<kFinish>) {
    pixels.for_each([&](int, int row, int column, int piece, int64_t offset) {
      cp_async(results.at(row, column, piece), skip_of<T, kFinish>(conv) + offset, true);
    });
  }
}

// Sums of the numbers of two pieces.
template <class T>
__device__ __forceinline__ uint4 sum_of(const uint4& a, const uint4& b) {
  return {add<T>(a.x, b.x), add<T>(a.y, b.y), add<T>(a.z, b.z), add<T>(a.w, b.w)};
}

// Wait for all copies but those of the last `pending` groups, a constant where this is inlined.
__device__ __forceinline__ void wait_for_copies(int pending) {
  switch (pending) {
    case 0: return cp_async_wait<0>();
    case 1: return cp_async_wait<1>();
    case 2: return cp_async_wait<2>();
    default: return cp_async_wait<3>();
  }
}

// Where what is added to rounded results waits in shared memory: the number-th piece of each of a
// block's threads, kCount of each. It comes in groups of kGroupSize numbers. A thread adds what it has
// copied itself, so that no barrier is needed.
template <int kThreads, int kCount, int kGroupSize>
struct AddedPieces {
  static constexpr uint32_t kBytes = kThreads * kPieceBytes;  // of a number
  static constexpr int kGroups = (kCount + kGroupSize - 1) / kGroupSize;

  uint32_t base;

  __device__ __forceinline__ uint32_t at(int number) const {
    return base + number * kBytes + threadIdx.x * kPieceBytes;
  }
  __device__ static constexpr int group(int number) { return number / kGroupSize; }
};

// Ask for a group of what is added to a thread's results, if anything is, and commit it.
template <Finish kFinish, class T, class Pixels, class Added>
__device__ __forceinline__ void load_added(const Convolution<T>& conv, const Pixels& pixels,
                                           const Added& added, int group) {
  if constexpr (kHasAdded<kFinish>) {
    pixels.for_each([&](int number, int, int, int, int64_t offset) {
      if (Added::group(number) != group) return;
      cp_async(added.at(number), conv.added + offset, true);
    });
    cp_async_commit();
  }
}

// The same of all groups.
template <Finish kFinish, class T, class Pixels, class Added>
__device__ __forceinline__ void load_added(const Convolution<T>& conv, const Pixels& pixels,
                                           const Added& added) {
#pragma unroll
  for (int group = 0; group < Added::kGroups; ++group) {
    load_added<kFinish>(conv, pixels, added, group);
  }
}

// How many groups load_added commits.
template <Finish kFinish, class Added>
constexpr int kAddedGroups = kHasAdded<kFinish> ? Added::kGroups : 0;

// Write the pixels' results, after a barrier, where nothing is added.
template <Finish kFinish, class T, class Pixels, class Tile>
__device__ __forceinline__ void write_results(const Convolution<T>& conv, const Pixels& pixels,
                                              const Tile& results) {
  static_assert(!kHasAdded<kFinish>);
  pixels.for_each([&](int, int row, int column, int piece, int64_t offset) {
    store_vector(conv.output + offset, load_shared<uint4>(results.at(row, column, piece)));
  });
}

// The same with what load_added has asked for, whose groups were committed last.
template <Finish kFinish, class T, class Pixels, class Tile, class Added>
__device__ __forceinline__ void write_results(const Convolution<T>& conv, const Pixels& pixels,
                                              const Tile& results, const Added& added) {
  if constexpr (kHasAdded<kFinish>) {
#pragma unroll
    for (int group = 0; group < Added::kGroups; ++group) {
      wait_for_copies(Added::kGroups - 1 - group);
      pixels.for_each([&](int number, int row, int column, int piece, int64_t offset) {
        if (Added::group(number) != group) return;
        const auto result = load_shared<uint4>(results.at(row, column, piece));
        const auto other = load_shared<uint4>(added.at(number));
        store_vector(conv.output + offset, sum_of<T>(result, other));
      });
    }
  } else {
    write_results<kFinish>(conv, pixels, results);
  }
}

}  // namespace clsd::cuda
