// Composing the weights of tails, and the gradients of what they are composed of; all in float32.
// The steps are those of docs/tail.md: a stage's products with what follows it, and their sums over
// the ways from a pixel to a tap.
#pragma once

#include "platform.cuh"
#include "tail.h"

namespace clsd::cuda::tail {

// Sum of `count` numbers that are `step` apart, in their order; many loads are on their way at once.
template <class Sum = float, int kAtOnce = 12>
__device__ __forceinline__ Sum sum_of_numbers(Global<const float> numbers, int64_t step,
                                              int count) {
  Sum sum = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += kAtOnce) {
    float part[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      part[i] = first + i < count ? load(numbers + (first + i) * step) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += part[i];
  }
  return sum;
}

// Products of small matrices: a block computes 32 x 32 numbers, each thread 2 x 2 of them, from
// tiles that lie depth by depth in shared memory. The depths of 64 channels and one that is 1
// everywhere are one tile: all its loads are on their way at once.
constexpr int kMatrixTile = 32, kMatrixDepth = 72, kMatrixThreads = 256;
constexpr uint32_t kTilePitch = (kMatrixTile + 2) * sizeof(float);  // rows of float2
constexpr uint32_t kSecondTile = kMatrixDepth * kTilePitch, kMatrixBytes = 2 * kSecondTile;
using MatrixSums = float[2][2];

__device__ __forceinline__ int matrix_row() { return static_cast<int>(threadIdx.x) / 16 * 2; }
__device__ __forceinline__ int matrix_column() { return static_cast<int>(threadIdx.x) % 16 * 2; }

// Numbers of a tile on their way through a thread: those of one line, whose numbers by depth are
// what numbers(line) returns.
constexpr int kDepthsAtOnce = kMatrixThreads / kMatrixTile;
using TileNumbers = float[kMatrixDepth / kDepthsAtOnce];

template <class Numbers>
__device__ __forceinline__ void load_numbers(TileNumbers& target, int first, int depths,
                                             const Numbers& numbers) {
  const auto number = numbers(static_cast<int>(threadIdx.x) % kMatrixTile);
#pragma unroll
  for (int i = 0; i < kMatrixDepth / kDepthsAtOnce; ++i) {
    const int depth = first + static_cast<int>(threadIdx.x) / kMatrixTile + i * kDepthsAtOnce;
    target[i] = depth < depths ? number(depth) : 0;
  }
}

__device__ __forceinline__ void store_numbers(uint32_t tile, const TileNumbers& numbers) {
#pragma unroll
  for (int i = 0; i < kMatrixDepth / kDepthsAtOnce; ++i) {
    const int depth = static_cast<int>(threadIdx.x) / kMatrixTile + i * kDepthsAtOnce;
    store_shared<float>(tile + depth * kTilePitch +
                            threadIdx.x % kMatrixTile * static_cast<int>(sizeof(float)),
                        numbers[i]);
  }
}

// sums += a b; a(row) and b(column) are functions of the depth, which give the numbers of a row and
// of a column of the block's tile, 0 where there is none.
template <class A, class B>
__device__ __forceinline__ void multiply_matrices(MatrixSums& sums, int depth, const A& a,
                                                  const B& b) {
#pragma unroll 1
  for (int first = 0; first < depth; first += kMatrixDepth) {
    TileNumbers rows_numbers, columns_numbers;
    load_numbers(rows_numbers, first, depth, a);
    load_numbers(columns_numbers, first, depth, b);
    __syncthreads();  // all have left the tiles before
    store_numbers(0, rows_numbers);
    store_numbers(kSecondTile, columns_numbers);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kMatrixDepth; ++k) {
      const auto rows = load_shared<float2>(k * kTilePitch + matrix_row() * sizeof(float));
      const auto columns =
          load_shared<float2>(kSecondTile + k * kTilePitch + matrix_column() * sizeof(float));
      sums[0][0] += rows.x * columns.x, sums[0][1] += rows.x * columns.y;
      sums[1][0] += rows.y * columns.x, sums[1][1] += rows.y * columns.y;
    }
  }
}

// Call store(row, column, sum) for the thread's numbers that exist.
template <class Store>
__device__ __forceinline__ void store_matrix(const MatrixSums& sums, int rows, int columns,
                                             const Store& store) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int row = matrix_row() + i, column = matrix_column() + j;
      if (row < rows && column < columns) store(row, column, sums[i][j]);
    }
  }
}

__host__ __device__ inline int matrix_tiles(int size) {
  return (size + kMatrixTile - 1) / kMatrixTile;
}

// The weights by which a pixel reaches a row and a column of the stage's map.
struct StagePair {
  int y, x;        // the tap
  int phase;       // of the pixel shuffle
  bool is_center;  // the pixel's own square, where its bias counts

