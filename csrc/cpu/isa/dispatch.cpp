// Which instruction set's kernels are used.
#include <string>

#include "../environment.h"
#include "../kernels.h"

namespace clsd::cpu {

#define CLSD_DECLARE_ISA(isa)                      \
  namespace isa {                                  \
  extern const TileKernels<float> kFloatKernels;   \
  extern const TileKernels<double> kDoubleKernels; \
  }

CLSD_DECLARE_ISA(portable)
#ifdef CLSD_X86
CLSD_DECLARE_ISA(avx2)
CLSD_DECLARE_ISA(avx512)
#endif

namespace {

struct Isa {
  const char* name;
  bool available;
  const TileKernels<float>& float_kernels;
  const TileKernels<double>& double_kernels;
};

// The widest instruction set that this processor has, or the one that CLSD_FAST_ISA names.
Isa choose() {
  const Isa candidates[] = {
#ifdef CLSD_X86
      {"avx512", __builtin_cpu_supports("avx512f") != 0, avx512::kFloatKernels,
       avx512::kDoubleKernels},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::kFloatKernels,
       avx2::kDoubleKernels},
#endif
      {"portable", true, portable::kFloatKernels, portable::kDoubleKernels},
  };
  const std::string forced = environment("CLSD_FAST_ISA", "");
  std::string available;
  for (const Isa& isa : candidates) {
    if (!isa.available) continue;
    if (forced.empty() || forced == isa.name) return isa;
    available += std::string(available.empty() ? "" : ", ") + isa.name;
  }
  throw not_one_of("CLSD_FAST_ISA", available, forced);
}

const Isa& chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

template <>
const TileKernels<float>& tile_kernels<float>() {
  return chosen().float_kernels;
}

template <>
const TileKernels<double>& tile_kernels<double>() {
  return chosen().double_kernels;
}

}  // namespace clsd::cpu
