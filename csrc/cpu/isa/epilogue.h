// The way of finished sums into the output's pixels.
#pragma once

#include "vector.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

// Pixels are worked on in pieces of a row, so what comes next lies beyond the present piece, and is
// requested while that is computed: no prefetcher of a processor sees so many short streams.
template <class T>
inline void prefetch_pixel(const PixelGrid<T>& output, const TileEpilogue<T>& epilogue, int64_t i,
                           int64_t j, int64_t channel) {
  __builtin_prefetch(pixel(output, i, j) + channel, 1);
  if (epilogue.residual.data) __builtin_prefetch(pixel(epilogue.residual, i, j) + channel);
  if (epilogue.positive.data) __builtin_prefetch(pixel(epilogue.positive, i, j) + channel);
}

// Store the sums of some channels of pixel (i, j).
template <class T>
CLSD_INLINE void finish_vector(const PixelGrid<T>& output, const TileEpilogue<T>& epilogue,
                               int64_t i, int64_t j, int64_t channel, Vec<T> value) {
  const Vec<T> zero = {};
  if (epilogue.bias) value += load(epilogue.bias + channel);
  value *= epilogue.scale;
  if (epilogue.residual.data) value += load(pixel(epilogue.residual, i, j) + channel);
  if (epilogue.relu) value = value < 0 ? zero : value;  // a NaN is kept
  if (epilogue.slopes) value = value < 0 ? value * load(epilogue.slopes + channel) : value;
  if (epilogue.positive.data) {
    // Where that is a NaN, the value is kept.
    value = load(pixel(epilogue.positive, i, j) + channel) <= 0 ? zero : value;
  }
  store(pixel(output, i, j) + channel, value);
}

// Here and below, what says where things are is copied: a store could change what lies behind a
// reference, as far as the compiler knows, and it would load that again each time.
template <class T>
void finish(const PixelGrid<T>& output, const T* sums, int64_t sums_stride, int64_t pixels,
            int64_t channels, const TileEpilogue<T>& epilogue) {
  const PixelGrid<T> target = output;
  const TileEpilogue<T> last = epilogue;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t v = 0; v < channels; v += kLanes<T>) {
      if (v % kTileCols == 0) prefetch_pixel(target, last, 0, p + pixels, v);
      finish_vector(target, last, 0, p, v, load(sums + p * sums_stride + v));
    }
  }
}

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