  __device__ StagePair(const TailStage& stage, int pair) {
    const int rows = stage.map_rows(), row = pair / rows, column = pair % rows;
    y = 2 - row / stage.factor, x = 2 - column / stage.factor;
    phase = row % stage.factor * stage.factor + column % stage.factor;
    is_center = y == 1 && x == 1;
  }

  // Offset of output channel `output` and channel c in a weight of these strides.
  __device__ int64_t offset(const int64_t (&strides)[4], int output, int c) const {
    return output * strides[0] + c * strides[1] + y * strides[2] + x * strides[3];
  }

  // The output channel of the convolution that becomes channel m of the map.
  __device__ int output(const TailStage& stage, int m) const {
    return m * stage.factor * stage.factor + phase;
  }
};

// What channel c of a pixel adds to channel m of the map: the last of each is 1 everywhere.
__device__ __forceinline__ float response(const TailStage& stage, const StagePair& pair, int c,
                                          int m) {
  if (c > stage.channels || m > stage.features) return 0;
  if (m == stage.features) return c == stage.channels && pair.is_center ? 1 : 0;
  const int output = pair.output(stage, m);
  if (c < stage.channels) {
    return load(stage.weight + pair.offset(stage.weight_strides, output, c));
  }
  return pair.is_center && stage.bias ? load(stage.bias + output * stage.bias_stride) : 0;
}

// Offset in the last convolution's weight of a tap, whose rows and columns run backwards there.
__device__ __forceinline__ int64_t out_offset(const int64_t (&strides)[4], int m,
                                              const TailTap& tap) {
  return tap.k * strides[0] + m * strides[1] + (2 - tap.y) * strides[2] + (2 - tap.x) * strides[3];
}

// Tap n of what follows, on the channels of the map. Where the last convolution's outputs are
// shifted, it is a sum over them.
class Following {
 public:
  __device__ __forceinline__ Following(const TailStage& stage, int n) {
    channels_ = n >= stage.after_size() ? 0 : stage.last ? stage.features : stage.features + 1;
    step_ = stage.last ? stage.after_strides[1] : stage.after_size();
    TailTap tap = stage.after_tap(n);
    if (stage.shift_weight) {
      outputs_ = stage.outputs, output_step_ = stage.after_strides[0];
      shift_ = stage.shift_weight + tap.k * outputs_;
      tap.k = 0;
    }
    first_ = stage.after + (stage.last ? out_offset(stage.after_strides, 0, tap) : n);
  }

  __device__ __forceinline__ float operator()(int m) const {
    if (m >= channels_) return 0;
    const Global<const float> number = first_ + m * step_;
    if (outputs_ == 0) return load(number);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kFewChannels; ++k) {
      if (k < outputs_) sum += load(shift_ + k) * load(number + k * output_step_);
    }
    return sum;
  }

 private:
  Global<const float> first_, shift_;
  int64_t step_, output_step_;
  int channels_, outputs_ = 0;  // those that are summed over
};

// Block (tile of c, tile of n, pair) of tail z.
template <class T>
__global__ void __launch_bounds__(kMatrixThreads)
    products_kernel(const __grid_constant__ Tails<T> tails) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const TailStage& stage = tail.stage;
  const int rows = stage.channels + 1, columns = stage.after_size();
  const int tiles_c = matrix_tiles(rows), tiles_n = matrix_tiles(columns);
  const int block = static_cast<int>(blockIdx.x);
  const int c = block % tiles_c * kMatrixTile, n = block / tiles_c % tiles_n * kMatrixTile;
  const int number = block / (tiles_c * tiles_n);
  if (number >= stage.pairs()) return;  // of a smaller tail
  const StagePair pair(stage, number);
  MatrixSums sums{};
  const auto responses = [&](int row) {
    return [&, row](int m) { return response(stage, pair, c + row, m); };
  };
  const auto following = [&](int column) { return Following(stage, n + column); };
  multiply_matrices(sums, stage.features + 1, responses, following);
  store_matrix(sums, rows - c, columns - n, [&](int row, int column, float sum) {
    store(tail.products + ((int64_t{number} * rows + c + row) * columns + n + column), sum);
  });
}

// Offset of a tap of channel c in a composed weight with so many taps and outputs.
__device__ __forceinline__ int64_t composed_offset(int taps, int outputs, int c,
                                                   const TailTap& tap) {
  return ((int64_t{c} * taps + tap.x) * taps + tap.y) * outputs + tap.k;
}

