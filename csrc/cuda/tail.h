// The composed tail (docs/tail.md) as kernels take it: no CUDA headers, no torch.
//
// Along an axis, an output pixel `factor * y + i` depends on the input pixels y - 2 to y + 2. The
// weights by which it does are numbered by their reach: 0 to 4 are those of every y, from the pixel
// y + reach - 2; 5 and 6 are further ones of the first y, from y and y + 1; 7 and 8 of the last y,
// from y and y - 1. Each tap of the axis belongs to one reach and one i.
//
// The K * factor^2 numbers of an output pixel's square are columns (i * factor + j) * K + k, so that
// those of a row i lie side by side in a dense [N, H, W, K] image. They come in chunks of 16.
#pragma once

#include <cstdint>
#include <vector>

#include "packing.h"

namespace clsd::cuda {

constexpr int kReaches = 9, kEveryReaches = 5;
constexpr int kMaxFactor = 4, kMaxTaps = 26, kMaxAfterTaps = 10, kMaxMapRows = 9, kMaxPaths = 96;
constexpr int kChunk = 16, kMaxColumns = 48;
// Pairs of 16 x 16 weights, which the lanes of a warp hold as the second operand of two products.
constexpr int kFragmentPairs = kSlice * kChunk / 2;
// Tails of a launch, whose parameters may be 4 KiB.
constexpr int kMaxTails = 8;

// Which tap leads by a reach to output pixel i of the square, or -1; and back.
struct TailReaches {
  int8_t tap[kReaches][kMaxFactor];
  int8_t reach[kMaxTaps], i[kMaxTaps];
};

// The ways by which a pixel's taps come about (`TailPath` of csrc/tail_axis.h), sorted by tap: those
// of tap t are from begin[t] to begin[t + 1]. And by row and tap after it: at most one tap of every
// pixel and one at an edge, with their signs, 0 for none.
struct TailPaths {
  int8_t begin[kMaxTaps + 1];
  int8_t row[kMaxPaths], after[kMaxPaths], sign[kMaxPaths];
  int8_t taps[kMaxMapRows * kMaxAfterTaps][2], signs[kMaxMapRows * kMaxAfterTaps][2];
};

// A tap, of a composed weight or of what follows a stage: its column, row and output.
struct TailTap {
  int x, y, k;
};

// What is common to the tails of a call.
struct TailShape {
  int64_t batch;
  int height, width, channels, outputs, factor;
  int taps;    // of an axis
  bool inner;  // whether the reaches 6 and 8 have taps
  TailReaches reaches;
  int32_t column_offsets[kMaxColumns];  // from the first number of a square, in its image

  CLSD_HOST_DEVICE int columns() const { return outputs * factor * factor; }
  CLSD_HOST_DEVICE int chunks() const { return (columns() + kChunk - 1) / kChunk; }
  CLSD_HOST_DEVICE int slices() const { return channels / kSlice; }
  // Of the laid out weights, all reaches.
  CLSD_HOST_DEVICE int fragments() const { return kReaches * kReaches * chunks() * slices(); }
};

// A stage of a tail and what follows it: the last convolution, [K, M, 3, 3] of any strides, or a
// composed weight [M + 1, taps, taps, K].
struct TailStage {
  Global<const float> weight, bias, after;  // bias may be null
  Global<const float> shift_weight;         // of the last stage alone (TailShift), or null
  int64_t weight_strides[4], bias_stride, after_strides[4];
  int channels, features, outputs, factor;  // C, M, K, and what the stage shuffles by
  int after_taps;
  bool last;
  Divisor by_outputs, by_after_taps, by_map_rows;

  CLSD_HOST_DEVICE int map_rows() const { return 3 * factor; }
  CLSD_HOST_DEVICE int pairs() const { return map_rows() * map_rows(); }
  CLSD_HOST_DEVICE int after_size() const { return after_taps * after_taps * outputs; }
  // Of what follows, tap number n.
  CLSD_HOST_DEVICE TailTap after_tap(int n) const {
    const int line = by_outputs.quotient(n), x = by_after_taps.quotient(line);
    return {x, by_after_taps.rest(line, x), by_outputs.rest(n, line)};
  }
};

// What is done to the last convolution's outputs: weight [K, K] and bias [K], or null. Shifted
// outputs and their gradients are of float.
struct TailShift {
  Global<const float> weight, bias;
};

template <class T>
struct Tail {
  TailStage stage;
  Global<float> products;        // of the stage with what follows, [pair, C + 1, after_size]
  Global<float> composed;        // [C + 1, taps, taps, K]
  Global<uint32_t> weights;      // pairs of T: the composed weight as products of matrices read it
  Global<const float> out_bias;  // may be null
  int64_t out_bias_stride;
  TailShift shift;
  // Dense [N, H, W, C]: x, the output or what it is shifted to, and the gradients of all.
  Global<const T> input;
  Global<T> output;
  Global<float> shifted;
  Global<const T> grad;
  Global<const float> grad_shifted;
  Global<T> grad_input;
};

template <class T>
struct Tails {
  Tail<T> at[kMaxTails];
  int count;
};

// The gradient of the composed weight.
template <class T>
struct WeightsGradient {
  Global<const T> grad, input;       // of the output, and x; dense [N, H, W, C]
  Global<const float> grad_shifted;  // in place of the output's, or null
  Global<float> partials;
  Global<float> grad_composed;  // [taps, taps, K, C + 1], by columns and rows
  Global<float> grad_bias;      // of the last convolution, or of what it becomes by the shift
};

template <class T>
struct WeightsGradients {
  WeightsGradient<T> at[kMaxTails];
  int count;
};

// Gradients of a stage's parameters and of what follows it.
struct StageGradient {
  TailStage stage;
  Global<const float> grad;  // of the composed weight, [taps, taps, K, C + 1]
  Global<float> grad_weight, grad_bias;
  int64_t weight_strides[4];
  Global<float> partials;    // of the gradient of what follows, [pair, M + 1, after_size]
  Global<float> grad_after;  // of the last convolution's weight, or [taps, taps, K, M + 1]
  int64_t after_strides[4];
  // Of the last convolution, where its outputs are shifted: from the gradient of the shifted bias.
  Global<const float> grad_shifted_bias;
  Global<float> grad_out_bias;
};

struct StageGradients {
  StageGradient at[kMaxTails];
  int count;
};

// Each is one launch for all of them. `taps` are those of an axis of the composed weight.
template <class T>
void multiply_stages(const Tails<T>& tails, Stream stream);
template <class T>
void compose(const Tails<T>& tails, const TailPaths& paths, int taps, Stream stream);
// Compose and lay out for the forward; or lay out what has been composed for the gradient.
template <class T>
void compose_and_lay_out(const Tails<T>& tails, const TailShape& shape, const TailPaths& paths,
                         Stream stream);
template <class T>
void lay_out_transposed(const Tails<T>& tails, const TailShape& shape, Stream stream);
template <class T>
void apply(const Tails<T>& tails, const TailShape& shape, Stream stream);
template <class T>
void differentiate_images(const Tails<T>& tails, const TailShape& shape, Stream stream);
// Two launches.
template <class T>
void differentiate_weights(const WeightsGradients<T>& tails, const TailShape& shape, Stream stream);
// Two launches.
void differentiate_stages(const StageGradients& tails, const TailPaths& paths, int taps,
                          Stream stream);

// Floats of the workspace of each tail's partials, of `count` tails.
int64_t partial_floats(const TailShape& shape, int count);

}  // namespace clsd::cuda
