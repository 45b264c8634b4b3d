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

// By each thread that wrote shared memory, before the barrier after which wgmma reads it.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// sums [64, kN] += a [64, 16] b [16, kN], asynchronously, by 4 warps. Thread t of them has in
// sums[i] row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2.
#define CLSD_OUT16(s, i)                                                                         \
  "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]),    \
      "+f"(s[i + 6]), "+f"(s[i + 7]), "+f"(s[i + 8]), "+f"(s[i + 9]), "+f"(s[i + 10]),           \
      "+f"(s[i + 11]), "+f"(s[i + 12]), "+f"(s[i + 13]), "+f"(s[i + 14]), "+f"(s[i + 15])
#define CLSD_R16_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define CLSD_R16_1 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CLSD_R16_2 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define CLSD_R16_3 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CLSD_R16_4 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define CLSD_R16_5 "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define CLSD_R64 CLSD_R16_0 "," CLSD_R16_1
#define CLSD_R96 CLSD_R64 "," CLSD_R16_2
#define CLSD_R128 CLSD_R96 "," CLSD_R16_3
#define CLSD_R160 CLSD_R128 "," CLSD_R16_4
#define CLSD_R192 CLSD_R160 "," CLSD_R16_5
#define CLSD_OUT64(s) CLSD_OUT16(s, 0), CLSD_OUT16(s, 16)
#define CLSD_OUT96(s) CLSD_OUT64(s), CLSD_OUT16(s, 32)
#define CLSD_OUT128(s) CLSD_OUT96(s), CLSD_OUT16(s, 48)
#define CLSD_OUT160(s) CLSD_OUT128(s), CLSD_OUT16(s, 64)
#define CLSD_OUT192(s) CLSD_OUT160(s), CLSD_OUT16(s, 80)
#define CLSD_WGMMA(n, type, a_place, b_place, trans_a, trans_b)                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" CLSD_R##n    \
               "}, %" a_place ", %" b_place ", 1, 1, 1, %" trans_a ", %" trans_b ";"             \
               : CLSD_OUT##n(sums)                                                               \
               : "l"(a), "l"(b), "n"(kTransposedA ? 1 : 0), "n"(kTransposedB ? 1 : 0))
#define CLSD_WGMMA_OF(n, a_place, b_place, trans_a, trans_b)                                     \
  if constexpr (kN == n && std::is_same_v<T, Bf16>) {                                            \
    CLSD_WGMMA(n, "bf16", a_place, b_place, trans_a, trans_b);                                   \
  } else if constexpr (kN == n) {                                                                \
    CLSD_WGMMA(n, "f16", a_place, b_place, trans_a, trans_b);                                    \
  }

template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
__device__ __forceinline__ void wgmma(float (&sums)[kN / 2], uint64_t a, uint64_t b) {
  static_assert(kN == 64 || kN == 96 || kN == 128 || kN == 160 || kN == 192);
  CLSD_WGMMA_OF(64, "32", "33", "34", "35")
  CLSD_WGMMA_OF(96, "48", "49", "50", "51")
  CLSD_WGMMA_OF(128, "64", "65", "66", "67")
  CLSD_WGMMA_OF(160, "80", "81", "82", "83")
  CLSD_WGMMA_OF(192, "96", "97", "98", "99")
}

#undef CLSD_WGMMA_OF
#undef CLSD_WGMMA
#undef CLSD_OUT16
#undef CLSD_OUT64
#undef CLSD_OUT96
#undef CLSD_OUT128
#undef CLSD_OUT160
#undef CLSD_OUT192
#undef CLSD_R16_0
#undef CLSD_R16_1
#undef CLSD_R16_2
#undef CLSD_R16_3
#undef CLSD_R16_4
#undef CLSD_R16_5
#undef CLSD_R64
#undef CLSD_R96
#undef CLSD_R128
#undef CLSD_R160
#undef CLSD_R192

#endif  // CLSD_SM90A

}  // namespace clsd::cuda
