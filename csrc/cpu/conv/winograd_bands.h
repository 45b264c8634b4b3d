// How Winograd convolutions cut an image.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../shapes.h"
#include "../kernels.h"

namespace clsd::cpu {

constexpr int64_t kWinogradPatch = 6;  // input pixels of a side
constexpr int64_t kFrequencies = 36;   // numbers that a Winograd tile's patch is transformed to
// Winograd tiles of one set of products: two register tiles, so that for 64 channels the
// transformed inputs, weights and products stay in a cache of 1 MiB.
constexpr int64_t kWinogradBlock = 2 * kTileRows;

// The Winograd tiles of an image are cut into bands, each of them whole rows of Winograd tiles.
struct WinogradBands {
  int64_t tile;           // output pixels of a side of a Winograd tile
  int64_t rows, columns;  // Winograd tiles of an image
  int64_t bands;          // of an image, each enough for a block, where the image has them
  int64_t rows_per_band;  // of Winograd tiles, of all bands but the last

  WinogradBands(int64_t height, int64_t width, int64_t tile)
      : tile(tile),
        rows(ceil_div(height, tile)),
        columns(ceil_div(width, tile)),
        bands(ceil_div(rows, ceil_div(kWinogradBlock, columns))),
        rows_per_band(ceil_div(rows, bands)) {}

  int64_t tile_rows(int64_t band) const {
    return std::min(rows_per_band, rows - band * rows_per_band);
  }
  int64_t tiles(int64_t band) const { return tile_rows(band) * columns; }
  int64_t first_pixel_row(int64_t band) const { return band * rows_per_band * tile; }
  int64_t pixel_rows() const { return rows_per_band * tile; }
  int64_t pixel_columns() const { return columns * tile; }
  // Numbers of all tiles and a channel, padded to whole steps of a product's rows.
  int64_t padded_numbers() const {
    return bands * round_up(rows_per_band * columns, kRowStep) * kFrequencies;
  }
  int64_t taps() const {  // of the kernel
    return (kWinogradPatch + 1 - tile) * (kWinogradPatch + 1 - tile);
  }
};

}  // namespace clsd::cpu
