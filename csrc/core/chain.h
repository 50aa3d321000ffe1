// The chain of scales: its geometry, and which part of every map a tile of the work touches.
//
// Scales descend. Each has logits and attention at the head's resolution, which U (bilinear) takes to the grid of the
// scale, floor(size * scale). With L = U logits and A = U attention, from the largest scale down:
//
//     first scale   P = L
//     s >= 1        P = A * L + (1 - A) * R(P -> grid of s)
//     s <  1        P = R(A * L -> size) + (1 - R(A -> size)) * P
//
// Scales 0 .. unit are the "upper" part (each has its own grid, and `unit` is scale 1.0 when there is more than one);
// the scales behind it are the "lower" part, blended on the grid of the output. A lone scale other than 1.0 ends with
// one more resize from its grid to the output (`needs_final_resize`).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "core/resize.h"

namespace hmsa {

constexpr int kMaxScales = 8;

// A map's height and width.
struct Extent {
  int32_t height;
  int32_t width;

  HMSA_HOST_DEVICE bool operator==(const Extent& other) const { return height == other.height && width == other.width; }
  HMSA_HOST_DEVICE bool operator!=(const Extent& other) const { return !(*this == other); }
};

// A rectangle of a map.
struct Tile {
  Range rows;
  Range columns;

  HMSA_HOST_DEVICE bool empty() const { return rows.empty() || columns.empty(); }
  HMSA_HOST_DEVICE int64_t area() const { return static_cast<int64_t>(rows.size()) * columns.size(); }
};

HMSA_HOST_DEVICE Tile hull(const Tile& a, const Tile& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return Tile{hull(a.rows, b.rows), hull(a.columns, b.columns)};
}

// Both axes of a resize.
struct Resize {
  AxisMap rows;
  AxisMap columns;

  HMSA_HOST_DEVICE bool copies() const { return rows.copies; }
  HMSA_HOST_DEVICE Tile sources(const Tile& tile) const {
    return Tile{rows.sources(tile.rows), columns.sources(tile.columns)};
  }
  HMSA_HOST_DEVICE Tile outputs(const Tile& tile) const {
    return Tile{rows.outputs(tile.rows), columns.outputs(tile.columns)};
  }
};

HMSA_HOST_DEVICE Resize make_resize(Extent from, Extent to, bool align_corners) {
  Resize resize{make_axis_map(from.height, to.height, align_corners),
                make_axis_map(from.width, to.width, align_corners)};
  resize.rows.copies = resize.columns.copies = from == to;
  return resize;
}

// Height and width of the grid of a scale, in double precision: floor(size * scale).
inline Extent grid_extent(Extent size, double scale) {
  return Extent{static_cast<int32_t>(std::floor(size.height * scale)),
                static_cast<int32_t>(std::floor(size.width * scale))};
}

struct Chain {
  int count;                  // number of scales
  int unit;                   // index of scale 1.0; 0 for a lone scale
  bool class_wise;            // attention has one channel per class
  Extent size;                // of the output
  Extent grids[kMaxScales];   // of each scale
  Extent heads[kMaxScales];   // of each scale's logits and attention
  Resize up[kMaxScales];      // U: head -> grid
  Resize across[kMaxScales];  // R: upper scale i < unit: grid i -> grid i + 1; lower scale: grid i -> size
  bool needs_final_resize;    // a lone scale whose grid is not the output: across[0] is grid 0 -> size

  HMSA_HOST_DEVICE bool is_lower(int i) const { return i > unit; }

