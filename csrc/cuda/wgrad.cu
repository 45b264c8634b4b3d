// How the work of weight gradients is cut, and its launches.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "../shapes.h"
#include "launch.cuh"
#include "wgrad_few.cuh"
#include "wgrad_sm80.cuh"
#include "wgrad_sm90.cuh"

namespace clsd::cuda {

namespace {

using wgrad::Task;
using wgrad::Tasks;

constexpr int64_t kAlignment = 4;  // floats

// Which kernel computes a task.
enum class Kernel { kFew, kSm80, kSm90 };
constexpr Kernel kKernels[] = {Kernel::kFew, Kernel::kSm80, Kernel::kSm90};

template <class T>
Kernel kernel_of(const WeightGradient<T>& gradient) {
  if (std::min(gradient.inputs, gradient.outputs) <= kFewChannels) return Kernel::kFew;
  return runs_sm90a() ? Kernel::kSm90 : Kernel::kSm80;
}

// Of a launch for each multiprocessor: one wave. It holds one block of the kernels for many
// channels, whose sums take the registers, and two of the one for few. What a block adds to a
// partial is at most 9 x 64 x 64 sums, so that the workspace is 20 MB on an H100, or one partial of
// each weight.
int blocks_of(Kernel kernel) { return kernel == Kernel::kFew ? 2 : 1; }

template <class T>
int64_t steps_of(const WeightGradient<T>& gradient, Kernel kernel) {
  const int64_t batch = gradient.batch, height = gradient.height, width = gradient.width;
  if (kernel == Kernel::kFew) return ceil_div(batch * height * width, wgrad_few::kPixels);
  return batch * ceil_div(width, wgrad::kTileW) * ceil_div(height, wgrad::kTileH);
}

template <class T>
Task<T> whole_task(const WeightGradient<T>& gradient, Kernel kernel) {
  if (gradient.height > kMaxSide || gradient.width > kMaxSide) {
    throw std::runtime_error("convolution: expected sides of at most 2^30 pixels");
  }
  Task<T> task{};
  static_cast<WeightGradient<T>&>(task) = gradient;
  task.steps = steps_of(gradient, kernel);
  // The bias is the first input group's.
  task.input_groups = gradient.grad_weight ? ChannelGroup::groups(gradient.inputs, 1) : 1;
  task.output_groups = ChannelGroup::groups(gradient.outputs, gradient.upscale);
  return task;
}

// Cut the tasks so that their blocks, of about equal work, are at most `blocks`.
template <class T>
void split(Tasks<T>& tasks, int blocks) {
  int64_t work = 0;
  for (int i = 0; i < tasks.count; ++i) {
    work += tasks.at[i].steps * tasks.at[i].input_groups * tasks.at[i].output_groups;
  }
  for (int i = 0; i < tasks.count; ++i) {
    Task<T>& task = tasks.at[i];
    if (task.steps == 0) continue;  // no splits: the sums are 0
    const int64_t splits = std::max(int64_t{1}, blocks * task.steps / work);
    task.steps_of_split = ceil_div(task.steps, splits);
    task.splits = static_cast<int>(ceil_div(task.steps, task.steps_of_split));
  }
}

// The tasks of one kernel.
template <class T>
Tasks<T> plan(const WeightGradients<T>& gradients, Kernel kernel) {
  Tasks<T> tasks;
  for (const auto& gradient : gradients) {
    if (kernel_of(gradient) != kernel) continue;
    if (tasks.count == kMaxWeightGradients) {
      throw std::runtime_error("weight_gradients: expected at most " +
                               std::to_string(kMaxWeightGradients) + " convolutions");
    }
    tasks.at[tasks.count++] = whole_task(gradient, kernel);
  }
  split(tasks, multiprocessors() * blocks_of(kernel));
  return tasks;
}

template <class T>
int64_t weight_floats(const Task<T>& task) {
  const int64_t floats = task.grad_weight ? task.splits * task.weights() : 0;
  return round_up(floats, kAlignment);
}

template <class T>
int64_t bias_floats(const Task<T>& task) {
  const int64_t floats = task.grad_bias ? task.splits * static_cast<int64_t>(task.outputs) : 0;
  return round_up(floats, kAlignment);
}

template <class T>
int64_t size_of(const WeightGradients<T>& gradients) {
  int64_t floats = 0;
  for (const Kernel kernel : kKernels) {
    const Tasks<T> tasks = plan(gradients, kernel);
    for (int i = 0; i < tasks.count; ++i) {
      floats += weight_floats(tasks.at[i]) + bias_floats(tasks.at[i]);
    }
  }
  return floats;
}

// Place the partials in the workspace; returns what is left of it.
template <class T>
Global<float> place_partials(Tasks<T>& tasks, Global<float> workspace) {
  for (int i = 0; i < tasks.count; ++i) {
    Task<T>& task = tasks.at[i];
    task.weight_partials = workspace;
    task.bias_partials = workspace + weight_floats(task);
    workspace = task.bias_partials + bias_floats(task);
  }
  return workspace;
}

template <int kElements, int kLanes, class T>
void launch_reduction(const Tasks<T>& tasks, Stream stream) {
  int64_t threads = 0;
  for (int i = 0; i < tasks.count; ++i) {
    const Task<T>& task = tasks.at[i];
    const int64_t weights = task.grad_weight ? task.weights() / kElements : 0;
    threads = std::max(threads, kLanes * (weights + (task.grad_bias ? task.outputs : 0)));
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(threads, wgrad::kReducingThreads)),
                  static_cast<unsigned>(tasks.count));
  launch<wgrad::wgrad_reduce_kernel<T, kElements, kLanes>>(grid, wgrad::kReducingThreads,
                                                           wgrad::kReducingBytes, stream, tasks);
}

template <auto kKernel, class T>
void launch_blocks(const Tasks<T>& tasks, int threads, uint32_t shared_bytes, Stream stream) {
  int64_t blocks = 0;
  for (int i = 0; i < tasks.count; ++i) blocks += tasks.at[i].blocks();
  if (blocks == 0) return;
  launch<kKernel>(static_cast<unsigned>(blocks), threads, shared_bytes, stream, tasks);
}

template <class T>
void launch_tasks(const Tasks<T>& tasks, Kernel kernel, Stream stream) {
  if (kernel == Kernel::kFew) {
    launch_blocks<wgrad_few::wgrad_few_kernel<T>>(tasks, wgrad_few::kThreads,
                                                  wgrad_few::kSharedBytes, stream);
  } else if (kernel == Kernel::kSm80) {
    launch_blocks<wgrad_sm80::wgrad_kernel<T>>(tasks, wgrad_sm80::kThreads,
                                               wgrad_sm80::kSharedBytes, stream);
  } else {
    launch_blocks<wgrad_sm90::wgrad_kernel<T>>(tasks, wgrad_sm90::kThreads,
                                               wgrad_sm90::kSharedBytes, stream);
  }
}

template <class T>
void reduce(const Tasks<T>& tasks, Stream stream) {
  int splits = 0;
  for (int i = 0; i < tasks.count; ++i) splits = std::max(splits, tasks.at[i].splits);
  if (splits > 2 * wgrad::kReducedAtOnce) return launch_reduction<1, 8>(tasks, stream);
  launch_reduction<4, 1>(tasks, stream);
}

template <class T>
bool is_asked_for(const Tasks<T>& tasks) {
  return std::any_of(tasks.at, tasks.at + tasks.count,
                     [](const Task<T>& task) { return task.grad_weight || task.grad_bias; });
}

template <class T>
void run(const WeightGradients<T>& gradients, Global<float> workspace, Stream stream) {
  for (const Kernel kernel : kKernels) {
    Tasks<T> tasks = plan(gradients, kernel);
    workspace = place_partials(tasks, workspace);
    if (!is_asked_for(tasks)) continue;
    launch_tasks(tasks, kernel, stream);
    reduce(tasks, stream);
  }
}

}  // namespace

int64_t workspace_size(const WeightGradients<Bf16>& gradients) { return size_of(gradients); }
int64_t workspace_size(const WeightGradients<Fp16>& gradients) { return size_of(gradients); }

void weight_gradients(const WeightGradients<Bf16>& gradients, Global<float> workspace,
                      Stream stream) {
  run(gradients, workspace, stream);
}
void weight_gradients(const WeightGradients<Fp16>& gradients, Global<float> workspace,
                      Stream stream) {
  run(gradients, workspace, stream);
}

}  // namespace clsd::cuda
