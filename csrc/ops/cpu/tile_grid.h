// A batch of maps cut into tiles, which the threads of a kernel share out among themselves.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/chain.h"
#include "core/integers.h"

namespace hmsa {
namespace cpu {

// Tiles are numbered image by image, row by row. Tiles at the right and the bottom edge are smaller where the
// size of the map is not a multiple of theirs. The number of threads does not change the grid, so sums by tile are the
// same for any number.
class TileGrid {
 public:
  // `tile` is the largest height and width of a tile.
  TileGrid(int64_t batch, Extent map, Extent tile)
      : batch_(batch),
        map_(map),
        tile_(tile),
        bands_(divide_up(map.height, tile.height)),
        stripes_(divide_up(map.width, tile.width)) {}

  int64_t per_image() const { return bands_ * stripes_; }
  int64_t count() const { return batch_ * per_image(); }
  int64_t image(int64_t i) const { return i / per_image(); }
  Tile tile(int64_t i) const {
    return Tile{part(map_.height, tile_.height, i / stripes_ % bands_), part(map_.width, tile_.width, i % stripes_)};
  }

 private:
  static Range part(int32_t side, int32_t step, int64_t i) {
    const auto lo = static_cast<int32_t>(i * step);
    return Range{lo, std::min(lo + step, side)};
  }

  int64_t batch_;
  Extent map_;
  Extent tile_;
  int64_t bands_;
  int64_t stripes_;
};

}  // namespace cpu
}  // namespace hmsa
