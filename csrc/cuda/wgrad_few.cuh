// Gradient of a 3x3 convolution's weight and bias where the input or the output has up to 3
// channels. It is the product of the other image's channels [64, pixels] with the patches
// [pixels, 27] of the one with few: a step takes 128 pixels, a thread gathers the patch of one, and
// each of 4 warps sums 16 of the 64 channels.
#pragma once

#include "conv3x3_few.cuh"
#include "wgrad_tasks.cuh"

namespace clsd::cuda::wgrad_few {

using few::kThreads;
using few::kWarps;
using few::Patches;
using wgrad::kPieces;
using wgrad::Task;
using wgrad::Tasks;

constexpr int kPixels = kThreads;  // of a step
constexpr int kCenterTap = 4;
constexpr int kDepth = kFewDepth;
constexpr uint32_t kRowBytes = 2 * kGroup;
constexpr uint32_t kSharedBytes = Patches::kBytes + kPixels * kRowBytes;
static_assert(16 * kWarps == kGroup && 8 * kWarps == kDepth);

// Rows of pixels in shared memory: 64 channels, 128 bytes. A row's 16-byte pieces are permuted by the
// row number, so that the 8 rows of a ldmatrix hit all banks once.
__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
  return row * kRowBytes + ((piece ^ (row & 7)) << 4);
}

// Two 1s: the sum of rows or columns is their product with a matrix of ones.
template <class T>
__device__ __forceinline__ uint32_t ones() {
  return pack<T>(1.0f, 1.0f);
}

// A task by its images: patches of `few`, where output pixels are seen from those of the input they
// depend on if the output has few channels. Their taps run backwards then.
template <class T>
struct Sides {
  Global<const T> few, wide;
  int few_channels, wide_channels;
  bool few_outputs;

  __device__ explicit Sides(const Task<T>& task)
      : few(task.outputs <= kFewChannels ? task.grad_output : task.input),
        wide(task.outputs <= kFewChannels ? task.input : task.grad_output),
        few_channels(task.outputs <= kFewChannels ? task.outputs : task.inputs),
        wide_channels(task.outputs <= kFewChannels ? task.inputs : task.outputs),
        few_outputs(task.outputs <= kFewChannels) {}
};

// A step's pixels from `first` on: patches, and rows of 64 wide channels. Zeros stand for pixels
// beyond the last.
template <class T>
__device__ void load_step(const Task<T>& task, const Sides<T>& sides, const ChannelGroup& channels,
                          int64_t first) {
  const int64_t image = task.height * task.width, pixels = task.batch * image;
  for (int i = threadIdx.x; i < kPixels * kPieces; i += kThreads) {
    const int64_t pixel = first + i / kPieces;
    const int piece = i % kPieces;
    const bool valid = pixel < pixels && 8 * piece < channels.count;
    const int64_t offset = pixel * sides.wide_channels + channels.first + 8 * piece;
    cp_async(Patches::kBytes + swizzled(i / kPieces, piece), sides.wide + (valid ? offset : 0),
             valid);
  }
  cp_async_commit();
  const int64_t pixel = first + threadIdx.x, at = pixel % image;
  const int64_t height = pixel < pixels ? task.height : 0;  // of no pixels, all are outside
  few::gather_patch(threadIdx.x, sides.few, sides.few_channels, height, task.width, pixel / image,
                    at / task.width, at % task.width);
}

// Sums of a warp's 16 wide channels, by depth of the patches; and sums over the pixels alone, of
// the output's channels: a column of those, or a row of 8 depths, each warp its own.
struct Sums {
  float weights[kDepth / 8][4], bias[4];
};

template <class T>
__device__ __forceinline__ void multiply_step(Sums& sums, const Task<T>& task, bool few_outputs) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 0; step < kPixels / 16; ++step) {
    uint32_t wide[4], depths[kDepth / 16][4];
    ldmatrix_transposed(wide, Patches::kBytes + swizzled(16 * step + lane % 8 + lane / 16 * 8,
                                                         2 * warp + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) {
      ldmatrix_transposed(depths[i], Patches::offset(16 * step + lane % 16, 2 * i + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < kDepth / 8; ++j) {
      const uint32_t columns[2] = {depths[j / 2][j % 2 * 2], depths[j / 2][j % 2 * 2 + 1]};
      if (task.grad_weight) mma<T>(sums.weights[j], wide, columns);
      if (task.grad_bias && few_outputs && j == warp) {
        const uint32_t rows[4] = {ones<T>(), ones<T>(), ones<T>(), ones<T>()};
        mma<T>(sums.bias, rows, columns);
      }
    }
    if (task.grad_bias && !few_outputs) {
      const uint32_t columns[2] = {ones<T>(), ones<T>()};
      mma<T>(sums.bias, wide, columns);
    }
  }
}

template <class T>
__device__ void write_weight_partial(const Task<T>& task, const Sides<T>& sides, int split,
                                     const ChannelGroup& channels, const Sums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Global<float> target = task.weight_partials + split * task.weights();
#pragma unroll
  for (int j = 0; j < kDepth / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + lane / 4 + i / 2 * 8, depth = 8 * j + lane % 4 * 2 + i % 2;
      const int tap = depth / sides.few_channels, few = depth % sides.few_channels;
      if (row >= channels.count || tap >= kTaps) continue;
      const int64_t wide = channels.first + row;
      const int64_t k = sides.few_outputs ? few : wide, c = sides.few_outputs ? wide : few;
      const int weight_tap = sides.few_outputs ? kTaps - 1 - tap : tap;
      store(target + ((k * kTaps + weight_tap) * task.inputs + c), sums.weights[j][i]);
    }
  }
}

template <class T>
__device__ void write_bias_partial(const Task<T>& task, const Sides<T>& sides, int split,
                                   const ChannelGroup& channels, const Sums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Global<float> target = task.bias_partials + split * static_cast<int64_t>(task.outputs);
  if (sides.few_outputs) {  // rows are all the same; a pixel itself is at the patch's center
    for (int i = 0; i < 2; ++i) {
      const int depth = 8 * warp + 2 * lane + i;
      const bool is_center = lane < 4 && depth / sides.few_channels == kCenterTap;
      if (is_center) store(target + depth % sides.few_channels, sums.bias[i]);
    }
  } else if (lane % 4 == 0) {  // columns are all the same
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * warp + lane / 4 + 8 * half;
      if (row < channels.count) store(target + (channels.first + row), sums.bias[2 * half]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    wgrad_few_kernel(const __grid_constant__ Tasks<T> tasks) {
  const wgrad::Place place = wgrad::place_of_block(tasks);
  const Task<T>& task = tasks.at[place.task];
  const Sides<T> sides(task);
  const int group = sides.few_outputs ? place.inputs : place.outputs;
  const auto channels = ChannelGroup::of(group, sides.wide_channels, 1);
  const int64_t begin = place.split * task.steps_of_split;
  const int64_t end = begin + task.steps_of_split;
  Sums sums{};
  for (int64_t step = begin; step < end && step < task.steps; ++step) {
    if (step > begin) __syncthreads();  // all have left the step before
    load_step(task, sides, channels, step * kPixels);
    cp_async_wait<0>();
    __syncthreads();
    multiply_step(sums, task, sides.few_outputs);
  }
  if (task.grad_weight) write_weight_partial(task, sides, place.split, channels, sums);
  if (task.grad_bias && (place.inputs == 0 || !sides.few_outputs)) {
    write_bias_partial(task, sides, place.split, channels, sums);
  }
}

}  // namespace clsd::cuda::wgrad_few
