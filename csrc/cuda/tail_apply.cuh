// Applying composed tails to images, and the gradient of the images: two products of the same form,
// of tiles of pixels with the weights of each reach.
//
// A block computes 8 x 16 pixels. Its warps read a row of 16 of them with one instruction, and take
// it for all output rows that it reaches: 10 products. What an edge adds is the same once more with
// the weights of its reaches and all other pixels set to 0; rows at an edge have it for one row.
#pragma once

#include <type_traits>

#include "mma_tiles.cuh"
#include "tail_compose.cuh"

namespace clsd::cuda::tail {

constexpr int kTileH = 8, kTileW = 16, kWarps = 4, kThreads = 32 * kWarps, kBorder = 2;
constexpr int kInputH = kTileH + 2 * kBorder, kInputW = kTileW + 2 * kBorder;
constexpr int kWindow = kEveryReaches;
constexpr int kBlocksHeld = 3;  // by a multiprocessor

// What a launch would have to divide for.
struct TileGrid {
  Divisor tiles_x, tiles_y, groups;  // groups of what a tile's blocks compute each
  int64_t blocks;                    // for one a block
};

struct TilePlace {
  int n, y, x, group;
};

__device__ __forceinline__ TilePlace place_of(const TileGrid& grid, int block) {
  const int tile = grid.groups.quotient(block), row = grid.tiles_x.quotient(tile);
  const int n = grid.tiles_y.quotient(row);
  return {n, grid.tiles_y.rest(row, n) * kTileH, grid.tiles_x.rest(tile, row) * kTileW,
          grid.groups.rest(block, tile)};
}

// Images seen by steps between their pixels, in elements.
template <class T>
struct ImageView {
  Global<const T> image;
  int64_t row_step, column_step;
  int height, width;
};

// Copy the tile from pixel (y, x) on, kRows x kColumns pixels of kPieces pieces of 8 channels from
// `channel` on, of which `pieces` exist. Zeros stand for all else.
template <class Tile, int kRows, int kColumns, int kPieces, int kThreads, class T>
__device__ __forceinline__ void copy_tile(uint32_t target, const ImageView<T>& view, int y, int x,
                                          int channel, int pieces) {
  constexpr int kCount = kRows * kColumns * kPieces, kTurns = (kCount + kThreads - 1) / kThreads;
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
#pragma unroll 5
  for (int turn = 0; turn < kTurns; ++turn) {
    const int index = static_cast<int>(threadIdx.x) + turn * kThreads;
    if (kCount % kThreads != 0 && index >= kCount) break;
    const int pixel = index / kPieces, row = y + pixel / kColumns, column = x + pixel % kColumns;
    const bool inside =
        is_inside(row, view.height) && is_inside(column, view.width) && piece < pieces;
    const int64_t offset = row * view.row_step + column * view.column_step + channel + 8 * piece;
    cp_async(target + Tile::offset(pixel, piece), view.image + (inside ? offset : 0), inside);
  }
}

// Offset of the square of a pixel of low resolution in the dense image of high resolution.
__device__ __forceinline__ int64_t square_offset(const TailShape& shape, int64_t n, int64_t y,
                                                 int64_t x) {
  const int64_t length = shape.factor * shape.outputs;
  return ((n * shape.height + y) * shape.factor * shape.width + x) * length;
}

// 8 of the square's columns, in the order of tail.h, of an image of O: T or, where it is shifted,
// float. There are few outputs, so that nothing is aligned, and a piece is made of them only when it
// is stored: others may be on their way meanwhile.
template <class O>
struct ColumnNumbers {
  static constexpr bool kShifted = std::is_same_v<O, float>;

  std::conditional_t<kShifted, float, uint32_t> at[kPiece];

  template <class T>
  __device__ __forceinline__ uint4 piece() const {
    return {pair<T>(0), pair<T>(2), pair<T>(4), pair<T>(6)};
  }

