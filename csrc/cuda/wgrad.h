// Gradients of convolutions' weights and biases as kernels take them: no CUDA headers, no torch.
// Images are those of convolution.h.
#pragma once

#include <cstdint>
#include <vector>

#include "packing.h"

namespace clsd::cuda {

// Of output = scale * (convolution(input, weight) + bias).
template <class T>
struct WeightGradient {
  Global<const T> grad_output;  // shuffled by `upscale`
  Global<const T> input;
  Parameter<T> grad_weight;      // or null, if it is not asked for
  Parameter<T> grad_bias;        // likewise
  int64_t batch, height, width;  // before any pixel shuffle
  int inputs, outputs;           // channels, before any pixel shuffle
  int upscale = 1;
  float scale = 1.0f;
  bool channels_last;  // grad_weight is [outputs][3][3][inputs], else [outputs][inputs][3][3]
};

// Those of several convolutions, by the same launches.
template <class T>
using WeightGradients = std::vector<WeightGradient<T>>;

constexpr size_t kMaxWeightGradients = 16;  // of a call, whose launches' parameters may be 4 KiB

// How many floats of workspace they need. It follows from the shapes and the number of the current
// device's multiprocessors alone, and so does the order in which pixels are summed.
int64_t workspace_size(const WeightGradients<Bf16>& gradients);
int64_t workspace_size(const WeightGradients<Fp16>& gradients);

void weight_gradients(const WeightGradients<Bf16>& gradients, Global<float> workspace,
                      Stream stream);
void weight_gradients(const WeightGradients<Fp16>& gradients, Global<float> workspace,
                      Stream stream);

}  // namespace clsd::cuda
