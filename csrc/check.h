// Argument checks whose sentences are those of clsd_fast/ops/_checks.py:
// "<op>: expected <what>, got <what>". They keep a direct call of torch.ops memory-safe.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace clsd {

using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

[[noreturn]] inline void fail(const char* op, const std::string& expected, const std::string& got) {
  throw std::runtime_error(std::string(op) + ": expected " + expected + ", got " + got);
}

// In the words of PyTorch's allocator, which trainers look for to try a smaller batch.
[[noreturn]] inline void fail_to_allocate(uint64_t bytes, const std::string& what) {
  throw std::runtime_error("can't allocate memory: you tried to allocate " + std::to_string(bytes) +
                           " bytes for " + what);
}

// What composes a sentence from more than literals tests first and calls `fail`: that takes longer
// than a small operator.
inline void check(bool condition, const char* op, const std::string& expected,
                  const std::string& got) {
  if (!condition) fail(op, expected, got);
}

inline std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

inline Shape shape_of(const Tensor& tensor) {
  Shape shape(tensor.dim());
  for (size_t i = 0; i < shape.size(); ++i) shape[i] = tensor.size(static_cast<int64_t>(i));
  return shape;
}

inline bool has_shape(const Tensor& tensor, const Shape& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) {
    same = tensor.size(static_cast<int64_t>(i)) == shape[i];
  }
  return same;
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        const Shape& shape) {
  if (has_shape(tensor, shape)) return;
  fail(op, std::string(name) + " of shape " + to_string(shape), to_string(shape_of(tensor)));
}

inline void check_contiguous(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.is_contiguous()) return;
  Shape strides(tensor.dim());
  for (size_t i = 0; i < strides.size(); ++i) strides[i] = tensor.stride(static_cast<int64_t>(i));
  fail(op, std::string(name) + " contiguous", "strides " + to_string(strides));
}

inline const char* dtype_name(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    default: return torch::headeronly::toString(dtype);
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor,
                        torch::headeronly::ScalarType dtype, const char* expected) {
  if (tensor.scalar_type() == dtype) return;
  fail(op, std::string(name) + " of dtype " + expected, dtype_name(tensor.scalar_type()));
}

inline void check_device(const char* op, const char* name, const Tensor& x, const Tensor& other) {
  if (other.is_cpu() == x.is_cpu() && other.get_device() == x.get_device()) return;
  fail(op, std::string(name) + " on x's device", "another");
}

// The dtype and device of x are those of the call.
inline void check_like(const char* op, const char* name, const Tensor& x, const Tensor& other) {
  check_dtype(op, name, other, x.scalar_type(), dtype_name(x.scalar_type()));
  check_device(op, name, x, other);
}

