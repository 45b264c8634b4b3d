// The gradient of a Winograd convolution's weight: 36 products of inputs [C, Winograd tiles] with
// output gradients [Winograd tiles, K], transformed to taps at the end (winograd.h).
#pragma once

#include <algorithm>
#include <vector>

#include "winograd.h"

namespace clsd::cpu {

// The bands of all images are cut into groups, and the output channels into slices. One task adds
// up the products of one group and slice, which stay in its core's cache; then the groups' partials
// are added in order. Groups and slices depend on the shape alone, so there is one sum, in one
// order, for any number of threads.
template <class S>
class WinogradGradient {
 public:
  using T = Accumulator<S>;

  WinogradGradient(const Images<const S>& input, const Images<const S>& grad, int64_t tile)
      : input_(input),
        grad_(grad),
        bands_(input.height, input.width, tile),
        num_bands_(input.batch * bands_.bands),
        outputs_(round_up(grad.channels, kTileCols)),
        tap_count_(input.channels * outputs_ * bands_.taps()),
        groups_(num_groups(num_bands_, tap_count_, bands_.taps())) {
    for (int64_t k = 0; k < grad.channels; k += kWinogradSlice) {
      slices_.push_back(channel_slice(grad, k, std::min(kWinogradSlice, grad.channels - k)));
    }
  }

  // Of a 3x3 kernel; and convolve beside it, if there is a convolution, which needs none of its
  // results nor it that one's.
  void write(T scale, const Tensor* grad_weight, const Tensor* grad_bias,
             const Convolution<S>* beside = nullptr) const {
    Workspace workspace;
    double* sums = workspace.take<double>(groups_ * outputs_);
    const T* partials =
        beside ? convolve_beside(workspace, sums, *beside) : add_groups(workspace, sums);
    if (grad_weight) {
      write_weight_gradient(
          input_, grad_, scale, *grad_weight,
          [&](int64_t c, int64_t k, T* result) { total(partials, c, k, result); });
    }
    if (grad_bias) write_bias_gradient(grad_, scale, *grad_bias, sums, outputs_, groups_);
  }

  // The groups' partials of all taps. The sums of their pixels, [groups][K], go to `sums`, if given.
  const T* add_groups(Workspace& workspace, double* sums = nullptr) const {
    T* taps = workspace.take<T>(groups_ * tap_count_);
    parallel_tasks(0, num_tasks(), [&](const auto& take) { add_groups_of(taps, sums, take); });
    return taps;
  }

  // The tap gradients [taps][kTileCols] of input channel c and output channels [k, k + kTileCols).
  void total(const T* partials, int64_t c, int64_t k, T* result) const {
    const int64_t count = bands_.taps() * kTileCols;
    partials += k * input_.channels * bands_.taps() + c * count;
    std::copy_n(partials, count, result);
    for (int64_t group = 1; group < groups_; ++group) {
      partials += tap_count_;
      for (int64_t i = 0; i < count; ++i) result[i] += partials[i];
    }
  }

 private:
  const T* convolve_beside(Workspace& workspace, double* sums, const Convolution<S>& beside) const {
    T* taps = workspace.take<T>(groups_ * tap_count_);
    const WinogradBands bands(beside.input.height, beside.input.width, kWinogradTile3x3);
    const WinogradWeight<T> weight(workspace, beside.weights(), kernels_, bands.tile);
    const auto work = [&](const auto& take) { add_groups_of(taps, sums, take); };
    const auto work_beside = [&](const auto& take) {
      winograd_convolve_bands(beside, weight, bands, take);
    };
    parallel_tasks(TaskSet(0, num_tasks(), work),
                   TaskSet(0, beside.input.batch * bands.bands, work_beside));
    return taps;
  }

  int64_t num_tasks() const { return groups_ * static_cast<int64_t>(slices_.size()); }

