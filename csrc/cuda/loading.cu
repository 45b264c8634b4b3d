// Whether this library's code runs on a GPU, asked before anything is launched there.
#include <string>

#include "launch.cuh"

namespace clsd::cuda {

namespace {

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// What the current device would need, and what it has; empty if it runs every kernel. A kernel's
// code is loaded with that, which while a graph is captured would not be allowed.
std::string why_not() {
  int driver = 0;
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  if (driver / 1000 < CUDART_VERSION / 1000) {
    const std::string got = driver ? "one for CUDA " + version(driver) : "none";
    return "a driver for CUDA " + version(CUDART_VERSION / 1000 * 1000) + ", got " + got;
  }
  for (const void* kernel : launched_kernels()) {
    cudaFuncAttributes attributes{};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    if (status == cudaSuccess) continue;
    cudaGetLastError();  // or PyTorch would find it after a launch of its own
    return std::string("code for this GPU in the library, got \"") + cudaGetErrorString(status) +
           "\"";
  }
  return "";
}

}  // namespace

}  // namespace clsd::cuda

#define CLSD_EXPORT extern "C" __attribute__((visibility("default")))

// For Python, by ctypes, whose caller makes the device current.
CLSD_EXPORT const char* clsd_cuda_why_not() {
  thread_local std::string reason;
  try {
    reason = clsd::cuda::why_not();
  } catch (const std::exception& error) {
    reason = std::string("CUDA to start, got \"") + error.what() + "\"";
  }
  return reason.c_str();
}

CLSD_EXPORT int clsd_cuda_kernels() {
  return static_cast<int>(clsd::cuda::launched_kernels().size());
}
