// What the gradient of attention needs of the forward pass, on a tile: L of a scale, and R P of the scale above it.
//
// Both end as "stretched" maps in shared memory: columns interpolated to those of the tile, rows left as they are, so
// that an element costs the interpolation of two rows. R P of the largest scale comes from its head in one step
// (ComposedMap). With more scales above, P is made grid by grid on just the part that the tile needs.
#pragma once

#include "core/blend.h"
#include "ops/cuda/axis_tables.cuh"
#include "ops/cuda/gradient_path.cuh"

namespace hmsa {
namespace cuda {
namespace backward {

// [channels, rows of the source, columns of the tile]; rows begin at whole quads.
template <typename T>
struct Stretched {
  T* data;
  const Tap<T>* row_taps;  // of the tile's rows
  Range source;
  Tile tile;

  HMSA_DEVICE int32_t pitch() const { return round_up(tile.columns.size(), kQuad); }
  HMSA_DEVICE T* row(int k, int32_t source_row) const {
    return data + (k * source.size() + (source_row - source.lo)) * pitch();
  }
  HMSA_DEVICE T at(int k, int32_t y, int32_t x) const {
    return interpolate(row_taps[y - tile.rows.lo], [&](int32_t v) { return row(k, v)[x - tile.columns.lo]; });
  }

  // Interpolates the columns of channels [0, channels) of a map with these strides. `map` is the source's first row, at
  // column `first`.
  template <typename V>
  HMSA_DEVICE_PHASE void fill(int channels, const Tap<T>* column_taps, const V* map, int32_t first, int64_t channel,
                              int64_t row, int64_t column) const {
    const int32_t rows = source.size();
    for (int32_t line = warp(); line < channels * rows; line += kWarps) {
      const int32_t k = line / rows;
      const V* from = map + k * channel + (line - k * rows) * row;
      T* to = data + line * pitch();
      for (int32_t x = lane(); x < tile.columns.size(); x += kLanes) {
        to[x] = interpolate(column_taps[x], [&](int32_t u) { return T(to_arithmetic(from[(u - first) * column])); });
      }
    }
  }
};

// ---- geometry -------------------------------------------------------------------------------------------------------

// One axis of the chain above grid `target`. P is kept as a patch on the grids first_patch() .. target - 1.
struct ForwardRanges {
  Range grids[kMaxScales];
  Range logit;   // rows or columns of the target's head
  Range before;  // of what R P of the scale above is interpolated from: its grid, or the largest scale's head
};

HMSA_HOST_DEVICE int first_patch(const Chain& chain) { return can_compose(chain) ? 1 : 0; }

HMSA_HOST_DEVICE_CALL ForwardRanges forward_ranges(const Chain& chain, int target, Axis axis, Range tile) {
  ForwardRanges ranges{};
  ranges.grids[target] = tile;
  ranges.logit = axis_of(chain.up[target], axis).sources(tile);
  if (target == 0) return ranges;
  for (int j = target - 1; j >= first_patch(chain); --j) {
    ranges.grids[j] = axis_of(chain.across[j], axis).sources(ranges.grids[j + 1]);
  }
  if (target > first_patch(chain)) {
    ranges.before = ranges.grids[target - 1];
  } else {
    ranges.before = (axis == Axis::kRows ? chain.composed_rows() : chain.composed_columns()).sources(tile);
  }
  return ranges;
}

// The same as upper bounds of their sizes.
struct ForwardSizes {
  int32_t grids[kMaxScales];
  int32_t logit;
  int32_t before;
};

inline ForwardSizes forward_sizes(const Chain& chain, int target, Axis axis, int32_t tile) {
  ForwardSizes sizes{};
  sizes.grids[target] = tile;
  sizes.logit = most_sources(axis_of(chain.up[target], axis), tile);
  if (target == 0) return sizes;
  for (int j = target - 1; j >= first_patch(chain); --j) {
    sizes.grids[j] = most_sources(axis_of(chain.across[j], axis), sizes.grids[j + 1]);
  }
  if (target > first_patch(chain)) {
    sizes.before = sizes.grids[target - 1];
  } else {
    sizes.before = most_sources(axis == Axis::kRows ? chain.composed_rows() : chain.composed_columns(), tile);
  }
  return sizes;
}

// Hands out shared memory: offsets in bytes, 16 at a time.
struct Arena {
  int32_t bytes;

