// csrc/cuda/launch.cuh for the emulation.
#pragma once

#include "emulation.h"

namespace clsd::cuda {

inline bool runs_sm90a() { return emulation::sm90a; }
inline int multiprocessors() { return emulation::multiprocessors; }
inline size_t block_shared_bytes() { return emulation::block_shared_bytes; }

template <auto kKernel, class... Arguments>
void launch(dim3 grid, dim3 block, size_t shared_bytes, Stream /*stream*/,
            const Arguments&... arguments) {
  // The compiler's name of this function ends with that of the kernel.
  std::string name = __PRETTY_FUNCTION__;
  name = name.substr(name.find("kKernel = ") + 10);
  emulation::Parameters parameters;
  (parameters.add(&arguments, sizeof(Arguments), alignof(Arguments)), ...);
  emulation::run(name.substr(0, name.find(';')).c_str(), grid, block, shared_bytes, parameters,
                 [&] { kKernel(arguments...); });
}

}  // namespace clsd::cuda