  // A worker's part: its tasks are groups and slices.
  template <class Take>
  void add_groups_of(T* taps, double* sums, const Take& take) const {
    const auto slices = static_cast<int64_t>(slices_.size());
    for (int64_t task; take(task);) {
      const int64_t group = task / slices, k = task % slices * kWinogradSlice;
      add_group(group, slices_[static_cast<size_t>(task % slices)],
                taps + group * tap_count_ + k * bands_.taps() * input_.channels,
                sums ? sums + group * outputs_ + k : nullptr);
    }
  }

  // A band in a group for every three taps makes its partial cheap beside its products; eight groups
  // or more are work for as many threads. All partials take 16 MiB at most.
  static int64_t num_groups(int64_t num_bands, int64_t tap_count, int64_t taps) {
    const int64_t groups = std::min(num_bands, std::max<int64_t>(3 * num_bands / taps, 8));
    const int64_t bytes = tap_count * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(std::min(groups, (16 << 20) / bytes), 1);
  }

  // A group's tap gradients of a slice, [panels of K][C][taps][kTileCols], and the sums of its pixels.
  void add_group(int64_t group, const Images<const S>& grad, T* taps, double* sums) const {
    const WinogradKernels<T>& kernels = kernels_.winograd(bands_.tile);
    Workspace scratch;
    WinogradPatches<S> x(scratch, input_, bands_, kWinogradPatch);
    WinogradPatches<S> dy(scratch, grad, bands_, bands_.tile);
    const int64_t tiles = bands_.rows_per_band * bands_.columns;
    const WinogradMatrices<T> left(scratch, tiles, x.channels), right(scratch, tiles, dy.channels);
    const WinogradMatrices<T> products(scratch, round_up(input_.channels, kRowStep), dy.channels);
    const int64_t first = group * num_bands_ / groups_, last = (group + 1) * num_bands_ / groups_;
    if (first == last) std::fill_n(products.values, kFrequencies * products.stride, T(0));
    if (sums) std::fill_n(sums, dy.channels, 0.0);
    for (int64_t task = first; task < last; ++task) {
      const int64_t band = task % bands_.bands, count = bands_.tiles(band);
      x.load(task / bands_.bands, band);
      dy.load(task / bands_.bands, band);
      for (int64_t t = 0; t < count; ++t) {
        left.transform(t, x, t, kernels_.winograd_input);
        right.transform(t, dy, t, kernels.grad_output);
        if (!sums) continue;
        dy.visit(t, [&](int64_t c, const T* source, int64_t stride_h, int64_t stride_w,
                        int64_t channels) {
          kernels_.add_patch(sums + c, source, stride_h, stride_w, channels);
        });
      }
      multiply(left, right, count, task > first, products);
    }
    const int64_t count = bands_.taps() * kTileCols;
    for (int64_t c = 0; c < input_.channels; ++c) {
      for (int64_t k = 0; k < dy.channels; k += kTileCols) {
        kernels.grad_weight(taps + (k / kTileCols * input_.channels + c) * count,
                            products.at(0, c) + k, products.stride);
      }
    }
  }

  void multiply(const WinogradMatrices<T>& left, const WinogradMatrices<T>& right, int64_t tiles,
                bool add, const WinogradMatrices<T>& products) const {
    for (int64_t e = 0; e < kFrequencies; ++e) {
      const TileOperands<T> operands{
          .a = left.at(e, 0),
          .a_row = 1,
          .a_step = left.channels,
          .b = right.at(e, 0),
          .b_step = right.channels,
          .steps = tiles,
          .chain = kWinogradChain,
          .add = add,
          .rows = round_up(input_.channels, kRowStep),
          .acc_row = products.channels,
          .panels = products.channels / kTileCols,
          .b_panel = kTileCols,
      };
      kernels_.multiply(products.at(e, 0), operands);
    }
  }

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  const Images<const S>&input_, &grad_;
  WinogradBands bands_;
  int64_t num_bands_, outputs_, tap_count_, groups_;
  std::vector<Images<const S>> slices_;
};

}  // namespace clsd::cpu