 private:
  template <class T>
  __device__ __forceinline__ uint32_t pair(int i) const {
    if constexpr (kShifted) {
      return pack<T>(at[i], at[i + 1]);
    } else {
      return at[i] | at[i + 1] << 16;
    }
  }
};

__device__ __forceinline__ float as_loaded(float number) { return number; }
template <class T>
__device__ __forceinline__ uint32_t as_loaded(T number) {
  return number.bits;
}

template <class O>
__device__ __forceinline__ ColumnNumbers<O> gather_square(const TailShape& shape,
                                                          Global<const O> square, int first,
                                                          bool exists) {
  const int columns = exists ? shape.columns() : 0;
  ColumnNumbers<O> numbers;
#pragma unroll
  for (int i = 0; i < kPiece; ++i) {
    const int column = first + i;
    numbers.at[i] = column < columns ? as_loaded(load(square + shape.column_offsets[column])) : 0;
  }
  return numbers;
}

// Of a tail, T or float, as images of O.
template <class O, class Tail>
__device__ __forceinline__ Global<O> output_of(const Tail& tail) {
  if constexpr (std::is_same_v<O, float>) {
    return tail.shifted;
  } else {
    return tail.output;
  }
}
template <class O, class Tail>
__device__ __forceinline__ Global<const O> grad_of(const Tail& tail) {
  if constexpr (std::is_same_v<O, float>) {
    return tail.grad_shifted;
  } else {
    return tail.grad;
  }
}

// A warp's sums: rows of 16 pixels by two eights of columns, the numbers that a thread has of them.
using Sums = float[kTileH][2][4];

// What is common to the products of one step of a block: where the warp's fragments of the tile lie,
// and its weights.
template <bool kGradient>
struct Step {
  uint32_t pixels;  // of the tile's first row
  Global<const uint32_t> weights;
  int64_t reach_step;  // from reach to reach of the columns, in pairs

  // The input row, from an output row on, or column, that a reach has: the gradient's run backwards.
  __device__ static int moved(int reach) {
    const int from = reach < kEveryReaches ? reach
                     : reach == 6          ? kBorder + 1
                     : reach == 8          ? kBorder - 1
                                           : kBorder;
    return kGradient ? kWindow - 1 - from : from;
  }

  __device__ uint4 weights_of(int reach_y, int reach_x) const {
    return load_vector(weights + ((reach_y * kReaches + reach_x) * reach_step));
  }

