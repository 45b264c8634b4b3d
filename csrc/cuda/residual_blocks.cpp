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

// Of chains of one shape.
void check_all_channels(const char* op, const ResidualChain& chain) {
  for (const BlockParameters& block : chain.blocks) check_channels(op, block.weight1);
}

Tensor empty_nhwc(const Tensor& x, const Shape& shape) {
  return empty(x, shape, MemoryFormat::ChannelsLast);
}

// The convolutions of each block of a chain, and what they read and write, until they are launched.
template <class T>
class ForwardChain {
 public:
  std::vector<Convolution<T>> first, second;
  std::vector<Output> outputs;  // the maps after the blocks of `kept`
  Tensors hiddens;

  // `fused` says of each block whether it is one kernel.
  ForwardChain(const ResidualChain& chain, const std::vector<bool>& fused, double res_scale,
               const std::vector<int64_t>& kept, bool save_hidden)
      : images_(as_nhwc(chain.x)) {
    const auto& [x, blocks] = chain;
    const Shape shape = shape_of(x);
    Tensor input = images_;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const bool keeps = kept[outputs.size()] == static_cast<int64_t>(i) + 1;
      if (keeps) outputs.emplace_back(x, shape, memory_format(x));
      if (!keeps && !scratch_[i % 2].defined()) scratch_[i % 2] = empty_nhwc(x, shape);
      const Tensor output = keeps ? outputs.back().written() : scratch_[i % 2];
      const Shape hidden = hidden_shape(x, blocks[i]);
      if (fused[i]) {
        hiddens.push_back(output);  // neither written nor read: it stands for one of its shape
      } else {
        const bool reuses = !save_hidden && i > 0 && has_shape(hiddens[i - 1], hidden);
        hiddens.push_back(reuses ? hiddens[i - 1] : empty_nhwc(x, hidden));
      }
      first.push_back(forward_convolution<T>(input, blocks[i].weight1, hiddens[i]));
      first[i].activates = true;
      second.push_back(forward_convolution<T>(hiddens[i], blocks[i].weight2, output));
      second[i].residual = to_global<T>(input);
      second[i].scale = static_cast<float>(res_scale);
      input = output;
    }
  }

 private:
  Tensor images_, scratch_[2];  // the latter for maps that are not kept, written in turn
};

// The same of the gradients of a chain's images. Without needs_x, the first block has one alone.
template <class T>
class BackwardChain {
 public:
  std::vector<Convolution<T>> first, second;
  std::optional<Output> output;  // of x

  BackwardChain(const SavedChain& chain, const std::vector<int64_t>& at, double res_scale,
                bool needs_x)
      : first(chain.blocks.size()), second(first.size()), grads_(first.size() + 1, chain.x) {
    const auto& [x, blocks] = static_cast<const ResidualChain&>(chain);
    const size_t count = blocks.size();
    if (needs_x) grads_[0] = output.emplace(x, shape_of(x), memory_format(x)).written();
    for (size_t i = 1; i < count; ++i) grads_[i] = empty_nhwc(x, shape_of(x));
    grads_[count] = as_nhwc(chain.grad_maps.back());
    for (size_t i = 0; i < count; ++i) {
      inputs_.push_back(as_nhwc(i > 0 ? chain.maps[i - 1] : x));
      activations_.push_back(as_nhwc(chain.hiddens[i]));
      hidden_grads_.push_back(empty_nhwc(x, hidden_shape(x, blocks[i])));
      second[i] = input_gradient<T>(grads_[i + 1], blocks[i].weight2, hidden_grads_[i]);
      second[i].scale = static_cast<float>(res_scale);
      second[i].positive = to_global<T>(activations_[i]);
      if (i == 0 && !needs_x) continue;
      first[i] = input_gradient<T>(hidden_grads_[i], blocks[i].weight1, grads_[i]);
      first[i].residual = to_global<T>(grads_[i + 1]);
    }
    for (size_t j = 0; j + 1 < at.size(); ++j) {
      tapped_.push_back(as_nhwc(chain.grad_maps[j]));
      first[static_cast<size_t>(at[j])].added = to_global<T>(tapped_[j]);
    }
  }

