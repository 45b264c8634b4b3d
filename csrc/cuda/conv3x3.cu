// Which kernel convolves, and its launch.
#include <stdexcept>
#include <string>

#include "conv3x3_few.cuh"
#include "conv3x3_sm80.cuh"
#include "conv3x3_sm90.cuh"
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

template <auto kKernel, int kTileH = sm80::kTileH, int kTileW = sm80::kTileW, class T>
void launch_tiles(const Convolution<T>& conv, int threads, uint32_t shared_bytes, Stream stream) {
  const Grid grid = grid_of<kTileH, kTileW>(conv);
  const unsigned blocks =
      grid_size(conv.batch * grid.tiles_y * grid.tiles_x * grid.output_groups);
  launch<kKernel>(blocks, threads, shared_bytes, stream, conv, grid);
}

template <class T, bool kTransposed>
void convolve_sm80(const Convolution<T>& conv, bool whole_input_groups, Stream stream) {
  const int input_groups = ChannelGroup::groups(conv.inputs, conv.input_upscale);
  const uint32_t shared_bytes = sm80::shared_bytes(input_groups);
  if (whole_input_groups) {
    launch_tiles<sm80::conv3x3_kernel<T, kTransposed, true>>(conv, sm80::kThreads, shared_bytes,
                                                             stream);
  } else {
    launch_tiles<sm80::conv3x3_kernel<T, kTransposed, false>>(conv, sm80::kThreads, shared_bytes,
                                                              stream);
  }
}

template <class T, bool kTransposed>
void convolve_as(const Convolution<T>& conv, Stream stream) {
  const bool whole_inputs = ChannelGroup::are_whole(conv.inputs, conv.input_upscale);
  const bool whole_outputs = ChannelGroup::are_whole(conv.outputs, conv.output_upscale);
  if (conv.inputs <= kFewChannels) {
    launch_tiles<few::conv3x3_from_few_kernel<T, kTransposed>>(conv, few::kThreads,
                                                               few::kFromFewBytes, stream);
  } else if (conv.outputs <= kFewChannels) {
    launch_tiles<few::conv3x3_to_few_kernel<T, kTransposed>>(conv, few::kThreads, few::kToFewBytes,
                                                             stream);
  } else if (whole_inputs && whole_outputs && runs_sm90a()) {
    launch_tiles<sm90::conv3x3_kernel<T, kTransposed>, sm90::kTileH, sm90::kTileW>(
        conv, sm90::kThreads, sm90::kSharedBytes, stream);
  } else {
    convolve_sm80<T, kTransposed>(conv, whole_inputs, stream);
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
