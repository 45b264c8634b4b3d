// A kernel with one fault at a time, and one for the warpgroup products: proofs that the emulation
// sees what it is for. Operators `planted` and `wgmma_product` of the tests' namespace.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <type_traits>

#include "launch.cuh"
#include "platform.cuh"
#include "tensors.h"

namespace clsd::cuda {

namespace {

enum class Fault {
  kNone,
  kMissingBarrier,
  kMissingWait,
  kEarlyOverwrite,
  kWrongTap,
  kOutOfBounds,
  kSharedOutOfBounds,
  kMisaligned,
  kDiverged,
  kBarrierNotReached,
  kOrderOfBlocks,
};

constexpr const char* kFaults[] = {
    "none",      "missing barrier",     "missing wait",         "early overwrite",
    "wrong tap", "out of bounds",       "shared out of bounds", "misaligned",
    "diverged",  "barrier not reached", "order of blocks",
};

constexpr int kThreads = 64, kTile = kThreads, kRounds = 3;
constexpr int kHalo = kTile + 8;  // whole pieces of 4 floats on either side
constexpr uint32_t kHaloBytes = 4 * kHalo;

// y[i] = x[i - 1] + 2 x[i] + 4 x[i + 1], zeros outside; each block takes kRounds tiles in turn.
template <Fault kFault>
__global__ void planted_kernel(Global<const float> x, Global<float> y, int64_t count) {
  const int thread = threadIdx.x;
  for (int round = 0; round < kRounds; ++round) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kRounds + round) * kTile;
    if (round > 0 && kFault != Fault::kEarlyOverwrite) __syncthreads();
    if (thread < kHalo / 4) {
      const int64_t at = first - 4 + 4 * thread;
      const bool valid = at >= 0 && at < count;
      const int misaligned = kFault == Fault::kMisaligned && thread == 2 ? 1 : 0;
      cp_async(16 * thread, x + (valid ? at + misaligned : 0), valid);
      cp_async_commit();
      if (kFault != Fault::kMissingWait) cp_async_wait<0>();
    }
    if (kFault != Fault::kMissingBarrier && (kFault != Fault::kBarrierNotReached || thread > 31)) {
      __syncthreads();
    }
    if (kFault == Fault::kMissingWait && thread < kHalo / 4) cp_async_wait<0>();
    if (kFault == Fault::kDiverged && thread % 2) __syncwarp();
    const int64_t i = first + thread;
    const int beyond = kFault == Fault::kSharedOutOfBounds && thread == kThreads - 1 ? 4 : 0;
    const float before = load_shared<float>(4 * (thread + 3));
    const float middle = load_shared<float>(4 * (thread + 4));
    float after = load_shared<float>(4 * (thread + (kFault == Fault::kWrongTap ? 6 : 5) + beyond));
    if (kFault == Fault::kOutOfBounds && i < count) after = load(x + (i + 1));
    if (kFault == Fault::kOrderOfBlocks && blockIdx.x > 0) after += 0.0f * load(y);  // of block 0
    if (i < count) store(y + i, before + 2 * middle + 4 * after);
  }
}

template <int kIndex = 0>
void launch_planted(int fault, unsigned blocks, Global<const float> x, Global<float> y,
                    int64_t count) {
  if constexpr (kIndex < static_cast<int>(std::size(kFaults))) {
    if (fault != kIndex) return launch_planted<kIndex + 1>(fault, blocks, x, y, count);
    launch<planted_kernel<static_cast<Fault>(kIndex)>>(blocks, kThreads, kHaloBytes, nullptr, x, y,
                                                       count);
  }
}

Tensor planted(Tensor x, std::string fault) {
  const Tensor y = empty(x, {x.numel()});
  const auto name = std::find(std::begin(kFaults), std::end(kFaults), fault);
  check(name != std::end(kFaults), "planted", "a known fault", fault);
  const int64_t blocks = ceil_div(x.numel(), kTile * kRounds);
  launch_planted(static_cast<int>(name - kFaults), static_cast<unsigned>(blocks),
                 to_global<float>(x), to_mutable_global<float>(y), x.numel());
  return y;
}

struct Protocol {
  bool proxy_fence, fence, wait;
};

constexpr int kColumns = 64;

// c [64, 64] = a [64, K] b [64, K]^T or, transposed, a [K, 64]^T b [K, 64].
template <bool kTransposed>
__global__ void wgmma_product_kernel(Global<const Bf16> a, Global<const Bf16> b, Global<float> c,
                                     int depth, Protocol protocol) {
  const int thread = threadIdx.x;
  constexpr uint32_t kOperandBytes = 64 * 16 * 2, kCoreBytes = 128;
  float sums[kColumns / 2] = {};
  for (int step = 0; step < depth / 16; ++step) {
    for (int operand = 0; operand < 2; ++operand) {  // a core's row, 16 bytes, for each thread
      const int row = kTransposed ? thread / 8 : thread / 2;
      const int piece = kTransposed ? thread % 8 : thread % 2;
      const int64_t at = kTransposed ? (16 * step + row) * 64 + 8 * piece
                                     : static_cast<int64_t>(row) * depth + 16 * step + 8 * piece;
      const int mn = kTransposed ? piece : row / 8, k = kTransposed ? row / 8 : piece;
      store_shared(operand * kOperandBytes + (k * 8 + mn) * kCoreBytes + row % 8 * 16,
                   load_vector((operand ? b : a) + at));
    }
    if (protocol.proxy_fence) fence_proxy_async();
    __syncthreads();
    if (protocol.fence) wgmma_fence();
    wgmma<Bf16, kColumns, kTransposed, kTransposed>(
        sums, wgmma_descriptor<8 * kCoreBytes, kCoreBytes>(0),
        wgmma_descriptor<8 * kCoreBytes, kCoreBytes>(kOperandBytes));
    wgmma_commit();
    if (protocol.wait) wgmma_wait<0>();
    __syncthreads();
  }
  wgmma_wait<0>();
  const int warp = thread / 32, lane = thread % 32;
  for (int i = 0; i < kColumns / 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
    const int column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    store(c + (row * kColumns + column), sums[i]);
  }
}

Tensor wgmma_product(Tensor a, Tensor b, bool transposed, bool proxy_fence, bool fence, bool wait) {
  const Tensor c = torch::stable::new_empty(a, {64, kColumns}, ScalarType::Float);
  const int depth = static_cast<int>(a.size(transposed ? 0 : 1));
  const Protocol protocol{proxy_fence, fence, wait};
  const auto run = [&](auto is_transposed) {
    launch<wgmma_product_kernel<is_transposed.value>>(1, 128, 2 * 64 * 16 * 2, nullptr,
                                                      to_global<Bf16>(a), to_global<Bf16>(b),
                                                      to_mutable_global<float>(c), depth, protocol);
  };
  transposed ? run(std::true_type{}) : run(std::false_type{});
  return c;
}

}  // namespace

}  // namespace clsd::cuda

STABLE_TORCH_LIBRARY_IMPL(clsd_fast_cuda, CPU, library) {
  library.impl("planted", TORCH_BOX(&clsd::cuda::planted));
  library.impl("wgmma_product", TORCH_BOX(&clsd::cuda::wgmma_product));
}
