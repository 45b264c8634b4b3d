// The device of csrc/cuda/tensors.h for the emulation: the CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace clsd::emulation {

class Device {
 public:
  explicit Device(const torch::stable::Tensor&) {}
  void* stream() const { return nullptr; }
};

}  // namespace clsd::emulation
