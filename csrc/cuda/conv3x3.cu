// Which kernel convolves, and its launch.
#include <stdexcept>
#include <string>

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

template <class T, bool kTransposed, bool kWhole>
void launch_sm80(const Convolution<T>& conv, Stream stream) {
  const auto tiles = [](int64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); };
  const sm80::Grid grid = {tiles(conv.width, sm80::kTileW), tiles(conv.height, sm80::kTileH),
                           ChannelGroup::groups(conv.inputs, conv.input_upscale),
                           ChannelGroup::groups(conv.outputs, conv.output_upscale)};
  const unsigned blocks =
      grid_size(conv.batch * grid.tiles_y * grid.tiles_x * grid.output_groups);
  launch<sm80::conv3x3_kernel<T, kTransposed, kWhole>>(
      blocks, sm80::kThreads, sm80::shared_bytes(grid.input_groups), stream, conv, grid);
}

template <class T>
void convolve_any(const Convolution<T>& conv, Stream stream) {
  if (conv.batch == 0) return;
  const int inputs = conv.inputs / (conv.input_upscale * conv.input_upscale);
  const bool whole = inputs % ChannelGroup::kChannels == 0;
  if (conv.transposed) {
    whole ? launch_sm80<T, true, true>(conv, stream) : launch_sm80<T, true, false>(conv, stream);
  } else {
    whole ? launch_sm80<T, false, true>(conv, stream) : launch_sm80<T, false, false>(conv, stream);
  }
}

}  // namespace

void convolve(const Convolution<Bf16>& conv, Stream stream) { convolve_any(conv, stream); }
void convolve(const Convolution<Fp16>& conv, Stream stream) { convolve_any(conv, stream); }

}  // namespace clsd::cuda
