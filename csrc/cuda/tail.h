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
constexpr int kStageRows = 6;  // of the map of the first of two stages
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
  Global<const float> shift_weight;         // of the last stage in a forward (TailShift), or null
  int64_t weight_strides[4], bias_stride, after_strides[4];
  int channels, features, outputs, factor;  // C, M, K, and what the stage shuffles by
  int after_taps;
  bool last;
  Divisor by_outputs, by_after_taps, by_map_rows;

  CLSD_HOST_DEVICE int map_rows() const { return 3 * factor; }
  CLSD_HOST_DEVICE int pairs() const { return map_rows() * map_rows(); }
  CLSD_HOST_DEVICE int after_size() const { return after_taps * after_taps * outputs; }
  // Of what follows: a composed weight has one more, which is 1 everywhere.
  CLSD_HOST_DEVICE int after_channels() const { return last ? features : features + 1; }
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

// A composed weight, and the products of a stage with what follows that it is summed from.
struct Composition {
  Global<float> products;  // [pair, C + 1, after_size]; null where there is nothing to compose
  Global<float> composed;  // [C + 1, taps, taps, K]
  int channels, outputs, factor, taps, after_taps;

  CLSD_HOST_DEVICE int size() const { return (channels + 1) * taps * taps * outputs; }
};

template <class T>
struct Tail {
  TailStage stage;
  Composition composition;
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
  Global<const float> shift_weight;  // or null
  Global<float> partials;
  // Of what is composed without the shift, [C + 1, taps, taps, K], and of the last bias.
  Global<float> grad_composed, grad_bias;
  Composition after;  // what follows the first of two stages, composed beside the gradient
};

template <class T>
struct WeightsGradients {
  WeightsGradient<T> at[kMaxTails];
  int count;
};

// Gradients of a stage's parameters, and the parts that so many pairs each have in the gradient of
// what follows it.
struct StageGradient {
  TailStage stage;
  Global<const float> grad;  // of the composed weight, [C + 1, taps, taps, K]: so many parts of it
  int grad_parts, pairs_of_part;
  Global<float> grad_weight, grad_bias;
  int64_t weight_strides[4];
  Global<float> partials;         // [part, after_channels, taps, taps, K]
  Global<float> grad_out_weight;  // of the last convolution, after the last stage
  int64_t out_strides[4];

  CLSD_HOST_DEVICE int parts() const { return stage.pairs() / pairs_of_part; }
};

struct StageGradients {
  StageGradient at[kMaxTails];
  int count;
};

// Each is one launch for all of them. `taps` are those of an axis of the composed weight.
template <class T>
void multiply_stages(const Tails<T>& tails, Stream stream);
template <class T>
void compose(const Tails<T>& tails, const TailPaths& paths, Stream stream);
// Compose and lay out for the forward.
template <class T>
void compose_and_lay_out(const Tails<T>& tails, const TailShape& shape, const TailPaths& paths,
                         Stream stream);
// Lay out what has been composed for the gradient of the images, where there are places for that,
// and multiply the stages, where there are for their products.
template <class T>
void prepare_gradients(const Tails<T>& tails, const TailShape& shape, Stream stream);
template <class T>
void apply(const Tails<T>& tails, const TailShape& shape, Stream stream);
template <class T>
void differentiate_images(const Tails<T>& tails, const TailShape& shape, Stream stream);
// Two launches. `paths` are those of what is composed beside.
template <class T>
void differentiate_weights(const WeightsGradients<T>& tails, const TailShape& shape,
                           const TailPaths& paths, Stream stream);
void differentiate_stages(const StageGradients& tails, const TailPaths& paths, int taps,
                          Stream stream);
void sum_out_weights(const StageGradients& tails, Stream stream);

// Floats of the workspace of each tail's partials, of `count` tails.
int64_t partial_floats(const TailShape& shape, int count);

}  // namespace clsd::cuda
