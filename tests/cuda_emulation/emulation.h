// CUDA's words and the primitives of csrc/cuda/platform.cuh, for g++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"
#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (clsd::emulation::position.thread)
#define blockIdx (clsd::emulation::position.block)
#define blockDim (clsd::emulation::position.block_size)
#define gridDim (clsd::emulation::position.grid_size)
#define CLSD_SM90A

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads() {
  const dim3 block = blockDim;
  clsd::emulation::barrier(0, static_cast<int>(block.x * block.y * block.z), true);
}

inline void __syncwarp() {
  clsd::emulation::collective("__syncwarp", clsd::emulation::kWarpLanes, nullptr,
                              [](void* const*) {});
}

namespace clsd::cuda {

template <class V, class T>
V load_checked(Global<T> source, const char* operation) {
  emulation::check_global(source.pointer(), sizeof(V), source.tensor(), operation);
  V value;
  std::memcpy(&value, source.pointer(), sizeof(V));
  return value;
}

template <class V, class T>
void store_checked(Global<T> target, V value, const char* operation) {
  emulation::check_global(target.pointer(), sizeof(V), target.tensor(), operation);
  std::memcpy(target.pointer(), &value, sizeof(V));
}

template <class T>
std::remove_const_t<T> load(Global<T> source) {
  return load_checked<std::remove_const_t<T>>(source, "load");
}

template <class T>
void store(Global<T> target, T value) {
  store_checked(target, value, "store");
}

template <class T>
uint4 load_vector(Global<T> source) {
  ++emulation::counts.loads16;
  return load_checked<uint4>(source, "load_vector");
}

template <class T>
void store_vector(Global<T> target, uint4 value) {
  ++emulation::counts.stores16;
  store_checked(target, value, "store_vector");
}

inline float4 load_floats(Global<const float> source) {
  ++emulation::counts.loads16;
  return load_checked<float4>(source, "load_floats");
}

inline void store_pair(Global<float> target, float2 value) {
  store_checked(target, value, "store_pair");
}

inline int uniform(int number) { return number; }

template <class V>
V load_shared(uint32_t offset) {
  V value;
  std::memcpy(&value, emulation::shared_at(offset, sizeof(V), "load_shared"), sizeof(V));
  return value;
}

template <class V>
void store_shared(uint32_t offset, V value) {
  std::memcpy(emulation::shared_at(offset, sizeof(V), "store_shared"), &value, sizeof(V));
  emulation::mark_written(offset, sizeof(V));
}

float to_float(Bf16 value);
float to_float(Fp16 value);

template <class T>
T from_float(float value);
template <>
Bf16 from_float(float value);
template <>
Fp16 from_float(float value);

template <class T>
float2 unpack(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}

template <class T, bool kRelu = false>
uint32_t pack(float low, float high) {
  if (kRelu) low = low < 0 ? 0 : low, high = high < 0 ? 0 : high;
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

template <class T>
uint32_t positive_mask(uint32_t pair) {
  const float2 numbers = unpack<T>(pair);
  return (numbers.x > 0 ? 0xFFFF : 0) | (numbers.y > 0 ? 0xFFFF0000 : 0);
}

inline int64_t multiply_add(int a, int b, int64_t c) { return int64_t{a} * b + c; }

template <class T>
uint32_t add(uint32_t a, uint32_t b) {
  const float2 x = unpack<T>(a), y = unpack<T>(b);
  return pack<T>(x.x + y.x, x.y + y.y);
}

template <int kElements = 0, class T>
void cp_async(uint32_t offset, Global<const T> source, bool valid) {
  source = source + kElements;
  ++emulation::counts.loads16;
  if (valid) emulation::check_global(source.pointer(), 16, source.tensor(), "cp.async");
  emulation::copy_async(offset, valid ? source.pointer() : nullptr);
}

inline void cp_async_commit() { emulation::commit_copies(); }

template <int kPending>
void cp_async_wait() {
  emulation::wait_copies(kPending);
}

void ldmatrix(uint32_t (&registers)[4], uint32_t offset);
void ldmatrix_transposed(uint32_t (&registers)[4], uint32_t offset);
void stmatrix_transposed(uint32_t offset, const uint32_t (&registers)[4]);

template <class T>
void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

inline void barrier_sync(int id, int threads) { emulation::barrier(id, threads, true); }
inline void barrier_arrive(int id, int threads) { emulation::barrier(id, threads, false); }

// Asynchronous products, as they are described to the runtime: a of 64 rows, b of kN columns.
struct WarpgroupProduct {
  uint64_t a, b;
  int columns;
  bool transposed_a, transposed_b;
  float (*decode)(uint16_t);
};

inline uint32_t shared_address(uint32_t offset) { return emulation::kSharedBase + offset; }

void wgmma_fence();
void wgmma_commit();
void issue_product(float* sums, const WarpgroupProduct& product);
void wait_products(int pending);
inline void fence_proxy_async() { emulation::fence_written(); }

template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
void wgmma(float (&sums)[kN / 2], uint64_t a, uint64_t b) {
  issue_product(sums, {a, b, kN, kTransposedA, kTransposedB,
                       [](uint16_t bits) { return to_float(T{bits}); }});
}

template <int kPending>
void wgmma_wait() {
  wait_products(kPending);
}

template <int kPending, int kCount>
void wgmma_wait(float (&)[kCount]) {
  wait_products(kPending);
}

}  // namespace clsd::cuda
