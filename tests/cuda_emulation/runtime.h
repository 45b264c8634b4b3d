// Runs a kernel's blocks one after another on the CPU, with a fiber for each thread; which block
// comes first, and whether the next one follows or precedes it, is drawn from a seed.
//
// Warps take turns in an order drawn from it, too, a warp running on until it waits or is preempted
// at random; so do the lanes of a warp. In half of the blocks one warp lags as far as it can.
// Shared memory starts as NaN in every block. What the hardware does later than it is told to
// (cp.async, wgmma) happens either at once or at its wait, by lot. Any violation ends the launch
// with an exception that names kernel, block and thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "global.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace clsd::emulation {

constexpr int kWarpLanes = 32;
constexpr int kWarpgroupThreads = 128;
constexpr size_t kMaxSharedBytes = 227 * 1024;
// Where a block's dynamic shared memory starts in its address space, as on the GPU.
constexpr uint32_t kSharedBase = 1024;

struct Position {
  dim3 thread, block, block_size, grid_size;
};
// Of the fiber that runs.
extern Position position;
// The dynamic shared memory of the block that runs.
extern unsigned char* shared;
extern size_t shared_bytes;

// Whether the device is one that runs code for sm_90a.
extern bool sm90a;
extern int multiprocessors;
// Shared memory that a block of the device may ask for.
extern size_t block_shared_bytes;

// What a launch did: products of a warp (mma) and of a warpgroup (wgmma), and 16-byte accesses of
// global memory, of which each thread's counts, and a copy of zeros as one that reads.
struct Counts {
  uint64_t mma, wgmma, loads16, stores16;
};
// Of the launch that runs.
extern Counts counts;

// The bytes of a launch's arguments, where the GPU's constant bank has them.
struct Parameters {
  std::vector<unsigned char> bytes;

  void add(const void* argument, size_t size, size_t alignment);
};

// Of launches.cpp: whether launches run their threads, and what it keeps of each.
struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t shared_bytes;
  Parameters parameters;
  Counts counts;
};
bool launches_run();
void record(const Launch& launch);

// Run `body` once for each thread of the grid.
void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
         const Parameters& parameters, const std::function<void()>& body);

// End the launch: it throws a std::runtime_error.
[[noreturn]] void fail(const std::string& message);

// Whether something that may happen late happens at once.
bool toss();

void barrier(int id, int threads, bool waits);

// Meet the other `threads` threads of an aligned group: the last to come executes for all, with the
// arguments of each. All must have come for the same `operation`.
using Execute = void (*)(void* const* arguments);
void collective(const char* operation, int threads, void* arguments, Execute execute);

// Number of the thread that runs, in its block.
int thread_number();

// cp.async: 16 bytes from source, or zeros if it is null, to an offset in shared memory.
void copy_async(uint32_t offset, const void* source);
void commit_copies();
void wait_copies(int pending);

// The offset, checked for the access of `bytes` bytes.
unsigned char* shared_at(uint32_t offset, size_t bytes, const char* operation);

// Writes of shared memory that wgmma may not yet read.
void mark_written(uint32_t offset, size_t bytes);
void fence_written();
void check_fenced(uint32_t offset, size_t bytes);

// Whether the running thread is to skip the wait for products that it has come to.
bool skips_product_wait();
// Of wgmma.cpp: whether products of the running thread's warpgroup have not happened, and an end to
// those of all.
bool has_products();
void discard_products();

// Fail unless [address, address + bytes) lies in the tensor and is aligned to its size.
void check_global(const void* address, size_t bytes, Range tensor, const char* operation);

}  // namespace clsd::emulation

// For the tests, through ctypes.
#define CLSD_EXPORT __attribute__((visibility("default")))
extern "C" {
// Seed of the order of warps and lanes, and of what is late, in the launches that follow.
CLSD_EXPORT void clsd_emulation_seed(uint64_t seed);
// Kernels for sm_90a (1) or those for sm_80 (0) in the launches that follow.
CLSD_EXPORT void clsd_emulation_sm90a(int runs);
CLSD_EXPORT void clsd_emulation_multiprocessors(int number);
CLSD_EXPORT void clsd_emulation_block_shared_bytes(int bytes);
// Name of the kernel that was launched last.
CLSD_EXPORT const char* clsd_emulation_kernel();
// Launches are recorded since clsd_emulation_record: with `runs` 0 they do nothing else, so that
// results are undefined.
CLSD_EXPORT void clsd_emulation_record(int runs);
CLSD_EXPORT void clsd_emulation_stop_recording();
struct ClsdLaunch {
  const char* kernel;
  unsigned grid[3], block[3];
  uint64_t shared_bytes;
  uint64_t mma, wgmma, loads16, stores16;  // as clsd::emulation::Counts
  const unsigned char* parameters;
  uint64_t parameter_bytes;
};
CLSD_EXPORT int clsd_emulation_launches();
// The index-th of them, whose memory lasts until clsd_emulation_record.
CLSD_EXPORT struct ClsdLaunch clsd_emulation_launch(int index);
// Plant a fault: every thread skips its index-th barrier, wait for copies, fence_proxy_async or
// wait for products (from 0) of a launch's block. Index -1 removes the fault.
CLSD_EXPORT void clsd_emulation_skip_barrier(int index);
CLSD_EXPORT void clsd_emulation_skip_wait(int index);
CLSD_EXPORT void clsd_emulation_skip_proxy_fence(int index);
CLSD_EXPORT void clsd_emulation_skip_product_wait(int index);
}
