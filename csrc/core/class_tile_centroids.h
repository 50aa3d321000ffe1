// Where the classes of a label map lie, tile by tile.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "core/host_device.h"
#include "core/integers.h"
#include "core/view.h"

namespace hmsa {

// Rows and columns of pixels stay below this, so that the sum of twice the coordinates of all pixels fits 64 bits.
constexpr int64_t kMaxTiledSide = int64_t(1) << 20;

// For each square tile and class the number of pixels and their mean coordinates in the image. Tiles at the right and the
// bottom edge end with the image. Labels >= classes are not counted.
struct ClassTileCentroids {
  PlaneView<const uint8_t> labels;  // [B, H, W]
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t tile;     // pixels a side, at most kMaxTiledSide
  int32_t classes;  // 1 to 256
  int64_t* counts;  // [B, Ty, Tx, K]
  // [B, Ty, Tx, K, 2]: y, x. A kernel first adds integers here, which is exact in any order. finish_cell() then
  // replaces each sum by the bits of the centre, so that the kernels need no other memory.
  int64_t* centres;

  HMSA_HOST_DEVICE int64_t tile_rows() const { return divide_up(height, tile); }
  HMSA_HOST_DEVICE int64_t tile_columns() const { return divide_up(width, tile); }
  HMSA_HOST_DEVICE int64_t cells() const { return batch * tile_rows() * tile_columns() * classes; }

  // Puts the centre in place of the sums of a cell.
  HMSA_HOST_DEVICE void finish_cell(int64_t cell) const {
    const int64_t count = counts[cell];
    for (int axis = 0; axis < 2; ++axis) {
      int64_t* const place = centres + 2 * cell + axis;
      const double centre = count > 0 ? static_cast<double>(*place) / static_cast<double>(count)
                                      : std::numeric_limits<double>::quiet_NaN();
      std::memcpy(place, &centre, sizeof(centre));
    }
  }
};

}  // namespace hmsa
