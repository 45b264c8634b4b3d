// How wgmma finds an operand in shared memory. Included by platform.cuh, for nvcc and in emulation,
// which decodes the descriptors by the PTX manual.
#pragma once

#include <cstdint>

namespace clsd::cuda {

// A matrix without swizzle, from the offset on. It is made of cores: 8 rows of 16 bytes, one after
// another. Operands are K-major, a core's rows being 8 rows of A or columns of B, its bytes 8 steps
// of K; or, transposed, MN-major: a core's rows are 8 steps of K and its bytes 8 rows of A or
// columns of B. Either way kKBytes lead to the next core along K (PTX's leading dimension byte
// offset) and kMnBytes to the next along M or N (its stride dimension byte offset). Where element
// (mn, k) lies:
//
//   K-major    mn / 8 * kMnBytes + k / 8 * kKBytes + mn % 8 * 16 + k % 8 * 2
//   MN-major   mn / 8 * kMnBytes + k / 8 * kKBytes + k % 8 * 16 + mn % 8 * 2
//
// A core may start at any multiple of 16 bytes. The address counts these: adding 1 to a descriptor
// moves the matrix by 16 bytes.
template <uint32_t kKBytes, uint32_t kMnBytes>
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t offset) {
  constexpr uint32_t kUnit = 16, kFieldEnd = kUnit << 14;
  static_assert(kKBytes % kUnit == 0 && kKBytes < kFieldEnd);
  static_assert(kMnBytes % kUnit == 0 && kMnBytes < kFieldEnd);
  return static_cast<uint64_t>(shared_address(offset) % kFieldEnd / kUnit) |
         static_cast<uint64_t>(kKBytes / kUnit) << 16 |
         static_cast<uint64_t>(kMnBytes / kUnit) << 32;
}

}  // namespace clsd::cuda
