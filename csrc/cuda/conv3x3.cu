// Which kernel convolves, and its launch.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "conv3x3_few.cuh"
#include "conv3x3_sm80.cuh"
#include "conv3x3_sm90.cuh"
#include "launch.cuh"

namespace clsd::cuda {

namespace {

unsigned grid_size(int64_t blocks) {
  constexpr int64_t kMaxBlocks = 0x7FFFFFFF;
  if (blocks <= kMaxBlocks) return static_cast<unsigned>(blocks);
  throw std::runtime_error("convolution: expected images of at most " + std::to_string(kMaxBlocks) +
                           " tiles, got " + std::to_string(blocks));
}

template <auto kKernel, int kTileH, int kTileW, class T>
void launch_tiles(const Convolution<T>& conv, int threads, uint32_t shared_bytes, Stream stream) {
  const Grid grid = grid_of<kTileH, kTileW>(conv);
  launch<kKernel>(grid_size(grid.blocks), threads, shared_bytes, stream, conv, grid);
}

template <Finish kFinish, class T>
void convolve_sm90(const Convolution<T>& conv, Stream stream) {
  constexpr int kTileH = sm90::kTileH, kTileW = sm90::kTileW;
  if (conv.inputs == sm90::kBuffers * kSlice && conv.input_upscale == 1) {
    launch_tiles<sm90::conv3x3_kernel<T, kFinish, true>, kTileH, kTileW>(
        conv, sm90::kThreads, sm90::kSharedBytes, stream);
  } else {
    launch_tiles<sm90::conv3x3_kernel<T, kFinish, false>, kTileH, kTileW>(
        conv, sm90::kThreads, sm90::kSharedBytes, stream);
  }
}

template <Finish kFinish, class T>
void convolve_many(const Convolution<T>& conv, Stream stream) {
  if (runs_sm90a()) return convolve_sm90<kFinish>(conv, stream);
  launch_tiles<sm80::conv3x3_kernel<T, kFinish>, mma_tiles::kTileH, mma_tiles::kTileW>(
      conv, sm80::kThreads, sm80::kSharedBytes, stream);
}

template <Finish kFinish, class T>
void convolve_as(const Convolution<T>& conv, Stream stream) {
  constexpr int kTileH = mma_tiles::kTileH, kTileW = mma_tiles::kTileW;
  if (conv.inputs <= kFewChannels) {
    launch_tiles<few::conv3x3_from_few_kernel<T, kFinish>, kTileH, kTileW>(
        conv, few::kThreads, few::kFromFewBytes, stream);
  } else if (conv.outputs <= kFewChannels) {
    launch_tiles<few::conv3x3_to_few_kernel<T, kFinish>, kTileH, kTileW>(conv, few::kThreads,
                                                                         few::kToFewBytes, stream);
  } else {
    convolve_many<kFinish>(conv, stream);
  }
}

template <class T>
void convolve_any(const Convolution<T>& conv, Stream stream) {
  if (conv.batch == 0) return;
  if (conv.height > kMaxSide || conv.width > kMaxSide) {
    throw std::runtime_error("convolution: expected sides of at most 2^30 pixels");
  }
  if (conv.width * std::max(conv.inputs, conv.outputs) >= kMaxRow) {
    throw std::runtime_error("convolution: expected rows of fewer than 2^31 elements");
  }
  switch (finish_of(conv)) {
    case Finish::kNone: return convolve_as<Finish::kNone>(conv, stream);
    case Finish::kRelu: return convolve_as<Finish::kRelu>(conv, stream);
    case Finish::kResidual: return convolve_as<Finish::kResidual>(conv, stream);
    case Finish::kResidualRelu: return convolve_as<Finish::kResidualRelu>(conv, stream);
    case Finish::kResidualAdded: return convolve_many<Finish::kResidualAdded>(conv, stream);
    case Finish::kMask: return convolve_as<Finish::kMask>(conv, stream);
  }
}

}  // namespace

void convolve(const Convolution<Bf16>& conv, Stream stream) { convolve_any(conv, stream); }
void convolve(const Convolution<Fp16>& conv, Stream stream) { convolve_any(conv, stream); }

}  // namespace clsd::cuda
