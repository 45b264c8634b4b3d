// The one place that launches kernels.
#pragma once

#ifdef CLSD_CUDA_EMULATION
#include "emulated_launch.h"  // of tests/cuda_emulation
#else

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

namespace clsd::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// Of the current device.
inline int attribute(cudaDeviceAttr name) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, name, current_device()), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

// Shared memory that a block may ask for.
inline size_t block_shared_bytes() {
  return static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// Whether the current device runs this library's code for sm_90a, whose instructions no other
// architecture has. CMake says whether there is any.
inline bool runs_sm90a() {
#ifdef CLSD_HAS_SM90A
  return attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor) == 0;
#else
  return false;
#endif
}

// Shared memory above 48 KiB has to be asked for, once for each kernel and device.
template <auto kKernel>
void allow_shared_memory(size_t bytes) {
  constexpr size_t kAlwaysAllowed = 48 * 1024;
  constexpr int kDevices = 64;
  static std::atomic<size_t> allowed[kDevices];
  if (bytes <= kAlwaysAllowed) return;
  const int device = current_device();
  if (device < kDevices && allowed[device].load() >= bytes) return;
  check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
  if (device < kDevices) allowed[device].store(bytes);
}

// All that `launch` is compiled for, when this library has been loaded.
inline std::vector<const void*>& launched_kernels() {
  static std::vector<const void*> kernels;
  return kernels;
}

template <auto kKernel>
struct LaunchedKernel {
  static const bool kIsListed;
};
template <auto kKernel>
const bool LaunchedKernel<kKernel>::kIsListed = [] {
  launched_kernels().push_back(reinterpret_cast<const void*>(kKernel));
  return true;
}();

// Run kKernel(arguments...) on the current device. Nothing here waits for the GPU, so that a stream
// which is being captured into a graph takes it.
template <auto kKernel, class... Arguments>
void launch(dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  static_cast<void>(&LaunchedKernel<kKernel>::kIsListed);  // which makes it one of them
  allow_shared_memory<kKernel>(shared_bytes);
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = grid;
  configuration.blockDim = block;
  configuration.dynamicSmemBytes = shared_bytes;
  configuration.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&configuration, kKernel, arguments...), "kernel launch");
}

}  // namespace clsd::cuda

#endif  // CLSD_CUDA_EMULATION
