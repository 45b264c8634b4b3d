// How the work of weight gradients is cut, and its launches.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "../shapes.h"
#include "launch.cuh"
#include "wgrad_few.cuh"
#include "wgrad_sm80.cuh"

namespace clsd::cuda {

namespace {

using wgrad::Task;
using wgrad::Tasks;

// Blocks of a launch for each multiprocessor, which holds one block of the kernel for many channels,
// whose sums take the registers, and two of the one for few: one wave. What a block adds to a
// partial is at most 9 x 64 x 64 sums, so that the workspace is 20 MB on an H100, or one partial of
// each weight.
constexpr int kBlocks = 1, kFewBlocks = 2;
// Fewer rows than that are not worth a partial.
constexpr int64_t kMinSteps = 4;
constexpr int64_t kAlignment = 4;  // floats

template <class T>
bool is_few(const WeightGradient<T>& gradient) {
  return std::min(gradient.inputs, gradient.outputs) <= kFewChannels;
}

template <class T>
Task<T> whole_task(const WeightGradient<T>& gradient) {
  if (gradient.height > kMaxSide || gradient.width > kMaxSide) {
    throw std::runtime_error("convolution: expected sides of at most 2^30 pixels");
  }
  Task<T> task{};
  static_cast<WeightGradient<T>&>(task) = gradient;
  task.steps = is_few(gradient)
                   ? ceil_div(gradient.batch * gradient.height * gradient.width, wgrad_few::kPixels)
                   : gradient.batch * ceil_div(gradient.width, wgrad::kSwathW) * gradient.height;
  // The bias is the first input group's.
  task.input_groups = gradient.grad_weight ? ChannelGroup::groups(gradient.inputs, 1) : 1;
  task.output_groups = ChannelGroup::groups(gradient.outputs, gradient.upscale);
  return task;
}

// Cut the tasks so that their blocks, of about equal work, are at most `blocks`.
template <class T>
void split(Tasks<T>& tasks, int blocks, int64_t min_steps) {
  int64_t work = 0;
  for (int i = 0; i < tasks.count; ++i) {
    work += tasks.at[i].steps * tasks.at[i].input_groups * tasks.at[i].output_groups;
  }
  for (int i = 0; i < tasks.count; ++i) {
    Task<T>& task = tasks.at[i];
    if (task.steps == 0) continue;  // no splits: the sums are 0
    const int64_t splits = std::max(int64_t{1}, blocks * task.steps / work);
    task.steps_of_split = std::max(min_steps, ceil_div(task.steps, splits));
    task.splits = static_cast<int>(ceil_div(task.steps, task.steps_of_split));
  }
}

// The tasks with few channels, or the others.
template <class T>
Tasks<T> plan(const WeightGradients<T>& gradients, bool few) {
  Tasks<T> tasks;
  for (const auto& gradient : gradients) {
    if (is_few(gradient) != few) continue;
    if (tasks.count == kMaxWeightGradients) {
      throw std::runtime_error("weight_gradients: expected at most " +
                               std::to_string(kMaxWeightGradients) + " convolutions");
    }
    tasks.at[tasks.count++] = whole_task(gradient);
  }
  const int blocks = multiprocessors() * (few ? kFewBlocks : kBlocks);
  split(tasks, blocks, few ? 1 : kMinSteps);
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
  for (const bool few : {false, true}) {
    const Tasks<T> tasks = plan(gradients, few);
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
void launch_tasks(const Tasks<T>& tasks, int threads, uint32_t shared_bytes, Stream stream) {
  int64_t blocks = 0;
  int splits = 0;
  bool any = false;
  for (int i = 0; i < tasks.count; ++i) {
    const Task<T>& task = tasks.at[i];
    blocks += task.blocks();
    splits = std::max(splits, task.splits);
    any = any || task.grad_weight || task.grad_bias;
  }
  if (!any) return;
  if (blocks > 0) {
    launch<kKernel>(static_cast<unsigned>(blocks), threads, shared_bytes, stream, tasks);
  }
  if (splits > 2 * wgrad::kReducedAtOnce) return launch_reduction<1, 8>(tasks, stream);
  launch_reduction<4, 1>(tasks, stream);
}

template <class T>
void run(const WeightGradients<T>& gradients, Global<float> workspace, Stream stream) {
  Tasks<T> many = plan(gradients, false), few = plan(gradients, true);
  place_partials(few, place_partials(many, workspace));
  launch_tasks<wgrad::wgrad_kernel<T>>(many, wgrad::kThreads, wgrad::kSharedBytes, stream);
  launch_tasks<wgrad_few::wgrad_few_kernel<T>>(few, wgrad_few::kThreads, wgrad_few::kSharedBytes,
                                               stream);
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
