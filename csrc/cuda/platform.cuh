// What kernels are written with. nvcc takes the primitives from primitives.cuh and wgmma.cuh; the
// tests run the same kernels on the CPU, with those of tests/cuda_emulation.
//
// Dynamic shared memory is addressed by byte offsets from its start; it is aligned to 1024 bytes.
//
//   load(Global<const T>), store(Global<T>, T)              one element of global memory
//   load_vector(Global<const T>), store_vector(Global<T>, uint4)   16 aligned bytes of it
//   load_floats(Global<const float>)                        float4, likewise
//   store_pair(Global<float>, float2)                       8 aligned bytes
//   uniform(int)                                            the same in all lanes of a warp
//   multiply_add(int a, int b, int64_t c)                   a b + c of 64 bits
//   load_shared<V>(offset), store_shared<V>(offset, V)      sizeof(V) aligned bytes
//   to_float(T), from_float<T>(float), unpack<T>(uint32_t) -> float2, pack<T>(float, float)
//   pack<T, true>(float, float), positive_mask<T>(uint32_t)  0 for negative ones; all bits for > 0
//   add<T>(uint32_t, uint32_t)                              the sums of two pairs, rounded
//   cp_async<kElements>(offset, Global<const T>, valid)     16 bytes from that many elements on, or
//                                                           zeros where not valid
//   cp_async_commit(), cp_async_wait<kPending>()
//   ldmatrix(registers, offset), ldmatrix_transposed(registers, offset)          8x8 x4, 16 bits
//   stmatrix_transposed(offset, registers)                  the latter's inverse, from sm_90 on
//   mma<T>(sums, a, b)                                      m16n8k16, float sums
//   wgmma_fence(), wgmma<T, kN, ...>(sums, a, b), wgmma_commit(), wgmma_wait<kPending>([sums]),
//   fence_proxy_async()                                     sm_90a, see wgmma.cuh
//   wgmma_descriptor<kKBytes, kMnBytes>(offset)             see wgmma_descriptor.cuh
#pragma once

#include "types.h"

#ifdef CLSD_CUDA_EMULATION
#include "emulation.h"  // of tests/cuda_emulation
#else
#include "primitives.cuh"
#include "wgmma.cuh"
#endif

#include "wgmma_descriptor.cuh"
