// Gradients of composed tails' weights: that of the composed weight, summed over the pixels by
// tensor cores, and those of the layers' parameters from it, in float32.
#pragma once

#include "tail_apply.cuh"

namespace clsd::cuda::tail {

// The gradient of the weights of some reaches is a product of the output's gradient with the input,
// over the pixels that have them: all, or one row, column or corner of every image. Such an edge of
// all images is taken as the rows of one, so that a task's tiles are full.
struct WeightsTask {
  int8_t reach_y, reach_x;  // of the ends; -1 for those of every pixel
  int tiles_of_split, splits;
  int64_t tiles;
  int64_t first_block;
  int64_t partials, ones;  // where they begin, in floats

  CLSD_HOST_DEVICE bool is_every() const { return reach_y < 0 && reach_x < 0; }
  CLSD_HOST_DEVICE int windows() const {
    return (reach_y < 0 ? kWindow : 1) * (reach_x < 0 ? kWindow : 1);
  }
};

// By end of the rows and of the columns: none, and 5 to 8 as 1 to 4.
constexpr int kAxisTasks = 1 + kReaches - kEveryReaches;
constexpr int kMaxTasks = kAxisTasks * kAxisTasks;

struct WeightsPlan {
  WeightsTask tasks[kMaxTasks];
  Divisor tiles_x, tiles_y;  // of an image
  int64_t blocks;            // of a tail, for each chunk and 64 channels
  int64_t floats;            // of a tail's partials
  int groups;                // of 64 channels

  CLSD_HOST_DEVICE const WeightsTask& task(int reach_y, int reach_x) const {
    const auto number = [](int reach) {
      return reach < kEveryReaches ? 0 : reach - kEveryReaches + 1;
    };
    return tasks[number(reach_y) * kAxisTasks + number(reach_x)];
  }
};

namespace wgrad {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // each has 8 of 64 channels
constexpr int kPieces = kWarps;
using InputTile = PieceLayout<kInputH * kInputW, kPieces>;
using GradTile = PieceLayout<kTileH * kTileW, kChunk / kPiece>;
constexpr uint32_t kStageBytes = InputTile::kBytes + GradTile::kBytes;
constexpr uint32_t kSharedBytes = 2 * kStageBytes;
static_assert(GradTile::kCount == kThreads);

// The pixels of a task, seen as rows and columns.
template <class T, class O>
struct PixelView {
  Global<const O> grad;
  Global<const T> input;
  int64_t grad_row, grad_column;
  int64_t input_row, input_column;
  int rows, columns, input_rows;  // no input rows for an edge whose neighbour does not exist
};

template <class O, class T>
__device__ PixelView<T, O> view_of_image(const TailShape& shape, const WeightsGradient<T>& tail,
                                         int64_t n) {
  const int64_t row = int64_t{shape.width} * shape.channels;
  return {grad_of<O>(tail) + square_offset(shape, n, 0, 0),
          tail.input + n * shape.height * row,
          square_offset(shape, 0, 1, 0),
          square_offset(shape, 0, 0, 1),
          row,
          shape.channels,
          shape.height,
          shape.width,
          shape.height};
}

// The pixel of an axis that has an end's reach, and the one it reaches from.
struct EdgePixel {
  int at, from;

