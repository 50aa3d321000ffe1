// Geometry of the backward pass: the way from the output to the head of a scale, and the tiles along it.
//
// The way is a path of adjoint resizes ("steps") with a factor on every level that a step starts from:
//
//     lower scale i     output (* kept) --R^T-- grid i (* A_i) --U^T-- head
//     scale 1.0         output (* kept * A, without A where it is the largest) --U^T-- head
//     above 1.0         output (* kept * (1 - A)) --R^T-- grid (* 1 - A) ... --R^T-- grid i (* A_i) --U^T-- head
//     largest scale     the same, but its last two steps R^T, U^T have no factor in between and are one (ComposedMap)
//
// kept is the product of 1 - R A over the scales that come behind. Level s is where step s starts: level 0 is the
// output. A block owns a tile of the head. Normally its tiles are all that reaches it; where that is too much for shared
// memory (a head of a few elements blown up to an image) level 0 is cut into pieces, one after the other: every step is
// linear, so the head's gradient is the sum over the pieces.
#pragma once

#include "ops/cuda/axis_tables.cuh"

namespace hmsa {
namespace cuda {
namespace backward {

constexpr int kMaxSteps = kMaxScales;  // R^T of up to seven scales and U^T

struct Path {
  int scale;
  int steps;              // the last one leads to the head
  int across[kMaxSteps];  // step s before the last is the adjoint of chain.across[across[s]]
  bool composed;          // the last step is the adjoint of two resizes, across[0] after up[0]
};

HMSA_HOST_DEVICE bool can_compose(const Chain& chain) {
  return chain.has_composed() && fits_taps(chain.composed_rows()) && fits_taps(chain.composed_columns());
}

inline Path make_path(const Chain& chain, int i) {
  Path path{};
  path.scale = i;
  path.composed = i == 0 && can_compose(chain);
  if (chain.is_lower(i)) {
    path.across[path.steps++] = i;
  } else {
    const int first = chain.needs_final_resize ? 0 : chain.unit - 1;
    for (int j = first; j >= (path.composed ? 1 : i); --j) path.across[path.steps++] = j;
  }
  ++path.steps;
  return path;
}

// Some factor other than 1 lies on level s?
HMSA_HOST_DEVICE bool has_factor(const Chain& chain, const Path& path, int s) {
  if (s > 0) return path.across[s - 1] > 0;  // on grid j lies A_j or 1 - A_j; the largest scale has no attention
  const bool passes_lower = chain.count - 1 > larger(chain.unit, path.scale);
  return passes_lower || (!chain.is_lower(path.scale) && chain.unit > 0);
}

// ---- tiles along a path, an axis at a time --------------------------------------------------------------------------

enum class Axis { kRows, kColumns };

HMSA_HOST_DEVICE const AxisMap& axis_of(const Resize& resize, Axis axis) {
  return axis == Axis::kRows ? resize.rows : resize.columns;
}

// Calls use(map) with the axis of step s: an AxisMap or a ComposedMap, from the level behind the step to level s.
template <typename Use>
HMSA_HOST_DEVICE void with_step(const Chain& chain, const Path& path, int s, Axis axis, const Use& use) {
  if (s + 1 < path.steps) {
    use(axis_of(chain.across[path.across[s]], axis));
  } else if (path.composed) {
    use(axis == Axis::kRows ? chain.composed_rows() : chain.composed_columns());
  } else {
    use(axis_of(chain.up[path.scale], axis));
  }
}

struct PathRanges {
  Range levels[kMaxSteps];
  Range owned;  // of the head
};

HMSA_HOST_DEVICE Range intersection(Range a, Range b) {
  const Range both{larger(a.lo, b.lo), smaller(a.hi, b.hi)};
  return both.empty() ? Range{0, 0} : both;
}

// All that reaches the owned part of the head. Columns of level 0 begin and end at whole quads.
HMSA_HOST_DEVICE_CALL PathRanges full_ranges(const Chain& chain, const Path& path, Axis axis, Range owned) {
  PathRanges ranges;
  ranges.owned = owned;
  for (int s = path.steps - 1; s >= 0; --s) {
    Range level{0, 0};
    with_step(chain, path, s, axis, [&](const auto& map) { level = map.outputs(owned); });
    ranges.levels[s] = owned = level.empty() ? Range{0, 0} : level;
  }
  Range& output = ranges.levels[0];
  if (axis == Axis::kColumns && !output.empty()) {
    output.lo -= output.lo % kQuad;
    output.hi = smaller(round_up(output.hi, kQuad), chain.size.width);
  }
  return ranges;
}

// The part of it that the k-th piece of level 0 contributes to.
HMSA_HOST_DEVICE_CALL PathRanges piece_ranges(const Chain& chain, const Path& path, Axis axis, PathRanges ranges,
                                              int32_t size, int32_t k) {
  const Range whole = ranges.levels[0];
  ranges.levels[0] = intersection(whole, Range{whole.lo + k * size, whole.lo + (k + 1) * size});
  for (int s = 0; s + 1 < path.steps; ++s) {
    Range reached{0, 0};
    with_step(chain, path, s, axis, [&](const auto& map) { reached = map.sources(ranges.levels[s]); });
    ranges.levels[s + 1] = intersection(ranges.levels[s + 1], reached);
  }
  return ranges;
}

// ---- upper bounds of their sizes, for the host ----------------------------------------------------------------------

// Most outputs that read any of n consecutive inputs: as many as integers fit an open interval.
inline int32_t most_outputs(const AxisMap& map, int32_t n) {
  if (n == 0 || map.identity()) return n;
  if (map.slope == 0) return map.out;
  const int64_t most = ((n + 1) * map.den + map.slope - 1) / map.slope;
  return most < map.out ? static_cast<int32_t>(most) : map.out;
}

// Most inputs, first to last, that n consecutive outputs read.
inline int32_t most_sources(const AxisMap& map, int32_t n) {
  if (n == 0 || map.identity()) return n;
  const int64_t most = ((n - 1) * map.slope + map.den - 1) / map.den + 2;
  return most < map.in ? static_cast<int32_t>(most) : map.in;
}

inline int32_t most_outputs(const ComposedMap& map, int32_t n) {
  return most_outputs(map.outer, most_outputs(map.inner, n));
}
inline int32_t most_sources(const ComposedMap& map, int32_t n) {
  return most_sources(map.inner, most_sources(map.outer, n));
}

// Sizes of the levels for a tile of the head and pieces of the output, along one axis.
struct PathSizes {
  int32_t levels[kMaxSteps];
  int32_t tile;
  int32_t pieces;
};

inline PathSizes path_sizes(const Chain& chain, const Path& path, Axis axis, int32_t tile, int32_t piece) {
  PathSizes sizes{};
  sizes.tile = tile;
  int32_t level = tile;
  for (int s = path.steps - 1; s >= 0; --s) {
    with_step(chain, path, s, axis, [&](const auto& map) { level = most_outputs(map, level); });
    sizes.levels[s] = level;
  }
  if (axis == Axis::kColumns) level = smaller(round_up(level + kQuad - 1, kQuad), round_up(chain.size.width, kQuad));
  sizes.pieces = larger(1, divide_up(level, piece));
  sizes.levels[0] = smaller(level, piece);
  for (int s = 0; s + 1 < path.steps; ++s) {
    with_step(chain, path, s, axis, [&](const auto& map) {
      sizes.levels[s + 1] = smaller(sizes.levels[s + 1], most_sources(map, sizes.levels[s]));
    });
  }
  return sizes;
}

}  // namespace backward
}  // namespace cuda
}  // namespace hmsa
