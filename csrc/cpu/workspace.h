// Scratch memory that threads keep from call to call: fresh memory costs a page fault for every
// 4 KiB, which for a small image is as long as the convolution.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "../check.h"

namespace clsd::cpu {

// A vector whose memory may be large: where there is none, the sentence says how much.
template <class T>
struct LargeAllocator {
  using value_type = T;

  LargeAllocator() = default;
  template <class U>
  LargeAllocator(const LargeAllocator<U>&) {}
  T* allocate(size_t count) {
    void* memory = ::operator new(count * sizeof(T), std::nothrow);
    if (!memory) fail_to_allocate(count * sizeof(T), "a table");
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { ::operator delete(memory); }
  template <class U>
  bool operator==(const LargeAllocator<U>&) const {
    return true;
  }
};

template <class T>
using LargeVector = std::vector<T, LargeAllocator<T>>;

// What a scope takes from its thread's scratch memory and gives back at its end. Scopes nest: the
// i-th piece alive in a thread is always the same buffer, which only grows.
class Workspace {
 public:
  Workspace() : first_(alive_) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    for (size_t i = first_; i < alive_; ++i) {
      if (buffers_[i].bytes > kKeptBytes) buffers_[i] = Buffer{};
    }
    alive_ = first_;
  }

  // Uninitialised, and aligned to a cache line, so that no vector crosses one.
  template <class T>
  T* take(int64_t count) {
    if (alive_ == buffers_.size()) buffers_.emplace_back();
    Buffer& buffer = buffers_[alive_++];
    buffer.grow(static_cast<size_t>(count) * sizeof(T));
    return static_cast<T*>(buffer.memory.get());
  }

 private:
  static constexpr size_t kLine = 64;
  static constexpr size_t kKeptBytes = 16 << 20;  // larger pieces are returned to the system

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;

    void grow(size_t needed) {
#ifndef __SANITIZE_ADDRESS__  // there, every piece ends where it should
      if (needed <= bytes) return;
#endif
      memory.reset();
      bytes = 0;
      memory.reset(std::aligned_alloc(kLine, (needed + kLine - 1) / kLine * kLine));
      if (!memory) fail_to_allocate(needed, "scratch memory");
      bytes = needed;
    }
  };

  static thread_local std::vector<Buffer> buffers_;
  static thread_local size_t alive_;
  size_t first_;
};

inline thread_local std::vector<Workspace::Buffer> Workspace::buffers_;
inline thread_local size_t Workspace::alive_ = 0;

}  // namespace clsd::cpu