  __device__ void load_row(uint32_t (&row)[4], int y, int x) const {
    ldmatrix(row, pixels + (y * kInputW + x) * kPieceBytes);
  }
};

// Set all pixels of a fragment to 0 but number `kept`.
__device__ __forceinline__ void keep_pixel(uint32_t (&row)[4], int kept) {
  const int pixel = static_cast<int>(threadIdx.x) % 32 / 4;
  if (pixel != kept) row[0] = row[2] = 0;
  if (pixel + 8 != kept) row[1] = row[3] = 0;
}

template <class T>
__device__ __forceinline__ void multiply_row(float (&sums)[2][4], const uint32_t (&row)[4],
                                             const uint4& weights) {
  const uint32_t low[2] = {weights.x, weights.y}, high[2] = {weights.z, weights.w};
  mma<T>(sums[0], row, low);
  mma<T>(sums[1], row, high);
}

// Add the products of all rows by a reach of the columns; of an edge's, of pixel `kept` of each row
// alone.
template <class T, bool kEdge, bool kGradient>
__device__ __forceinline__ void multiply_rows(Sums& sums, const Step<kGradient>& step, int reach_x,
                                              int kept) {
  uint4 weights[kWindow];
#pragma unroll
  for (int reach_y = 0; reach_y < kWindow; ++reach_y) {
    weights[reach_y] = step.weights_of(reach_y, reach_x);
  }
  const int x = step.moved(reach_x);
#pragma unroll
  for (int from = 0; from < kInputH; ++from) {
    uint32_t row[4];
    step.load_row(row, from, x);
    if constexpr (kEdge) keep_pixel(row, kept);
#pragma unroll
    for (int moved = 0; moved < kWindow; ++moved) {
      const int to = from - moved;
      if (to < 0 || to >= kTileH) continue;
      multiply_row<T>(sums[to], row, weights[kGradient ? kWindow - 1 - moved : moved]);
    }
  }
}

// The same of one row by a reach of an edge's.
template <class T, bool kGradient>
__device__ __forceinline__ void multiply_edge_row(Sums& sums, const Step<kGradient>& step, int from,
                                                  int to, int reach_y, int reach_x, int kept) {
  uint32_t row[4];
  step.load_row(row, from, step.moved(reach_x));
  if (kept >= 0) keep_pixel(row, kept);
  const uint4 weights = step.weights_of(reach_y, reach_x);
#pragma unroll
  for (int y = 0; y < kTileH; ++y) {
    if (y == to) multiply_row<T>(sums[y], row, weights);
  }
}

// Call visit(reach, kept) for the reaches of an axis from `begin` on: for those of every pixel with
// -1, for those of its ends, of `size` pixels, with the number of the pixel that they are for, where
// it is one of `count` from `first` on. That pixel is of the results or, of the gradient, of what is
// read.
template <bool kGradient, class Visit>
__device__ __forceinline__ void for_each_reach(int begin, int first, int count, int size,
                                               bool inner, const Visit& visit) {
#pragma unroll 1
  for (int reach = begin; reach < kReaches; ++reach) {
    const bool is_inner = reach == kEveryReaches + 1 || reach == kEveryReaches + 3;
    int kept = -1;
    if (reach >= kEveryReaches) {
      kept = (reach < kEveryReaches + 2 ? 0 : size - 1) - first;
      if (kGradient) kept -= Step<kGradient>::moved(reach) - kBorder;
      if (kept < 0 || kept >= count || (is_inner && !inner)) continue;
    }
    visit(reach, kept);
  }
}

// Add all products of a step to the sums of the tile at (y, x).
template <class T, bool kGradient>
__device__ __forceinline__ void multiply_tile(Sums& sums, const Step<kGradient>& step,
                                              const TailShape& shape, int y, int x) {
  const auto for_each_column = [&](const auto& visit) {
    for_each_reach<kGradient>(0, x, kTileW, shape.width, shape.inner, visit);
  };
  for_each_column([&](int reach_x, int kept) {
    if (reach_x < kEveryReaches) {
      multiply_rows<T, false>(sums, step, reach_x, kept);
    } else {
      multiply_rows<T, true>(sums, step, reach_x, kept);
    }
  });
  for_each_reach<kGradient>(kEveryReaches, y, kTileH, shape.height, shape.inner,
                            [&](int reach_y, int to) {
    const int from = to + step.moved(reach_y);
    for_each_column([&](int reach_x, int kept) {
      multiply_edge_row<T>(sums, step, from, to, reach_y, reach_x, kept);
    });
  });
}

// Of the output: slices of 64 channels of the input, of which each warp multiplies 16. Their sums
// are added at the end.
constexpr int kDepth = kWarps * kSlice, kDepthPieces = kDepth / kPiece;
using InputTile = PieceLayout<kInputH * kInputW, kDepthPieces>;
// Rows of floats, for 8 pixels to lie on all banks.
constexpr uint32_t kSumsPitch = (kChunk + 4) * sizeof(float);
constexpr uint32_t kWarpSums = kTileH * kTileW * kSumsPitch;
constexpr uint32_t kBiases =
    InputTile::kBytes > kWarps* kWarpSums ? InputTile::kBytes : kWarps * kWarpSums;
constexpr int kEnds = 4;  // first pixel of its axis or not, last or not
constexpr uint32_t kOnes = kBiases + kEnds * kEnds * kChunk * sizeof(float);
constexpr uint32_t kForwardBytes = kOnes + kReaches * kReaches * kChunk * sizeof(float);

__device__ __forceinline__ uint32_t ones_at(int reach_y, int reach_x, int column) {
  return kOnes + ((reach_y * kReaches + reach_x) * kChunk + column) * sizeof(float);
}

// The composed weights of 1 of the block's columns, by reaches.
template <class T>
__device__ __forceinline__ void load_ones(const Tail<T>& tail, const TailShape& shape, int chunk) {
  constexpr int kAtOnce = kThreads / kChunk;  // pairs of reaches
  const int i = static_cast<int>(threadIdx.x) % kChunk, column = chunk * kChunk + i;
  const int k = column % shape.outputs, square = column / shape.outputs;
  const int y = square / shape.factor, x = square % shape.factor;
  const bool exists = column < shape.columns();
#pragma unroll 11
  for (int pair = static_cast<int>(threadIdx.x) / kChunk; pair < kReaches * kReaches;
       pair += kAtOnce) {
    const int reach_y = pair / kReaches, reach_x = pair % kReaches;
    TailTap tap{-1, -1, k};
    if (exists) tap.y = shape.reaches.tap[reach_y][y], tap.x = shape.reaches.tap[reach_x][x];
    const Global<const float> number =
        tail.composition.composed + composed_offset(shape.taps, shape.outputs, shape.channels, tap);
    store_shared<float>(ones_at(reach_y, reach_x, i), tap.y >= 0 && tap.x >= 0 ? load(number) : 0);
  }
}

// Call visit(reach) for those by which biases reach an output pixel along an axis: from pixels beside
// it that exist, and the first ones of the ends that it is. A bias reaches no further than the next
// pixel, and by no tap of an edge's neighbour.
template <class Visit>
__device__ __forceinline__ void for_each_bias(int ends, const Visit& visit) {
  const bool first = ends & 1, last = ends & 2;
#pragma unroll 1
  for (int reach = first ? kBorder : kBorder - 1; reach <= (last ? kBorder : kBorder + 1);
       ++reach) {
    visit(reach);
  }
  if (first) visit(kEveryReaches);
  if (last) visit(kEveryReaches + 2);
}

// Which ends of an axis of `size` pixels pixel y is.
__device__ __forceinline__ int ends_of(int y, int size) {
  return (y == 0 ? 1 : 0) + (y == size - 1 ? 2 : 0);
}

// The bias of output k.
template <class T>
__device__ __forceinline__ float output_bias(const Tail<T>& tail, int outputs, int k) {
  const auto bias = [&](int j) {
    return tail.out_bias ? load(tail.out_bias + j * tail.out_bias_stride) : 0;
  };
  if (!tail.shift.weight) return bias(k);
  float sum = load(tail.shift.bias + k);
  for (int j = 0; j < outputs; ++j) sum += load(tail.shift.weight + (k * outputs + j)) * bias(j);
  return sum;
}

// What the biases add to the columns, by the ends that a pixel of the tile at (y, x) is of its axes.
template <class T>
__device__ __forceinline__ void sum_biases(const Tail<T>& tail, const TailShape& shape, int y,
                                           int x, int chunk) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kEnds * kEnds * kChunk; i += kThreads) {
    const int ends_y = i / (kEnds * kChunk), ends_x = i / kChunk % kEnds, column = i % kChunk;
    const bool occurs = (!(ends_y & 1) || y == 0) && (!(ends_x & 1) || x == 0) &&
                        (!(ends_y & 2) || y + kTileH >= shape.height) &&
                        (!(ends_x & 2) || x + kTileW >= shape.width);
    if (!occurs || chunk * kChunk + column >= shape.columns()) continue;
    const int k = (chunk * kChunk + column) % shape.outputs;
    float sum = output_bias(tail, shape.outputs, k);
    for_each_bias(ends_y, [&](int reach_y) {
      for_each_bias(ends_x, [&](int reach_x) {
        sum += load_shared<float>(ones_at(reach_y, reach_x, column));
      });
    });
    store_shared<float>(kBiases + i * sizeof(float), sum);
  }
}