  __device__ EdgePixel(int reach, int size)
      : at(reach < kEveryReaches + 2 ? 0 : size - 1),
        from(at + Step<false>::moved(reach) - kBorder) {}
};

// An edge of all images: their rows are the images.
template <class O, class T>
__device__ PixelView<T, O> view_of_edge(const TailShape& shape, const WeightsGradient<T>& tail,
                                        const WeightsTask& task) {
  PixelView<T, O> view = view_of_image<O>(shape, tail, 0);
  bool exists = true;
  int columns = 1;
  int64_t grad_column = 0, input_column = 0;
  const auto select = [&](int reach, int size, int64_t grad_step, int64_t input_step) {
    if (reach < 0) {
      columns = size, grad_column = grad_step, input_column = input_step;
      return;
    }
    const EdgePixel pixel(reach, size);
    exists = exists && pixel.from >= 0 && pixel.from < size;
    view.grad = view.grad + pixel.at * grad_step;
    view.input = view.input + pixel.from * input_step;
  };
  select(task.reach_y, shape.height, view.grad_row, view.input_row);
  select(task.reach_x, shape.width, view.grad_column, view.input_column);
  view.grad_row = view.grad_row * shape.height, view.input_row = view.input_row * shape.height;
  view.grad_column = grad_column, view.input_column = input_column;
  view.rows = static_cast<int>(shape.batch), view.columns = columns;
  view.input_rows = exists ? view.rows : 0;
  return view;
}

// 8 columns of the chunk for one pixel of the tile at (y, x), as they come from memory.
template <class T, class O>
__device__ __forceinline__ ColumnNumbers<O> gather_grad(const TailShape& shape,
                                                        const PixelView<T, O>& view, int y, int x,
                                                        int chunk) {
  const int pixel = static_cast<int>(threadIdx.x) / 2, piece = threadIdx.x % 2;
  const int row = y + pixel / kTileW, column = x + pixel % kTileW;
  const bool exists = row < view.rows && column < view.columns;
  const Global<const O> square = view.grad + (row * view.grad_row + column * view.grad_column);
  return gather_square(shape, square, chunk * kChunk + 8 * piece, exists);
}

template <int kWindowRows>
using WindowSums = float[kWindowRows][kWindow][4];

// Add the products of a tile: kWindowRows rows of the input see each row of the gradient.
template <class T, int kWindowRows>
__device__ __forceinline__ void multiply_tile(WindowSums<kWindowRows>& sums, uint32_t input,
                                              uint32_t grad) {
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  grad += GradTile::offset(lane % 8 + matrix / 2 * 8, matrix % 2);
  // Two shifts at once; the last one twice.
  const uint32_t shifts = input + InputTile::offset(lane % 8 + matrix % 2 * 8, threadIdx.x / 32);
  const uint32_t second = matrix / 2 * kPieceBytes;
  uint32_t rows[kWindowRows][4] = {};  // of the gradient, the last one first
#pragma unroll
  for (int from = 0; from < kTileH + kWindowRows - 1; ++from) {
#pragma unroll
    for (int i = kWindowRows - 1; i > 0; --i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) rows[i][k] = rows[i - 1][k];
    }
    if (from < kTileH) ldmatrix_transposed(rows[0], grad + from * kTileW * kPieceBytes);
    uint32_t pixels[3][4];
    const uint32_t row = shifts + from * kInputW * kPieceBytes;
    ldmatrix_transposed(pixels[0], row + second);
    ldmatrix_transposed(pixels[1], row + second + 2 * kPieceBytes);
    ldmatrix_transposed(pixels[2], row + 4 * kPieceBytes);
#pragma unroll
    for (int window = 0; window < kWindowRows; ++window) {
      if (from < window || from - window >= kTileH) continue;
#pragma unroll
      for (int x = 0; x < kWindow; ++x) {
        const uint32_t pair[2] = {pixels[x / 2][x % 2 * 2], pixels[x / 2][x % 2 * 2 + 1]};
        mma<T>(sums[window][x], rows[window], pair);
      }
    }
  }
}

// A block's share of a task: some of its tiles, a chunk of columns and 64 channels.
struct Share {
  int64_t first, last;
  int split, chunk, group;
};

template <class O, class T>
__device__ PixelView<T, O> view_of_tile(const TailShape& shape, const WeightsPlan& plan,
                                        const WeightsTask& task, const WeightsGradient<T>& tail,
                                        int tile, int& y, int& x) {
  if (task.is_every()) {
    const int row = plan.tiles_x.quotient(tile), n = plan.tiles_y.quotient(row);
    y = plan.tiles_y.rest(row, n) * kTileH, x = plan.tiles_x.rest(tile, row) * kTileW;
    return view_of_image<O>(shape, tail, n);
  }
  const auto view = view_of_edge<O>(shape, tail, task);
  const int across = (view.columns + kTileW - 1) / kTileW;
  y = tile / across * kTileH, x = tile % across * kTileW;
  return view;
}

template <int kWindowRows>
__device__ void write_partials(const TailShape& shape, const WeightsTask& task, const Share& share,
                               Global<float> partials, const WindowSums<kWindowRows>& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t place = int64_t{share.split} * shape.chunks() + share.chunk;
  const int channel = share.group * kGroup + warp * kPiece + lane % 4 * 2;
  const bool is_corner = task.windows() == 1;
  if (channel < shape.channels) {
    const Global<float> target =
        partials + (task.partials + place * task.windows() * kChunk * shape.channels + channel);
#pragma unroll
    for (int y = 0; y < kWindowRows; ++y) {
#pragma unroll
      for (int x = 0; x < kWindow; ++x) {
        if (is_corner && x != kBorder) continue;
        const int window = is_corner ? 0 : y * kWindow + x;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t line = window * kChunk + lane / 4 + 8 * half;
          store_pair(target + line * shape.channels,
                     float2{sums[y][x][2 * half], sums[y][x][2 * half + 1]});
        }
      }
    }
  }
}

