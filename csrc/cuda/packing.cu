// How parameters are packed, and the launch.
#include <algorithm>

#include "../shapes.h"
#include "launch.cuh"
#include "packing.cuh"

namespace clsd::cuda {

namespace {

// What the kernel would have to divide for.
template <class T>
void plan(PackingTask<T>& task) {
  const int rows = task.Packing<T>::rows();
  task.output_groups = PackedGroups(task.outputs, rows);
  task.input_groups = PackedGroups(task.inputs, kSlice);
  task.slices = Divisor(task.inputs.groups(kSlice));
  task.few_inputs = Divisor(task.inputs.channels);
  task.rows = Divisor(rows);
  task.input_step = task.inputs.square * task.input_stride;
  task.pieces = static_cast<int>(task.weight_elements() / kPiece);
  task.threads = task.pieces + static_cast<int>(task.bias_elements());
}

template <class T>
void run(const std::vector<Packing<T>>& packings, Stream stream) {
  for (size_t first = 0; first < packings.size(); first += kMaxPackings) {
    const size_t count = std::min<size_t>(kMaxPackings, packings.size() - first);
    PackingTasks<T> tasks{};
    int64_t threads = 0;
    for (size_t i = 0; i < count; ++i) {
      PackingTask<T>& task = tasks.at[i];
      static_cast<Packing<T>&>(task) = packings[first + i];
      plan(task);
      threads = std::max(threads, task.threads);
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(threads, kPackingThreads)),
                    static_cast<unsigned>(count));
    launch<pack_kernel<T>>(grid, kPackingThreads, 0, stream, tasks);
  }
}

}  // namespace

void pack(const std::vector<Packing<Bf16>>& packings, Stream stream) { run(packings, stream); }
void pack(const std::vector<Packing<Fp16>>& packings, Stream stream) { run(packings, stream); }

}  // namespace clsd::cuda
