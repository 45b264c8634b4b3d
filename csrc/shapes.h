// Strided views as plain structs. Legend: N images, C input and K output channels, H x W pixels,
// r upscale factor; B batches of N rows and M keys with D features. Offsets are elements, int64.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace clsd {

// [N, C, H, W] images. A table of channel offsets describes contiguous, channels_last and sliced
// tensors alike, and also a pixel-shuffled tensor seen as its [N, C r^2, H, W] original.
template <class S>
struct Images {
  S* data;
  int64_t batch, channels, height, width;
  int64_t stride_n, stride_h, stride_w;
  std::vector<int64_t> channel = {};  // offset of each channel
  // The channels in the order of their offsets, and the length of the runs of consecutive ones that
  // this order is made of: C for channels_last, C for each phase of its pixel-shuffled form, 1 for
  // contiguous images. Kernels work on channels in this order.
  std::vector<int64_t> order = {};
  int64_t run = 1;

  S* pixel(int64_t n, int64_t y, int64_t x) const {
    return data + n * stride_n + y * stride_h + x * stride_w;
  }
};

// Channels [first, first + count) of images, counted in their order.
template <class S>
Images<S> channel_slice(Images<S> images, int64_t first, int64_t count) {
  const auto begin = images.order.begin() + first;
  images.order = std::vector<int64_t>(begin, begin + count);
  images.run = std::gcd(images.run, std::gcd(first, count));
  images.channels = count;
  return images;
}

// [B, N, D] rows of features.
template <class S>
struct FeatureRows {
  S* data;
  int64_t batch, count, features;
  int64_t stride_b, stride_n, stride_d;

  S* row(int64_t b, int64_t n) const { return data + b * stride_b + n * stride_n; }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace clsd
