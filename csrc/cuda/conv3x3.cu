// Which kernel convolves, and its launch.
#include <stdexcept>
#include <string>

#include "conv3x3_few.cuh"
#include "conv3x3_sm80.cuh"
#include "convolution.h"
#include "launch.cuh"

namespace clsd::cuda {

namespace {

unsigned grid_size(int64_t blocks) {
  constexpr int64_t kMaxBlocks = 0x7FFFFFFF;
  if (blocks <= kMaxBlocks) return static_cast<unsigned>(blocks);
  throw std::runtime_error("convolution: expected images of at most " + std::to_string(kMaxBlocks) +
                           " tiles, got " + std::to_string(blocks));
}

template <class T>
sm80::Grid grid_of(const Convolution<T>& conv) {
  const auto tiles = [](int64_t size, int tile) {
    return static_cast<int>((size + tile - 1) / tile);
  };
  return {tiles(conv.width, sm80::kTileW), tiles(conv.height, sm80::kTileH),
          ChannelGroup::groups(conv.inputs, conv.input_upscale),
          ChannelGroup::groups(conv.outputs, conv.output_upscale)};
}

template <auto kKernel, class T>
void launch_tiles(const Convolution<T>& conv, uint32_t shared_bytes, Stream stream) {
  const sm80::Grid grid = grid_of(conv);
  const unsigned blocks =
      grid_size(conv.batch * grid.tiles_y * grid.tiles_x * grid.output_groups);
  launch<kKernel>(blocks, sm80::kThreads, shared_bytes, stream, conv, grid);
}

template <class T, bool kTransposed>
void convolve_as(const Convolution<T>& conv, Stream stream) {
  if (conv.inputs <= kFewChannels) {
    return launch_tiles<few::conv3x3_from_few_kernel<T, kTransposed>>(conv, few::kFromFewBytes,
                                                                      stream);
  }
  if (conv.outputs <= kFewChannels) {
    return launch_tiles<few::conv3x3_to_few_kernel<T, kTransposed>>(conv, few::kToFewBytes, stream);
  }
  const uint32_t shared_bytes = sm80::shared_bytes(grid_of(conv).input_groups);
  const int inputs_of_a_phase = conv.inputs / (conv.input_upscale * conv.input_upscale);
  if (inputs_of_a_phase % ChannelGroup::kChannels == 0) {
    launch_tiles<sm80::conv3x3_kernel<T, kTransposed, true>>(conv, shared_bytes, stream);
  } else {
    launch_tiles<sm80::conv3x3_kernel<T, kTransposed, false>>(conv, shared_bytes, stream);
  }
}

template <class T>
void convolve_any(const Convolution<T>& conv, Stream stream) {
  if (conv.batch == 0) return;
  if (conv.height > kMaxSide || conv.width > kMaxSide) {
    throw std::runtime_error("convolution: expected sides of at most 2^30 pixels");
  }
  conv.transposed ? convolve_as<T, true>(conv, stream) : convolve_as<T, false>(conv, stream);
}

}  // namespace

void convolve(const Convolution<Bf16>& conv, Stream stream) { convolve_any(conv, stream); }
void convolve(const Convolution<Fp16>& conv, Stream stream) { convolve_any(conv, stream); }

}  // namespace clsd::cuda
