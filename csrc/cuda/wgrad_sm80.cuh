// Gradient of a 3x3 convolution's weight and bias on the tensor cores of sm_80 and later.
//
// grad_weight[k][dy][dx][c] is the product of grad_output [k, pixels] and the input [pixels, c],
// moved by the tap: pixels are what is summed over. A block computes all taps of 64 x 64 channels,
// each of its 8 warps those of 32 output and 16 input channels, 144 sums a thread. It walks down
// swaths that are 16 pixels wide: a step multiplies a row of the input, of 18 pixels, with the rows
// of grad_output below, beside and above it. Those stay in registers, so that a step reads one new
// row of either from shared memory, and each pixel is loaded once but for the swaths' borders. The
// 288 products of a step, m16n8k16, take an sm_80 576 clocks, in which 4.25 KiB come from global
// memory and shared memory moves 25 of the 72 KiB it could: the tensor cores are the bound.
//
// Rows of pixels are those of wgrad_tasks.cuh. Their transpose, which makes pixels the depth of the
// products, is that of ldmatrix.
#pragma once

#include "wgrad_tasks.cuh"

namespace clsd::cuda::wgrad_sm80 {

using wgrad::kPieces;
using wgrad::kRowBytes;
using wgrad::ones;
using wgrad::swizzled;
using wgrad::Task;
using wgrad::Tasks;

constexpr int kThreads = 256;
constexpr int kSwathW = 16, kInputW = kSwathW + 2;
constexpr int kWarpFragmentsM = 2, kWarpFragmentsN = 2;  // of 16 output and 8 input channels
constexpr int kWarpM = 16 * kWarpFragmentsM, kWarpsM = ChannelGroup::kChannels / kWarpM;
constexpr int kWarpN = 8 * kWarpFragmentsN, kWarpsN = ChannelGroup::kChannels / kWarpN;
static_assert(32 * kWarpsM * kWarpsN == kThreads);
// A stage holds a row of the input and one of grad_output.
constexpr int kStages = 4;
constexpr uint32_t kInputRowBytes = kInputW * kRowBytes;
constexpr uint32_t kStageBytes = kInputRowBytes + kSwathW * kRowBytes;
constexpr uint32_t kSharedBytes = kStages * kStageBytes;
// A thread loads a piece of a row's first 16 pixels, half of them of the input.
static_assert(kThreads == 2 * kSwathW * kPieces);

// The rows of a block, in turn. Two steps before the first row of a swath load grad_output's.
struct Walk {
  static constexpr int kLead = 2;

  int n, swath, row;
  int first;  // row that counts in this swath
  int64_t left;

  template <class T>
  __device__ static Walk of(const Task<T>& task, int split, int swaths) {
    const int64_t begin = split * task.steps_of_split, index = begin / task.height;
    const int first = static_cast<int>(begin % task.height);
    const int64_t left = task.steps - begin;
    return {static_cast<int>(index / swaths), static_cast<int>(index % swaths), first - kLead,
            first, left < task.steps_of_split ? left : task.steps_of_split};
  }

  __device__ __forceinline__ bool counts() const { return row >= first; }

  // Whether another swath begins.
  __device__ __forceinline__ bool next(int height, int swaths) {
    if (counts()) --left;
    if (++row < height) return false;
    row = -kLead, first = 0;
    if (++swath == swaths) swath = 0, ++n;
    return true;
  }
};

// A thread's part of the loads: of the input in the lower half of the block, of the row below it of
// grad_output in the upper half. All that a step needs is in registers.
template <class T>
class Loader {
 public:
  __device__ Loader(const Task<T>& task, const Walk& walk, const ChannelGroup& inputs,
                    const ChannelGroup& outputs, int swaths)
      : task_(task),
        walk_(walk),
        swaths_(swaths),
        height_(static_cast<int>(task.height)),
        is_input_(threadIdx.x < kThreads / 2),
        pixel_(threadIdx.x % (kThreads / 2) / kPieces),
        channels_(is_input_ ? inputs : outputs) {
    const int piece = threadIdx.x % kPieces, upscale = is_input_ ? 1 : task.upscale;
    const int channels = is_input_ ? task.inputs : task.outputs;
    // To the first of the piece's channels in every row.
    source_ = (is_input_ ? task.input : task.grad_output) + 8 * piece;
    row_stride_ = upscale * task.width * upscale * (channels / channels_.square);
    border_stride_ = kSwathW * static_cast<int64_t>(task.inputs);
    target_ = (is_input_ ? 0 : kInputRowBytes) + swizzled(pixel_, piece);
    is_wanted_ = 8 * piece < channels_.count && (!is_input_ || task.grad_weight);
    begin_swath();
  }

