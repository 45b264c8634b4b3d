// Work for torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

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

// Tasks [begin, end), each taken once. A worker takes those of an equal share in order, so that what
// lies beside each other stays in one core's cache, and then what the others have left of theirs:
// cores are never equally fast, and all wait for the last one.
class TaskShares {
 public:
  TaskShares(int64_t begin, int64_t end, int64_t workers) : shares_(static_cast<size_t>(workers)) {
    for (int64_t i = 0; i < workers; ++i) {
      Share& share = shares_[static_cast<size_t>(i)];
      share.next = begin + i * (end - begin) / workers;
      share.end = begin + (i + 1) * (end - begin) / workers;
    }
  }

  // The worker's next task, if any is left.
  bool take(int64_t worker, int64_t& task) {
    for (size_t i = 0; i < shares_.size(); ++i) {
      Share& share = shares_[(static_cast<size_t>(worker) + i) % shares_.size()];
      task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task < share.end) return true;
    }
    return false;
  }

 private:
  struct alignas(64) Share {  // a cache line
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares_;
};

// Call work(take) in every thread at most once, which handles tasks as long as take(task) finds one.
template <class Work>
void parallel_tasks(int64_t begin, int64_t end, const Work& work) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = std::min(threads, end - begin);
  if (workers < 1) return;
  TaskShares shares(begin, end, workers);
  parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    work([&](int64_t& task) { return shares.take(worker, task); });
  });
}

}  // namespace clsd::cpu
