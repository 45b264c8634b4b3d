// When and how the two convolutions of a residual block are one kernel.
#include "launch.cuh"
#include "residual_block_sm80.cuh"

namespace clsd::cuda {

namespace {

constexpr int kTileH = residual::kTileH, kTileW = residual::kTileW;

template <class T>
void run(const Convolution<T>& first, const Convolution<T>& second, Stream stream) {
  const Grid grid = grid_of<kTileH, kTileW>(second);
  launch<residual::residual_block_kernel<T>>(static_cast<unsigned>(grid.blocks), residual::kThreads,
                                             residual::kSharedBytes, stream, first, second, grid);
}

}  // namespace

// By arithmetic, not yet by measurement. A long grid is bound by its products, of which one kernel
// has a quarter more: 64 channels give 290 operations for each byte that a convolution moves, and
// GPUs have time for 150 to 200. A grid whose blocks all run at once is bound by latencies, and
// saves a launch, an epilogue and a first load. On sm_90a, warpgroup products save more than that.
bool fuses_residual_block(int64_t batch, int64_t height, int64_t width, int64_t channels,
                          int64_t hidden_channels) {
  if (channels != residual::kChannels || hidden_channels != residual::kChannels) return false;
  if (batch == 0 || runs_sm90a()) return false;
  const int64_t tiles_y = (height + kTileH - 1) / kTileH, tiles_x = (width + kTileW - 1) / kTileW;
  const int64_t limit = multiprocessors();
  return tiles_y <= limit && tiles_x <= limit && batch <= limit &&
         batch * tiles_y * tiles_x <= limit;
}

void convolve_residual_block(const Convolution<Bf16>& first, const Convolution<Bf16>& second,
                             Stream stream) {
  run(first, second, stream);
}
void convolve_residual_block(const Convolution<Fp16>& first, const Convolution<Fp16>& second,
                             Stream stream) {
  run(first, second, stream);
}

}  // namespace clsd::cuda
