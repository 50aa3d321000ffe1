// How the pooled pixels of a plane are divided among warps.
//
// Which neighbourhoods a pooled pixel is in, and where, depends on its row only near the borders: the first two rows and
// the last two are places of their own, all others are one place. The same holds for columns. So a plane has 5 x 5 areas,
// one of which is nearly all of it. That one is cut into tiles; the others are lines and single pixels.
#pragma once

#include "ops/cuda/octave_rmi.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int32_t kPlaces = 5;  // along an axis: 0, 1, the middle, the last but one, the last
constexpr int32_t kMiddle = 2;
constexpr int32_t kPooledTileRows = 16;
constexpr int32_t kWarpsOfPooled = 4;  // of a block

// What a warp works on: pooled pixels of one area.
struct PooledPiece {
  int32_t row_place, column_place;
  Tile pixels;
};

struct PooledAreas {
  int32_t height, width;  // at least four
  int32_t down, across;   // tiles of the middle
  int32_t columns_down;   // pieces of a column
  int32_t count;          // pieces of a plane

  HMSA_HOST_DEVICE int32_t tiles() const { return down * across; }
  HMSA_HOST_DEVICE static int32_t border(int32_t n) { return n < kMiddle ? n : n + 1; }
  HMSA_HOST_DEVICE static Range rows_of(int32_t place, int32_t size) {
    if (place == kMiddle) return Range{kMiddle, size - kMiddle};
    const int32_t row = place < kMiddle ? place : size - kPlaces + place;
    return Range{row, row + 1};
  }
  HMSA_HOST_DEVICE static Range part_of(Range range, int32_t size, int32_t n) {
    const int32_t lo = range.lo + n * size;
    return Range{lo, smaller(lo + size, range.hi)};
  }

  // Pieces are in the order: tiles of the middle, rows, columns, corners.
  HMSA_HOST_DEVICE PooledPiece piece(int32_t n) const {
    const Range middle_rows = rows_of(kMiddle, height), middle_columns = rows_of(kMiddle, width);
    if (n < tiles()) {
      return {kMiddle,
              kMiddle,
              {part_of(middle_rows, kPooledTileRows, n / across), part_of(middle_columns, kLineColumns, n % across)}};
    }
    n -= tiles();
    if (n < 4 * across) {
      const int32_t place = border(n / across);
      return {place, kMiddle, {rows_of(place, height), part_of(middle_columns, kLineColumns, n % across)}};
    }
    n -= 4 * across;
    if (n < 4 * columns_down) {
      const int32_t place = border(n / columns_down);
      return {kMiddle, place, {part_of(middle_rows, kLineColumns, n % columns_down), rows_of(place, width)}};
    }
    n -= 4 * columns_down;
    const int32_t row_place = border(n / 4), column_place = border(n % 4);
    return {row_place, column_place, {rows_of(row_place, height), rows_of(column_place, width)}};
  }

  // The pieces of an area.
  HMSA_HOST_DEVICE Range pieces(int32_t row_place, int32_t column_place) const {
    const auto number = [](int32_t place) { return place < kMiddle ? place : place - 1; };
    const auto some = [](int32_t lo, int32_t size) { return Range{lo, lo + size}; };
    if (row_place == kMiddle && column_place == kMiddle) return some(0, tiles());
    if (column_place == kMiddle) return some(tiles() + number(row_place) * across, across);
    const int32_t behind_rows = tiles() + 4 * across;
    if (row_place == kMiddle) return some(behind_rows + number(column_place) * columns_down, columns_down);
    return some(behind_rows + 4 * columns_down + number(row_place) * 4 + number(column_place), 1);
  }
};

inline PooledAreas pooled_areas(int32_t height, int32_t width) {
  PooledAreas areas{};
  areas.height = height;
  areas.width = width;
  areas.down = divide_up(height - 4, kPooledTileRows);
  areas.across = divide_up(width - 4, kLineColumns);
  areas.columns_down = divide_up(height - 4, kLineColumns);
  areas.count = areas.tiles() + 4 * areas.across + 4 * areas.columns_down + 16;
  return areas;
}

// Eight neighbouring columns of a row of a pooled map: four, and the two on either side of them.
struct PooledRow {
  uint32_t probability[2 * kQuad];
  uint32_t pixels[2 * kQuad];
};

struct alignas(16) ProbabilityQuad {
  uint32_t of[kQuad];
};

// Where a lane reads them, row by row.
struct PooledColumns {
  const uint32_t* probability;  // of row 0, at the first of them
  const uint8_t* pixels;
  int32_t pitch;
  bool exist;

  // As they are loaded: what a row needs next is on its way meanwhile.
  struct Loaded {
    ProbabilityQuad probability[2];
    uint32_t pixels[2];
  };

  HMSA_DEVICE PooledColumns(const PooledMaps& pooled, int32_t plane, int32_t column, bool with_columns)
      : probability(pooled.probability + plane * pooled.plane() + column),
        pixels(pooled.pixels + plane * pooled.plane() + column),
        pitch(pooled.pitch),
        exist(with_columns) {}

  HMSA_DEVICE Loaded load(int32_t row) const {
    Loaded loaded{};
    if (!exist) return loaded;
    const auto* from = reinterpret_cast<const ProbabilityQuad*>(probability + row * pitch);
    const auto* pixels_from = reinterpret_cast<const uint32_t*>(pixels + row * pitch);
    HMSA_UNROLL
    for (int i = 0; i < 2; ++i) {
      loaded.probability[i] = from[i];
      loaded.pixels[i] = pixels_from[i];
    }
    return loaded;
  }
  HMSA_DEVICE static PooledRow unpacked(const Loaded& loaded) {
    PooledRow row;
    HMSA_UNROLL
    for (int j = 0; j < 2 * kQuad; ++j) {
      row.probability[j] = loaded.probability[j / kQuad].of[j % kQuad];
      row.pixels[j] = loaded.pixels[j / kQuad] >> (8 * (j % kQuad)) & 0xffu;
    }
    return row;
  }
};

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