  // Of the parameters of block `i`, once the images' are there.
  WeightGradient<T> first_weight(size_t i, const ParameterGradients& grads) const {
    const auto outputs = static_cast<int>(activations_[i].size(1));
    return weight_gradient<T>(hidden_grads_[i], inputs_[i], grads, outputs);
  }
  WeightGradient<T> second_weight(size_t i, const ParameterGradients& grads) const {
    const auto outputs = static_cast<int>(inputs_[i].size(1));
    return weight_gradient<T>(grads_[i + 1], activations_[i], grads, outputs, second[i].scale);
  }

 private:
  // Of maps, x first, and of the hidden ones; of both, what the forward has made; what is added.
  Tensors grads_, hidden_grads_, inputs_, activations_, tapped_;
};

// Run the convolutions of all chains' blocks `i`.
template <class T, template <class> class Chain>
void convolve_all(const std::vector<Chain<T>>& chains,
                  std::vector<Convolution<T>> Chain<T>::* convolutions, size_t i, Stream stream) {
  ConvolutionList<T> list;
  for (const Chain<T>& chain : chains) list.push_back((chain.*convolutions)[i]);
  convolve(list, stream);
}

// The maps after the blocks of `kept`, and the hidden maps of all if they are to be saved.
std::tuple<Tensors, Tensors> forward(const char* op, const std::vector<ResidualChain>& given,
                                     double res_scale, const std::vector<int64_t>& kept,
                                     bool save_hidden) {
  const auto& [x, blocks] = given[0];
  check_all_channels(op, given[0]);
  const Device device(x);
  std::vector<bool> fused;
  for (const BlockParameters& block : blocks) {
    fused.push_back(!save_hidden && fuses_residual_block(x.size(0), x.size(2), x.size(3), x.size(1),
                                                         block.weight1.size(0)));
  }
  Tensors maps, hiddens;
  dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    std::vector<ForwardChain<T>> chains;
    for (const ResidualChain& chain : given) {
      chains.emplace_back(chain, fused, res_scale, kept, save_hidden);
    }
    PackedParameters<T> packed;
    for (size_t c = 0; c < chains.size(); ++c) {
      for (size_t i = 0; i < blocks.size(); ++i) {
        const BlockParameters& block = given[c].blocks[i];
        packed.add(chains[c].first[i], block.weight1, block.bias1);
        packed.add(chains[c].second[i], block.weight2, block.bias2);
      }
    }
    packed.pack(x, device.stream());
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (fused[i]) {
        for (const auto& chain : chains) {
          convolve_residual_block(chain.first[i], chain.second[i], device.stream());
        }
      } else {
        convolve_all(chains, &ForwardChain<T>::first, i, device.stream());
        convolve_all(chains, &ForwardChain<T>::second, i, device.stream());
      }
    }
    for (size_t i = 0; i < kept.size(); ++i) {
      for (auto& chain : chains) maps.push_back(chain.outputs[i].finish());
    }
    for (size_t i = 0; i < blocks.size() && save_hidden; ++i) {
      for (const auto& chain : chains) hiddens.push_back(chain.hiddens[i]);
    }
  });
  return {maps, hiddens};
}

