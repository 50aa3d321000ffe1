// How a block of the backward pass divides its work and its shared memory: chosen on the host, for one scale.
#pragma once

#include <algorithm>

#include "ops/cuda/adjoint_sums.cuh"
#include "ops/cuda/attention_patch.cuh"
#include "ops/cuda/gradient_operands.cuh"
#include "ops/cuda/gradient_path.cuh"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace backward {

// The gradient of the attention of this scale is put together on the grid, before U^T? (It comes as a map for 1.0.)
HMSA_HOST_DEVICE bool has_grid_sums(const Path& path) { return path.scale > 0 && path.steps > 1; }

// Where a block stands: in shared memory, since every thread needs all of it.
struct BlockTiles {
  PathRanges full_rows;  // all that reaches the tile of the head,
  PathRanges full_columns;
  PathRanges rows;  // and what the piece at hand contributes to
  PathRanges columns;
  int32_t piece;
  ForwardRanges forward_rows;
  ForwardRanges forward_columns;
  Range channels;     // that the block goes through
  bool makes_logits;  // gradients that it makes
  bool makes_attention;
};

struct GradientLayout {
  Extent tile;    // of the head
  Extent piece;   // of the output
  Extent pieces;  // at most
  Planes planes;  // channels at a time
  int32_t band;   // rows of level 1 that are made at a time, where there is one behind the output
  bool together;  // channels of the incoming gradient are neighbours
  bool quads;     // its lines can be read four elements at a time
  int32_t bytes;
  // Offsets in shared memory, in bytes; BlockTiles at 0. Of each step: how its source reads its target, and what reaches the target,
  int32_t row_taps[kMaxSteps];
  int32_t column_taps[kMaxSteps];
  int32_t row_reaches[kMaxSteps];
  int32_t column_reaches[kMaxSteps];
  int32_t factor[kMaxSteps];  // and the factor on its source.
  int32_t sums;               // the attention's gradient on the grid
  int32_t total;              // the head's gradient over the pieces so far
  int32_t rows;               // a step's source with its rows summed
  int32_t level;              // its target
  int32_t scratch;            // while factors are made: the memory of the last two
  ForwardLayout forward;

  // Blocks per tile of the head. Between the pieces of a tile only one group of channels can be kept, or the
  // attention's gradient.
  HMSA_HOST_DEVICE int roles(int64_t classes) const {
    return piece_count() == 1 ? 1 : divide_up(static_cast<int32_t>(classes), planes.channels()) + 1;
  }
  HMSA_HOST_DEVICE int32_t piece_count() const { return pieces.height * pieces.width; }
};

// Channels together, but too few of them in the last chunk, are taken apart.
HMSA_HOST_DEVICE Planes planes_of(bool together, int count) {
  return together && count >= kMinTogether ? Planes{1, count} : Planes{count, 1};
}
inline Planes rest_of(Planes planes) { return planes_of(false, smaller(planes.channels(), kMinTogether - 1)); }

template <typename T>
GradientLayout make_layout(const Chain& chain, const Path& path, const PathSizes& rows, const PathSizes& columns,
                           Extent piece, Planes planes, int32_t band) {
  GradientLayout layout{};
  layout.band = band;
  layout.tile = Extent{rows.tile, columns.tile};
  layout.piece = piece;
  layout.pieces = Extent{rows.pieces, columns.pieces};
  layout.planes = planes;
  Arena arena{0};
  arena.take<BlockTiles>(1);
  int64_t row_sums = 0;
  int64_t levels = 0;
  int64_t scratch = 0;
  for (int s = 0; s < path.steps; ++s) {
    const Extent from{rows.levels[s], columns.levels[s]};
    const bool last = s + 1 == path.steps;
    const Extent to = last ? layout.tile : Extent{rows.levels[s + 1], columns.levels[s + 1]};
    layout.row_taps[s] = arena.take<Tap<T>>(from.height);
    layout.column_taps[s] = arena.take<Tap<T>>(from.width);
    layout.row_reaches[s] = arena.take<Reach>(to.height);
    layout.column_reaches[s] = arena.take<Reach>(to.width);
    if (has_factor(chain, path, s)) {
      layout.factor[s] = arena.take<T>(static_cast<int64_t>(from.height) * round_up(from.width, kQuad));
      scratch = std::max<int64_t>(scratch, attention_scratch_bytes<T>(from, Extent{0, 0}));
    }
    const auto include = [&](Planes planes) {
      const int32_t height = s == 0 && !last && planes.channels() > 1 ? smaller(band, to.height) : to.height;
      row_sums = std::max<int64_t>(row_sums, planes.count * height * round_up(from.width * planes.inner, kQuad));
      if (last) return;
      levels = std::max<int64_t>(levels, planes.count * to.height * Patch<T>::row_of(to.width, planes.inner));
    };
    include(planes);
    include(rest_of(planes));
    include(Planes{1, 1});  // the map of channel sums, not in bands
  }
  // R A of the scales behind this one.
  const Extent output{rows.levels[0], columns.levels[0]};
  for (int j = larger(chain.unit, path.scale) + 1; j < chain.count; ++j) {
    const Extent grid{most_sources(chain.across[j].rows, output.height),
                      most_sources(chain.across[j].columns, output.width)};
    scratch = std::max<int64_t>(scratch, attention_scratch_bytes<T>(output, grid));
  }
  if (has_grid_sums(path)) {
    const Extent grid{rows.levels[path.steps - 1], columns.levels[path.steps - 1]};
    layout.sums = arena.take<T>(grid.height * Patch<T>::row_of(grid.width, 1));
    layout.forward = make_forward_layout<T>(
        chain, path.scale, !chain.is_lower(path.scale), forward_sizes(chain, path.scale, Axis::kRows, grid.height),
        forward_sizes(chain, path.scale, Axis::kColumns, grid.width), planes.channels(), arena);
  }
  if (rows.pieces * columns.pieces > 1) {
    layout.total = arena.take<T>(static_cast<int64_t>(planes.channels()) * layout.tile.height * layout.tile.width);
  }
  layout.scratch = arena.bytes;
  layout.rows = arena.take<T>(row_sums);
  layout.level = arena.take<T>(levels);
  layout.bytes = std::max<int64_t>(arena.bytes, layout.scratch + scratch) < Arena::kTooLarge
                     ? static_cast<int32_t>(std::max<int64_t>(arena.bytes, layout.scratch + scratch))
                     : Arena::kTooLarge;
  return layout;
}