  template <typename V>
  int32_t take(int64_t count) {
    const int32_t at = bytes;
    const int64_t end = at + (count * static_cast<int64_t>(sizeof(V)) + 15) / 16 * 16;
    bytes = static_cast<int32_t>(end < kTooLarge ? end : kTooLarge);
    return at;
  }
  static constexpr int32_t kTooLarge = 1 << 30;
};

// Offsets in shared memory of one scale's part.
struct ForwardLayout {
  int target;
  bool has_before;
  int32_t logit_rows;  // taps
  int32_t logit_columns;
  int32_t logit;  // stretched
  int32_t before_rows;
  int32_t before_columns;
  int32_t before;
  struct Level {
    int32_t up_rows;  // taps from the head,
    int32_t up_columns;
    int32_t from_rows;  // from the level above,
    int32_t from_columns;
    int32_t patch;  // and P, [channels, rows, columns]
  } levels[kMaxScales];
};

template <typename T>
ForwardLayout make_forward_layout(const Chain& chain, int target, bool has_before, const ForwardSizes& rows,
                                  const ForwardSizes& columns, int channels, Arena& arena) {
  ForwardLayout layout{};
  layout.target = target;
  layout.has_before = has_before;
  const int64_t pitch = round_up(columns.grids[target], kQuad);
  layout.logit_rows = arena.take<Tap<T>>(rows.grids[target]);
  layout.logit_columns = arena.take<Tap<T>>(columns.grids[target]);
  layout.logit = arena.take<T>(channels * pitch * rows.logit);
  if (!has_before) return layout;
  layout.before_rows = arena.take<Tap<T>>(rows.grids[target]);
  layout.before_columns = arena.take<Tap<T>>(columns.grids[target]);
  layout.before = arena.take<T>(channels * pitch * rows.before);
  for (int j = first_patch(chain); j < target; ++j) {
    ForwardLayout::Level& level = layout.levels[j];
    level.up_rows = arena.take<Tap<T>>(rows.grids[j]);
    level.up_columns = arena.take<Tap<T>>(columns.grids[j]);
    level.from_rows = arena.take<Tap<T>>(rows.grids[j]);
    level.from_columns = arena.take<Tap<T>>(columns.grids[j]);
    level.patch = arena.take<T>(static_cast<int64_t>(channels) * rows.grids[j] * columns.grids[j]);
  }
  return layout;
}

// ---- on the device --------------------------------------------------------------------------------------------------

template <typename T, typename Problem>
struct ForwardOperands {
  const Problem& problem;
  const ForwardLayout& layout;
  const ForwardRanges& rows;
  const ForwardRanges& columns;
  int32_t b;

  HMSA_DEVICE Tap<T>* taps(int32_t offset) const { return shared_at<Tap<T>>(offset); }
  HMSA_DEVICE Tile tile(int j) const { return Tile{rows.grids[j], columns.grids[j]}; }
  HMSA_DEVICE T* values(int32_t offset) const { return shared_at<T>(offset); }
  HMSA_DEVICE Stretched<T> logit() const {
    return {values(layout.logit), taps(layout.logit_rows), rows.logit, tile(layout.target)};
  }
  HMSA_DEVICE Stretched<T> before() const {
    return {values(layout.before), taps(layout.before_rows), rows.before, tile(layout.target)};
  }
  HMSA_DEVICE T& patch(int j, int k, int32_t y, int32_t x) const {
    const Tile part = tile(j);
    return values(layout.levels[j].patch)[(k * part.rows.size() + (y - part.rows.lo)) * part.columns.size() +
                                          (x - part.columns.lo)];
  }

