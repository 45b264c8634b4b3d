#include "tile.h"

namespace clsd::cpu {

#define CLSD_DECLARE_ISA(isa)                    \
  namespace isa {                                \
  extern const TileKernels<float> kFloatKernels;   \
  extern const TileKernels<double> kDoubleKernels; \
  }

CLSD_DECLARE_ISA(portable)
#ifdef CLSD_X86
CLSD_DECLARE_ISA(avx2)
CLSD_DECLARE_ISA(avx512)
#endif

namespace {

template <class T>
const TileKernels<T>& pick(const TileKernels<T>& avx512, const TileKernels<T>& avx2,
                           const TileKernels<T>& portable) {
#ifdef CLSD_X86
  if (__builtin_cpu_supports("avx512f")) return avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
#endif
  return portable;
}

}  // namespace

#ifndef CLSD_X86
namespace avx2 = portable;
namespace avx512 = portable;
#endif

template <>
const TileKernels<float>& tile_kernels<float>() {
  return pick(avx512::kFloatKernels, avx2::kFloatKernels, portable::kFloatKernels);
}

template <>
const TileKernels<double>& tile_kernels<double>() {
  return pick(avx512::kDoubleKernels, avx2::kDoubleKernels, portable::kDoubleKernels);
}

}  // namespace clsd::cpu