// Lay the warp's sums beside those of the others.
__device__ __forceinline__ void share_sums(const Sums& sums) {
  const int lane = threadIdx.x % 32;
  const uint32_t target = threadIdx.x / 32 * kWarpSums + lane % 4 * 2 * sizeof(float);
#pragma unroll
  for (int row = 0; row < kTileH; ++row) {
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = row * kTileW + lane / 4 + 8 * half;
        store_shared(target + pixel * kSumsPitch + 8 * eight * static_cast<uint32_t>(sizeof(float)),
                     float2{sums[row][eight][2 * half], sums[row][eight][2 * half + 1]});
      }
    }
  }
}

// Add the warps' sums and biases of a pixel a thread, and write its part of the square.
template <class T, class O>
__device__ __forceinline__ void write_square(const Tail<T>& tail, const TailShape& shape,
                                             const TilePlace& place) {
  const int thread = threadIdx.x, y = place.y + thread / kTileW, x = place.x + thread % kTileW;
  if (y >= shape.height || x >= shape.width) return;
  const Global<O> square = output_of<O>(tail) + square_offset(shape, place.n, y, x);
  const int ends = ends_of(y, shape.height) * kEnds + ends_of(x, shape.width);
#pragma unroll
  for (int i = 0; i < kChunk; i += 4) {
    const int column = place.group * kChunk + i;
    auto sum = load_shared<float4>(kBiases + (ends * kChunk + i) * sizeof(float));
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const auto part =
          load_shared<float4>(warp * kWarpSums + thread * kSumsPitch + i * sizeof(float));
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    const float numbers[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (column + j >= shape.columns()) return;
      const Global<O> target = square + shape.column_offsets[column + j];
      if constexpr (std::is_same_v<O, float>) {
        store(target, numbers[j]);
      } else {
        store(target, from_float<T>(numbers[j]));
      }
    }
  }
}

