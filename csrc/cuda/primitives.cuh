// The primitives of platform.cuh as inline PTX.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "types.h"

namespace clsd::cuda {

// Not through the read-only path (ld.global.nc), which may give what was there before a launch that
// still runs has written: there can be one, where launches overlap.
template <class T>
__device__ __forceinline__ T load(const T* source) {
  return *source;
}

template <class T>
__device__ __forceinline__ void store(T* target, T value) {
  *target = value;
}

template <class T>
__device__ __forceinline__ uint4 load_vector(const T* source) {
  return *reinterpret_cast<const uint4*>(source);
}

__device__ __forceinline__ float4 load_floats(const float* source) {
  return *reinterpret_cast<const float4*>(source);
}

template <class T>
__device__ __forceinline__ void store_vector(T* target, uint4 value) {
  // Of an assignment, the compiler may make four stores of 4 bytes.
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ __forceinline__ void store_pair(float* target, float2 value) {
  *reinterpret_cast<float2*>(target) = value;
}

// A number that is the same in all lanes of a warp, which the compiler knows then.
__device__ __forceinline__ int uniform(int number) { return __shfl_sync(~0u, number, 0); }

// a b + c, in one instruction; of products and sums as such, the compiler makes others.
__device__ __forceinline__ int64_t multiply_add(int a, int b, int64_t c) {
  int64_t sum;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(sum) : "r"(a), "r"(b), "l"(c));
  return sum;
}

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory())) + offset;
}

template <class V>
__device__ __forceinline__ V load_shared(uint32_t offset) {
  return *reinterpret_cast<const V*>(shared_memory() + offset);
}

template <class V>
__device__ __forceinline__ void store_shared(uint32_t offset, V value) {
  *reinterpret_cast<V*>(shared_memory() + offset) = value;
}

__device__ __forceinline__ float to_float(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

__device__ __forceinline__ float to_float(Fp16 value) {
  return __half2float(__ushort_as_half(value.bits));
}

// Two numbers in one register, the first in its lower half.
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}

// kRelu: with 0 for negative numbers; NaN stays NaN.
template <class T, bool kRelu = false>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t pair;
#define CLSD_PACK(conversion) \
  asm("cvt.rn." conversion "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low))
  if constexpr (std::is_same_v<T, Bf16>) {
    if constexpr (kRelu)
      CLSD_PACK("relu.bf16");
    else
      CLSD_PACK("bf16");
  } else {
    if constexpr (kRelu)
      CLSD_PACK("relu.f16");
    else
      CLSD_PACK("f16");
  }
#undef CLSD_PACK
  return pair;
}

// All bits of each number of a pair that is > 0.
template <class T>
__device__ __forceinline__ uint32_t positive_mask(uint32_t pair) {
  if constexpr (std::is_same_v<T, Fp16>) {
    return __hgt2_mask(__half2_raw{static_cast<uint16_t>(pair), static_cast<uint16_t>(pair >> 16)},
                       __half2_raw{0, 0});
  } else {
#if __CUDA_ARCH__ >= 900
    return __hgt2_mask(
        __nv_bfloat162_raw{static_cast<uint16_t>(pair), static_cast<uint16_t>(pair >> 16)},
        __nv_bfloat162_raw{0, 0});
#else
    // They compare no bfloat16, but know the larger of two, which is 0 beside NaN. Of bits from 0 to
    // those of infinity, 0x7F80, all but 0 set the sign when 0x7FFF is added, and nothing is carried.
    // Then each number's sign is repeated.
    uint32_t mask;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(pair), "r"(0));
    return __byte_perm(mask + 0x7FFF7FFF, 0, 0xBB99);
#endif
  }
}

// Sums of the numbers of two pairs, rounded.
template <class T>
__device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b) {
  uint32_t sum;
  if constexpr (std::is_same_v<T, Fp16>) {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  } else {
    constexpr uint32_t kOnes = 0x3F803F80;  // not every architecture adds without a product
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(kOnes), "r"(b));
  }
  return sum;
}

template <class T>
__device__ __forceinline__ T from_float(float value) {
  return {static_cast<uint16_t>(pack<T>(value, 0.0f))};
}

// Of source + kElements.
template <int kElements = 0, class T>
__device__ __forceinline__ void cp_async(uint32_t offset, const T* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1 + %3], 16, %2;" ::"r"(shared_address(offset)),
               "l"(source), "r"(valid ? 16 : 0), "n"(kElements * static_cast<int>(sizeof(T)))
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait for this thread's copies, but those of the kPending groups committed last. Other threads see
// them after a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Matrix i has its row r (16 bytes) at the offset that lane 8 i + r gives.
__device__ __forceinline__ void ldmatrix(uint32_t (&registers)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(offset)));
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&registers)[4], uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(offset)));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// The inverse of ldmatrix_transposed. Of sm_90 and later.
__device__ __forceinline__ void stmatrix_transposed(uint32_t offset,
                                                    const uint32_t (&registers)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(offset)),
               "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
               : "memory");
}
#endif

// sums += a b for a of 16 x 16 (rows) and b of 16 x 8 (columns).
template <class T>
__device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
#define CLSD_MMA(type)                                                       \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, Bf16>) {
    CLSD_MMA("bf16");
  } else {
    CLSD_MMA("f16");
  }
#undef CLSD_MMA
}

}  // namespace clsd::cuda
