// The CUDA operators; schemas are in clsd_fast/_library.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace clsd::cuda {

using torch::stable::Tensor;

Tensor conv3x3(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
               double res_scale, bool relu);
std::tuple<Tensor, Tensor, Tensor> conv3x3_backward(Tensor grad_output, Tensor x, Tensor weight,
                                                    double res_scale, bool needs_x,
                                                    bool needs_weight, bool needs_bias);

std::tuple<Tensor, Tensor> residual_block(Tensor x, Tensor weight1, std::optional<Tensor> bias1,
                                          Tensor weight2, std::optional<Tensor> bias2,
                                          double res_scale, bool save_hidden);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> residual_block_backward(
    Tensor grad_output, Tensor x, Tensor hidden, Tensor weight1, Tensor weight2, double res_scale,
    bool needs_x, bool needs_params);

Tensor pixel_shuffle_upsample(Tensor x, Tensor weight, std::optional<Tensor> bias,
                              int64_t upscale_factor);
std::tuple<Tensor, Tensor, Tensor> pixel_shuffle_upsample_backward(Tensor grad_output, Tensor x,
                                                                   Tensor weight,
                                                                   int64_t upscale_factor,
                                                                   bool needs_x, bool needs_weight,
                                                                   bool needs_bias);

}  // namespace clsd::cuda
