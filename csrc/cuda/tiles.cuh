// How a convolution's pixels and output channels are cut into blocks.
#pragma once

#include "epilogue.cuh"

namespace clsd::cuda {

constexpr int kTaps = 9;

struct Grid {
  int tiles_x, tiles_y, input_groups, output_groups;
};

// What a block works on.
struct Place {
  int n, y, x;  // image and first pixel
  ChannelGroup outputs;
};

template <int kTileH, int kTileW, class T>
Grid grid_of(const Convolution<T>& conv) {
  const auto tiles = [](int64_t size, int tile) {
    return static_cast<int>((size + tile - 1) / tile);
  };
  return {tiles(conv.width, kTileW), tiles(conv.height, kTileH),
          ChannelGroup::groups(conv.inputs, conv.input_upscale),
          ChannelGroup::groups(conv.outputs, conv.output_upscale)};
}

// Blocks of the same pixels follow each other: their input comes from the cache.
template <int kTileH, int kTileW, class T>
__device__ Place place_of_block(const Convolution<T>& conv, const Grid& grid) {
  const unsigned tile = blockIdx.x / grid.output_groups;
  const unsigned row = tile / grid.tiles_x;
  return {static_cast<int>(row / grid.tiles_y), static_cast<int>(row % grid.tiles_y) * kTileH,
          static_cast<int>(tile % grid.tiles_x) * kTileW,
          ChannelGroup::of(static_cast<int>(blockIdx.x % grid.output_groups), conv.outputs,
                           conv.output_upscale)};
}

}  // namespace clsd::cuda