// A thread's sums of the 8 columns that it gathers, over its pixel of every tile: not by tensor
// cores, which round sums over so many pixels more coarsely.
using ColumnSums = float[8];

template <class T>
__device__ __forceinline__ void add_columns(ColumnSums& sums, const uint4& grad) {
  const uint32_t pairs[4] = {grad.x, grad.y, grad.z, grad.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 numbers = unpack<T>(pairs[i]);
    sums[2 * i] += numbers.x, sums[2 * i + 1] += numbers.y;
  }
}

// Sum them over the threads, 8 pixels first and then 16 of those sums. After a barrier.
__device__ inline void write_column_sums(const TailShape& shape, const WeightsTask& task,
                                         const Share& share, Global<float> partials,
                                         const ColumnSums& sums) {
  constexpr int kParts = kThreads / kChunk, kPixels = kTileH * kTileW / kParts;
  constexpr uint32_t kFloat = sizeof(float), kPartSums = kThreads * 8 * kFloat;
  const int thread = threadIdx.x, column = thread % kChunk, part = thread / kChunk;
#pragma unroll
  for (int i = 0; i < 8; ++i) store_shared<float>((thread * 8 + i) * kFloat, sums[i]);
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kPixels; ++i) {
    sum += load_shared<float>(((part * kPixels + i) * kChunk + column) * kFloat);
  }
  store_shared<float>(kPartSums + thread * kFloat, sum);
  __syncthreads();
  if (part > 0) return;
  for (int i = 1; i < kParts; ++i) {
    sum += load_shared<float>(kPartSums + (i * kChunk + column) * kFloat);
  }
  const int64_t place = int64_t{share.split} * shape.chunks() + share.chunk;
  store(partials + (task.ones + place * kChunk + column), sum);
}

template <class T, class O, int kWindowRows>
__device__ __forceinline__ void sum_share(const TailShape& shape, const WeightsPlan& plan,
                                          const WeightsTask& task, const WeightsGradient<T>& tail,
                                          const Share& share) {
  constexpr int kRows = kTileH + kWindowRows - 1, kAbove = kWindowRows / 2;
  const int channel = share.group * kGroup;
  ColumnNumbers<O> grad{};
  // Ask for a tile's input, and for its gradient.
  const auto load = [&](int64_t tile, int stage) {
    int y, x;
    const auto view = view_of_tile<O>(shape, plan, task, tail, static_cast<int>(tile), y, x);
    const ImageView<T> input{view.input, view.input_row, view.input_column, view.input_rows,
                             view.columns};
    copy_tile<InputTile, kRows, kInputW, kPieces, kThreads>(stage * kStageBytes, input, y - kAbove,
                                                            x - kBorder, channel,
                                                            (shape.channels - channel) / kPiece);
    cp_async_commit();
    grad = gather_grad(shape, view, y, x, share.chunk);
  };
  ColumnSums columns{};
  const auto place_grad = [&](int stage) {
    const uint4 piece = grad.template piece<T>();
    add_columns<T>(columns, piece);
    store_shared(stage * kStageBytes + InputTile::kBytes +
                     GradTile::offset(threadIdx.x / 2, threadIdx.x % 2),
                 piece);
  };
  WindowSums<kWindowRows> sums{};
  load(share.first, 0);
  place_grad(0);
#pragma unroll 1
  for (int64_t tile = share.first; tile < share.last; ++tile) {
    const int stage = static_cast<int>(tile - share.first) % 2;
    cp_async_wait<0>();
    __syncthreads();  // all see this tile, and have left the one before
    if (tile + 1 < share.last) load(tile + 1, 1 - stage);
    multiply_tile<T, kWindowRows>(sums, stage * kStageBytes,
                                  stage * kStageBytes + InputTile::kBytes);
    if (tile + 1 < share.last) place_grad(1 - stage);
  }
  write_partials<kWindowRows>(shape, task, share, tail.partials, sums);
  if (share.group > 0) return;
  __syncthreads();  // all have left the last tile
  write_column_sums(shape, task, share, tail.partials, columns);
}