  // Whether one step, U and R composed, takes the logits of the largest scale from its head to the next grid, or to the
  // output. This is so wherever the grid of the largest scale is not the output: no attention lies between U and R
  // there, so a kernel needs no map on that grid. composed_rows() and composed_columns() are the axes of the step.
  HMSA_HOST_DEVICE bool has_composed() const { return unit > 0 || needs_final_resize; }
  HMSA_HOST_DEVICE ComposedMap composed_rows() const { return ComposedMap{up[0].rows, across[0].rows}; }
  HMSA_HOST_DEVICE ComposedMap composed_columns() const { return ComposedMap{up[0].columns, across[0].columns}; }
};

inline Chain make_chain(int count, const double* scales, const Extent* heads, Extent size, bool class_wise,
                        bool align_corners) {
  Chain chain{};
  chain.count = count;
  chain.class_wise = class_wise;
  chain.size = size;
  for (int i = 0; i < count; ++i) {
    if (scales[i] == 1.0) chain.unit = i;
    chain.heads[i] = heads[i];
    chain.grids[i] = grid_extent(size, scales[i]);
    chain.up[i] = make_resize(heads[i], chain.grids[i], align_corners);
  }
  for (int i = 0; i < count; ++i) {
    chain.across[i] = make_resize(chain.grids[i], i < chain.unit ? chain.grids[i + 1] : size, align_corners);
  }
  chain.needs_final_resize = chain.grids[chain.unit] != size;
  return chain;
}

// The part of every map that a tile of the output needs (forward).
struct ForwardTiles {
  Tile output;
  Tile grids[kMaxScales];  // of each scale's grid
  Tile heads[kMaxScales];  // of each scale's logits and attention
};

HMSA_HOST_DEVICE_CALL ForwardTiles forward_tiles(const Chain& chain, const Tile& output) {
  ForwardTiles tiles;
  tiles.output = output;
  for (int i = chain.unit + 1; i < chain.count; ++i) {
    tiles.grids[i] = chain.across[i].sources(output);
  }
  tiles.grids[chain.unit] = chain.needs_final_resize ? chain.across[chain.unit].sources(output) : output;
  for (int i = chain.unit - 1; i >= 0; --i) {
    tiles.grids[i] = chain.across[i].sources(tiles.grids[i + 1]);
  }
  for (int i = 0; i < chain.count; ++i) {
    tiles.heads[i] = chain.up[i].sources(tiles.grids[i]);
  }
  return tiles;
}

// The part of every map that the gradients of a tile of every head need (backward). The elements of the inputs divide
// the work: part (r, c) of a division owns the same share of the rows and columns of every scale, and gathers all
// gradients that reach them. So parts share no sums, and the order of every sum is fixed.
struct BackwardTiles {
  Tile owned[kMaxScales];   // of each head: the gradients that this part writes
  Tile grids[kMaxScales];   // of each grid: dLoss/d(grid) that reaches the owned part
  Tile levels[kMaxScales];  // of each upper grid: dLoss/dP, a superset of grids[i] since it is passed on to i - 1
  Tile output;              // of the incoming gradient
};

HMSA_HOST_DEVICE Range share(int32_t size, int32_t parts, int32_t part) {
  return Range{static_cast<int32_t>(static_cast<int64_t>(size) * part / parts),
               static_cast<int32_t>(static_cast<int64_t>(size) * (part + 1) / parts)};
}

HMSA_HOST_DEVICE_CALL BackwardTiles backward_tiles(const Chain& chain, Extent parts, int32_t row, int32_t column) {
  BackwardTiles tiles;
  for (int i = 0; i < chain.count; ++i) {
    tiles.owned[i] =
        Tile{share(chain.heads[i].height, parts.height, row), share(chain.heads[i].width, parts.width, column)};
    const bool nothing = tiles.owned[i].empty();
    tiles.grids[i] = nothing ? Tile{{0, 0}, {0, 0}} : chain.up[i].outputs(tiles.owned[i]);
  }
  tiles.levels[0] = tiles.grids[0];
  for (int i = 1; i <= chain.unit; ++i) {
    tiles.levels[i] = hull(tiles.grids[i], chain.across[i - 1].outputs(tiles.levels[i - 1]));
  }
  const Tile& top = tiles.levels[chain.unit];
  tiles.output = chain.needs_final_resize ? chain.across[chain.unit].outputs(top) : top;
  for (int i = chain.unit + 1; i < chain.count; ++i) {
    tiles.levels[i] = tiles.grids[i];
    tiles.output = hull(tiles.output, chain.across[i].outputs(tiles.grids[i]));
  }
  return tiles;
}

}  // namespace hmsa