// Gradients of every x and of the parameters of each block. Those of the maps after blocks `at` are
// given.
std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> backward(
    const char* op, const std::vector<SavedChain>& given, const std::vector<int64_t>& at,
    double res_scale, bool needs_x, bool needs_params) {
  const auto& [x, blocks] = static_cast<const ResidualChain&>(given[0]);
  check_all_channels(op, given[0]);
  const size_t count = blocks.size();
  std::vector<ParameterGradients> first_grads, second_grads;
  for (size_t i = 0; i < count; ++i) {
    for (const SavedChain& chain : given) {
      first_grads.emplace_back(chain.blocks[i].weight1, needs_params, needs_params);
      second_grads.emplace_back(chain.blocks[i].weight2, needs_params, needs_params);
    }
  }
  Tensors grad_xs;
  if (needs_x || needs_params) {
    const Device device(x);
    dispatch_16_bit(op, x.scalar_type(), [&](auto type) {
      using T = decltype(type);
      std::vector<BackwardChain<T>> chains;
      for (const SavedChain& chain : given) chains.emplace_back(chain, at, res_scale, needs_x);
      PackedParameters<T> packed;
      for (size_t c = 0; c < chains.size(); ++c) {
        for (size_t i = 0; i < count; ++i) {
          const BlockParameters& block = given[c].blocks[i];
          packed.add_transposed(chains[c].second[i], block.weight2);
          if (i > 0 || needs_x) packed.add_transposed(chains[c].first[i], block.weight1);
        }
      }
      packed.pack(x, device.stream());
      for (size_t i = count; i-- > 0;) {
        convolve_all(chains, &BackwardChain<T>::second, i, device.stream());
        if (i == 0 && !needs_x) continue;
        convolve_all(chains, &BackwardChain<T>::first, i, device.stream());
      }
      for (BackwardChain<T>& chain : chains) {
        if (needs_x) grad_xs.push_back(chain.output->finish());
      }
      if (!needs_params) return;
      WeightGradients<T> weights;
      for (size_t i = 0; i < first_grads.size(); ++i) {
        const BackwardChain<T>& chain = chains[i % chains.size()];
        const size_t block = i / chains.size();
        weights.push_back(chain.first_weight(block, first_grads[i]));
        weights.push_back(chain.second_weight(block, second_grads[i]));
      }
      compute<T>(weights, x, device.stream());
    });
  }
  if (grad_xs.empty()) grad_xs.assign(given.size(), absent(x));
  Tensors weights1, biases1, weights2, biases2;
  for (size_t i = 0; i < first_grads.size(); ++i) {
    weights1.push_back(first_grads[i].weight), biases1.push_back(first_grads[i].bias);
    weights2.push_back(second_grads[i].weight), biases2.push_back(second_grads[i].bias);
  }
  return {grad_xs, weights1, biases1, weights2, biases2};
}

}  // namespace

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden) {
  const char* op = "residual_block";
  const BlockParameters block{weight1, bias1, weight2, bias2};
  check_residual_block(op, x, block);
  const auto [maps, hiddens] = forward(op, {{x, {block}}}, res_scale, {1}, save_hidden);
  return {maps[0], save_hidden ? hiddens[0] : absent(x)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params) {
  const char* op = "residual_block_backward";
  const BlockParameters block{weight1, std::nullopt, weight2, std::nullopt};
  check_backward(op, "hidden", x, hidden, check_residual_block(op, x, block));
  check_backward(op, "grad_output", x, grad_output, shape_of(x));
  const SavedChain chain{{x, {block}}, {grad_output}, {}, {hidden}};
  const auto [grad_xs, weights1, biases1, weights2, biases2] =
      backward(op, {chain}, {1}, res_scale, needs_x, needs_params);
  return {grad_xs[0], weights1[0], biases1[0], weights2[0], biases2[0]};
}

std::tuple<Tensors, Tensors> residual_blocks(Tensors xs, Tensors weights1, Tensors biases1,
                                             Tensors weights2, Tensors biases2, double res_scale,
                                             std::vector<int64_t> kept, bool save_hidden) {
  const char* op = "residual_blocks";
  const auto chains = check_residual_blocks(op, xs, weights1, biases1, weights2, biases2);
  check_block_numbers(op, "kept", kept, chains[0].blocks.size());
  return forward(op, chains, res_scale, kept, save_hidden);
}

std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> residual_blocks_backward(
    Tensors grad_maps, std::vector<int64_t> at, Tensors xs, Tensors maps, Tensors hiddens,
    Tensors weights1, Tensors weights2, double res_scale, bool needs_x, bool needs_params) {
  const char* op = "residual_blocks_backward";
  const auto chains =
      check_residual_blocks_backward(op, grad_maps, at, xs, maps, hiddens, weights1, weights2);
  return backward(op, chains, at, res_scale, needs_x, needs_params);
}

}  // namespace clsd::cuda
