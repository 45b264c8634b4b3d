// Warpgroup matrix products of sm_90a. A kernel that uses them is compiled for that architecture
// alone: its body stands in `#ifdef CLSD_SM90A` (always set in emulation).
#pragma once

#include <cstdint>
#include <type_traits>

#include "primitives.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define CLSD_SM90A
#endif

namespace clsd::cuda {

#ifdef CLSD_SM90A

// Sums as operands, and their numbers, for products of 160 and of 192 columns.
#define CLSD_SUMS16(i)                                                                       \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
      "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7]), "+f"(sums[i + 8]),            \
      "+f"(sums[i + 9]), "+f"(sums[i + 10]), "+f"(sums[i + 11]), "+f"(sums[i + 12]),         \
      "+f"(sums[i + 13]), "+f"(sums[i + 14]), "+f"(sums[i + 15])
#define CLSD_SUMS80 \
  CLSD_SUMS16(0), CLSD_SUMS16(16), CLSD_SUMS16(32), CLSD_SUMS16(48), CLSD_SUMS16(64)
#define CLSD_SUMS96 CLSD_SUMS80, CLSD_SUMS16(80)
#define CLSD_NUMBERS80                                               \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"           \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define CLSD_NUMBERS96 \
  CLSD_NUMBERS80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"

// Before the first wgmma, and whenever other instructions have used its registers since: the
// emulation asks for it after every wait, when they may.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Wait for this warpgroup's products, but those of the kPending groups committed last.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The same for the sums of products, which no instruction reads before.
template <int kPending, int kCount>
__device__ __forceinline__ void wgmma_wait(float (&sums)[kCount]) {
  static_assert(kCount == 80 || kCount == 96);
  if constexpr (kCount == 80) {
    asm volatile("wgmma.wait_group.sync.aligned %80;" : CLSD_SUMS80 : "n"(kPending) : "memory");
  } else {
    asm volatile("wgmma.wait_group.sync.aligned %96;" : CLSD_SUMS96 : "n"(kPending) : "memory");
  }
}

// By each thread that wrote shared memory, before the barrier after which wgmma reads it.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// sums [64, kN] += a [64, 16] b [16, kN], asynchronously, by 4 warps. Thread t of them has in
// sums[i] row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2.
// There is an instruction for every multiple of 8 columns; kernels use two.
#define CLSD_WGMMA(type, columns, numbers, operands, ...)                                        \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" numbers \
               "}, " operands ";"                                                                \
               : __VA_ARGS__                                                                     \
               : "l"(a), "l"(b), "n"(kTransposedA ? 1 : 0), "n"(kTransposedB ? 1 : 0))
#define CLSD_WGMMA160(type) \
  CLSD_WGMMA(type, "160", CLSD_NUMBERS80, "%80, %81, 1, 1, 1, %82, %83", CLSD_SUMS80)
#define CLSD_WGMMA192(type) \
  CLSD_WGMMA(type, "192", CLSD_NUMBERS96, "%96, %97, 1, 1, 1, %98, %99", CLSD_SUMS96)

template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
__device__ __forceinline__ void wgmma(float (&sums)[kN / 2], uint64_t a, uint64_t b) {
  static_assert(kN == 160 || kN == 192);
  if constexpr (kN == 160 && std::is_same_v<T, Bf16>) {
    CLSD_WGMMA160("bf16");
  } else if constexpr (kN == 160) {
    CLSD_WGMMA160("f16");
  } else if constexpr (std::is_same_v<T, Bf16>) {
    CLSD_WGMMA192("bf16");
  } else {
    CLSD_WGMMA192("f16");
  }
}

#undef CLSD_WGMMA192
#undef CLSD_WGMMA160
#undef CLSD_WGMMA
#undef CLSD_NUMBERS96
#undef CLSD_NUMBERS80
#undef CLSD_SUMS96
#undef CLSD_SUMS80
#undef CLSD_SUMS16

#endif  // CLSD_SM90A

}  // namespace clsd::cuda
