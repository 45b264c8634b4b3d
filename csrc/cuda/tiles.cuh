// How a convolution's pixels and output channels are cut into blocks.
#pragma once

#include "convolution.h"
#include "packing.h"
#include "platform.cuh"

namespace clsd::cuda {

// Up to 64 channels that a block works on. With a pixel shuffle they are of one phase, so that they
// are neighbours in memory: channels (first + i) r^2 + phase.
struct ChannelGroup {
  static constexpr int kChannels = kGroup;

  int first, count, phase, square;

  __host__ __device__ static int groups(int channels, int upscale) {
    return ChannelOrder{channels, upscale * upscale}.groups(kChannels);
  }

  __device__ static ChannelGroup of(int index, int channels, int upscale) {
    const int square = upscale * upscale, per_phase = channels / square;
    const int groups_per_phase = (per_phase + kChannels - 1) / kChannels;
    const int first = index % groups_per_phase * kChannels;
    const int left = per_phase - first;
    return {first, left < kChannels ? left : kChannels, index / groups_per_phase, square};
  }

  __device__ int64_t channel(int i) const {
    return static_cast<int64_t>(first + i) * square + phase;
  }
};

// Whether a pixel of an axis exists.
__device__ __forceinline__ bool is_inside(int position, int size) {
  return static_cast<unsigned>(position) < static_cast<unsigned>(size);
}

// Steps from pixel to pixel, in elements, of an image that is shuffled by `upscale`: between pixels
// before the shuffle, and between those of a phase's neighbours.
struct ImageSteps {
  uint32_t row, column, phase_row, phase_column;

  ImageSteps(int64_t width, int channels, int upscale)
      : row(static_cast<uint32_t>(width * channels)),
        column(static_cast<uint32_t>(channels / upscale)),
        phase_row(static_cast<uint32_t>(width * channels / upscale)),
        phase_column(static_cast<uint32_t>(channels / (upscale * upscale))) {}
};

// How each convolution of a launch is cut into blocks, and what blocks would have to divide for.
struct Grid {
  Divisor tiles_x, tiles_y, output_groups, groups_of_phase, output_upscale;
  int slices;
  ImageSteps input, output;
  int64_t blocks;
};

// A row of an image, all channels, has fewer elements than that.
constexpr int64_t kMaxRow = int64_t{1} << 31;

// Of blocks of kTiles tiles.
template <int kTileH, int kTileW, int kTiles = 1>
Grid grid_of(const ConvolutionShape& conv) {
  const auto ceil_div = [](int64_t size, int part) { return (size + part - 1) / part; };
  const auto tiles = [&](int64_t size, int tile) { return static_cast<int>(ceil_div(size, tile)); };
  const ChannelOrder inputs{conv.inputs, conv.input_upscale * conv.input_upscale};
  const ChannelOrder outputs{conv.outputs, conv.output_upscale * conv.output_upscale};
  const int tiles_x = tiles(conv.width, kTileW), tiles_y = tiles(conv.height, kTileH);
  const int groups = outputs.groups(kGroup);
  return {Divisor(tiles_x),
          Divisor(tiles_y),
          Divisor(groups),
          Divisor(groups / outputs.square),
          Divisor(conv.output_upscale),
          inputs.groups(kSlice),
          ImageSteps(conv.width, conv.inputs, conv.input_upscale),
          ImageSteps(conv.width, conv.outputs, conv.output_upscale),
          ceil_div(conv.batch * tiles_y * tiles_x, kTiles) * groups};
}

// What a block works on.
struct Place {
  int n, y, x;  // image and first pixel
  int output_group;
};

// Blocks of the same pixels follow each other: their input comes from the cache. Of a block of kTiles
// tiles, the place of the `index`-th, which is one of image n = batch where there are no more.
template <int kTileH, int kTileW, int kTiles = 1>
__device__ __forceinline__ Place place_of_block(const Grid& grid, int index = 0) {
  const auto [tiles, output_group] = grid.output_groups.divide(static_cast<int>(blockIdx.x));
  const auto [row, column] = grid.tiles_x.divide(tiles * kTiles + index);
  const auto [n, y] = grid.tiles_y.divide(row);
  return {n, y * kTileH, column * kTileW, output_group};
}

// First channel of the block's output group in its phase.
__device__ __forceinline__ int first_output(const Grid& grid, const Place& place) {
  const int phase = grid.groups_of_phase.quotient(place.output_group);
  return grid.groups_of_phase.rest(place.output_group, phase) * kGroup;
}

// Where channel group.first of pixel (y, x) of image n lies in an image of `channels` channels that
// is shuffled by `upscale`.
__device__ __forceinline__ int64_t pixel_offset(int64_t n, int64_t y, int64_t x, int64_t height,
                                                int64_t width, int channels, int upscale,
                                                const ChannelGroup& group) {
  const int64_t row = (n * height + y) * upscale + group.phase / upscale;
  const int64_t column = x * upscale + group.phase % upscale;
  return (row * width * upscale + column) * (channels / group.square) + group.first;
}

}  // namespace clsd::cuda
