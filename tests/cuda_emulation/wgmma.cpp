// Warpgroup products: issued, committed in groups and, by lot, done at once or at their wait.
#include <algorithm>
#include <deque>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "emulation.h"

namespace clsd::cuda {

using emulation::fail;
using emulation::kWarpgroupThreads;

namespace {

constexpr int kRows = 64, kDepth = 16;
constexpr int kCore = 8;  // numbers in a row of a core, and rows

struct Issued {
  WarpgroupProduct product;
  std::vector<float*> sums;  // of each thread
};

// Of one warpgroup.
struct Queue {
  bool fenced = false;  // since the last wait: after it, others may use the sums' registers
  std::vector<Issued> open_group;
  std::deque<std::vector<Issued>> groups;
};

std::map<int, Queue> queues;

Queue& queue() { return queues[emulation::thread_number() / kWarpgroupThreads]; }

// A descriptor's fields of 14 bits that count 16 bytes, after the PTX manual. Its table of canonical
// layouts has, without swizzle and in elements of 16 bits, K-major ((8,m),(8,2)):((8,SBO),(1,LBO))
// and MN-major ((8,1,m),(8,2)):((1,8,SBO),(8,LBO)).
struct Matrix {
  uint32_t start, leading_bytes, stride_bytes;

  explicit Matrix(uint64_t descriptor)
      : start(field(descriptor, 0)),
        leading_bytes(field(descriptor, 16)),
        stride_bytes(field(descriptor, 32)) {
    constexpr uint64_t kFields = 0x3FFF | uint64_t{0x3FFF} << 16 | uint64_t{0x3FFF} << 32;
    if (descriptor & ~kFields) fail("wgmma of a descriptor with more than addresses");
  }

  static uint32_t field(uint64_t descriptor, int shift) {
    return static_cast<uint32_t>(descriptor >> shift & 0x3FFF) << 4;
  }
};

// A matrix without swizzle, as [k, rows of A or columns of B].
std::vector<float> read(const Matrix& of, int size, bool transposed, float (*decode)(uint16_t)) {
  std::vector<float> matrix(kDepth * size);
  for (int line = 0; line < kDepth * size / kCore; ++line) {  // 16 bytes, a row of a core
    const int row = line % kCore, core = line / kCore;
    const int k = core % (kDepth / kCore), mn = core / (kDepth / kCore);
    const uint32_t offset = of.start + k * of.leading_bytes + mn * of.stride_bytes +
                            row * 2 * kCore - emulation::kSharedBase;
    emulation::check_fenced(offset, 2 * kCore);
    uint16_t bits[kCore];
    std::memcpy(bits, emulation::shared_at(offset, sizeof bits, "wgmma"), sizeof bits);
    for (int column = 0; column < kCore; ++column) {
      const int in_k = transposed ? row : column, in_mn = transposed ? column : row;
      matrix[(k * kCore + in_k) * size + mn * kCore + in_mn] = decode(bits[column]);
    }
  }
  return matrix;
}

void perform(const Issued& issued) {
  const WarpgroupProduct& product = issued.product;
  const int columns = product.columns;
  const auto a = read(Matrix(product.a), kRows, product.transposed_a, product.decode);
  const auto b = read(Matrix(product.b), columns, product.transposed_b, product.decode);
  std::vector<float> products(kRows * columns);
  for (int first = 0; first < kRows * columns; first += kCore) {
    float sums[kCore] = {};
    for (int k = 0; k < kDepth; ++k) {
      const float* line = &b[k * columns + first % columns];
      for (int i = 0; i < kCore; ++i) sums[i] += a[k * kRows + first / columns] * line[i];
    }
    std::copy_n(sums, kCore, &products[first]);
  }
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    const int warp = thread / 32, lane = thread % 32;
    for (int i = 0; i < columns / 2; ++i) {
      const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
      const int column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      issued.sums[thread][i] += products[row * columns + column];
    }
  }
}

void complete(Queue& at, size_t left) {
  while (at.groups.size() > left) {
    for (const Issued& issued : at.groups.front()) perform(issued);
    at.groups.pop_front();
  }
}

struct Argument {
  float* sums;
  const WarpgroupProduct* product;
};

void issue(void* const* arguments) {
  Queue& at = queue();
  if (!at.fenced) fail("wgmma without wgmma_fence before it");
  ++emulation::counts.wgmma;
  const auto& first = *static_cast<const Argument*>(arguments[0]);
  Issued issued{*first.product, {}};
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    const auto& argument = *static_cast<const Argument*>(arguments[thread]);
    if (argument.product->a != first.product->a || argument.product->b != first.product->b) {
      fail("wgmma with descriptors that differ between threads");
    }
    issued.sums.push_back(argument.sums);
  }
  at.open_group.push_back(issued);
}

}  // namespace

void wgmma_fence() {
  emulation::collective("wgmma_fence", kWarpgroupThreads, nullptr,
                        [](void* const*) { queue().fenced = true; });
}

void issue_product(float* sums, const WarpgroupProduct& product) {
  Argument argument{sums, &product};
  emulation::collective("wgmma", kWarpgroupThreads, &argument, issue);
}

void wgmma_commit() {
  emulation::collective("wgmma_commit", kWarpgroupThreads, nullptr, [](void* const*) {
    Queue& at = queue();
    at.groups.push_back(std::move(at.open_group));
    at.open_group.clear();
    // Products of a warpgroup happen in order: early ones with all before them.
    if (emulation::toss()) complete(at, 0);
  });
}

void wait_products(int pending) {
  if (emulation::skips_product_wait()) return;
  int argument = pending;
  emulation::collective("wgmma_wait", kWarpgroupThreads, &argument, [](void* const* arguments) {
    Queue& at = queue();
    complete(at, static_cast<size_t>(*static_cast<const int*>(arguments[0])));
    at.fenced = false;
  });
}

}  // namespace clsd::cuda

namespace clsd::emulation {

bool has_products() {
  const auto& at = cuda::queue();
  return !at.groups.empty() || !at.open_group.empty();
}

void discard_products() { cuda::queues.clear(); }

}  // namespace clsd::emulation
