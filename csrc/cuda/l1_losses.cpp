// Mean absolute errors, as operators.
#include "l1_losses.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops.h"
#include "tensors.h"

namespace clsd::cuda {

namespace {

void check_l1(const char* op, const Tensor& target, const std::vector<Tensor>& images) {
  check(!images.empty(), op, "at least one image", "none");
  check_images(op, "target", target);
  check_dtype(op, "target", target, ScalarType::Float, "float32 for its CUDA kernel");
  for (const Tensor& image : images) check_backward(op, "images", target, image, shape_of(target));
}

// The tensor itself if its memory is dense in the format, else a copy that is.
Tensor dense(const Tensor& tensor, MemoryFormat format) {
  const bool channels_last = format == MemoryFormat::ChannelsLast;
  if (channels_last ? is_nhwc(tensor) : is_dense(tensor, {0, 1, 2, 3})) return tensor;
  Tensor copy = empty(tensor, shape_of(tensor), format);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// Call function(images of a launch, number of the first) until all had their turn.
template <class F>
void for_each_launch(const Tensor& target, const std::vector<Tensor>& images,
                     const std::vector<Tensor>& grads, F&& function) {
  for (size_t first = 0; first < images.size(); first += kMaxL1Images) {
    L1Images part{};
    part.target = to_global<float>(target), part.size = target.numel();
    part.count = static_cast<int>(std::min<size_t>(kMaxL1Images, images.size() - first));
    part.first = static_cast<int>(first);
    for (int i = 0; i < part.count; ++i) {
      part.images[i] = to_global<float>(images[first + i]);
      if (!grads.empty()) part.grads[i] = to_mutable_global<float>(grads[first + i]);
    }
    function(part);
  }
}

std::vector<Tensor> all_dense(const std::vector<Tensor>& images, MemoryFormat format) {
  std::vector<Tensor> found;
  for (const Tensor& image : images) found.push_back(dense(image, format));
  return found;
}

}  // namespace

std::tuple<Tensor, Tensor> l1_losses(Tensor target, std::vector<Tensor> images,
                                     double value_range) {
  check_l1("l1_losses", target, images);
  const Device device(target);
  const MemoryFormat format = memory_format(images[0]);
  const Tensor like = dense(target, format);
  const std::vector<Tensor> all = all_dense(images, format);
  const auto count = static_cast<int>(images.size());
  const Tensor partials = empty(target, {count * l1_parts(target.numel())});
  const Tensor first = empty(target, {}), others = empty(target, {});
  const auto to = to_mutable_global<float>(partials);
  for_each_launch(like, all, {},
                  [&](const L1Images& part) { sum_differences(part, to, device.stream()); });
  finish_losses(to_global<float>(partials), target.numel(), count, value_range,
                to_mutable_global<float>(first), to_mutable_global<float>(others), device.stream());
  return {first, others};
}

std::vector<Tensor> l1_losses_backward(std::optional<Tensor> grad_first,
                                       std::optional<Tensor> grad_others, Tensor target,
                                       std::vector<Tensor> images, double value_range) {
  const char* op = "l1_losses_backward";
  check_l1(op, target, images);
  for (const auto* grad : {&grad_first, &grad_others}) {
    if (!*grad) continue;
    check_shape(op, "grad", **grad, {});
    check_like(op, "grad", target, **grad);
  }
  const Device device(target);
  const MemoryFormat format = memory_format(images[0]);
  std::vector<Tensor> grads;
  for (const Tensor& image : images) grads.push_back(empty(image, shape_of(image), format));
  const double scale = 1 / (static_cast<double>(target.numel()) * value_range);
  const auto others = static_cast<double>(images.size() - 1);
  const L1Scale scales{to_global<float>(grad_first), to_global<float>(grad_others),
                       static_cast<float>(scale), static_cast<float>(scale / others)};
  for_each_launch(
      dense(target, format), all_dense(images, format), grads,
      [&](const L1Images& part) { differentiate_differences(part, scales, device.stream()); });
  return grads;
}

}  // namespace clsd::cuda
