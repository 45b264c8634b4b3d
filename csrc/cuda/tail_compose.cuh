// Composing the weights of tails, and the gradients of what they are composed of; all in float32.
// The steps are those of docs/tail.md: a stage's products with what follows it, and their sums over
// the ways from a pixel to a tap.
#pragma once

#include "platform.cuh"
#include "tail.h"

namespace clsd::cuda::tail {

// Sum of `count` numbers that are `step` apart, in their order; so many loads are on their way at
// once.
template <int kAtOnce>
__device__ __forceinline__ float sum_of_numbers(Global<const float> numbers, int64_t step,
                                                int count) {
  float sum = 0;
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
// tiles that lie depth by depth in shared memory. The depths of 64 channels are one tile: all its
// loads are on their way at once.
constexpr int kMatrixTile = 32, kMatrixDepth = 64, kMatrixThreads = 256;
constexpr int kMatrixBlocks = 3;  // that a multiprocessor has registers for
constexpr uint32_t kTilePitch = (kMatrixTile + 2) * sizeof(float);  // rows of float2
constexpr uint32_t kSecondTile = kMatrixDepth * kTilePitch, kMatrixBytes = 2 * kSecondTile;
using MatrixSums = float[2][2];

__device__ __forceinline__ int matrix_row() { return static_cast<int>(threadIdx.x) / 16 * 2; }
__device__ __forceinline__ int matrix_column() { return static_cast<int>(threadIdx.x) % 16 * 2; }

// Numbers of a tile on their way through a thread. A lane has a line, a row or column of the
// product, whose numbers by depth are what numbers(line) returns; or, where those of a depth lie
// side by side, numbers(depth) returns them by line.
enum class Lanes { kLines, kDepths };
constexpr int kMatrixWarps = kMatrixThreads / 32, kLinesOfWarp = kMatrixTile / kMatrixWarps;
using TileNumbers = float[kMatrixTile * kMatrixDepth / kMatrixThreads];

template <Lanes kLanes, class Numbers>
__device__ __forceinline__ void load_numbers(TileNumbers& target, int first, int depths,
                                             const Numbers& numbers) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if constexpr (kLanes == Lanes::kLines) {
    const auto number = numbers(lane);
#pragma unroll
    for (int i = 0; i < kMatrixDepth / kMatrixWarps; ++i) {
      const int depth = first + warp + i * kMatrixWarps;
      target[i] = depth < depths ? number(depth) : 0;
    }
  } else {
#pragma unroll
    for (int half = 0; half < kMatrixDepth / 32; ++half) {
      const int depth = first + lane + 32 * half;
      float* const part = target + half * kLinesOfWarp;
      if (depth < depths) {
        const auto number = numbers(depth);
#pragma unroll
        for (int i = 0; i < kLinesOfWarp; ++i) part[i] = number(warp + i * kMatrixWarps);
      } else {
#pragma unroll
        for (int i = 0; i < kLinesOfWarp; ++i) part[i] = 0;
      }
    }
  }
}

template <Lanes kLanes>
__device__ __forceinline__ void store_numbers(uint32_t tile, const TileNumbers& numbers) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kMatrixTile * kMatrixDepth / kMatrixThreads; ++i) {
    const bool by_line = kLanes == Lanes::kLines;
    const int line = by_line ? lane : warp + i % kLinesOfWarp * kMatrixWarps;
    const int depth = by_line ? warp + i * kMatrixWarps : lane + i / kLinesOfWarp * 32;
    store_shared<float>(tile + depth * kTilePitch + line * static_cast<int>(sizeof(float)),
                        numbers[i]);
  }
}