// Channels that lie together, in equal chunks of whole quads (or all of them).
inline int32_t chunk_of(int64_t channels, int32_t most) {
  if (channels <= most) return static_cast<int32_t>(channels);
  const int64_t chunks = (channels + most - 1) / most;
  return smaller(most, round_up(static_cast<int32_t>((channels + chunks - 1) / chunks), kQuad));
}

// Predicted time, in arbitrary units: reads of the incoming gradient, rims of tiles included, by enough blocks ...
inline double cost_of_tiles(const PathSizes& rows, const PathSizes& columns, Extent owned, int64_t batch,
                            int64_t wanted) {
  const double tiles = static_cast<double>(divide_up(owned.height, rows.tile)) * divide_up(owned.width, columns.tile);
  return tiles * rows.levels[0] * columns.levels[0] * std::max(1.0, wanted / (tiles * batch));
}
// ... times what depends on the rest of the layout, at least 1. The shares are estimates.
inline double cost_of_groups(const GradientLayout& layout, const Path& path, const PathSizes& rows,
                             const PathSizes& columns, int64_t classes, int element_bytes) {
  // Barriers, and the work that a group of channels shares.
  double cost = 1.0 + 0.1 / layout.planes.channels();
  // While rows are summed: threads without work, and rows read twice where threads share a column (see sum_rows).
  const int32_t busy = larger(1, layout.planes.count * divide_up(columns.levels[0] * layout.planes.inner, kQuad));
  const int32_t targets = path.steps > 1 ? rows.levels[1] : rows.tile;
  const int32_t segments = larger(1, smaller(kThreads / busy, targets / 2));
  cost *= 1.2 - 0.2 * busy * segments / round_up(busy * segments, kThreads);
  cost *= 1.0 + 0.3 * (segments - 1) / larger(1, targets);
  // A chunk of channels begins and ends in the middle of a sector of 32 bytes.
  if (layout.together && layout.planes.inner < classes) cost *= 1.0 + 24.0 / (layout.planes.inner * element_bytes);
  // Rows that two bands share are read twice, the second time from a cache.
  return path.steps > 1 ? cost * (1.0 + 0.3 / layout.band) : cost;
}

// The cheapest division that fits the budget. `owned`: the part of the head that a launch is for.
template <typename T>
GradientLayout choose_layout(const Chain& chain, const Path& path, Extent owned, int64_t batch, int64_t classes,
                             bool together, int element_bytes) {
  constexpr int32_t kWhole = 1 << 28;
  constexpr int32_t kHeights[] = {16, 12, 8, 6, 4, 2, 1};
  constexpr int32_t kWidths[] = {64, 48, 32, 24, 16, 12, 8, 6, 4, 2, 1};
  constexpr int32_t kBands[] = {kWhole, 8, 4};
  constexpr int kGroups[] = {32, 16, 8, 4, 2, 1};
  const auto planes_for = [&](int group) {
    if (together) return planes_of(true, chunk_of(classes, group));
    const int64_t groups = (classes + group - 1) / group;
    return planes_of(false, static_cast<int>((classes + groups - 1) / groups));
  };

  const int64_t wanted = wanted_blocks();
  const int32_t budget = shared_budget(kBlocksPerMultiprocessor<T>);
  GradientLayout best{};
  double lowest = 0;
  for (const int32_t height : kHeights) {
    const PathSizes rows = path_sizes(chain, path, Axis::kRows, smaller(height, owned.height), kWhole);
    for (const int32_t width : kWidths) {
      const PathSizes columns = path_sizes(chain, path, Axis::kColumns, smaller(width, owned.width), kWhole);
      const double reads = cost_of_tiles(rows, columns, owned, batch, wanted);
      if (lowest > 0 && reads >= lowest) continue;
      for (const int32_t band : kBands) {
        for (const int group : kGroups) {
          if (!together && group > kMaxPlanes) continue;
          GradientLayout layout =
              make_layout<T>(chain, path, rows, columns, Extent{kWhole, kWhole}, planes_for(group), band);
          if (layout.bytes > budget) continue;
          layout.together = together;
          const double cost = reads * cost_of_groups(layout, path, rows, columns, classes, element_bytes);
          if (lowest == 0 || cost < lowest) {
            lowest = cost;
            best = layout;
          }
        }
        if (path.steps == 1) break;
      }
    }
  }
  if (lowest > 0) return best;

  // A single element of the head reaches too much.
  for (int32_t side = 64;; side /= 2) {
    const Extent piece{side, larger(side, kQuad)};
    const PathSizes rows = path_sizes(chain, path, Axis::kRows, 1, piece.height);
    const PathSizes columns = path_sizes(chain, path, Axis::kColumns, 1, piece.width);
    best = make_layout<T>(chain, path, rows, columns, piece, planes_for(side > 8 ? 4 : 1), kWhole);
    best.together = together;
    if (best.bytes <= budget || side == 1) return best;
  }
}

}  // namespace backward
}  // namespace cuda
}  // namespace hmsa
