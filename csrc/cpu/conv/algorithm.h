// Which algorithm convolves, forward and backward alike.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../shapes.h"
#include "../kernels.h"
#include "winograd_bands.h"

namespace clsd::cpu {

constexpr int64_t kNarrow = 4;  // channels of a narrow map, at most

enum class Algorithm {
  kWinograd,      // winograd.h
  kNarrowInput,   // narrow.h
  kNarrowOutput,  // the same
  kDirect,        // direct.h
};

// Whether Winograd's products, padded to whole steps of rows, and half as much again for the
// transforms are fewer multiplications than the direct algorithm's.
inline bool winograd_multiplies_less(int64_t height, int64_t width) {
  const WinogradBands bands(height, width, kWinogradTile3x3);
  return 3 * bands.padded_numbers() < 2 * 9 * height * round_up(width, kTileRows);
}

// Whether the environment variable CLSD_FAST_CONV, read when the library is loaded, leaves Winograd
// in the choice: auto, the default, or direct, by which a pixel reaches the 3x3 outputs that see it
// and no others. It throws for other values.
bool allows_winograd();

// The faster algorithm for a convolution of images of type S from input to output, for its gradient
// with respect to the input, and for that with respect to the weight. It depends on shapes alone, and
// on CLSD_FAST_CONV.
template <class S, class In, class Out>
Algorithm choose(const Images<In>& input, const Images<Out>& output) {
  const auto fills_panels = [](int64_t channels) { return channels >= kTileCols; };
  // Winograd tiles are summed in single precision, so double stays direct.
  if (allows_winograd() && !std::is_same_v<S, double> && fills_panels(input.channels) &&
      fills_panels(output.channels) && winograd_multiplies_less(input.height, input.width)) {
    return Algorithm::kWinograd;
  }
  if (input.channels <= kNarrow && output.channels >= kTileCols) return Algorithm::kNarrowInput;
  if (output.channels <= kNarrow && input.channels >= kTileCols) return Algorithm::kNarrowOutput;
  return Algorithm::kDirect;
}

}  // namespace clsd::cpu
