// The CPU operators; schemas are in clsd_fast/_library.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace clsd::cpu {

using torch::stable::Tensor;

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu, double negative_slope, std::optional<Tensor> slopes);
std::tuple<Tensor, Tensor, Tensor> conv3x3_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                    double res_scale, bool needs_x,
                                                    bool needs_weight, bool needs_bias);

std::vector<Tensor> conv3x3s(std::vector<Tensor> xs, std::vector<Tensor> weights,
                             std::vector<Tensor> biases, std::optional<Tensor> residual);
std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> conv3x3s_backward(
    std::vector<Tensor> grad_outputs, std::vector<Tensor> xs, std::vector<Tensor> weights,
    bool needs_x, bool needs_params, bool needs_residual);

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params);

std::tuple<std::vector<Tensor>, std::vector<Tensor>> residual_blocks(
    std::vector<Tensor> xs, std::vector<Tensor> weights1, std::vector<Tensor> biases1,
    std::vector<Tensor> weights2, std::vector<Tensor> biases2, double res_scale,
    std::vector<int64_t> kept, bool save_hidden);
std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>,
           std::vector<Tensor>>
residual_blocks_backward(std::vector<Tensor> grad_maps, std::vector<int64_t> at,
                         std::vector<Tensor> xs, std::vector<Tensor> maps,
                         std::vector<Tensor> hiddens, std::vector<Tensor> weights1,
                         std::vector<Tensor> weights2, double res_scale, bool needs_x,
                         bool needs_params);

Tensor pixel_shuffle_upsample(Tensor x, Tensor weight, std::optional<Tensor> bias,
                              int64_t upscale_factor);
std::tuple<Tensor, Tensor, Tensor> pixel_shuffle_upsample_backward(Tensor grad_output, Tensor x,
                                                                   Tensor weight,
                                                                   int64_t upscale_factor,
                                                                   bool needs_x, bool needs_weight,
                                                                   bool needs_bias);

std::tuple<Tensor, Tensor> upsample_tail(Tensor x, Tensor up_weight1,
                                         std::optional<Tensor> up_bias1,
                                         std::optional<Tensor> up_weight2,
                                         std::optional<Tensor> up_bias2, Tensor out_weight,
                                         std::optional<Tensor> out_bias, int64_t upscale_factor);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> upsample_tail_backward(
    Tensor grad_output, Tensor x, Tensor composed, Tensor up_weight1,
    std::optional<Tensor> up_bias1, std::optional<Tensor> up_weight2,
    std::optional<Tensor> up_bias2, Tensor out_weight, int64_t upscale_factor, bool needs_x,
    bool needs_params);

std::tuple<std::vector<Tensor>, std::vector<Tensor>> upsample_tails(
    std::vector<Tensor> xs, std::vector<Tensor> up_weights1, std::vector<Tensor> up_biases1,
    std::vector<Tensor> up_weights2, std::vector<Tensor> up_biases2,
    std::vector<Tensor> out_weights, std::vector<Tensor> out_biases,
    std::optional<Tensor> shift_weight, std::optional<Tensor> shift_bias, int64_t upscale_factor);
std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>,
           std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>
upsample_tails_backward(std::vector<Tensor> grad_outputs, std::vector<Tensor> xs,
                        std::vector<Tensor> composed, std::vector<Tensor> up_weights1,
                        std::vector<Tensor> up_biases1, std::vector<Tensor> up_weights2,
                        std::vector<Tensor> up_biases2, std::vector<Tensor> out_weights,
                        std::optional<Tensor> shift_weight, int64_t upscale_factor, bool needs_x,
                        bool needs_params);

Tensor pairwise_similarity(Tensor query, Tensor key, std::string metric);
std::tuple<Tensor, Tensor> pairwise_similarity_backward(Tensor grad_output, Tensor query,
                                                        Tensor key, std::string metric);

std::tuple<Tensor, std::vector<Tensor>> info_nce(Tensor query, Tensor positive_key,
                                                 std::optional<Tensor> negative_keys,
                                                 std::optional<Tensor> mask,
                                                 std::optional<Tensor> labels,
                                                 std::optional<Tensor> learned_temperature,
                                                 double temperature, std::string reduction,
                                                 bool save_gradients);
std::vector<Tensor> info_nce_backward(Tensor grad_loss, Tensor statistics, Tensor query,
                                      Tensor positive_key, std::optional<Tensor> negative_keys,
                                      std::optional<Tensor> mask, std::optional<Tensor> labels,
                                      std::optional<Tensor> learned_temperature, double temperature,
                                      std::string reduction);

std::tuple<Tensor, Tensor, Tensor> distance_ratio_loss(Tensor anchor, Tensor positive,
                                                       std::optional<Tensor> negatives, double eps);
std::tuple<Tensor, Tensor, Tensor> distance_ratio_loss_backward(
    Tensor grad_loss, Tensor positive_distance, Tensor negative_distance, Tensor anchor,
    Tensor positive, std::optional<Tensor> negatives, double eps);

}  // namespace clsd::cpu