  // Load the row and go on to the next. Zeros stand outside the image.
  __device__ __forceinline__ void load(int stage) {
    if (walk_.left > 0) {
      const int row = walk_.row + (is_input_ ? 0 : 1);
      const bool is_row = row >= (is_input_ ? walk_.first : 0) && row < height_;
      const uint32_t target = stage * kStageBytes + target_;
      copy(target, offset_, is_row && is_inside_);
      if (is_input_ && pixel_ < kInputW - kSwathW) {  // its last pixels are right of the swath
        copy(target + kSwathW * kRowBytes, offset_ + border_stride_, is_row && is_border_inside_);
      }
      offset_ += row_stride_;
      if (walk_.next(height_, swaths_)) begin_swath();
    }
    cp_async_commit();
  }

 private:
  __device__ __forceinline__ void copy(uint32_t target, int64_t offset, bool valid) const {
    cp_async(target, source_ + (valid ? offset : 0), valid);
  }

  __device__ void begin_swath() {
    const int x = walk_.swath * kSwathW + pixel_ - (is_input_ ? 1 : 0);
    const int row = walk_.row + (is_input_ ? 0 : 1);
    offset_ = pixel_offset(walk_.n, row, x, task_.height, task_.width,
                           is_input_ ? task_.inputs : task_.outputs, is_input_ ? 1 : task_.upscale,
                           channels_);
    is_inside_ = is_wanted_ && x >= 0 && x < task_.width;
    is_border_inside_ = is_wanted_ && x + kSwathW < task_.width;
  }

  const Task<T>& task_;
  Walk walk_;
  int swaths_, height_;
  bool is_input_, is_wanted_, is_inside_, is_border_inside_;
  int pixel_;
  ChannelGroup channels_;
  Global<const T> source_;
  int64_t offset_, row_stride_, border_stride_;
  uint32_t target_;
};

// A warp's rows of grad_output below, beside and above the input's row: those of taps dy = 0, 1, 2.
using Rows = uint32_t[3][kWarpFragmentsM][4];
using Sums = float[kTaps][kWarpFragmentsM][kWarpFragmentsN][4];

__device__ __forceinline__ void load_row_below(Rows& rows, int stage, int first_channel) {
  const int lane = threadIdx.x % 32;
  const int pixel = lane % 8 + lane / 16 * 8, piece = first_channel / 8 + lane / 8 % 2;
#pragma unroll
  for (int m = 0; m < kWarpFragmentsM; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[2][m][i] = rows[1][m][i], rows[1][m][i] = rows[0][m][i];
    ldmatrix_transposed(rows[0][m],
                        stage * kStageBytes + kInputRowBytes + swizzled(pixel, piece + 2 * m));
  }
}

template <class T>
__device__ __forceinline__ void multiply_row(Sums& sums, const Rows& rows, int stage,
                                             int first_channel) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int dx = 0; dx < 3; ++dx) {
    uint32_t pixels[2 * kWarpFragmentsN];
    ldmatrix_transposed(pixels, stage * kStageBytes +
                                    swizzled(dx + lane % 16, first_channel / 8 + lane / 16));
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
#pragma unroll
      for (int m = 0; m < kWarpFragmentsM; ++m) {
#pragma unroll
        for (int n = 0; n < kWarpFragmentsN; ++n) {
          const uint32_t columns[2] = {pixels[2 * n], pixels[2 * n + 1]};
          mma<T>(sums[3 * dy + dx][m][n], rows[dy][m], columns);
        }
      }
    }
  }
}

