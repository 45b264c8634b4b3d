// How images are added up, and the launch.
#include <algorithm>

#include "../shapes.h"
#include "launch.cuh"
#include "sum.cuh"

namespace clsd::cuda {

namespace {

template <class T>
void run(const std::vector<Global<const T>>& summands, Global<T> to, int64_t elements,
         Stream stream) {
  if (elements == 0) return;
  Sum<T> task{};
  std::copy(summands.begin(), summands.end(), task.summands);
  task.sum = to, task.elements = elements, task.count = static_cast<int64_t>(summands.size());
  const int64_t blocks = ceil_div(elements, int64_t{kSumThreads} * kPiece);
  launch<sum_kernel<T>>(static_cast<unsigned>(blocks), kSumThreads, 0, stream, task);
}

}  // namespace

void sum(const std::vector<Global<const Bf16>>& summands, Global<Bf16> to, int64_t elements,
         Stream stream) {
  run(summands, to, elements, stream);
}
void sum(const std::vector<Global<const Fp16>>& summands, Global<Fp16> to, int64_t elements,
         Stream stream) {
  run(summands, to, elements, stream);
}

}  // namespace clsd::cuda