  // Taps of all that is needed. Ends without a barrier.
  HMSA_DEVICE_CALL void fill_tables() const {
    const Chain& chain = problem.chain;
    const int target = layout.target;
    fill(chain.up[target].rows, layout.logit_rows, rows.grids[target]);
    fill(chain.up[target].columns, layout.logit_columns, columns.grids[target]);
    if (!layout.has_before) return;
    fill_from(target, layout.before_rows, layout.before_columns);
    for (int j = first_patch(chain); j < target; ++j) {
      fill(chain.up[j].rows, layout.levels[j].up_rows, rows.grids[j]);
      fill(chain.up[j].columns, layout.levels[j].up_columns, columns.grids[j]);
      if (j > 0) fill_from(j, layout.levels[j].from_rows, layout.levels[j].from_columns);
    }
  }

  // The stretched maps of channels c .. c + channels - 1. Needs the tables; ends without a barrier.
  HMSA_DEVICE_PHASE void make(int32_t c, int channels) const {
    stretch_head(logit(), layout.target, layout.logit_columns, c, channels);
    if (!layout.has_before) return;
    if (layout.target > first_patch(problem.chain)) {
      make_from_patches(c, channels);
    } else {
      stretch_head(before(), 0, layout.before_columns, c, channels);
    }
  }

 private:
  template <typename Map>
  HMSA_DEVICE_PHASE void fill(const Map& map, int32_t offset, Range outputs) const {
    AxisTable<T>{taps(offset), nullptr, outputs, {}}.fill_taps(map);
  }

  // Taps of grid j into what R P of the scale above is interpolated from.
  HMSA_DEVICE void fill_from(int j, int32_t to_rows, int32_t to_columns) const {
    const Chain& chain = problem.chain;
    if (j > first_patch(chain)) {
      fill(chain.across[j - 1].rows, to_rows, rows.grids[j]);
      fill(chain.across[j - 1].columns, to_columns, columns.grids[j]);
    } else {
      fill(chain.composed_rows(), to_rows, rows.grids[j]);
      fill(chain.composed_columns(), to_columns, columns.grids[j]);
    }
  }

  HMSA_DEVICE_PHASE void stretch_head(const Stretched<T>& to, int i, int32_t column_taps, int32_t c,
                                      int channels) const {
    const auto map = problem.logits[i];
    to.fill(channels, taps(column_taps), map.at(b, c, to.source.lo, 0), 0, map.channel, map.row, map.column);
  }

  // Seldom reached: there are two scales above the one whose attention gets a gradient.
  HMSA_DEVICE_PHASE void make_from_patches(int32_t c, int channels) const {
    for (int j = first_patch(problem.chain); j < layout.target; ++j) {
      make_patch(j, c, channels);
      __syncthreads();  // the next level, or the stretched map, is made from this one
    }
    const int above = layout.target - 1;
    const Tile part = tile(above);
    const int32_t pitch = part.columns.size();
    before().fill(channels, taps(layout.before_columns), values(layout.levels[above].patch), part.columns.lo,
                  part.rows.size() * pitch, pitch, 1);
  }

  // P of upper scale j.
  HMSA_DEVICE_PHASE void make_patch(int j, int32_t c, int channels) const {
    const Tap<T>* up_rows = taps(layout.levels[j].up_rows);
    const Tap<T>* up_columns = taps(layout.levels[j].up_columns);
    const Tap<T>* from_rows = taps(layout.levels[j].from_rows);
    const Tap<T>* from_columns = taps(layout.levels[j].from_columns);
    const bool from_head = j == first_patch(problem.chain);
    for_each(tile(j), [&](int32_t y, int32_t x) {
      const int32_t row = y - rows.grids[j].lo;
      const int32_t column = x - columns.grids[j].lo;
      const T attention = j > 0 ? sample(problem.attention[j], b, 0, up_rows[row], up_columns[column]) : T(1);
      for (int k = 0; k < channels; ++k) {
        const T logit = sample(problem.logits[j], b, c + k, up_rows[row], up_columns[column]);
        if (j == 0) {
          patch(j, k, y, x) = logit;
          continue;
        }
        const T above =
            from_head ? sample(problem.logits[0], b, c + k, from_rows[row], from_columns[column])
                      : interpolate(from_rows[row], [&](int32_t v) {
                          return interpolate(from_columns[column], [&](int32_t u) { return patch(j - 1, k, v, u); });
                        });
        patch(j, k, y, x) = blend_upper(attention, logit, above);
      }
    });
  }
};

}  // namespace backward
}  // namespace cuda
}  // namespace hmsa
