// Residual blocks, x + scale * convolution(relu(convolution(x))), alone and in chains.
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../ops.h"
#include "conv3x3.h"
#include "sum.h"

namespace clsd::cpu {

namespace {

using Tensors = std::vector<Tensor>;

// What chains have of their blocks, as an operator's lists have it.
Tensors block_by_block(const std::vector<Tensors>& chains) {
  Tensors list;
  for (size_t i = 0; i < chains[0].size(); ++i) {
    for (const Tensors& of_chain : chains) list.push_back(of_chain[i]);
  }
  return list;
}

// Images of x's shape, in its memory format.
Tensor empty_map(const Tensor& x) { return empty(x, shape_of(x), memory_format(x)); }

// Write a block's result to `output`, which is not x, and its hidden map to `hidden`, if given.
template <class S>
void forward_block(const Tensor& x, const BlockParameters& block, double res_scale,
                   const Tensor* hidden, const Tensor& output) {
  const auto input = images<const S>(x);
  auto activation = hidden ? images<S>(*hidden) : images<S>(nullptr, hidden_shape(x, block));
  auto second_input = constant(activation);
  const auto target = images<S>(output);
  const auto packed_bias1 = pack_parameter<S>(block.bias1, activation.order);
  const auto packed_bias2 = pack_parameter<S>(block.bias2, target.order);
  const Epilogue<S> relu{.bias = &packed_bias1, .relu = true};
  const Epilogue<S> skip{
      .bias = &packed_bias2,
      .scale = static_cast<Accumulator<S>>(res_scale),
      .residual = &input,
  };
  const Convolution<S> first{
      .input = input, .weight = block.weight1, .epilogue = relu, .output = activation};
  const Convolution<S> second{
      .input = second_input, .weight = block.weight2, .epilogue = skip, .output = target};
  // The choice is the same for both: they have the same image and each other's channels.
  if (!hidden && choose<S>(input, activation) == Algorithm::kWinograd) {
    winograd_convolve_twice(first, second, activation, second_input);
    return;
  }
  Workspace workspace;
  if (!hidden) {
    activation.data = workspace.take<S>(x.size(0) * activation.stride_n);
    second_input.data = activation.data;
  }
  convolve(first);
  convolve(second);
}

// Gradients of weight1, bias1, weight2 and bias2, or absent ones. That of x goes to `grad_x`, if
// given.
template <class S>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_block(const Tensor& grad_output,
                                                          const Tensor& x, const Tensor& hidden,
                                                          const BlockParameters& block,
                                                          double res_scale, const Tensor* grad_x,
                                                          bool needs_params) {
  Workspace workspace;
  const auto scale = static_cast<Accumulator<S>>(res_scale);
  const auto grad = images<const S>(grad_output);
  const auto activation = images<const S>(hidden);
  const auto grad_hidden =
      images<S>(workspace.take<S>(x.size(0) * activation.stride_n), shape_of(hidden));
  const Epilogue<S> mask{.scale = scale, .positive = &activation};
  const Convolution<S> back2{.input = grad,
                             .weight = block.weight2,
                             .transposed = true,
                             .epilogue = mask,
                             .output = grad_hidden};
  const auto [grad_weight2, grad_bias2] = parameter_gradients(
      activation, grad, block.weight2, scale, needs_params, needs_params, &back2);
  const auto hidden_grad = constant(grad_hidden);
  const Epilogue<S> skip{.residual = &grad};
  std::optional<Images<S>> target;
  std::optional<Convolution<S>> back1;
  if (grad_x) {
    target = images<S>(*grad_x);
    back1.emplace(Convolution<S>{.input = hidden_grad,
                                 .weight = block.weight1,
                                 .transposed = true,
                                 .epilogue = skip,
                                 .output = *target});
  }
  const auto [grad_weight1, grad_bias1] =
      parameter_gradients(images<const S>(x), hidden_grad, block.weight1, Accumulator<S>(1),
                          needs_params, needs_params, back1 ? &*back1 : nullptr);
  return {grad_weight1, grad_bias1, grad_weight2, grad_bias2};
}

// The maps after the blocks of `kept`, and the hidden maps of all if they are to be saved.
std::tuple<Tensors, Tensors> forward(const char* op, const ResidualChain& chain, double res_scale,
                                     const std::vector<int64_t>& kept, bool save_hidden) {
  const auto& blocks = chain.blocks;
  Tensor x = chain.x;
  Tensors maps, hiddens;
  Tensor scratch[2];  // maps that are not kept, written in turn
  for (size_t i = 0; i < blocks.size(); ++i) {
    const bool keeps = kept[maps.size()] == static_cast<int64_t>(i) + 1;
    if (!keeps && !scratch[i % 2].defined()) scratch[i % 2] = empty_map(x);
    const Tensor output = keeps ? empty_map(x) : scratch[i % 2];
    if (save_hidden) {
      hiddens.push_back(empty(x, hidden_shape(x, blocks[i]), MemoryFormat::ChannelsLast));
    }
    dispatch(op, x.scalar_type(), [&](auto zero) {
      forward_block<decltype(zero)>(x, blocks[i], res_scale,
                                    save_hidden ? &hiddens.back() : nullptr, output);
    });
    if (keeps) maps.push_back(output);
    x = output;
  }
  return {maps, hiddens};
}

// Gradients of x and of each block's parameters. Those of the maps after blocks `at` are given.
std::tuple<Tensor, Tensors, Tensors, Tensors, Tensors> backward(const char* op,
                                                                const SavedChain& chain,
                                                                std::vector<int64_t> at,
                                                                double res_scale, bool needs_x,
                                                                bool needs_params) {
  const auto& [x, blocks] = static_cast<const ResidualChain&>(chain);
  const size_t count = blocks.size();
  Tensors grad_maps = chain.grad_maps;
  Tensors weights1(count), biases1(count), weights2(count), biases2(count);
  Tensor grad = grad_maps.back();
  grad_maps.pop_back(), at.pop_back();
  for (size_t i = count; i-- > 0;) {
    const bool needs_images = needs_x || i > 0;
    const Tensor grad_input = needs_images ? empty_map(x) : absent(x);
    dispatch(op, x.scalar_type(), [&](auto zero) {
      using S = decltype(zero);
      std::tie(weights1[i], biases1[i], weights2[i], biases2[i]) =
          backward_block<S>(grad, i > 0 ? chain.maps[i - 1] : x, chain.hiddens[i], blocks[i],
                            res_scale, needs_images ? &grad_input : nullptr, needs_params);
      if (at.empty() || at.back() != static_cast<int64_t>(i)) return;
      sum<S>({grad_input, grad_maps.back()}, grad_input);
      grad_maps.pop_back(), at.pop_back();
    });
    grad = grad_input;
  }
  return {grad, weights1, biases1, weights2, biases2};
}

}  // namespace

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden) {
  const char* op = "residual_block";
  const BlockParameters block{weight1, bias1, weight2, bias2};
  check_residual_block(op, x, block);
  const auto [maps, hiddens] = forward(op, {x, {block}}, res_scale, {1}, save_hidden);
  return {maps[0], save_hidden ? hiddens[0] : absent(x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params) {
  const char* op = "residual_block_backward";
  const BlockParameters block{weight1, std::nullopt, weight2, std::nullopt};
  check_residual_block(op, x, block);
  check_backward(op, "grad_output", x, grad_output, shape_of(x));
  check_backward(op, "hidden", x, hidden, hidden_shape(x, block));
  const SavedChain chain{{x, {block}}, {grad_output}, {}, {hidden}};
  const auto [grad_x, weights1, biases1, weights2, biases2] =
      backward(op, chain, {1}, res_scale, needs_x, needs_params);
  return {grad_x, weights1[0], biases1[0], weights2[0], biases2[0]};
}

std::tuple<Tensors, Tensors> residual_blocks(Tensors xs, Tensors weights1, Tensors biases1,
                                             Tensors weights2, Tensors biases2, double res_scale,
                                             std::vector<int64_t> kept, bool save_hidden) {
  const char* op = "residual_blocks";
  const auto chains = check_residual_blocks(op, xs, weights1, biases1, weights2, biases2);
  check_block_numbers(op, "kept", kept, chains[0].blocks.size());
  std::vector<Tensors> maps, hiddens;
  for (const ResidualChain& chain : chains) {
    const auto [of_kept, of_all] = forward(op, chain, res_scale, kept, save_hidden);
    maps.push_back(of_kept), hiddens.push_back(of_all);
  }
  return {block_by_block(maps), block_by_block(hiddens)};
}

std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> residual_blocks_backward(
    Tensors grad_maps, std::vector<int64_t> at, Tensors xs, Tensors maps, Tensors hiddens,
    Tensors weights1, Tensors weights2, double res_scale, bool needs_x, bool needs_params) {
  const char* op = "residual_blocks_backward";
  const auto chains =
      check_residual_blocks_backward(op, grad_maps, at, xs, maps, hiddens, weights1, weights2);
  Tensors grad_xs;
  std::array<std::vector<Tensors>, 4> grads;
  for (const SavedChain& chain : chains) {
    const auto [grad_x, grads1, biases1, grads2, biases2] =
        backward(op, chain, at, res_scale, needs_x, needs_params);
    grad_xs.push_back(grad_x);
    grads[0].push_back(grads1), grads[1].push_back(biases1);
    grads[2].push_back(grads2), grads[3].push_back(biases2);
  }
  return {grad_xs, block_by_block(grads[0]), block_by_block(grads[1]), block_by_block(grads[2]),
          block_by_block(grads[3])};
}

}  // namespace clsd::cpu
