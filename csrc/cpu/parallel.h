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

// Tasks and who handles them: work(take) does so as long as take(task) finds one.
template <class Work>
class TaskSet {
 public:
  TaskSet(int64_t begin, int64_t end, const Work& work)
      : count(end - begin), work_(work), shares_(begin, end, torch::stable::get_num_threads()) {}

  const int64_t count;

  void run(int64_t worker) {
    work_([&](int64_t& task) { return shares_.take(worker, task); });
  }

 private:
  const Work& work_;
  TaskShares shares_;
};

// Each thread handles tasks of all sets, one set after the other, and none waits for another between
// them. The last set should have the smallest tasks.
template <class... Work>
void parallel_tasks(TaskSet<Work>&&... sets) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = std::min(threads, std::max({sets.count...}));
  if (workers < 1) return;
  parallel_for(0, workers, 1, [&](int64_t worker, int64_t) { (sets.run(worker), ...); });
}

template <class Work>
void parallel_tasks(int64_t begin, int64_t end, const Work& work) {
  parallel_tasks(TaskSet<Work>(begin, end, work));
}

}  // namespace clsd::cpu
