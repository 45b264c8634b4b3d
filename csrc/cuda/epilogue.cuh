// How the finished sums of a convolution get out.
#pragma once

#include "convolution.h"
#include "platform.cuh"

namespace clsd::cuda {

// Up to 64 channels that one step works on. With a pixel shuffle they are of one phase, so that
// they are neighbours in memory: channels (first + i) r^2 + phase.
struct ChannelGroup {
  static constexpr int kChannels = 64;

  int first, count, phase, square;

  __host__ __device__ static int groups(int channels, int upscale) {
    const int square = upscale * upscale;
    return square * ((channels / square + kChannels - 1) / kChannels);
  }

  // Whether all groups have 64 channels.
  static bool are_whole(int channels, int upscale) {
    return channels / (upscale * upscale) % kChannels == 0;
  }

  __device__ static ChannelGroup of(int index, int channels, int upscale) {
    const int square = upscale * upscale, per_phase = channels / square;
    const int groups_per_phase = (per_phase + kChannels - 1) / kChannels;
    const int first = index % groups_per_phase * kChannels;
    const int left = per_phase - first;
    return {first, left < kChannels ? left : kChannels, index / groups_per_phase, square};
  }

  __device__ int64_t channel(int i) const {
    return static_cast<int64_t>(first + i) * square + phase;
  }
};

// Where channel group.first of pixel (y, x) of image n lies in an image of `channels` channels that
// is shuffled by `upscale`.
__device__ __forceinline__ int64_t pixel_offset(int64_t n, int64_t y, int64_t x, int64_t height,
                                                int64_t width, int channels, int upscale,
                                                const ChannelGroup& group) {
  const int64_t row = (n * height + y) * upscale + group.phase / upscale;
  const int64_t column = x * upscale + group.phase % upscale;
  return (row * width * upscale + column) * (channels / group.square) + group.first;
}

// A result of Convolution from its sum.
template <class T>
__device__ __forceinline__ float finish(const Convolution<T>& convolution, float sum, float bias,
                                        float residual, float positive) {
  float value = (sum + bias) * convolution.scale + residual;
  if (convolution.relu) value = value < 0 ? 0 : value;  // as torch's: NaN passes
  return positive > 0 ? value : 0;
}

// The same for one channel that has no neighbours to be written with.
template <class T>
__device__ void store_result(const Convolution<T>& convolution, int64_t offset, int channel,
                             float sum) {
  const float bias = convolution.bias ? to_float(load(convolution.bias + channel)) : 0;
  const float residual = convolution.residual ? to_float(load(convolution.residual + offset)) : 0;
  const float positive = convolution.positive ? to_float(load(convolution.positive + offset)) : 1;
  store(convolution.output + offset,
        from_float<T>(finish(convolution, sum, bias, residual, positive)));
}

// The same for 8 channels of a pixel at a time.
template <class T>
class Epilogue {
 public:
  static constexpr int kVector = 8;

  // Of channels [first, first + 8) of a group.
  __device__ Epilogue(const Convolution<T>& convolution, const ChannelGroup& group, int first)
      : convolution_(convolution) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      bias_[i] = convolution.bias ? to_float(load(convolution.bias + group.channel(first + i))) : 0;
    }
  }

  __device__ void store_at(int64_t offset, float (&values)[kVector]) const {
    float residual[kVector] = {0, 0, 0, 0, 0, 0, 0, 0};
    float positive[kVector] = {1, 1, 1, 1, 1, 1, 1, 1};
    if (convolution_.residual) read(convolution_.residual + offset, residual);
    if (convolution_.positive) read(convolution_.positive + offset, positive);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      values[i] = finish(convolution_, values[i], bias_[i], residual[i], positive[i]);
    }
    store_vector(convolution_.output + offset,
                 {pack<T>(values[0], values[1]), pack<T>(values[2], values[3]),
                  pack<T>(values[4], values[5]), pack<T>(values[6], values[7])});
  }

 private:
  __device__ static void read(Global<const T> source, float (&values)[kVector]) {
    const uint4 vector = load_vector(source);
    const uint32_t pairs[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack<T>(pairs[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }

  const Convolution<T>& convolution_;
  float bias_[kVector];
};

}  // namespace clsd::cuda
