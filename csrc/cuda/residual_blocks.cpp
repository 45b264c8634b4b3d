// Residual blocks, x + scale * convolution(relu(convolution(x))), alone and in chains.
#include <optional>
#include <tuple>
#include <vector>

#include "gradients.h"
#include "ops.h"
#include "tensors.h"

namespace clsd::cuda {

namespace {

using Tensors = std::vector<Tensor>;
using Blocks = std::vector<BlockParameters>;

void check_all_channels(const char* op, const Blocks& blocks) {
  for (const BlockParameters& block : blocks) check_channels(op, block.weight1);
}

Tensor empty_nhwc(const Tensor& x, const Shape& shape) {
  return empty(x, shape, MemoryFormat::ChannelsLast);
}

// The maps after the blocks of `kept`, and the hidden maps of all if they are to be saved.
std::tuple<Tensors, Tensors> forward(const char* op, const Tensor& x, const Blocks& blocks,
                                     double res_scale, const std::vector<int64_t>& kept,
                                     bool save_hidden) {
  check_all_channels(op, blocks);
  const Device device(x);
  const Shape shape = shape_of(x);
  std::vector<Output> outputs;
  Tensors hiddens;
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto is_fused = [&](size_t i) {
      return !save_hidden && fuses_residual_block(shape[0], shape[2], shape[3], shape[1],
                                                  blocks[i].weight1.size(0));
    };
    std::vector<Convolution<T>> first, second;
    const Tensor images = as_nhwc(x);   // lives until the launches
    Tensor input = images, scratch[2];  // maps that are not kept, written in turn
    for (size_t i = 0; i < blocks.size(); ++i) {
      const bool keeps = kept[outputs.size()] == static_cast<int64_t>(i) + 1;
      if (keeps) outputs.emplace_back(x, shape, memory_format(x));
      if (!keeps && !scratch[i % 2].defined()) scratch[i % 2] = empty_nhwc(x, shape);
      const Tensor output = keeps ? outputs.back().written() : scratch[i % 2];
      const Shape hidden = hidden_shape(x, blocks[i]);
      if (is_fused(i)) {
        hiddens.push_back(output);  // neither written nor read: it stands for one of its shape
      } else {
        const bool reuses = !save_hidden && i > 0 && has_shape(hiddens[i - 1], hidden);
        hiddens.push_back(reuses ? hiddens[i - 1] : empty_nhwc(x, hidden));
      }
      first.push_back(forward_convolution<T>(input, blocks[i].weight1, hiddens[i]));
      first[i].relu = true;
      second.push_back(forward_convolution<T>(hiddens[i], blocks[i].weight2, output));
      second[i].residual = to_global<T>(input);
      second[i].scale = static_cast<float>(res_scale);
      input = output;
    }
    PackedParameters<T> packed;
    for (size_t i = 0; i < blocks.size(); ++i) {
      packed.add(first[i], blocks[i].weight1, blocks[i].bias1);
      packed.add(second[i], blocks[i].weight2, blocks[i].bias2);
    }
    packed.pack(x, device.stream());
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (is_fused(i)) {
        convolve_residual_block(first[i], second[i], device.stream());
      } else {
        convolve(first[i], device.stream());
        convolve(second[i], device.stream());
      }
    }
  });
  Tensors maps;
  for (Output& output : outputs) maps.push_back(output.finish());
  return {maps, save_hidden ? hiddens : Tensors()};
}

