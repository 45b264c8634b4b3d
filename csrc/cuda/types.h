// Plain types that operators, kernels and the kernels' emulation share: no CUDA headers, no torch.
#pragma once

#include <cstdint>

#ifdef CLSD_CUDA_EMULATION
#include "global.h"  // of tests/cuda_emulation
#endif

namespace clsd::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

using Stream = void*;  // cudaStream_t, which host code need not know

#ifdef CLSD_CUDA_EMULATION
using emulation::Global;
#else
// Global memory is reached by load and store of platform.cuh alone: in emulation, a Global<T> knows
// which tensor it points into and they check it.
template <class T>
using Global = T*;

template <class T>
Global<T> global(T* data, int64_t /*elements*/) {
  return data;
}
#endif

}  // namespace clsd::cuda
