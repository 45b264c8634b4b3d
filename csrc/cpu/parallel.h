// Work for torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace clsd::cpu {

// torch::stable::parallel_for, which of an exception of a task keeps no sentence: the first one is
// thrown again here.
template <class Task>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Task& task) {
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      task(first, last);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace clsd::cpu
