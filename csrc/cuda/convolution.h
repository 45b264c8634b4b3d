// A 3x3 convolution (stride 1, zero padding 1) as kernels take it: no CUDA headers, no torch.
//
// All images are dense [N, H, W, C]. A pixel-shuffled image [N, r H, r W, C] is seen as its
// original of C r^2 channels, of which channel c r^2 + i r + j lies at pixel (r y + i, r x + j),
// channel c.
#pragma once

#include <cstdint>
#include <vector>

#include "divisor.h"
#include "types.h"

namespace clsd::cuda {

// Channels of images (or of one phase of a pixel shuffle) come in multiples of kChannelMultiple, up
// to kLargestChannels: beyond, kernels that keep all taps of 64 channels in shared memory have no
// advantage. Without a pixel shuffle, the inputs or the outputs may be up to kFewChannels instead.
// clsd_fast/backend/cuda.py asks for the same before a call.
constexpr int64_t kChannelMultiple = 16;
constexpr int64_t kFewChannels = 3;
constexpr int64_t kLargestChannels = 256;

// output = activation(scale * (convolution(input, weight) + bias) + residual), each part where given.
// Beside a residual without an activation, `added` is a further one for the rounded result, of many
// channels alone.
template <class T>
struct ConvolutionTensors {
  Global<const T> input;
  Global<const T> weight;      // packed (packing.h)
  Global<const float> bias;    // packed beside it
  Global<const T> residual;    // like output, or null
  Global<const T> added;       // likewise
  Global<const T> positive;    // like output, or null: the result is kept only where this is > 0
  Global<const float> slopes;  // [outputs] in place of `slope`, or null; without a pixel shuffle
  Global<T> output;
};

struct ConvolutionShape {
  int64_t batch, height, width;  // before any pixel shuffle
  int inputs, outputs;           // channels, before any pixel shuffle
  int input_upscale = 1;         // r of the input that is read through a pixel unshuffle
  int output_upscale = 1;        // r of the output that is written through a pixel shuffle
  float scale = 1.0f;
  float slope = 0.0f;  // of the activation: the factor of what is < 0
  // A flag: there is one. Of four bytes, so that nothing lies undefined between launches' arguments.
  int activates = 0;
};

template <class T>
struct Convolution : ConvolutionTensors<T>, ConvolutionShape {};

// Convolutions of one shape, of which each has the same parts.
template <class T>
using ConvolutionList = std::vector<Convolution<T>>;

constexpr int kMaxConvolutions = 8;  // of a launch

// As many of them, as a kernel takes them.
template <class T>
struct Convolutions : ConvolutionShape {
  ConvolutionTensors<T> at[kMaxConvolutions];

  CLSD_HOST_DEVICE Convolution<T> operator[](int index) const { return {at[index], *this}; }
};

// Kernels count the pixels of a side in an int.
constexpr int64_t kMaxSide = int64_t{1} << 30;

// Run them by the kernel for their channels. Each result is what it would be alone.
void convolve(const ConvolutionList<Bf16>& list, Stream stream);
void convolve(const ConvolutionList<Fp16>& list, Stream stream);

// Whether one kernel for both convolutions of a residual block, which does not store the image
// between them, is expected to be faster than two.
bool fuses_residual_block(int64_t batch, int64_t height, int64_t width, int64_t channels,
                          int64_t hidden_channels);
// Run it: `second` convolves the result of `first`. Only for what fuses_residual_block accepts.
void convolve_residual_block(const Convolution<Bf16>& first, const Convolution<Bf16>& second,
                             Stream stream);
void convolve_residual_block(const Convolution<Fp16>& first, const Convolution<Fp16>& second,
                             Stream stream);

}  // namespace clsd::cuda