// Sums over a row's pixels, in all columns.
template <class T>
__device__ __forceinline__ void multiply_ones(float (&sums)[4],
                                              const uint32_t (&row)[kWarpFragmentsM][4],
                                              int fragment) {
  const uint32_t columns[2] = {ones<T>(), ones<T>()};
#pragma unroll
  for (int m = 0; m < kWarpFragmentsM; ++m) {
    if (m == fragment) mma<T>(sums, row[m], columns);
  }
}

template <class T>
__device__ void write_weight_partial(const Task<T>& task, int split, const Sums& sums,
                                     const ChannelGroup& outputs, int first_output,
                                     const ChannelGroup& inputs, int first_input) {
  const int lane = threadIdx.x % 32;
  if (first_input >= inputs.count) return;
#pragma unroll
  for (int m = 0; m < kWarpFragmentsM; ++m) {
    if (first_output + 16 * m >= outputs.count) break;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t k = outputs.channel(first_output + 16 * m + 8 * half + lane / 4);
      const int64_t row = (split * static_cast<int64_t>(task.outputs) + k) * kTaps;
      const int c = inputs.first + first_input + 2 * (lane % 4);
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
        for (int n = 0; n < kWarpFragmentsN; ++n) {
          const float* pair = &sums[tap][m][n][2 * half];
          store_pair(task.weight_partials + ((row + tap) * task.inputs + c + 8 * n),
                     float2{pair[0], pair[1]});
        }
      }
    }
  }
}

// All columns of the sums are the same.
template <class T>
__device__ void write_bias_partial(const Task<T>& task, int split, const float (&sums)[4],
                                   const ChannelGroup& outputs, int first_output) {
  const int lane = threadIdx.x % 32;
  if (lane % 4 != 0 || first_output >= outputs.count) return;
  const Global<float> target = task.bias_partials + split * static_cast<int64_t>(task.outputs);
  store(target + outputs.channel(first_output + lane / 4), sums[0]);
  store(target + outputs.channel(first_output + lane / 4 + 8), sums[2]);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    wgrad_kernel(const __grid_constant__ Tasks<T> tasks) {
  const wgrad::Place place = wgrad::place_of_block(tasks);
  const Task<T>& task = tasks.at[place.task];
  const auto inputs = ChannelGroup::of(place.inputs, task.inputs, 1);
  const auto outputs = ChannelGroup::of(place.outputs, task.outputs, task.upscale);
  const int swaths = static_cast<int>((task.width + kSwathW - 1) / kSwathW);
  const int height = static_cast<int>(task.height);
  const int warp = threadIdx.x / 32, warp_n = warp % kWarpsN;
  const int first_output = warp / kWarpsN * kWarpM, first_input = warp_n * kWarpN;
  const bool has_weights =
      task.grad_weight && first_input < inputs.count && first_output < outputs.count;
  // Of the warps that have the same rows of grad_output, two add them up, one fragment each.
  const bool has_bias = task.grad_bias && place.inputs == 0 && warp_n < kWarpFragmentsM;

  Walk walk = Walk::of(task, place.split, swaths);
  Loader<T> loader(task, walk, inputs, outputs, swaths);
  for (int stage = 0; stage < kStages - 1; ++stage) loader.load(stage);
  Sums sums{};
  Rows rows{};
  float bias_sums[4] = {};
  for (unsigned step = 0; walk.left > 0; walk.next(height, swaths), ++step) {
    // After the barrier, all see this step's rows, and all have left those of the step before,
    // where the next are loaded: at the end, when a warp that is done leaves the tensor cores to
    // others.
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const int stage = step % kStages;
    load_row_below(rows, stage, first_output);
    if (walk.counts()) {
      if (has_weights) multiply_row<T>(sums, rows, stage, first_input);
      if (has_bias) multiply_ones<T>(bias_sums, rows[1], warp_n);
    }
    loader.load((step + kStages - 1) % kStages);
  }
  cp_async_wait<0>();  // for none; a thread ends with nothing under way
  if (has_weights) {
    write_weight_partial(task, place.split, sums, outputs, first_output, inputs, first_input);
  }
  if (has_bias) {
    write_bias_partial(task, place.split, bias_sums, outputs, first_output + 16 * warp_n);
  }
}

}  // namespace clsd::cuda::wgrad_sm80
