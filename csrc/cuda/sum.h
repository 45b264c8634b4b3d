// Sums of images as kernels take them: no CUDA headers, no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace clsd::cuda {

constexpr size_t kMaxSummands = 8;  // of a launch

template <class T>
struct Sum {
  Global<const T> summands[kMaxSummands];
  Global<T> sum;
  int64_t elements;  // of each
  int64_t count;
};

// Add up at most kMaxSummands images, and round once.
void sum(const std::vector<Global<const Bf16>>& summands, Global<Bf16> to, int64_t elements,
         Stream stream);
void sum(const std::vector<Global<const Fp16>>& summands, Global<Fp16> to, int64_t elements,
         Stream stream);

}  // namespace clsd::cuda