template <class T, class O>
__global__ void __launch_bounds__(kThreads, 1)
    weights_gradient_kernel(const __grid_constant__ WeightsGradients<T> tails,
                            const __grid_constant__ TailShape shape,
                            const __grid_constant__ WeightsPlan plan) {
  const int parts = shape.chunks() * plan.groups, part = static_cast<int>(blockIdx.x) % parts;
  const int block = static_cast<int>(blockIdx.x) / parts;
  int number = 0;
  while (number + 1 < kMaxTasks && block >= plan.tasks[number + 1].first_block) ++number;
  const WeightsTask& task = plan.tasks[number];
  const int split = block - static_cast<int>(task.first_block);
  const int64_t first = int64_t{split} * task.tiles_of_split, last = first + task.tiles_of_split;
  const Share share{first, last < task.tiles ? last : task.tiles, split, part % shape.chunks(),
                    part / shape.chunks()};
  if (task.is_every()) {
    sum_share<T, O, kWindow>(shape, plan, task, tails.at[blockIdx.y], share);
  } else {
    sum_share<T, O, 1>(shape, plan, task, tails.at[blockIdx.y], share);
  }
}

constexpr int kReducingThreads = 128;

// Of the outputs of a tap, a number each.
template <class Sum>
using OutputSums = Sum[kFewChannels];

// Add to each output's sum its `count` partials, from first(output) on and `step` apart, in their
// order; those of all outputs are on their way at once.
template <class Sum, class First>
__device__ __forceinline__ void add_partials(OutputSums<Sum>& sums, int outputs, const First& first,
                                             int64_t step, int count) {
  constexpr int kAtOnce = 12;
  Global<const float> numbers[kFewChannels];
#pragma unroll
  for (int k = 0; k < kFewChannels; ++k) numbers[k] = first(k < outputs ? k : 0);
#pragma unroll 1
  for (int at = 0; at < count; at += kAtOnce) {
    float part[kAtOnce][kFewChannels];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int k = 0; k < kFewChannels; ++k) {
        part[i][k] = at + i < count && k < outputs ? load(numbers[k] + (at + i) * step) : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int k = 0; k < kFewChannels; ++k) sums[k] += part[i][k];
    }
  }
}

// Add a task's partials of ones for the columns of a tap, from the first output's on: in double, as
// some are subtracted again.
__device__ __forceinline__ void add_ones(OutputSums<double>& sums, const TailShape& shape,
                                         Global<const float> partials, const WeightsTask& task,
                                         int column) {
  const auto first = [&](int k) { return partials + (task.ones + column + k); };
  add_partials(sums, shape.outputs, first, int64_t{shape.chunks()} * kChunk, task.splits);
}

// The same over the pixels of an axis that have a neighbour by a reach: call visit(sign, reach) for
// the ends, or none (0), whose sums make it up.
template <class Visit>
__device__ __forceinline__ void for_each_part(int reach, const Visit& visit) {
  if (reach >= kEveryReaches) {
    if (reach == kEveryReaches || reach == kEveryReaches + 2) visit(1, reach);
    return;  // by an edge's neighbour, no bias reaches anything
  }
  if (reach < kBorder - 1 || reach > kBorder + 1) return;  // biases reach no further
  visit(1, 0);
  if (reach == kBorder - 1) visit(-1, kEveryReaches);
  if (reach == kBorder + 1) visit(-1, kEveryReaches + 2);
}

// The shift's matrix, if there is one, through which gradients go back. It is asked for before sums
// are, to be there after them.
class ShiftBack {
 public:
  __device__ __forceinline__ ShiftBack(Global<const float> weight, int outputs)
      : outputs_(outputs), exists_(weight) {
#pragma unroll
    for (int i = 0; i < kFewChannels * kFewChannels; ++i) {
      const int j = i / kFewChannels, k = i % kFewChannels;
      const bool loads = exists_ && j < outputs && k < outputs;
      weight_[j][k] = loads ? load(weight + (j * outputs + k)) : 0;
    }
  }

