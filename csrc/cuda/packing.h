// Parameters as the convolution kernels read them: rounded to the images' type, in the order and
// place that shared memory wants, so that a kernel copies them as they lie.
//
// Output channels come in groups of kGroup rows, input channels in slices of kSlice, each half of
// which is a piece of 8 channels, 16 bytes:
//
//   many channels   [output groups][slices][9 taps][2 pieces][64 rows][8]
//   few outputs     the same with groups of kFewRows rows
//   few inputs      [output groups][4 pieces][64 rows][8]: depth d = tap * inputs + channel
//   bias            [output groups][rows] of float
//
// With zeros for rows, depths and biases that there are not. The channels of a pixel-shuffled image
// are taken phase by phase, those of a phase being neighbours in memory.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "convolution.h"
#include "divisor.h"

namespace clsd::cuda {

constexpr int kTaps = 9, kPiece = 8, kSlice = 16, kSlicePieces = kSlice / kPiece;
constexpr int kGroup = 64, kFewRows = 8;
// Depths of a pixel with few channels: two products of 16.
constexpr int kFewDepth = 32, kFewDepthPieces = kFewDepth / kPiece;

// Channels of an image in the order in which they are packed.
struct ChannelOrder {
  int channels, square;  // of the image before a pixel shuffle; phases

  CLSD_HOST_DEVICE int per_phase() const { return channels / square; }
  // Groups of up to `size` channels of one phase.
  CLSD_HOST_DEVICE int groups(int size) const { return square * ((per_phase() + size - 1) / size); }
};

// One of a tensor's data: of the images' type, or float beside 16-bit images. The other is null.
template <class T>
struct Parameter {
  Global<T> narrow;
  Global<std::conditional_t<std::is_const_v<T>, const float, float>> wide;

  CLSD_HOST_DEVICE explicit operator bool() const { return narrow || wide; }
};

// The parameters of one convolution. Strides are elements, and may run backwards: the gradient of a
// convolution's input is a convolution with its weight, channels exchanged and taps turned.
template <class T>
struct Packing {
  Parameter<const T> weight, bias;  // bias may be null
  int64_t weight_start, output_stride, input_stride, y_stride, x_stride, bias_stride;
  ChannelOrder outputs, inputs;
  Global<T> packed_weight;
  Global<float> packed_bias;

  CLSD_HOST_DEVICE bool has_few_inputs() const { return inputs.channels <= kFewChannels; }
  int rows() const {
    return outputs.channels <= kFewChannels && !has_few_inputs() ? kFewRows : kGroup;
  }
  int64_t bias_elements() const { return static_cast<int64_t>(outputs.groups(rows())) * rows(); }
  int64_t weight_elements() const {
    const int depth = has_few_inputs() ? kFewDepth : inputs.groups(kSlice) * kTaps * kSlice;
    return bias_elements() * depth;
  }
};

// All of them, by one launch for every kMaxPackings.
void pack(const std::vector<Packing<Bf16>>& packings, Stream stream);
void pack(const std::vector<Packing<Fp16>>& packings, Stream stream);

}  // namespace clsd::cuda
