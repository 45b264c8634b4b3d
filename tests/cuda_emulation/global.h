// Pointers into global memory that know what they point into.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clsd::emulation {

// The memory of a tensor.
struct Range {
  const void *begin, *end;
};

// Remember a range and return its number, which is another one's after kRanges more.
constexpr uint64_t kRanges = 1 << 15;
uint64_t number_of_range(const void* begin, const void* end);
Range range(uint64_t number);

// Stands for T* in kernels and their parameters, and has its size, so that parameters lie as on the
// GPU. It cannot be dereferenced: load, store and cp_async check it against the tensor that it was
// made for, whose number is in the upper bits, which no address uses; the highest one is set in all
// that are not null, so that they are told from other parameters.
template <class T>
struct Global {
  uint64_t bits = 0;

  Global() = default;
  Global(std::nullptr_t) {}
  template <class U>
  Global(const Global<U>& other) : bits(other.bits) {
    static_assert(sizeof(T) == sizeof(U));
  }

  T* pointer() const { return reinterpret_cast<T*>(bits & kAddress); }
  Range tensor() const { return range(bits >> kAddressBits & (kRanges - 1)); }

  explicit operator bool() const { return bits != 0; }
  // Through integers: a pointer far outside its array is checked later, not undefined now.
  Global operator+(int64_t elements) const {
    Global moved;
    moved.bits = (bits & ~kAddress) | ((bits + elements * sizeof(T)) & kAddress);
    return moved;
  }

  static constexpr int kAddressBits = 48;
  static constexpr uint64_t kAddress = (uint64_t{1} << kAddressBits) - 1;
};

template <class T>
Global<T> global(T* data, int64_t elements) {
  Global<T> made;
  if (data == nullptr) return made;
  made.bits = reinterpret_cast<uint64_t>(data) | (kRanges | number_of_range(data, data + elements))
                                                     << Global<T>::kAddressBits;
  return made;
}

}  // namespace clsd::emulation

namespace clsd::cuda {
using emulation::global;
}
