// Centroids of classes by tile, on the CPU.
//
// A row of labels consists of runs. Each run is added at once. The ends of runs are found for many pixels at a time, by
// comparing pixels with their left neighbours.
#include "ops/cpu/class_tile_centroids.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "core/integers.h"

namespace hmsa {
namespace cpu {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first of eight labels must be the lowest byte");

constexpr int64_t kBandRows = 64;
constexpr int64_t kManyLabels = 32;

uint64_t eight_labels(const uint8_t* labels) {
  uint64_t eight;
  std::memcpy(&eight, labels, sizeof(eight));
  return eight;
}

// The highest bit of each of eight bytes whose label is not that of its left neighbour.
uint64_t changes(const uint8_t* labels) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7f;
  const uint64_t differences = eight_labels(labels) ^ eight_labels(labels - 1);
  return (((differences & kLow) + kLow) | differences) & ~kLow;
}

// Whether each of kManyLabels labels is that of its left neighbour.
bool is_run(const uint8_t* labels) {
  uint64_t differences = 0;
  for (int64_t k = 0; k < kManyLabels; k += 8) differences |= eight_labels(labels + k) ^ eight_labels(labels + k - 1);
  return differences == 0;
}

// The sums of a band of a tile, for each value that a label can have.
class Sums {
 public:
  void clear(int32_t classes) { std::fill_n(sums_, classes, Sum{}); }

  // Pixels [begin, end) of row y, of which labels[0] is the label of column 0.
  void add_row(const uint8_t* labels, int64_t stride, int64_t y, int64_t begin, int64_t end) {
    int64_t start = begin;  // of the run
    int64_t x = begin + 1;
    if (stride == 1) {
      const auto add_eight = [&](int64_t at) {
        for (uint64_t starts = changes(labels + at); starts != 0; starts &= starts - 1) {
          const int64_t next = at + __builtin_ctzll(starts) / 8;
          add_run(labels[start], y, start, next);
          start = next;
        }
      };
      for (; x + kManyLabels <= end; x += kManyLabels) {
        if (is_run(labels + x)) continue;
        for (int64_t k = 0; k < kManyLabels; k += 8) add_eight(x + k);
      }
      for (; x + 8 <= end; x += 8) add_eight(x);
    }
    for (; x < end; ++x) {
      if (labels[x * stride] == labels[start * stride]) continue;
      add_run(labels[start * stride], y, start, x);
      start = x;
    }
    add_run(labels[start * stride], y, start, end);
  }

  // Adds to the K cells of a tile.
  void add_to(int64_t* counts, int64_t* centres, int32_t classes) const {
    for (int32_t c = 0; c < classes; ++c) {
      counts[c] += sums_[c].count;
      centres[2 * c] += sums_[c].y;
      centres[2 * c + 1] += sums_[c].twice_x / 2;
    }
  }

 private:
  struct alignas(32) Sum {
    int64_t count = 0;
    int64_t y = 0;
    int64_t twice_x = 0;
  };

  void add_run(uint8_t label, int64_t y, int64_t begin, int64_t end) {
    Sum& sum = sums_[label];
    const int64_t count = end - begin;
    sum.count += count;
    sum.y += count * y;
    sum.twice_x += count * (begin + end - 1);
  }

  Sum sums_[256];  // those of values that are no class are never read
};

}  // namespace

void class_tile_centroids(const ClassTileCentroids& problem, const ParallelFor& parallel_for) {
  const int64_t classes = problem.classes;
  std::fill_n(problem.counts, problem.cells(), int64_t(0));
  std::fill_n(problem.centres, 2 * problem.cells(), int64_t(0));
  // A band is some rows of a row of tiles: tiles may be few and large.
  const int64_t bands = divide_up(std::min(problem.tile, problem.height), kBandRows);  // of a row of tiles
  const int64_t tile_rows = problem.batch * problem.tile_rows();
  std::mutex mutex;
  parallel_for.run(tile_rows * bands, [&](int64_t begin, int64_t end) {
    Sums sums;
    for (int64_t part = begin; part < end; ++part) {
      const int64_t tile_row = part / bands;
      const int64_t b = tile_row / problem.tile_rows();
      const int64_t top = tile_row % problem.tile_rows() * problem.tile;
      const int64_t bottom = std::min(top + problem.tile, problem.height);
      const int64_t first = top + part % bands * kBandRows;
      const int64_t last = std::min(first + kBandRows, bottom);
      for (int64_t tile = 0; first < last && tile < problem.tile_columns(); ++tile) {
        const int64_t left = tile * problem.tile;
        const int64_t right = std::min(left + problem.tile, problem.width);
        sums.clear(problem.classes);
        for (int64_t y = first; y < last; ++y) {
          sums.add_row(problem.labels.at(b, y, 0), problem.labels.column, y, left, right);
        }
        const int64_t cell = (tile_row * problem.tile_columns() + tile) * classes;
        std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
        if (bands > 1) lock.lock();  // other bands add to the same tile
        sums.add_to(problem.counts + cell, problem.centres + 2 * cell, problem.classes);
      }
    }
  });
  parallel_for.run(tile_rows, [&](int64_t begin, int64_t end) {
    const int64_t row_cells = problem.tile_columns() * classes;
    for (int64_t cell = begin * row_cells; cell < end * row_cells; ++cell) problem.finish_cell(cell);
  });
}

}  // namespace cpu
}  // namespace hmsa