// Where a lane's part of the weights of a chunk and a slice of 16 channels lies.
template <bool kGradient, class T>
__device__ __forceinline__ Step<kGradient> step_of(const Tail<T>& tail, const TailShape& shape,
                                                   uint32_t pixels, int chunk, int slice) {
  const int64_t fragments = int64_t{shape.chunks()} * shape.slices();
  const int64_t first = int64_t{chunk} * shape.slices() + slice;
  return {pixels, tail.weights + (first * kFragmentPairs + threadIdx.x % 32 * 4),
          fragments * kFragmentPairs};
}

template <class T, class O>
__device__ __forceinline__ void apply_to_tile(const Tail<T>& tail, const TailShape& shape,
                                              const TilePlace& place) {
  const int warp = threadIdx.x / 32;
  const int64_t row_step = int64_t{shape.width} * shape.channels;
  const ImageView<T> view{tail.input + place.n * shape.height * row_step, row_step, shape.channels,
                          shape.height, shape.width};
  const uint32_t pixels =
      mma_tiles::fragment_offset<InputTile::kPitch>() + 2 * warp * InputTile::kPitch;
  Sums sums{};
#pragma unroll 1
  for (int channel = 0; channel < shape.channels; channel += kDepth) {
    __syncthreads();  // all have left what is there
    copy_tile<InputTile, kInputH, kInputW, kDepthPieces, kThreads>(
        0, view, place.y - kBorder, place.x - kBorder, channel,
        (shape.channels - channel) / kPiece);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const int slice = channel / kSlice + warp;
    if (slice >= shape.slices()) continue;
    multiply_tile<T>(sums, step_of<false>(tail, shape, pixels, place.group, slice), shape, place.y,
                     place.x);
  }
  __syncthreads();  // all have left the tile, where the sums come
  share_sums(sums);
  sum_biases(tail, shape, place.y, place.x, place.group);
  __syncthreads();
  write_square<T, O>(tail, shape, place);
}

// A block takes every so many tiles, with the same columns of each: from the second one on, its
// weights come from the cache.
template <class T, class O>
__global__ void __launch_bounds__(kThreads, kBlocksHeld)
    forward_kernel(const __grid_constant__ Tails<T> tails, const __grid_constant__ TailShape shape,
                   const __grid_constant__ TileGrid grid) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  load_ones(tail, shape, place_of(grid, static_cast<int>(blockIdx.x)).group);
  const int step = static_cast<int>(gridDim.x);
#pragma unroll 1
  for (int tile = static_cast<int>(blockIdx.x); tile < grid.blocks; tile += step) {
    apply_to_tile<T, O>(tail, shape, place_of(grid, tile));
  }
}

// Of the images: chunks of 16 columns of the output's gradient; each warp has 16 channels.
using GradientTile = PieceLayout<kInputH * kInputW, kChunk / kPiece>;
using Results = ResultTile<kTileH * kTileW, kTileW>;
constexpr uint32_t kGradientBytes = GradientTile::kBytes + Results::kBytes;

