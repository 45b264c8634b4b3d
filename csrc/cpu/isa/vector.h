// Vectors of the instruction set that CLSD_ISA names and the compiler's options allow.
//
// What this folder's headers define has no name outside of the object that includes them, and they
// use nothing from the standard library: of an inline function that objects share, the linker keeps
// one, and that could be the one compiled for AVX-512.
#pragma once

#include "../kernels.h"

#if defined(__AVX512F__)
#define CLSD_VECTOR_BYTES 64
#define CLSD_VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define CLSD_VECTOR_BYTES 32
#define CLSD_VECTOR_REGISTERS 16
#else
#define CLSD_VECTOR_BYTES 16
#define CLSD_VECTOR_REGISTERS 16
#endif

// For what is called with vectors in registers and would pass them through memory otherwise.
#define CLSD_ALWAYS_INLINE __attribute__((always_inline))
#define CLSD_INLINE CLSD_ALWAYS_INLINE inline

namespace clsd::cpu::CLSD_ISA {

namespace {

template <class T>
struct Vector {
  typedef T Type __attribute__((vector_size(CLSD_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Vector<T>::Type;

template <class T>
constexpr int kLanes = CLSD_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int kPanelVectors = kTileCols / kLanes<T>;

template <class T>
Vec<T> load(const T* source) {
  Vec<T> vector;
  __builtin_memcpy(&vector, source, sizeof(vector));
  return vector;
}

template <class T>
void store(T* target, Vec<T> vector) {
  __builtin_memcpy(target, &vector, sizeof(vector));
}

template <class T>
T sum_lanes(Vec<T> vector) {
  T sums[2] = {};  // which do not wait for each other
  for (int v = 0; v < kLanes<T>; ++v) sums[v % 2] += vector[v];
  return sums[0] + sums[1];
}

// The same pointer, of whose origin the compiler knows nothing: what is reached by small steps from
// some pointers it would otherwise address by an offset of its own each, for which there are not
// enough registers.
template <class T>
CLSD_INLINE T* opaque(T* pointer) {
  __asm__("" : "+r"(pointer));
  return pointer;
}

// The first channel of pixel (i, j).
template <class T>
T* pixel(const PixelGrid<T>& grid, int64_t i, int64_t j) {
  return grid.data + i * grid.row + j * grid.column;
}

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
