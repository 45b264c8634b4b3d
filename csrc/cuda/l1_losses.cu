// Mean absolute errors: kernels and launches.
#include "l1_losses.h"

#include <stdexcept>

#include "../shapes.h"
#include "launch.cuh"
#include "platform.cuh"

namespace clsd::cuda {

namespace l1 {

constexpr int kThreads = 256, kOfThread = 16, kOfBlock = kThreads * kOfThread;

// Sum over the block's threads, in a fixed order, for the first of them. Shared memory is free after.
template <class Sum>
__device__ __forceinline__ Sum block_sum(Sum sum) {
  const uint32_t own = threadIdx.x * static_cast<uint32_t>(sizeof(Sum));
  store_shared<Sum>(own, sum);
#pragma unroll 1
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < step) {
      const uint32_t other = own + step * static_cast<uint32_t>(sizeof(Sum));
      store_shared<Sum>(own, load_shared<Sum>(own) + load_shared<Sum>(other));
    }
  }
  sum = load_shared<Sum>(own);
  __syncthreads();
  return sum;
}

// Call visit(index, image - target) for each of the thread's elements of the block's image.
template <class Visit>
__device__ __forceinline__ void for_each_difference(const L1Images& images, const Visit& visit) {
  const int64_t begin = int64_t{blockIdx.x} * kOfBlock + threadIdx.x;
  float differences[kOfThread];
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t at = begin + i * kThreads;
    differences[i] =
        at < images.size ? load(images.images[blockIdx.y] + at) - load(images.target + at) : 0;
  }
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int64_t at = begin + i * kThreads;
    if (at < images.size) visit(at, differences[i]);
  }
}

// Block (part, image).
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ L1Images images, Global<float> partials) {
  float sum = 0;
  for_each_difference(images, [&](int64_t, float difference) {
    sum += difference < 0 ? -difference : difference;  // NaN stays NaN
  });
  sum = block_sum(sum);
  const int64_t image = images.first + static_cast<int>(blockIdx.y);
  if (threadIdx.x == 0) store(partials + (image * gridDim.x + blockIdx.x), sum);
}

// One block, in double: there are few partials.
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(Global<const float> partials, int64_t parts, int count, double divisor,
                  Global<float> first, Global<float> others) {
  double sum_of_others = 0;
#pragma unroll 1
  for (int image = 0; image < count; ++image) {
    double sum = 0;
#pragma unroll 4
    for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
      sum += load(partials + (image * parts + part));
    }
    sum = block_sum(sum);
    if (image == 0) {
      if (threadIdx.x == 0) store(first, static_cast<float>(sum / divisor));
    } else {
      sum_of_others += sum;
    }
  }
  if (threadIdx.x == 0 && count > 1) {
    store(others, static_cast<float>(sum_of_others / (divisor * (count - 1))));
  }
}

__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ L1Images images,
                                                            const __grid_constant__ L1Scale scale) {
  const bool is_first = images.first + static_cast<int>(blockIdx.y) == 0;
  const Global<const float> grad = is_first ? scale.first : scale.others;
  const float step = grad ? load(grad) * (is_first ? scale.of_first : scale.of_others) : 0;
  for_each_difference(images, [&](int64_t at, float difference) {
    const float sign = difference > 0 ? 1 : difference < 0 ? -1 : 0;
    store(images.grads[blockIdx.y] + at, sign * step);
  });
}

dim3 grid_of(const L1Images& images) {
  const int64_t parts = l1_parts(images.size);
  if (parts > 0x7FFFFFFF) throw std::runtime_error("l1_losses: expected smaller images");
  return {static_cast<unsigned>(parts), static_cast<unsigned>(images.count)};
}

}  // namespace l1

int64_t l1_parts(int64_t size) { return ceil_div(size, l1::kOfBlock); }

void sum_differences(const L1Images& images, Global<float> partials, Stream stream) {
  if (images.size == 0) return;
  launch<l1::sum_kernel>(l1::grid_of(images), l1::kThreads, l1::kThreads * sizeof(float), stream,
                         images, partials);
}

void finish_losses(Global<const float> partials, int64_t size, int count, double value_range,
                   Global<float> first, Global<float> others, Stream stream) {
  launch<l1::reduce_kernel>(1, l1::kThreads, l1::kThreads * sizeof(double), stream, partials,
                            l1_parts(size), count, static_cast<double>(size) * value_range, first,
                            others);
}

void differentiate_differences(const L1Images& images, const L1Scale& scale, Stream stream) {
  if (images.size == 0) return;
  launch<l1::gradient_kernel>(l1::grid_of(images), l1::kThreads, 0, stream, images, scale);
}

}  // namespace clsd::cuda
