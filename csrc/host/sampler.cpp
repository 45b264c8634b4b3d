// The batch sampler of the trainer; clsd_train/sampler.py has the same in NumPy and its docs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using Pixels = py::array_t<uint8_t, py::array::c_style>;

constexpr int64_t kColours = 3;

enum Purpose : uint64_t { kImage, kTop, kLeft, kTransform };

// SplitMix64's mixing of all counters, the upper half scaled to [0, count).
int64_t random_below(int64_t count, std::initializer_list<uint64_t> counters) {
  uint64_t state = 0;
  for (const uint64_t counter : counters) {
    state += counter + 0x9E3779B97F4A7C15ULL;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ULL;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBULL;
    state ^= state >> 31;
  }
  return static_cast<int64_t>(((state >> 32) * static_cast<uint64_t>(count)) >> 32);
}

struct Image {
  const uint8_t* pixels;
  int64_t height, width;
};

Image image_of(const Pixels& array) {
  if (array.ndim() != 3 || array.shape(2) != kColours) {
    throw std::invalid_argument("BatchSampler: expected images of shape [H, W, 3], got " +
                                std::to_string(array.ndim()) + " dimensions");
  }
  return {array.data(), array.shape(0), array.shape(1)};
}

// Copy a square patch through a transform: bit 0 mirrors columns, bit 1 rows, bit 2 transposes.
void copy_patch(const Image& image, int64_t top, int64_t left, int64_t size, int64_t transform,
                uint8_t* target) {
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      int64_t row = transform & 4 ? j : i;
      int64_t column = transform & 4 ? i : j;
      if (transform & 1) column = size - 1 - column;
      if (transform & 2) row = size - 1 - row;
      const uint8_t* source = image.pixels + ((top + row) * image.width + left + column) * kColours;
      std::memcpy(target, source, kColours);
      target += kColours;
    }
  }
}

class BatchSampler {
 public:
  BatchSampler(std::vector<Pixels> lr, std::vector<Pixels> hr, int64_t scale, int64_t patch_size,
               int64_t batch_size, uint64_t seed, int64_t first)
      : lr_(std::move(lr)),
        hr_(std::move(hr)),
        scale_(scale),
        patch_size_(patch_size),
        batch_size_(batch_size),
        seed_(seed),
        first_(first) {
    if (lr_.empty() || lr_.size() != hr_.size()) {
      throw std::invalid_argument("BatchSampler: expected as many HR as LR images, got " +
                                  std::to_string(lr_.size()) + " LR and " +
                                  std::to_string(hr_.size()) + " HR");
    }
    for (size_t i = 0; i < lr_.size(); ++i) {
      const Image small = image_of(lr_[i]), large = image_of(hr_[i]);
      if (large.height != scale * small.height || large.width != scale * small.width) {
        throw std::invalid_argument("BatchSampler: expected HR " + std::to_string(scale) +
                                    " times the size of LR, got another at image " +
                                    std::to_string(i));
      }
      if (small.height < patch_size || small.width < patch_size) {
        throw std::invalid_argument("BatchSampler: expected LR of at least " +
                                    std::to_string(patch_size) + " pixels, got fewer at image " +
                                    std::to_string(i));
      }
      pairs_.emplace_back(small, large);
    }
  }

  std::pair<Pixels, Pixels> sample(uint64_t iteration) const {
    const int64_t large_size = scale_ * patch_size_;
    Pixels lr({batch_size_, patch_size_, patch_size_, kColours});
    Pixels hr({batch_size_, large_size, large_size, kColours});
    fill(iteration, lr, hr);
    return {std::move(lr), std::move(hr)};
  }

  void fill(uint64_t iteration, Pixels& lr, Pixels& hr) const {
    const int64_t large_size = scale_ * patch_size_;
    check_batch(lr, patch_size_);
    check_batch(hr, large_size);
    uint8_t* small_target = lr.mutable_data();
    uint8_t* large_target = hr.mutable_data();
    py::gil_scoped_release release;
    for (int64_t number = 0; number < batch_size_; ++number) {
      const auto draw = [&](int64_t count, Purpose purpose) {
        return random_below(count,
                            {seed_, iteration, static_cast<uint64_t>(first_ + number), purpose});
      };
      const auto& [small, large] = pairs_[draw(static_cast<int64_t>(pairs_.size()), kImage)];
      const int64_t top = draw(small.height - patch_size_ + 1, kTop);
      const int64_t left = draw(small.width - patch_size_ + 1, kLeft);
      const int64_t transform = draw(8, kTransform);
      copy_patch(small, top, left, patch_size_, transform,
                 small_target + number * patch_size_ * patch_size_ * kColours);
      copy_patch(large, scale_ * top, scale_ * left, large_size, transform,
                 large_target + number * large_size * large_size * kColours);
    }
  }

 private:
  void check_batch(const Pixels& batch, int64_t size) const {
    const std::vector<py::ssize_t> shape = {batch_size_, size, size, kColours};
    if (!std::equal(shape.begin(), shape.end(), batch.shape(), batch.shape() + batch.ndim())) {
      throw std::invalid_argument("BatchSampler: expected batches of shape [" +
                                  std::to_string(batch_size_) + ", " + std::to_string(size) + ", " +
                                  std::to_string(size) + ", 3], got another");
    }
  }

  std::vector<Pixels> lr_, hr_;  // keep the arrays alive that pairs_ points into
  int64_t scale_, patch_size_, batch_size_;
  uint64_t seed_;
  int64_t first_;
  std::vector<std::pair<Image, Image>> pairs_;
};

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Batch sampler over uint8 images.";
  py::class_<BatchSampler>(module, "BatchSampler")
      .def(py::init<std::vector<Pixels>, std::vector<Pixels>, int64_t, int64_t, int64_t, uint64_t,
                    int64_t>(),
           py::arg("lr"), py::arg("hr"), py::arg("scale"), py::arg("patch_size"),
           py::arg("batch_size"), py::arg("seed"), py::arg("first") = 0)
      .def("sample", &BatchSampler::sample, py::arg("iteration"),
           "uint8 batches [B, p, p, 3] and [B, scale p, scale p, 3].")
      .def("fill", &BatchSampler::fill, py::arg("iteration"), py::arg("lr").noconvert(),
           py::arg("hr").noconvert(), "The same into contiguous arrays.");
}