inline bool is_16_bit(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// Parameters have x's dtype, or are all float32 beside 16-bit x. The call's first one decides.
inline void check_parameter(const char* op, const char* name, const Tensor& x, const Tensor& first,
                            const Tensor& parameter) {
  const auto narrow = x.scalar_type(), wide = torch::headeronly::ScalarType::Float;
  const auto dtype = is_16_bit(narrow) && first.scalar_type() == wide ? wide : narrow;
  if (parameter.scalar_type() != dtype) {
    const bool open = is_16_bit(narrow) && &first == &parameter;
    fail(op, std::string(name) + " of dtype " + dtype_name(dtype) + (open ? " or float32" : ""),
         dtype_name(parameter.scalar_type()));
  }
  check_device(op, name, x, parameter);
}

inline void check_images(const char* op, const char* name, const Tensor& x) {
  bool good = x.dim() == 4;
  for (int64_t i = 1; good && i < 4; ++i) good = x.size(i) >= 1;
  if (good) return;
  fail(op, std::string(name) + " of shape [N, C, H, W] with C, H, W >= 1", to_string(shape_of(x)));
}

// weight is [K, C, 3, 3] for x's C, bias is [K].
inline void check_conv(const char* op, const Tensor& x, const Tensor& weight,
                       const std::optional<Tensor>& bias, const std::string& weight_name = "weight",
                       const std::string& bias_name = "bias") {
  const int64_t channels = x.size(1);
  const bool good = weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == channels &&
                    weight.size(2) == 3 && weight.size(3) == 3;
  if (!good) {
    fail(op, weight_name + " of shape [K, " + std::to_string(channels) + ", 3, 3]",
         to_string(shape_of(weight)));
  }
  check_parameter(op, weight_name.c_str(), x, weight, weight);
  if (bias) {
    check_shape(op, bias_name.c_str(), *bias, {weight.size(0)});
    check_parameter(op, bias_name.c_str(), x, weight, *bias);
  }
}

// The operands of conv3x3; returns the shape of its output.
inline Shape check_conv3x3(const char* op, const Tensor& x, const Tensor& weight,
                           const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& residual = std::nullopt,
                           const std::optional<Tensor>& slopes = std::nullopt) {
  check_images(op, "x", x);
  check_conv(op, x, weight, bias);
  const Shape shape = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  if (residual) {
    check_shape(op, "residual", *residual, shape);
    check_like(op, "residual", x, *residual);
  }
  if (slopes) {
    check_shape(op, "slopes", *slopes, {weight.size(0)});
    check_parameter(op, "slopes", x, weight, *slopes);
  }
  return shape;
}

inline void check_list(const char* op, size_t expected, size_t got) {
  if (got == expected) return;
  fail(op, "lists of " + std::to_string(expected) + " tensors", std::to_string(got));
}

// Of a list that is empty where there are none.
inline std::optional<Tensor> given(const std::vector<Tensor>& list, size_t index) {
  if (list.empty()) return std::nullopt;
  return list[index];
}

// Images of one shape and kind, of which there is at least one.
inline void check_alike(const char* op, const std::vector<Tensor>& xs, const char* of_one) {
  if (xs.empty()) fail(op, std::string("xs of at least one ") + of_one, "0");
  for (const Tensor& x : xs) {
    check_shape(op, "xs", x, shape_of(xs[0]));
    check_like(op, "xs", xs[0], x);
  }
}

// The operands of conv3x3s, of one shape, of which the biases of all may be left out; returns the
// shape of an output.
inline Shape check_conv3x3s(const char* op, const std::vector<Tensor>& xs,
                            const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                            const std::optional<Tensor>& residual = std::nullopt) {
  check_alike(op, xs, "convolution");
  check_list(op, xs.size(), weights.size());
  if (!biases.empty()) check_list(op, xs.size(), biases.size());
  Shape shape;
  for (size_t i = 0; i < xs.size(); ++i) {
    shape = check_conv3x3(op, xs[i], weights[i], given(biases, i), residual);
    check_shape(op, "weight", weights[i], shape_of(weights[0]));
    check_parameter(op, "weight", xs[i], weights[0], weights[i]);
  }
  return shape;
}

// The parameters of a residual block.
struct BlockParameters {
  Tensor weight1;
  std::optional<Tensor> bias1;
  Tensor weight2;
  std::optional<Tensor> bias2;
};

inline Shape hidden_shape(const Tensor& x, const BlockParameters& block) {
  return {x.size(0), block.weight1.size(0), x.size(2), x.size(3)};
}

// Names of a block's parameters in a sentence are weights1[index] and so on, or weight1 for -1.
inline std::string parameter_name(const char* singular, const char* plural, int number,
                                  int64_t index) {
  if (index < 0) return singular + std::to_string(number);
  return plural + std::to_string(number) + "[" + std::to_string(index) + "]";
}

// The operands of residual_block, or of a block of residual_blocks; returns the shape of its hidden
// map.
inline Shape check_residual_block(const char* op, const Tensor& x, const BlockParameters& block,
                                  int64_t index = -1) {
  const auto name = [&](const char* singular, const char* plural, int number) {
    return parameter_name(singular, plural, number, index);
  };
  check_images(op, "x", x);
  check_conv(op, x, block.weight1, block.bias1, name("weight", "weights", 1),
             name("bias", "biases", 1));
  const auto weight2 = name("weight", "weights", 2), bias2 = name("bias", "biases", 2);
  check_shape(op, weight2.c_str(), block.weight2, {x.size(1), block.weight1.size(0), 3, 3});
  check_parameter(op, weight2.c_str(), x, block.weight1, block.weight2);
  if (block.bias2) {
    check_shape(op, bias2.c_str(), *block.bias2, {x.size(1)});
    check_parameter(op, bias2.c_str(), x, block.weight1, *block.bias2);
  }
  return hidden_shape(x, block);
}

inline void check_count(const char* op, const char* name, size_t count, size_t expected) {
  if (count == expected) return;
  fail(op, std::string(name) + " of " + std::to_string(expected) + " blocks",
       std::to_string(count));
}

// A chain of residual blocks.
struct ResidualChain {
  Tensor x;
  std::vector<BlockParameters> blocks;
};

// Those of residual_blocks, of one shape; the lists have block by block those of all chains, and the
// biases of all may be left out. Checked.
inline std::vector<ResidualChain> check_residual_blocks(const char* op,
                                                        const std::vector<Tensor>& xs,
                                                        const std::vector<Tensor>& weights1,
                                                        const std::vector<Tensor>& biases1,
                                                        const std::vector<Tensor>& weights2,
                                                        const std::vector<Tensor>& biases2) {
  const size_t count = weights1.size();
  check_alike(op, xs, "chain");
  if (count < 1) fail(op, "weights1 of at least one block", "0");
  if (count % xs.size() != 0) {
    fail(op, "weights1 of equally many blocks for each of " + std::to_string(xs.size()) + " chains",
         std::to_string(count));
  }
  if (!biases1.empty()) check_count(op, "biases1", biases1.size(), count);
  check_count(op, "weights2", weights2.size(), count);
  if (!biases2.empty()) check_count(op, "biases2", biases2.size(), count);
  std::vector<ResidualChain> chains;
  for (const Tensor& x : xs) chains.push_back({x, {}});
  for (size_t i = 0; i < count; ++i) {
    ResidualChain& chain = chains[i % xs.size()];
    const BlockParameters block{weights1[i], given(biases1, i), weights2[i], given(biases2, i)};
    const auto index = static_cast<int64_t>(i);
    check_residual_block(op, chain.x, block, index);
    const auto name = parameter_name("", "weights", 1, index);
    check_dtype(op, name.c_str(), block.weight1, weights1[0].scalar_type(),
                dtype_name(weights1[0].scalar_type()));
    check_shape(op, name.c_str(), block.weight1, shape_of(weights1[i - i % xs.size()]));
    chain.blocks.push_back(block);
  }
  return chains;
}

// Numbers of blocks from 1, ascending, the last one's among them.
inline void check_block_numbers(const char* op, const char* name,
                                const std::vector<int64_t>& numbers, size_t count) {
  bool good = !numbers.empty() && numbers[0] >= 1 && numbers.back() == static_cast<int64_t>(count);
  for (size_t i = 1; good && i < numbers.size(); ++i) good = numbers[i] > numbers[i - 1];
  if (good) return;
  fail(op, std::string(name) + " ascending from 1 to " + std::to_string(count), to_string(numbers));
}

// The operands of pixel_shuffle_upsample; returns the shape of its output.
inline Shape check_pixel_shuffle_upsample(const char* op, const Tensor& x, const Tensor& weight,
                                          const std::optional<Tensor>& bias,
                                          int64_t upscale_factor) {
  check_images(op, "x", x);
  if (upscale_factor < 1) fail(op, "upscale_factor >= 1", std::to_string(upscale_factor));
  check_conv(op, x, weight, bias);
  const int64_t square = upscale_factor * upscale_factor;
  if (weight.size(0) % square != 0) {
    fail(op,
         "weight of shape [" + std::to_string(square) + " K, " + std::to_string(x.size(1)) +
             ", 3, 3]",
         to_string(shape_of(weight)));
  }
  return {x.size(0), weight.size(0) / square, x.size(2) * upscale_factor,
          x.size(3) * upscale_factor};
}

// A further argument of a backward: images of that shape, like x.
inline void check_backward(const char* op, const char* name, const Tensor& x, const Tensor& images,
                           const Shape& shape) {
  check_shape(op, name, images, shape);
  check_like(op, name, x, images);
}

// A chain and what its backward takes beside it: gradients of some maps, the maps between its blocks
// and the hidden ones.
struct SavedChain : ResidualChain {
  std::vector<Tensor> grad_maps, maps, hiddens;
};

// Those of residual_blocks_backward.
inline std::vector<SavedChain> check_residual_blocks_backward(
    const char* op, const std::vector<Tensor>& grad_maps, const std::vector<int64_t>& at,
    const std::vector<Tensor>& xs, const std::vector<Tensor>& maps,
    const std::vector<Tensor>& hiddens, const std::vector<Tensor>& weights1,
    const std::vector<Tensor>& weights2) {
  const auto chains = check_residual_blocks(op, xs, weights1, {}, weights2, {});
  const size_t length = chains[0].blocks.size();
  check_block_numbers(op, "at", at, length);
  check_count(op, "grad_maps", grad_maps.size(), chains.size() * at.size());
  check_count(op, "maps", maps.size(), chains.size() * (length - 1));
  check_count(op, "hiddens", hiddens.size(), weights1.size());
  std::vector<SavedChain> saved;
  for (const ResidualChain& chain : chains) {
    const auto of_chain = [&](const std::vector<Tensor>& list) {
      std::vector<Tensor> found;
      for (size_t i = saved.size(); i < list.size(); i += chains.size()) found.push_back(list[i]);
      return found;
    };
    saved.push_back({chain, of_chain(grad_maps), of_chain(maps), of_chain(hiddens)});
    const Tensor& x = chain.x;
    for (const Tensor& grad : saved.back().grad_maps) {
      check_backward(op, "grad_maps", x, grad, shape_of(x));
    }
    for (const Tensor& map : saved.back().maps) check_backward(op, "maps", x, map, shape_of(x));
    for (size_t i = 0; i < length; ++i) {
      const Shape shape = hidden_shape(x, chain.blocks[i]);
      check_backward(op, "hiddens", x, saved.back().hiddens[i], shape);
    }
  }
  return saved;
}

inline void check_rows(const char* op, const char* name, const Tensor& rows) {
  if (rows.dim() == 3 && rows.size(2) >= 1) return;
  fail(op, std::string(name) + " of shape [B, rows, D]", to_string(shape_of(rows)));
}

}  // namespace clsd