template <class T, class O>
__device__ __forceinline__ void load_gradient(const Tail<T>& tail, const TailShape& shape,
                                              const TilePlace& place, int chunk) {
  constexpr int kAtOnce = 2;  // loads of as many pieces are on their way
#pragma unroll 1
  for (int first = threadIdx.x; first < GradientTile::kCount; first += kAtOnce * kThreads) {
    ColumnNumbers<O> numbers[kAtOnce];
#pragma unroll
    for (int turn = 0; turn < kAtOnce; ++turn) {
      const int i = first + turn * kThreads, pixel = i / 2, piece = i % 2;
      const int y = place.y - kBorder + pixel / kInputW, x = place.x - kBorder + pixel % kInputW;
      const bool inside =
          i < GradientTile::kCount && is_inside(y, shape.height) && is_inside(x, shape.width);
      const Global<const O> square = grad_of<O>(tail) + square_offset(shape, place.n, y, x);
      numbers[turn] = gather_square(shape, square, chunk * kChunk + 8 * piece, inside);
    }
#pragma unroll
    for (int turn = 0; turn < kAtOnce; ++turn) {
      const int i = first + turn * kThreads;
      if (i >= GradientTile::kCount) break;
      store_shared(GradientTile::offset(i / 2, i % 2), numbers[turn].template piece<T>());
    }
  }
}

template <class T>
__device__ __forceinline__ void write_pixels(const Tail<T>& tail, const TailShape& shape,
                                             const TilePlace& place, const Sums& sums) {
  const Results results{GradientTile::kBytes};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int row = 0; row < kTileH; ++row) {
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_shared(results.at(row, lane / 4 + 8 * half, 2 * warp + eight) + lane % 4 * 4,
                     pack<T>(sums[row][eight][2 * half], sums[row][eight][2 * half + 1]));
      }
    }
  }
  __syncthreads();
  const int piece = threadIdx.x % 8, channel = place.group * kGroup + 8 * piece;
  if (channel >= shape.channels) return;
#pragma unroll
  for (int turn = 0; turn < kTileH; ++turn) {
    const int pixel = static_cast<int>(threadIdx.x) / 8 + turn * kThreads / 8;
    const int row = pixel / kTileW, column = pixel % kTileW;
    const int64_t y = place.y + row, x = place.x + column;
    if (y >= shape.height || x >= shape.width) continue;
    const int64_t at = ((place.n * shape.height + y) * shape.width + x) * shape.channels + channel;
    store_vector(tail.grad_input + at, load_shared<uint4>(results.at(row, column, piece)));
  }
}

template <class T, class O>
__device__ __forceinline__ void differentiate_tile(const Tail<T>& tail, const TailShape& shape,
                                                   const TilePlace& place) {
  const int slice = place.group * kWarps + static_cast<int>(threadIdx.x) / 32;
  const uint32_t pixels = mma_tiles::fragment_offset<GradientTile::kPitch>();
  Sums sums{};
#pragma unroll 1
  for (int chunk = 0; chunk < shape.chunks(); ++chunk) {
    __syncthreads();  // all have left what is there
    load_gradient<T, O>(tail, shape, place, chunk);
    __syncthreads();
    if (slice >= shape.slices()) continue;
    multiply_tile<T>(sums, step_of<true>(tail, shape, pixels, chunk, slice), shape, place.y,
                     place.x);
  }
  write_pixels(tail, shape, place, sums);
}

// Blocks and tiles as in the forward.
template <class T, class O>
__global__ void __launch_bounds__(kThreads, kBlocksHeld)
    images_gradient_kernel(const __grid_constant__ Tails<T> tails,
                           const __grid_constant__ TailShape shape,
                           const __grid_constant__ TileGrid grid) {
  const Tail<T>& tail = tails.at[blockIdx.y];
  const int step = static_cast<int>(gridDim.x);
#pragma unroll 1
  for (int tile = static_cast<int>(blockIdx.x); tile < grid.blocks; tile += step) {
    differentiate_tile<T, O>(tail, shape, place_of(grid, tile));
  }
}

}  // namespace clsd::cuda::tail
