// 3x3 convolution on the tensor cores of sm_80 and later (mma.sync, cp.async).
//
// A block goes through the input channels in groups of 64: the group's halo tile stays in shared
// memory for all 9 taps, so each pixel is read once, not 9 times. While a tap is multiplied, the
// weights of the next one arrive, and a ninth of the next group's halo.
#pragma once

#include "mma_tiles.cuh"

namespace clsd::cuda::sm80 {

using mma_tiles::kHaloBytes;
using mma_tiles::kHaloPixels;
using mma_tiles::kPieces;
using mma_tiles::kTapBytes;
using mma_tiles::kThreads;
using mma_tiles::kTileH;
using mma_tiles::kTileW;

constexpr int kHaloShare = kHaloPixels * kPieces / kTaps;  // that arrives beside a tap's weights
static_assert(kHaloShare * kTaps == kHaloPixels * kPieces);

// Blocks that a multiprocessor's shared memory has room for: it has 164 KiB and more on the data
// centres' GPUs (8.0, 9.0, 10.0), 100 KiB on others. The compiler keeps to registers for as many.
#ifdef __CUDA_ARCH__
constexpr int kCapability = __CUDA_ARCH__ / 10;
#else
constexpr int kCapability = 0;  // of the host's pass
#endif
constexpr bool kIsDataCentre = kCapability == 80 || kCapability == 90 || kCapability == 100;
constexpr int kBlocksPerMultiprocessor = kIsDataCentre ? 4 : 2;

// One halo tile suffices for one group of input channels.
constexpr uint32_t shared_bytes(int input_groups) {
  return (input_groups > 1 ? 2 : 1) * kHaloBytes + 2 * kTapBytes;
}
static_assert(mma_tiles::kWarps * mma_tiles::kWarpSumBytes <= shared_bytes(1));

template <class T, bool kTransposed, bool kWhole>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    conv3x3_kernel(const Convolution<T> conv, const Grid grid) {
  const Place place = place_of_block<kTileH, kTileW>(conv, grid);
  const auto group_of = [&](int index) {
    return ChannelGroup::of(index, conv.inputs, conv.input_upscale);
  };
  const auto tap_at = [&](int step) { return (step & 1) * kTapBytes; };
  const auto halo_at = [&](int group) { return 2 * kTapBytes + (group & 1) * kHaloBytes; };

  mma_tiles::Sums sums{};
  ChannelGroup inputs = group_of(0);  // of the weights that are loaded, a step ahead
  mma_tiles::load_halo(conv, place, inputs, halo_at(0), 0, kHaloPixels * kPieces);
  mma_tiles::load_tap<T, kTransposed>(conv, inputs, place.outputs, tap_at(0), 0);
  cp_async_commit();
  int step = 0;
  for (int group = 0; group < grid.input_groups; ++group) {
    const bool last_group = group + 1 == grid.input_groups;
    const ChannelGroup next = group_of(group + 1);
    const int channels = inputs.count;
#pragma unroll 1
    for (int tap = 0; tap < kTaps; ++tap, ++step) {
      // After the barrier, all see this step's operands, and all have left what is loaded next.
      cp_async_wait<0>();
      __syncthreads();
      const bool last_tap = tap + 1 == kTaps;
      if (last_tap) inputs = next;
      if (!last_tap || !last_group) {
        mma_tiles::load_tap<T, kTransposed>(conv, inputs, place.outputs, tap_at(step + 1),
                                            last_tap ? 0 : tap + 1);
        if (!last_group) {
          mma_tiles::load_halo(conv, place, next, halo_at(group + 1), tap * kHaloShare,
                               (tap + 1) * kHaloShare);
        }
        cp_async_commit();
      }
      mma_tiles::multiply_tap<T, kTransposed, kWhole>(sums, halo_at(group), tap_at(step), tap,
                                                      channels);
    }
  }
  __syncthreads();  // all have read the operands, where the sums go now
  mma_tiles::stage(sums);
  __syncwarp();
  mma_tiles::write_staged(conv, place);
}

}  // namespace clsd::cuda::sm80
