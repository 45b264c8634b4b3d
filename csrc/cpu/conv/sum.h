// Sums of images.
#pragma once

#include <vector>

#include "../../tensor_util.h"
#include "../parallel.h"

namespace clsd::cpu {

// The images themselves where they lie as dense ones do, else a copy that does.
inline Tensor lying_as(const Tensor& like, const Tensor& images) {
  bool same = true;
  for (int64_t dim = 0; dim < like.dim(); ++dim) {
    same = same && (like.size(dim) <= 1 || images.stride(dim) == like.stride(dim));
  }
  if (same) return images;
  Tensor copy = empty(like, shape_of(like), memory_format(like));
  torch::stable::copy_(copy, images);
  return copy;
}

// Add images of any strides up into dense ones, which may be one of them, and round once.
template <class S>
void sum(std::vector<Tensor> summands, const Tensor& to) {
  using T = Accumulator<S>;
  std::vector<const S*> from;
  for (Tensor& summand : summands) {
    summand = lying_as(to, summand);
    from.push_back(const_data<S>(summand));
  }
  S* sums = data<S>(to);
  constexpr int64_t kGrain = 1 << 15;
  parallel_for(0, to.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T total = static_cast<T>(from[0][i]);
      for (size_t j = 1; j < from.size(); ++j) total += static_cast<T>(from[j][i]);
      sums[i] = static_cast<S>(total);
    }
  });
}

}  // namespace clsd::cpu