  // Store the gradients of a tap's outputs, number k at offset(k).
  template <class Sum, class Offset>
  __device__ __forceinline__ void store_sums(Global<float> target, const OutputSums<Sum>& sums,
                                             const Offset& offset) const {
#pragma unroll
    for (int k = 0; k < kFewChannels; ++k) {
      if (k >= outputs_) break;
      Sum sum = exists_ ? 0 : sums[k];
#pragma unroll
      for (int j = 0; j < kFewChannels; ++j) {
        if (exists_ && j < outputs_) sum += weight_[j][k] * sums[j];
      }
      store(target + offset(k), static_cast<float>(sum));
    }
  }

 private:
  float weight_[kFewChannels][kFewChannels];
  int outputs_;
  bool exists_;
};

// Of a tap of the composed weight: its reaches, the first of its outputs' columns, and where the
// gradient of channel c and output k is stored.
struct ReducedTap {
  int x, y, reach_y, reach_x, column;

  __device__ ReducedTap(const TailShape& shape, int tap)
      : x(tap / shape.taps),
        y(tap % shape.taps),
        reach_y(shape.reaches.reach[y]),
        reach_x(shape.reaches.reach[x]),
        column((shape.reaches.i[y] * shape.factor + shape.reaches.i[x]) * shape.outputs) {}

  __device__ int64_t offset(const TailShape& shape, int c, int k) const {
    return composed_offset(shape.taps, shape.outputs, c, TailTap{x, y, k});
  }
};

// The gradients of channel c at a tap, of all outputs.
template <class T>
__device__ __forceinline__ void reduce_tap(const WeightsGradient<T>& tail, const TailShape& shape,
                                           const WeightsPlan& plan, const ShiftBack& back, int c,
                                           const ReducedTap& tap) {
  const WeightsTask& task = plan.task(tap.reach_y, tap.reach_x);
  const int window = (task.reach_y < 0 ? tap.reach_y * (task.reach_x < 0 ? kWindow : 1) : 0) +
                     (task.reach_x < 0 ? tap.reach_x : 0);
  const int64_t lines = int64_t{task.windows()} * kChunk;
  const auto first = [&](int k) {
    const int column = tap.column + k;
    const int64_t line = column / kChunk * lines + window * kChunk + column % kChunk;
    return Global<const float>(tail.partials) + (task.partials + line * shape.channels + c);
  };
  OutputSums<float> sums{};
  add_partials(sums, shape.outputs, first, shape.chunks() * lines * shape.channels, task.splits);
  back.store_sums(tail.grad_composed, sums, [&](int k) { return tap.offset(shape, c, k); });
}

// Those of the channel that is 1 everywhere.
template <class T>
__device__ __forceinline__ void reduce_ones(const WeightsGradient<T>& tail, const TailShape& shape,
                                            const WeightsPlan& plan, const ShiftBack& back,
                                            const ReducedTap& tap) {
  OutputSums<double> sums{};
  for_each_part(tap.reach_y, [&](int sign_y, int end_y) {
    for_each_part(tap.reach_x, [&](int sign_x, int end_x) {
      OutputSums<double> part{};
      add_ones(part, shape, tail.partials, plan.task(end_y, end_x), tap.column);
#pragma unroll
      for (int k = 0; k < kFewChannels; ++k) sums[k] += sign_y * sign_x * part[k];
    });
  });
  back.store_sums(tail.grad_composed, sums,
                  [&](int k) { return tap.offset(shape, shape.channels, k); });
}

// The gradients of the last bias.
template <class T>
__device__ __forceinline__ void reduce_bias(const WeightsGradient<T>& tail, const TailShape& shape,
                                            const WeightsPlan& plan, const ShiftBack& back) {
  OutputSums<double> sums{};
  for (int square = 0; square < shape.factor * shape.factor; ++square) {
    add_ones(sums, shape, tail.partials, plan.tasks[0], square * shape.outputs);
  }
  back.store_sums(tail.grad_bias, sums, [](int k) { return k; });
}