// Gradients of x and of each block's parameters. Those of the maps after blocks `at` are given.
std::tuple<Tensor, Tensors, Tensors, Tensors, Tensors> backward(
    const char* op, const Tensors& grad_maps, const std::vector<int64_t>& at, const Tensor& x,
    const Tensors& maps, const Tensors& hiddens, const Blocks& blocks, double res_scale,
    bool needs_x, bool needs_params) {
  check_all_channels(op, blocks);
  const size_t count = blocks.size();
  std::vector<ParameterGradients> first_grads, second_grads;
  for (const BlockParameters& block : blocks) {
    first_grads.emplace_back(block.weight1, needs_params, needs_params);
    second_grads.emplace_back(block.weight2, needs_params, needs_params);
  }
  Tensor grad_x = absent(x);
  if (needs_x || needs_params) {
    const Device device(x);
    dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
      using T = decltype(type);
      // Of the maps, x first; of the hidden ones; and of both, what the forward has made.
      Tensors grads(count + 1, grad_x), hidden_grads, inputs, activations;
      std::optional<Output> output;
      if (needs_x) grads[0] = output.emplace(x, shape_of(x), memory_format(x)).written();
      for (size_t i = 1; i < count; ++i) grads[i] = empty_nhwc(x, shape_of(x));
      grads[count] = as_nhwc(grad_maps.back());
      std::vector<Tensor> tapped(count, grad_x);
      std::vector<Convolution<T>> first(count), second(count);
      PackedParameters<T> packed;
      for (size_t i = 0; i < count; ++i) {
        inputs.push_back(as_nhwc(i > 0 ? maps[i - 1] : x));
        activations.push_back(as_nhwc(hiddens[i]));
        hidden_grads.push_back(empty_nhwc(x, hidden_shape(x, blocks[i])));
        second[i] = input_gradient<T>(grads[i + 1], blocks[i].weight2, hidden_grads[i]);
        second[i].scale = static_cast<float>(res_scale);
        second[i].positive = to_global<T>(activations[i]);
        packed.add_transposed(second[i], blocks[i].weight2);
        if (i == 0 && !needs_x) continue;
        first[i] = input_gradient<T>(hidden_grads[i], blocks[i].weight1, grads[i]);
        first[i].residual = to_global<T>(grads[i + 1]);
        packed.add_transposed(first[i], blocks[i].weight1);
      }
      for (size_t j = 0; j + 1 < at.size(); ++j) {
        const size_t number = static_cast<size_t>(at[j]);
        tapped[number] = as_nhwc(grad_maps[j]);
        first[number].added = to_global<T>(tapped[number]);
      }
      packed.pack(x, device.stream());
      WeightGradients<T> weights;
      for (size_t i = count; i-- > 0;) {
        convolve(second[i], device.stream());
        if (i > 0 || needs_x) convolve(first[i], device.stream());
        const int channels = static_cast<int>(x.size(1));
        const int hidden_channels = static_cast<int>(hiddens[i].size(1));
        weights.push_back(
            weight_gradient<T>(hidden_grads[i], inputs[i], first_grads[i], hidden_channels));
        weights.push_back(
            weight_gradient<T>(grads[i + 1], activations[i], second_grads[i], channels, res_scale));
      }
      if (needs_x) grad_x = output->finish();
      if (needs_params) compute<T>(weights, x, device.stream());
    });
  }
  Tensors weights1, biases1, weights2, biases2;
  for (size_t i = 0; i < count; ++i) {
    weights1.push_back(first_grads[i].weight), biases1.push_back(first_grads[i].bias);
    weights2.push_back(second_grads[i].weight), biases2.push_back(second_grads[i].bias);
  }
  return {grad_x, weights1, biases1, weights2, biases2};
}

}  // namespace

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden) {
  const char* op = "residual_block";
  const BlockParameters block{weight1, bias1, weight2, bias2};
  check_residual_block(op, x, block);
  const auto [maps, hiddens] = forward(op, x, {block}, res_scale, {1}, save_hidden);
  return {maps[0], save_hidden ? hiddens[0] : absent(x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params) {
  const char* op = "residual_block_backward";
  const BlockParameters block{weight1, std::nullopt, weight2, std::nullopt};
  check_backward(op, "hidden", x, hidden, check_residual_block(op, x, block));
  check_backward(op, "grad_output", x, grad_output, shape_of(x));
  const auto [grad_x, weights1, biases1, weights2, biases2] =
      backward(op, {grad_output}, {1}, x, {}, {hidden}, {block}, res_scale, needs_x, needs_params);
  return {grad_x, weights1[0], biases1[0], weights2[0], biases2[0]};
}

std::tuple<Tensors, Tensors> residual_blocks(Tensor x, Tensors weights1, Tensors biases1,
                                             Tensors weights2, Tensors biases2, double res_scale,
                                             std::vector<int64_t> kept, bool save_hidden) {
  const char* op = "residual_blocks";
  const auto blocks = check_residual_blocks(op, x, weights1, biases1, weights2, biases2);
  check_block_numbers(op, "kept", kept, blocks.size());
  return forward(op, x, blocks, res_scale, kept, save_hidden);
}

std::tuple<Tensor, Tensors, Tensors, Tensors, Tensors> residual_blocks_backward(
    Tensors grad_maps, std::vector<int64_t> at, Tensor x, Tensors maps, Tensors hiddens,
    Tensors weights1, Tensors weights2, double res_scale, bool needs_x, bool needs_params) {
  const char* op = "residual_blocks_backward";
  const auto blocks =
      check_residual_blocks_backward(op, grad_maps, at, x, maps, hiddens, weights1, weights2);
  return backward(op, grad_maps, at, x, maps, hiddens, blocks, res_scale, needs_x, needs_params);
}

}  // namespace clsd::cuda
