// Pointers into global memory that know what they point into.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clsd::emulation {

// Stands for T* in kernels and their parameters. It cannot be dereferenced: load, store and
// cp_async check it against the tensor that it was made for.
template <class T>
struct Global {
  T* pointer = nullptr;
  T* begin = nullptr;
  T* end = nullptr;

  Global() = default;
  Global(std::nullptr_t) {}
  Global(T* first, T* begin_, T* end_) : pointer(first), begin(begin_), end(end_) {}
  template <class U>
  Global(const Global<U>& other) : pointer(other.pointer), begin(other.begin), end(other.end) {}

  explicit operator bool() const { return pointer != nullptr; }
  Global operator+(int64_t elements) const {
    // Through integers: a pointer far outside its array is checked later, not undefined now.
    const auto moved = reinterpret_cast<uintptr_t>(pointer) + elements * sizeof(T);
    return {reinterpret_cast<T*>(moved), begin, end};
  }
};

template <class T>
Global<T> global(T* data, int64_t elements) {
  return {data, data, data + elements};
}

}  // namespace clsd::emulation

namespace clsd::cuda {
using emulation::global;
}