// A thread sums a channel at a tap, its neighbour the next channel, which lies beside it; those
// behind, each a tap of the channel of ones, and one the bias. Blocks behind them compose what
// follows the first of two stages.
template <class T>
__global__ void __launch_bounds__(kReducingThreads)
    reduce_kernel(const __grid_constant__ WeightsGradients<T> tails,
                  const __grid_constant__ TailShape shape, const __grid_constant__ WeightsPlan plan,
                  const __grid_constant__ TailPaths paths, int blocks_of_sums) {
  const WeightsGradient<T>& tail = tails.at[blockIdx.y];
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (block >= blocks_of_sums) {
    compose_number(tail.after, paths, (block - blocks_of_sums) * kReducingThreads + thread);
    return;
  }
  const int index = block * kReducingThreads + thread;
  const ShiftBack back(tail.shift_weight, shape.outputs);
  const int taps = shape.taps * shape.taps, numbers = taps * shape.channels;
  if (index < numbers) {
    const ReducedTap tap(shape, index / shape.channels);
    reduce_tap(tail, shape, plan, back, index % shape.channels, tap);
  } else if (index < numbers + taps) {
    reduce_ones(tail, shape, plan, back, ReducedTap(shape, index - numbers));
  } else if (index == numbers + taps) {
    reduce_bias(tail, shape, plan, back);
  }
}

}  // namespace wgrad

// Gradient of the products by a pair's rows with tap n of what follows, of each channel: the sum of
// those of the taps that the product is a part of. kParts: each is a sum of several parts itself.
template <bool kParts>
class ProductGradient {
 public:
  __device__ __forceinline__ ProductGradient(const StageGradient& tail, const TailPaths& paths,
                                             int taps, int pair, int n)
      : grad_(tail.grad),
        channels_(n < tail.stage.after_size() ? tail.stage.channels + 1 : 0),
        size_(taps * taps * tail.stage.outputs),
        parts_(tail.grad_parts) {
    const TailStage& stage = tail.stage;
    const TailTap after = stage.after_tap(channels_ > 0 ? n : 0);
    const int map_row = stage.by_map_rows.quotient(pair);
    const int row = map_row * stage.after_taps + after.y;
    const int column = stage.by_map_rows.rest(pair, map_row) * stage.after_taps + after.x;
#pragma unroll
    for (int way = 0; way < kWays; ++way) {
      const int y = way / 2, x = way % 2;
      at_[way] = (paths.taps[column][x] * taps + paths.taps[row][y]) * stage.outputs + after.k;
      signs_[way] = paths.signs[row][y] * paths.signs[column][x];
      several_ = several_ || (way > 0 && signs_[way] != 0);
    }
  }

  __device__ __forceinline__ float operator()(int c) const {
    if (c >= channels_) return 0;
    float sum = number(0, c);
    if (!several_) return sum;  // as most have one tap alone
#pragma unroll
    for (int way = 1; way < kWays; ++way) sum += number(way, c);
    return sum;
  }

 private:
  static constexpr int kWays = 4;

  __device__ __forceinline__ float number(int way, int c) const {
    if (signs_[way] == 0) return 0;
    const Global<const float> first = grad_ + (c * size_ + at_[way]);
    float number;
    if constexpr (kParts) {
      number = sum_of_numbers<kStageRows>(first, int64_t{channels_} * size_, parts_);
    } else {
      number = load(first);
    }
    return signs_[way] < 0 ? -number : number;
  }

  Global<const float> grad_;
  int channels_, size_, parts_;
  int at_[kWays], signs_[kWays];
  bool several_ = false;
};

// Gradient of a stage's weights of a pair, [c, m].
template <bool kParts>
__device__ __forceinline__ void differentiate_weights(const StageGradient& tail,
                                                      const TailPaths& paths, int taps, int number,
                                                      int c, int m) {
  const TailStage& stage = tail.stage;
  const StagePair pair(stage, number);
  // Of rows of the bias alone, those of other pairs are 0.
  const int depth = c < stage.channels || pair.is_center ? stage.after_size() : 0;
  MatrixSums sums{};
  const auto gradient = [&](int n) {
    const ProductGradient<kParts> products(tail, paths, taps, number, n);
    return [=](int row) { return products(c + row); };
  };
  const auto following = [&](int n) {
    const Following numbers(stage, n);
    return [=](int column) { return numbers(m + column); };
  };
  multiply_matrices<Lanes::kDepths, Lanes::kDepths>(sums, depth, gradient, following);
  store_matrix(sums, stage.channels + 1 - c, stage.features - m,
               [&](int row, int column, float sum) {
    const int output = pair.output(stage, m + column);
    if (c + row < stage.channels) {
      store(tail.grad_weight + pair.offset(tail.weight_strides, output, c + row), sum);
    } else if (pair.is_center) {
      store(tail.grad_bias + output, sum);
    }
  });
}

