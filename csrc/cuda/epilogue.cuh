// How the finished sums of a convolution get out.
#pragma once

#include "convolution.h"
#include "platform.cuh"

namespace clsd::cuda {

// Up to 64 channels that one step works on. With a pixel shuffle they are of one phase, so that they
// are neighbours in memory: channels (first + i) r^2 + phase.
struct ChannelGroup {
  static constexpr int kChannels = 64;

  int first, count, phase, square;

  __host__ __device__ static int groups(int channels, int upscale) {
    const int square = upscale * upscale;
    return square * ((channels / square + kChannels - 1) / kChannels);
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

// Sums to results, 8 channels of a pixel at a time, in the order of Convolution.
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
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = (values[i] + bias_[i]) * convolution_.scale;
    if (convolution_.residual) {
      float residual[kVector];
      read(convolution_.residual + offset, residual);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] += residual[i];
    }
    if (convolution_.relu) {  // as torch's: NaN passes
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = values[i] < 0 ? 0 : values[i];
    }
    if (convolution_.positive) {
      float positive[kVector];
      read(convolution_.positive + offset, positive);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = positive[i] > 0 ? values[i] : 0;
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
