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
  const auto add = [](uint32_t first, uint32_t second) {
    const float2 x = unpack<T>(first), y = unpack<T>(second);
    return pack<T>(x.x + y.x, x.y + y.y);
  };
  return {add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w)};
}

// What is added to a thread's rounded results, if anything is.
template <Finish kFinish, class Pixels>
using Added = uint4[kFinish == Finish::kResidualAdded ? Pixels::kCount : 1];

// All of it at once, long before write_results needs it.
template <Finish kFinish, class T, class Pixels>
__device__ __forceinline__ void load_added(const Convolution<T>& conv, const Pixels& pixels,
                                           Added<kFinish, Pixels>& added) {
  if constexpr (kFinish == Finish::kResidualAdded) {
    pixels.for_each([&](int number, int, int, int, int64_t offset) {
      added[number] = load_vector(conv.added + offset);
    });
  }
}

// Write the pixels' results, after a barrier.
template <Finish kFinish, class T, class Pixels, class Tile>
__device__ __forceinline__ void write_results(const Convolution<T>& conv, const Pixels& pixels,
                                              const Tile& results,
                                              const Added<kFinish, Pixels>& added) {
  pixels.for_each([&](int number, int row, int column, int piece, int64_t offset) {
    auto result = load_shared<uint4>(results.at(row, column, piece));
    if constexpr (kFinish == Finish::kResidualAdded) result = sum_of<T>(result, added[number]);
    store_vector(conv.output + offset, result);
  });
}

// The same where nothing is added.
template <Finish kFinish, class T, class Pixels, class Tile>
__device__ __forceinline__ void write_results(const Convolution<T>& conv, const Pixels& pixels,
                                              const Tile& results) {
  static_assert(kFinish != Finish::kResidualAdded);
  write_results<kFinish>(conv, pixels, results, Added<kFinish, Pixels>{});
}

}  // namespace clsd::cuda