// Part number `part` of the gradient of what follows, [m, n]: that of some pairs.
template <bool kParts>
__device__ __forceinline__ void differentiate_after(const StageGradient& tail,
                                                    const TailPaths& paths, int taps, int part,
                                                    int m, int n) {
  const TailStage& stage = tail.stage;
  MatrixSums sums{};
#pragma unroll 1
  for (int i = 0; i < tail.pairs_of_part; ++i) {
    const int number = part * tail.pairs_of_part + i;
    const StagePair pair(stage, number);
    // Rows of what passes biases on alone have numbers of the pixel's own square.
    const int channels = m < stage.features ? stage.channels : 0;
    const auto responses = [&](int c) {
      return [&, c](int row) { return response(stage, pair, c, m + row); };
    };
    const auto gradient = [&](int column) {
      return ProductGradient<kParts>(tail, paths, taps, number, n + column);
    };
    multiply_matrices<Lanes::kDepths, Lanes::kLines>(
        sums, pair.is_center ? stage.channels + 1 : channels, responses, gradient);
  }
  const int rows = stage.after_channels(), columns = stage.after_size();
  store_matrix(sums, rows - m, columns - n, [&](int row, int column, float sum) {
    store(tail.partials + ((int64_t{part} * rows + m + row) * columns + n + column), sum);
  });
}

// How many blocks of a stage there are for its weights, and for what follows it.
CLSD_HOST_DEVICE inline int weights_blocks(const TailStage& stage) {
  return stage.pairs() * matrix_tiles(stage.channels + 1) * matrix_tiles(stage.features);
}
CLSD_HOST_DEVICE inline int after_blocks(const StageGradient& tail) {
  const TailStage& stage = tail.stage;
  return tail.parts() * matrix_tiles(stage.after_channels()) * matrix_tiles(stage.after_size());
}

template <bool kParts>
__global__ void __launch_bounds__(kMatrixThreads, kMatrixBlocks)
    stage_gradient_kernel(const __grid_constant__ StageGradients tails,
                          const __grid_constant__ TailPaths paths, int taps) {
  const StageGradient& tail = tails.at[blockIdx.y];
  const TailStage& stage = tail.stage;
  int block = static_cast<int>(blockIdx.x);
  if (block < weights_blocks(stage)) {
    const int tiles_c = matrix_tiles(stage.channels + 1), tiles_m = matrix_tiles(stage.features);
    differentiate_weights<kParts>(tail, paths, taps, block / (tiles_c * tiles_m),
                                  block % tiles_c * kMatrixTile,
                                  block / tiles_c % tiles_m * kMatrixTile);
    return;
  }
  block -= weights_blocks(stage);
  if (block >= after_blocks(tail)) return;  // of a smaller tail
  const int tiles_m = matrix_tiles(stage.after_channels());
  const int tiles_n = matrix_tiles(stage.after_size());
  differentiate_after<kParts>(tail, paths, taps, block / (tiles_m * tiles_n),
                              block % tiles_m * kMatrixTile,
                              block / tiles_m % tiles_n * kMatrixTile);
}

// The gradient of the last convolution's weight: the sum of its parts. A lane has a number, of whose
// parts each warp sums a share.
constexpr int kSummingWarps = kComposingThreads / 32;

inline __global__ void __launch_bounds__(kComposingThreads)
    sum_out_weights_kernel(const __grid_constant__ StageGradients tails) {
  const StageGradient& tail = tails.at[blockIdx.y];
  const TailStage& stage = tail.stage;
  const int taps = stage.after_size(), size = stage.features * taps;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int index = static_cast<int>(blockIdx.x * 32 + threadIdx.x % 32);
  const int share = (tail.parts() + kSummingWarps - 1) / kSummingWarps, first = warp * share;
  const int rest = index < size ? tail.parts() - first : 0;
  const Global<const float> parts = tail.partials;
  float sum = sum_of_numbers<kMaxMapRows>(parts + (int64_t{first} * size + index), size,
                                          rest < share ? rest : share);
  store_shared<float>(threadIdx.x * static_cast<int>(sizeof(float)), sum);
  __syncthreads();
  if (warp > 0 || index >= size) return;
#pragma unroll
  for (int other = 1; other < kSummingWarps; ++other) {
    const int lane = other * 32 + static_cast<int>(threadIdx.x);
    sum += load_shared<float>(lane * static_cast<int>(sizeof(float)));
  }
  store(tail.grad_out_weight +
            out_offset(tail.out_strides, index / taps, stage.after_tap(index % taps)),
        sum);
}

}  // namespace clsd::cuda::tail
