// A convolution's weight as the algorithms read it.
#pragma once

#include <cstdint>
#include <vector>

#include "../../tensor_util.h"

namespace clsd::cpu {

// Weights [K, C, 3, 3] of any strides, by output and input channels in the orders of two images.
// They are of the images' type, or float and rounded to it. `transposed` swaps input and output
// channels and turns the taps by 180 degrees: the convolution with it is the gradient of the
// convolution's input.
template <class S>
struct WeightView {
  int64_t outputs, inputs;

  WeightView(const Tensor& weight, bool transposed, const std::vector<int64_t>& output_order,
             const std::vector<int64_t>& input_order)
      : outputs(weight.size(transposed ? 1 : 0)),
        inputs(weight.size(transposed ? 0 : 1)),
        data_(weight.const_data_ptr()),
        wide_(weight.scalar_type() == ScalarType::Float),
        stride_out_(weight.stride(transposed ? 1 : 0)),
        stride_in_(weight.stride(transposed ? 0 : 1)),
        output_order_(output_order),
        input_order_(input_order) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      offsets_[transposed ? 8 - tap : tap] =
          tap / 3 * weight.stride(2) + tap % 3 * weight.stride(3);
    }
  }

  Accumulator<S> at(int64_t k, int64_t c, int64_t tap) const {
    const int64_t at =
        output_order_[k] * stride_out_ + input_order_[c] * stride_in_ + offsets_[tap];
    if constexpr (sizeof(S) == 2) {
      if (wide_) {
        return static_cast<Accumulator<S>>(static_cast<S>(static_cast<const float*>(data_)[at]));
      }
    }
    return static_cast<Accumulator<S>>(static_cast<const S*>(data_)[at]);
  }

 private:
  const void* data_;
  bool wide_;
  int64_t stride_out_, stride_in_, offsets_[9];
  const std::vector<int64_t>&output_order_, &input_order_;
};

}  // namespace clsd::cpu
