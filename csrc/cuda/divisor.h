#pragma once

#include <cstdint>

// Functions that kernels call, too.
#ifdef __CUDACC__
#define CLSD_HOST_DEVICE __host__ __device__
#else
#define CLSD_HOST_DEVICE
#endif

namespace clsd::cuda {

// Division by a number that is known before the launch: a multiplication. Of numbers below 2^31.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int divisor) : divisor_(divisor) {
    while (int64_t{1} << shift_ < divisor) ++shift_;
    shift_ += kBits;
    factor_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + divisor - 1) / divisor);
  }

  CLSD_HOST_DEVICE int quotient(int number) const {
    return static_cast<int>(static_cast<uint64_t>(number) * factor_ >> shift_);
  }
  // The remainder, given the quotient.
  CLSD_HOST_DEVICE int rest(int number, int quotient) const { return number - quotient * divisor_; }

  // Both. A product of 32-bit numbers is one instruction, which the compiler does not see where
  // `number` is a quotient.
  struct Parts {
    int quotient, rest;
  };
  CLSD_HOST_DEVICE Parts divide(int number) const {
#ifdef __CUDA_ARCH__
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(number), "r"(factor_));
    const int quotient = static_cast<int>(product >> shift_);
#else
    const int quotient = this->quotient(number);
#endif
    return {quotient, rest(number, quotient)};
  }

 private:
  static constexpr int kBits = 31;

  uint32_t factor_ = 0;
  int divisor_ = 1, shift_ = 0;
};

}  // namespace clsd::cuda
