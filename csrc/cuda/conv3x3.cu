// Which kernel convolves, and its launch.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "conv3x3_few.cuh"
#include "conv3x3_sm80.cuh"
#include "conv3x3_sm90.cuh"
#include "conv3x3_trio.cuh"
#include "launch.cuh"

namespace clsd::cuda {

namespace {

unsigned grid_size(int64_t blocks) {
  constexpr int64_t kMaxBlocks = 0x7FFFFFFF;
  if (blocks <= kMaxBlocks) return static_cast<unsigned>(blocks);
  throw std::runtime_error("convolution: expected images of at most " + std::to_string(kMaxBlocks) +
                           " tiles, got " + std::to_string(blocks));
}

template <auto kKernel, int kTileH, int kTileW, int kTiles = 1, class T>
void launch_tiles(const ConvolutionList<T>& list, int threads, uint32_t shared_bytes,
                  Stream stream) {
  const Grid grid = grid_of<kTileH, kTileW, kTiles>(list.front());
  for (size_t first = 0; first < list.size(); first += kMaxConvolutions) {
    const size_t count = std::min<size_t>(kMaxConvolutions, list.size() - first);
    Convolutions<T> convolutions{list.front(), {}};
    std::copy_n(list.begin() + first, count, convolutions.at);
    launch<kKernel>(dim3(grid_size(grid.blocks), static_cast<unsigned>(count)), threads,
                    shared_bytes, stream, convolutions, grid);
  }
}

template <Finish kFinish, class T>
void convolve_sm90(const ConvolutionList<T>& list, Stream stream) {
  constexpr int kTileH = sm90::kTileH, kTileW = sm90::kTileW;
  const ConvolutionShape& conv = list.front();
  if (conv.inputs == sm90::kBuffers * kSlice && conv.input_upscale == 1) {
    launch_tiles<sm90::conv3x3_kernel<T, kFinish, true>, kTileH, kTileW>(
        list, sm90::kThreads, sm90::kSharedBytes, stream);
  } else {
    launch_tiles<sm90::conv3x3_kernel<T, kFinish, false>, kTileH, kTileW>(
        list, sm90::kThreads, sm90::kSharedBytes, stream);
  }
}

// Whether blocks of three tiles convolve a list: where there is room for one, and no multiprocessor
// gets more tiles of them than of blocks of one tile.
template <class T>
bool are_trios(const ConvolutionList<T>& list) {
  const ConvolutionShape& conv = list.front();
  if (conv.inputs != trio::kChannels || conv.input_upscale != 1) return false;
  if (block_shared_bytes() < trio::kSharedBytes) return false;
  const auto most_tiles = [&](const Grid& grid, int tiles) {
    const int64_t blocks = grid.blocks * static_cast<int64_t>(list.size()), all = multiprocessors();
    return (blocks + all - 1) / all * tiles;
  };
  constexpr int kTileH = mma_tiles::kTileH, kTileW = mma_tiles::kTileW;
  return most_tiles(grid_of<kTileH, kTileW, trio::kTiles>(conv), trio::kTiles) <=
         most_tiles(grid_of<kTileH, kTileW>(conv), 1);
}

template <Finish kFinish, class T>
void convolve_many(const ConvolutionList<T>& list, Stream stream) {
  constexpr int kTileH = mma_tiles::kTileH, kTileW = mma_tiles::kTileW;
  if (runs_sm90a()) return convolve_sm90<kFinish>(list, stream);
  if constexpr (trio::kHasTrio<kFinish>) {
    if (are_trios(list)) {
      return launch_tiles<trio::conv3x3_kernel<T, kFinish>, kTileH, kTileW, trio::kTiles>(
          list, trio::kThreads, trio::kSharedBytes, stream);
    }
  }
  launch_tiles<sm80::conv3x3_kernel<T, kFinish>, kTileH, kTileW>(list, sm80::kThreads,
                                                                 sm80::kSharedBytes, stream);
}

template <Finish kFinish, class T>
void convolve_as(const ConvolutionList<T>& list, Stream stream) {
  constexpr int kTileH = mma_tiles::kTileH, kTileW = mma_tiles::kTileW;
  const ConvolutionShape& conv = list.front();
  if (conv.inputs <= kFewChannels) {
    launch_tiles<few::conv3x3_from_few_kernel<T, kFinish>, kTileH, kTileW>(
        list, few::kThreads, few::kFromFewBytes, stream);
  } else if (conv.outputs <= kFewChannels) {
    launch_tiles<few::conv3x3_to_few_kernel<T, kFinish>, kTileH, kTileW>(list, few::kThreads,
                                                                         few::kToFewBytes, stream);
  } else {
    convolve_many<kFinish>(list, stream);
  }
}

template <class T>
void convolve_any(const ConvolutionList<T>& list, Stream stream) {
  const Convolution<T>& conv = list.front();
  if (conv.batch == 0) return;
  if (conv.height > kMaxSide || conv.width > kMaxSide) {
    throw std::runtime_error("convolution: expected sides of at most 2^30 pixels");
  }
  if (conv.width * std::max(conv.inputs, conv.outputs) >= kMaxRow) {
    throw std::runtime_error("convolution: expected rows of fewer than 2^31 elements");
  }
  switch (finish_of(conv)) {
    case Finish::kNone: return convolve_as<Finish::kNone>(list, stream);
    case Finish::kRelu: return convolve_as<Finish::kRelu>(list, stream);
    case Finish::kLeaky: return convolve_as<Finish::kLeaky>(list, stream);
    case Finish::kResidual: return convolve_as<Finish::kResidual>(list, stream);
    case Finish::kResidualRelu: return convolve_as<Finish::kResidualRelu>(list, stream);
    case Finish::kResidualLeaky: return convolve_as<Finish::kResidualLeaky>(list, stream);
    case Finish::kResidualAdded: return convolve_many<Finish::kResidualAdded>(list, stream);
    case Finish::kMask: return convolve_as<Finish::kMask>(list, stream);
  }
}

}  // namespace

void convolve(const ConvolutionList<Bf16>& list, Stream stream) { convolve_any(list, stream); }
void convolve(const ConvolutionList<Fp16>& list, Stream stream) { convolve_any(list, stream); }

}  // namespace clsd::cuda