// sums += a b, of so many depths. a and b give numbers of the rows and of the columns of the block's
// tile, 0 where there are none.
template <Lanes kA, Lanes kB, class A, class B>
__device__ __forceinline__ void multiply_matrices(MatrixSums& sums, int depth, const A& a,
                                                  const B& b) {
  constexpr int kStep = 8;
#pragma unroll 1
  for (int first = 0; first < depth; first += kMatrixDepth) {
    TileNumbers rows_numbers, columns_numbers;
    load_numbers<kA>(rows_numbers, first, depth, a);
    load_numbers<kB>(columns_numbers, first, depth, b);
    __syncthreads();  // all have left the tiles before
    store_numbers<kA>(0, rows_numbers);
    store_numbers<kB>(kSecondTile, columns_numbers);
    __syncthreads();
    const int depths = depth - first < kMatrixDepth ? depth - first : kMatrixDepth;
#pragma unroll 1
    for (int step = 0; step < depths; step += kStep) {
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        const uint32_t line = (step + i) * kTilePitch;
        const auto rows = load_shared<float2>(line + matrix_row() * sizeof(float));
        const auto columns =
            load_shared<float2>(kSecondTile + line + matrix_column() * sizeof(float));
        sums[0][0] += rows.x * columns.x, sums[0][1] += rows.x * columns.y;
        sums[1][0] += rows.y * columns.x, sums[1][1] += rows.y * columns.y;
      }
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

// What channel c of a pixel adds to channel m of the map: the last of each is 1 everywhere. The
// pixel's adds to its own square alone: of other pairs, its numbers are not used, nor loaded.
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
    channels_ = n >= stage.after_size() ? 0 : stage.after_channels();
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

// Blocks of the products of a stage: by tile of n, tile of c and pair. Behind them, where the channel
// of 1 has a tile of its own, those of a pixel's own square: by other pairs, it adds nothing.
CLSD_HOST_DEVICE inline int products_blocks(const TailStage& stage) {
  const int own = stage.channels % kMatrixTile == 0 ? stage.factor * stage.factor : 0;
  const int tiles = stage.pairs() * matrix_tiles(stage.channels) + own;
  return tiles * matrix_tiles(stage.after_size());
}

// A block's tile of the products of a stage with what follows it.
__device__ __forceinline__ void multiply_stage(const TailStage& stage, Global<float> products,
                                               int block) {
  const int rows = stage.channels + 1, columns = stage.after_size();
  const int tiles_c = matrix_tiles(stage.channels), tiles_n = matrix_tiles(columns);
  const int n = block % tiles_n * kMatrixTile, tile = block / tiles_n;
  int number = tile / tiles_c, c = tile % tiles_c * kMatrixTile;
  if (number >= stage.pairs()) {
    const int own = tile - stage.pairs() * tiles_c, first = stage.factor;
    number = (first + own / first) * stage.map_rows() + first + own % first;
    c = stage.channels;
  }
  const StagePair pair(stage, number);
  MatrixSums sums{};
  const auto responses = [&](int row) {
    return [&, row](int m) { return response(stage, pair, c + row, m); };
  };
  const auto following = [&](int column) { return Following(stage, n + column); };
  const int depth = pair.is_center ? stage.features + 1 : stage.features;
  multiply_matrices<Lanes::kLines, Lanes::kLines>(sums, depth, responses, following);
  store_matrix(sums, rows - c, columns - n, [&](int row, int column, float sum) {
    store(products + ((int64_t{number} * rows + c + row) * columns + n + column), sum);
  });
}

template <class T>
__global__ void __launch_bounds__(kMatrixThreads, kMatrixBlocks)
    products_kernel(const __grid_constant__ Tails<T> tails) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const int block = static_cast<int>(blockIdx.x);
  if (block >= products_blocks(tail.stage)) return;  // of a smaller tail
  multiply_stage(tail.stage, tail.composition.products, block);
}

// Offset of a tap of channel c in a composed weight with so many taps and outputs.
__device__ __forceinline__ int64_t composed_offset(int taps, int outputs, int c,
                                                   const TailTap& tap) {
  return ((int64_t{c} * taps + tap.x) * taps + tap.y) * outputs + tap.k;
}

// The tap of a composed weight: its sum over the ways. kOnes: of any channel, that of 1 too.
template <bool kOnes>
__device__ __forceinline__ float composed_number(const Composition& weight, const TailPaths& paths,
                                                 int c, const TailTap& tap) {
  const int rows = 3 * weight.factor, taps = weight.after_taps;
  const int size = taps * taps * weight.outputs;
  // The channel of 1 adds nothing but by a pixel's own square.
  const bool is_of_ones = kOnes && c == weight.channels;
  const auto is_own = [&](int row) { return row >= weight.factor && row < 2 * weight.factor; };
  float sum = 0;
#pragma unroll 1
  for (int p = paths.begin[tap.y]; p < paths.begin[tap.y + 1]; ++p) {
    if (is_of_ones && !is_own(paths.row[p])) continue;
#pragma unroll 1
    for (int q = paths.begin[tap.x]; q < paths.begin[tap.x + 1]; ++q) {
      if (is_of_ones && !is_own(paths.row[q])) continue;
      const int pair = paths.row[p] * rows + paths.row[q];
      const int n = (paths.after[q] * taps + paths.after[p]) * weight.outputs + tap.k;
      const int line = pair * (weight.channels + 1) + c;  // all products are few millions
      const float product = load(Global<const float>(weight.products) + (line * size + n));
      sum += paths.sign[p] * paths.sign[q] < 0 ? -product : product;
    }
  }
  return sum;
}

constexpr int kComposingThreads = 128;
constexpr int kComposingBlocks = 12;  // that a multiprocessor has registers for

// Number `index` of the composed weight alone, as what follows another stage.
__device__ __forceinline__ void compose_number(const Composition& weight, const TailPaths& paths,
                                               int index) {
  if (index >= weight.size()) return;
  const int line = index / weight.outputs, column = line / weight.taps;
  const TailTap tap{column % weight.taps, line % weight.taps, index % weight.outputs};
  store(weight.composed + index, composed_number<true>(weight, paths, column / weight.taps, tap));
}

template <class T>
__global__ void __launch_bounds__(kComposingThreads)
    compose_kernel(const __grid_constant__ Tails<T> tails,
                   const __grid_constant__ TailPaths paths) {
  const int index = static_cast<int>(blockIdx.x * kComposingThreads + threadIdx.x);
  compose_number(tails.at[blockIdx.y].composition, paths, index);
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

// Where a thread's two neighbouring numbers of a lane are in the composed weight.
template <bool kGradient>
class LaidOutPair {
 public:
  __device__ __forceinline__ LaidOutPair(const TailShape& shape, int index) : shape_(shape) {
    const int fragment = index / kFragmentPairs, slices = shape.slices();
    lane_ = index % kFragmentPairs / 4, pair_ = index % 4;
    slice_ = fragment % slices, chunk_ = fragment / slices % shape.chunks();
    reaches_ = fragment / (slices * shape.chunks());
  }

  // The pair of number(channel, tap), 0 where there is no such tap.
  template <class T, class Number>
  __device__ __forceinline__ uint32_t of(const Number& number) const {
    float numbers[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int channel, column;
      find_number<kGradient>(lane_, 2 * pair_ + half, channel, column);
      TailTap tap;
      const bool exists =
          find_tap(shape_, reaches_ / kReaches, reaches_ % kReaches, chunk_ * kChunk + column, tap);
      numbers[half] = exists ? number(slice_ * 16 + channel, tap) : 0;
    }
    return pack<T>(numbers[0], numbers[1]);
  }

 private:
  const TailShape& shape_;
  int lane_, pair_, slice_, chunk_, reaches_;
};

// Compose, and write the composed weight, rounded, as its products read it. Behind those come the
// weights of 1, a thread each.
template <class T>
__global__ void __launch_bounds__(kComposingThreads, kComposingBlocks)
    lay_out_kernel(const __grid_constant__ Tails<T> tails, const __grid_constant__ TailShape shape,
                   const __grid_constant__ TailPaths paths) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const Composition& weight = tail.composition;
  const int index = static_cast<int>(blockIdx.x * kComposingThreads + threadIdx.x);
  const int pairs = kFragmentPairs * shape.fragments();
  if (index >= pairs) {
    const int ones = shape.channels * shape.taps * shape.taps * shape.outputs;
    compose_number(weight, paths, ones + index - pairs);
    return;
  }
  const auto number = [&](int c, const TailTap& tap) {
    const float value = composed_number<false>(weight, paths, c, tap);
    store(weight.composed + composed_offset(shape.taps, shape.outputs, c, tap), value);
    return value;
  };
  store(tail.weights + index, LaidOutPair<false>(shape, index).template of<T>(number));
}

// Before the gradients: lay out what has been composed as the gradient of the images reads it, and
// behind that multiply a second stage with what follows it. Either may be left out.
template <class T>
__global__ void __launch_bounds__(kMatrixThreads)
    prepare_gradients_kernel(const __grid_constant__ Tails<T> tails,
                             const __grid_constant__ TailShape shape, int blocks_of_layout) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const int block = static_cast<int>(blockIdx.x) - blocks_of_layout;
  if (block >= 0) {
    if (block < products_blocks(tail.stage)) {  // else of a smaller tail
      multiply_stage(tail.stage, tail.composition.products, block);
    }
    return;
  }
  const int index = static_cast<int>(blockIdx.x * kMatrixThreads + threadIdx.x);
  if (index >= kFragmentPairs * shape.fragments()) return;
  const auto number = [&](int c, const TailTap& tap) {
    return load(Global<const float>(tail.composition.composed) +
                composed_offset(shape.taps, shape.outputs, c, tap));
  };
  store(tail.weights + index, LaidOutPair<true>(shape, index).template of<T>(number));
}

}  // namespace clsd::cuda::tail