// The tap of a composed weight: its sum over the ways.
__device__ __forceinline__ float composed_number(const TailStage& stage,
                                                 Global<const float> products,
                                                 const TailPaths& paths, int c,
                                                 const TailTap& tap) {
  const int rows = stage.map_rows(), taps = stage.after_taps;
  float sum = 0;
#pragma unroll 1
  for (int p = paths.begin[tap.y]; p < paths.begin[tap.y + 1]; ++p) {
#pragma unroll 1
    for (int q = paths.begin[tap.x]; q < paths.begin[tap.x + 1]; ++q) {
      const int pair = paths.row[p] * rows + paths.row[q];
      const int n = (paths.after[q] * taps + paths.after[p]) * stage.outputs + tap.k;
      const int64_t line = int64_t{pair} * (stage.channels + 1) + c;
      const float product = load(products + (line * stage.after_size() + n));
      sum += paths.sign[p] * paths.sign[q] < 0 ? -product : product;
    }
  }
  return sum;
}

constexpr int kComposingThreads = 128;

// The composed weight alone, as what follows another stage.
template <class T>
__global__ void __launch_bounds__(kComposingThreads)
    compose_kernel(const __grid_constant__ Tails<T> tails, const __grid_constant__ TailPaths paths,
                   int taps) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const TailStage& stage = tail.stage;
  const int size = taps * taps * stage.outputs;
  const int index = static_cast<int>(blockIdx.x * kComposingThreads + threadIdx.x);
  const int c = index / size, n = index % size;
  if (c > stage.channels) return;
  const TailTap tap{n / (taps * stage.outputs), n / stage.outputs % taps, n % stage.outputs};
  store(tail.composed + index, composed_number(stage, tail.products, paths, c, tap));
}

// The tap that a column of the reaches (y, x) is of, if there is one.
__device__ __forceinline__ bool find_tap(const TailShape& shape, int reach_y, int reach_x,
                                         int column, TailTap& tap) {
  if (column >= shape.outputs * shape.factor * shape.factor) return false;
  const int square = column / shape.outputs;
  tap.k = column % shape.outputs;
  tap.y = shape.reaches.tap[reach_y][square / shape.factor];
  tap.x = shape.reaches.tap[reach_x][square % shape.factor];
  return tap.y >= 0 && tap.x >= 0;
}

// Channel and column, in their 16, of number e of a lane's 8: those of the second operand of two
// products whose depths are channels, or, of the gradient, columns.
template <bool kGradient>
__device__ __forceinline__ void find_number(int lane, int e, int& channel, int& column) {
  const int depth = lane % 4 * 2 + e % 2 + e / 2 % 2 * 8, other = lane / 4 + e / 4 * 8;
  channel = kGradient ? other : depth, column = kGradient ? depth : other;
}

// Write the composed weight, rounded, as its products read it; and compose it first, in the forward.
// A thread has two neighbouring numbers of a lane. Behind those come the weights of 1, one each.
template <class T, bool kGradient>
__global__ void __launch_bounds__(kComposingThreads)
    lay_out_kernel(const __grid_constant__ Tails<T> tails, const __grid_constant__ TailShape shape,
                   const __grid_constant__ TailPaths paths) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const auto number = [&](int c, const TailTap& tap) {
    const Global<float> composed =
        tail.composed + composed_offset(shape.taps, shape.outputs, c, tap);
    if constexpr (kGradient) return load(Global<const float>(composed));
    const float value = composed_number(tail.stage, tail.products, paths, c, tap);
    store(composed, value);
    return value;
  };
  const int chunks = shape.chunks(), slices = shape.slices();
  const int fragments = shape.fragments();
  const int index = static_cast<int>(blockIdx.x * kComposingThreads + threadIdx.x);
  const int fragment = index / kFragmentPairs, lane = index % kFragmentPairs / 4, pair = index % 4;
  if (fragment >= fragments) {
    if constexpr (!kGradient) {
      const int n = index - kFragmentPairs * fragments,
                size = shape.taps * shape.taps * shape.outputs;
      const TailTap tap{n / (shape.taps * shape.outputs), n / shape.outputs % shape.taps,
                        n % shape.outputs};
      if (n < size) number(shape.channels, tap);
    }
    return;
  }
  const int slice = fragment % slices, chunk = fragment / slices % chunks;
  const int reaches = fragment / (slices * chunks);
  float numbers[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int channel, column;
    find_number<kGradient>(lane, 2 * pair + half, channel, column);
    TailTap tap;
    const bool exists =
        find_tap(shape, reaches / kReaches, reaches % kReaches, chunk * kChunk + column, tap);
    numbers[half] = exists ? number(slice * 16 + channel, tap) : 0;
  }
  store(tail.weights + index, pack<T>(numbers[0], numbers[1]));
}

}  // namespace clsd::cuda::tail
