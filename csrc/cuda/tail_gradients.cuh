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

// Sum of a task's partials of ones for a column: in double, as some are subtracted again.
__device__ __forceinline__ double sum_of_ones(const TailShape& shape, Global<const float> partials,
                                              const WeightsTask& task, int column) {
  const int64_t step = int64_t{shape.chunks()} * kChunk;
  return sum_of_numbers<double>(partials + (task.ones + column), step, task.splits);
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

// Number `index` of the composed weight's gradient, [taps, taps, K, C + 1]; behind them come those
// of the last bias.
template <class T>
__global__ void __launch_bounds__(kReducingThreads)
    reduce_kernel(const __grid_constant__ WeightsGradients<T> tails,
                  const __grid_constant__ TailShape shape,
                  const __grid_constant__ WeightsPlan plan) {
  const WeightsGradient<T>& tail = tails.at[blockIdx.y];
  const Global<const float> partials = tail.partials;
  const int index = static_cast<int>(blockIdx.x * kReducingThreads + threadIdx.x);
  const int c = index % (shape.channels + 1), tap = index / (shape.channels + 1);
  const int taps = shape.taps * shape.taps * shape.outputs;
  if (tap >= taps) {
    const int k = index - taps * (shape.channels + 1);
    if (k >= shape.outputs) return;
    double sum = 0;
    for (int square = 0; square < shape.factor * shape.factor; ++square) {
      sum += sum_of_ones(shape, partials, plan.tasks[0], square * shape.outputs + k);
    }
    store(tail.grad_bias + k, static_cast<float>(sum));
    return;
  }
  const int k = tap % shape.outputs, y = tap / shape.outputs % shape.taps;
  const int x = tap / (shape.outputs * shape.taps);
  const int reach_y = shape.reaches.reach[y], reach_x = shape.reaches.reach[x];
  const int column = (shape.reaches.i[y] * shape.factor + shape.reaches.i[x]) * shape.outputs + k;
  float sum = 0;
  if (c < shape.channels) {
    const WeightsTask& task = plan.task(reach_y, reach_x);
    const int window = (task.reach_y < 0 ? reach_y * (task.reach_x < 0 ? kWindow : 1) : 0) +
                       (task.reach_x < 0 ? reach_x : 0);
    const int64_t lines = int64_t{task.windows()} * kChunk;
    const int64_t line = column / kChunk * lines + window * kChunk + column % kChunk;
    const int64_t step = shape.chunks() * lines * shape.channels;
    sum = sum_of_numbers(partials + (task.partials + line * shape.channels + c), step, task.splits);
  } else {
    double of_ones = 0;
    for_each_part(reach_y, [&](int sign_y, int end_y) {
      for_each_part(reach_x, [&](int sign_x, int end_x) {
        of_ones += sign_y * sign_x * sum_of_ones(shape, partials, plan.task(end_y, end_x), column);
      });
    });
    sum = static_cast<float>(of_ones);
  }
  store(tail.grad_composed + index, sum);
}

}  // namespace wgrad

// Gradient of the products by a pair's rows with tap n of what follows, of each channel: the sum of
// those of the taps that the product is a part of.
class ProductGradient {
 public:
  __device__ __forceinline__ ProductGradient(const StageGradient& tail, const TailPaths& paths,
                                             int taps, int pair, int n)
      : grad_(tail.grad), exists_(n < tail.stage.after_size()), lines_(tail.stage.channels + 1) {
    const TailStage& stage = tail.stage;
    const TailTap after = stage.after_tap(exists_ ? n : 0);
    const int map_row = stage.by_map_rows.quotient(pair);
    const int row = map_row * stage.after_taps + after.y;
    const int column = stage.by_map_rows.rest(pair, map_row) * stage.after_taps + after.x;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int tap = (paths.taps[column][j] * taps + paths.taps[row][i]) * stage.outputs;
        signs_[i][j] = paths.signs[row][i] * paths.signs[column][j];
        lines_at_[i][j] = int64_t{tap + after.k} * lines_;
      }
    }
  }

  __device__ __forceinline__ float operator()(int c) const {
    if (!exists_ || c >= lines_) return 0;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (signs_[i][j] != 0) {
          const float number = load(grad_ + (lines_at_[i][j] + c));
          sum += signs_[i][j] < 0 ? -number : number;
        }
      }
    }
    return sum;
  }

 private:
  Global<const float> grad_;
  int64_t lines_at_[2][2];
  int signs_[2][2];
  bool exists_;
  int lines_;
};

