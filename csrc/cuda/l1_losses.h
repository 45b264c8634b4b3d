// The mean absolute errors of several images as kernels take them: no CUDA headers, no torch.
#pragma once

#include <cstdint>

#include "types.h"

namespace clsd::cuda {

constexpr int kMaxL1Images = 64;  // of a launch, whose parameters may be 4 KiB

// Images of a call, from number `first` of it on, and their target: all dense in the same order.
struct L1Images {
  Global<const float> images[kMaxL1Images];
  Global<float> grads[kMaxL1Images];  // of the backward
  Global<const float> target;
  int64_t size;  // of an image
  int count, first;
};

// Sums of the absolute differences, by parts of an image: those of image i, in the call, are at
// [i, parts]. Of `count` images in all, `losses` are the mean error of the first and of the others,
// both over the images' size and divided by the value range.
int64_t l1_parts(int64_t size);
void sum_differences(const L1Images& images, Global<float> partials, Stream stream);
void finish_losses(Global<const float> partials, int64_t size, int count, double value_range,
                   Global<float> first, Global<float> others, Stream stream);

// Gradients of the images from those of the losses, either of which may be null; `scale` is what
// they are multiplied with for the first image and for the others.
struct L1Scale {
  Global<const float> first, others;
  float of_first, of_others;
};
void differentiate_differences(const L1Images& images, const L1Scale& scale, Stream stream);

}  // namespace clsd::cuda