// Gradient of a stage's weights of a pair, [c, m].
__device__ __forceinline__ void differentiate_weights(const StageGradient& tail,
                                                      const TailPaths& paths, int taps, int number,
                                                      int c, int m) {
  const TailStage& stage = tail.stage;
  const StagePair pair(stage, number);
  MatrixSums sums{};
  const auto gradient = [&](int row) {
    return [&, row](int n) { return ProductGradient(tail, paths, taps, number, n)(c + row); };
  };
  const auto following = [&](int column) {
    return [&, column](int n) { return Following(stage, n)(m + column); };
  };
  multiply_matrices(sums, stage.after_size(), gradient, following);
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

// The part that a pair has in the gradient of what follows, [m, n].
__device__ __forceinline__ void differentiate_after(const StageGradient& tail,
                                                    const TailPaths& paths, int taps, int number,
                                                    int m, int n) {
  const TailStage& stage = tail.stage;
  const StagePair pair(stage, number);
  MatrixSums sums{};
  const auto responses = [&](int row) {
    return [&, row](int c) { return response(stage, pair, c, m + row); };
  };
  const auto gradient = [&](int column) {
    return ProductGradient(tail, paths, taps, number, n + column);
  };
  multiply_matrices(sums, stage.channels + 1, responses, gradient);
  const int rows = stage.features + 1, columns = stage.after_size();
  store_matrix(sums, rows - m, columns - n, [&](int row, int column, float sum) {
    store(tail.partials + ((int64_t{number} * rows + m + row) * columns + n + column), sum);
  });
}

// How many blocks of a stage there are for its weights, and for what follows it.
CLSD_HOST_DEVICE inline int weights_blocks(const TailStage& stage) {
  return stage.pairs() * matrix_tiles(stage.channels + 1) * matrix_tiles(stage.features);
}
CLSD_HOST_DEVICE inline int after_blocks(const TailStage& stage) {
  return stage.pairs() * matrix_tiles(stage.features + 1) * matrix_tiles(stage.after_size());
}

inline __global__ void __launch_bounds__(kMatrixThreads, 3)
    stage_gradient_kernel(const __grid_constant__ StageGradients tails,
                          const __grid_constant__ TailPaths paths, int taps) {
  const StageGradient& tail = tails.at[blockIdx.y];
  const TailStage& stage = tail.stage;
  int block = static_cast<int>(blockIdx.x);
  if (block < weights_blocks(stage)) {
    const int tiles_c = matrix_tiles(stage.channels + 1), tiles_m = matrix_tiles(stage.features);
    differentiate_weights(tail, paths, taps, block / (tiles_c * tiles_m),
                          block % tiles_c * kMatrixTile, block / tiles_c % tiles_m * kMatrixTile);
    return;
  }
  block -= weights_blocks(stage);
  if (block >= after_blocks(stage)) return;  // of a smaller tail
  const int tiles_m = matrix_tiles(stage.features + 1), tiles_n = matrix_tiles(stage.after_size());
  differentiate_after(tail, paths, taps, block / (tiles_m * tiles_n), block % tiles_m * kMatrixTile,
                      block / tiles_m % tiles_n * kMatrixTile);
}

// Sum the parts of the pairs, and over the outputs that the last convolution's is shifted to.
inline __global__ void __launch_bounds__(kComposingThreads)
    sum_after_kernel(const __grid_constant__ StageGradients tails) {
  const StageGradient& tail = tails.at[blockIdx.y];
  const TailStage& stage = tail.stage;
  const int size = stage.after_size(), lines = stage.features + 1;
  const int index = static_cast<int>(blockIdx.x * kComposingThreads + threadIdx.x);
  const int n = index % size, m = index / size;
  if (m >= lines) return;
  // Of the sums of what each output is shifted to, that of output k.
  const int outputs = stage.outputs, k = n % outputs;
  const auto shifted_back = [&](const auto& sum_of) {
    float sum = 0;
    for (int j = 0; j < outputs; ++j) {
      sum += load(stage.shift_weight + (j * outputs + k)) * sum_of(j);
    }
    return sum;
  };
  if (stage.last && m == stage.features) {
    if (!tail.grad_out_bias || n >= outputs) return;
    store(tail.grad_out_bias + n,
          shifted_back([&](int j) { return load(tail.grad_shifted_bias + j); }));
    return;
  }
  const Global<const float> partials = tail.partials + (int64_t{m} * size + n);
  const int64_t step = int64_t{lines} * size;
  float sum;
  if (stage.shift_weight) {  // several sums one after another, at x2 each at once
    sum = shifted_back(
        [&](int j) { return sum_of_numbers<float, 36>(partials + (j - k), step, stage.pairs()); });
  } else {
    sum = sum_of_numbers(partials, step, stage.pairs());
  }
  const int64_t at =
      stage.last ? out_offset(tail.after_strides, m, stage.after_tap(n)) : int64_t{n} * lines + m;
  store(tail.grad_after + at, sum);
}

}  // namespace clsd::cuda::tail
