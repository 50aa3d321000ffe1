// fuse_scales on the GPU, forward: how the work is cut into tiles and groups of channels, and where each of a block's
// maps lies in shared memory. Decided on the host, once for a launch.
#pragma once

#include "core/problem.h"
#include "ops/cuda/launch.h"

namespace hmsa {
namespace cuda {
namespace forward {

// Blocks of 32 x 8 threads.
constexpr int kBlockColumns = 32;
constexpr int kBlockRows = 8;
constexpr int kBlockThreads = kBlockColumns * kBlockRows;

HMSA_DEVICE int32_t thread_index() { return static_cast<int32_t>(threadIdx.y) * kBlockColumns + threadIdx.x; }

constexpr int kRun = 8;     // rows that a thread makes one after another
constexpr int kVector = 4;  // positions side by side that it makes at once
constexpr int kGridSlots = kMaxScales + 1;

HMSA_HOST_DEVICE int32_t rounded_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

// Quotients of numbers below 2^16 by a fixed one, without the twenty instructions of a division.
struct Division {
  int32_t divisor;
  uint32_t reciprocal;  // ceil(2^32 / divisor)

  HMSA_HOST_DEVICE int32_t quotient(int32_t n) const { return divisor == 1 ? n : quotient_by_more(n); }
  HMSA_HOST_DEVICE int32_t quotient_by_more(int32_t n) const {  // than 1
    return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * reciprocal >> 32);
  }
};

inline Division division_by(int32_t divisor) {
  return Division{divisor, UINT32_MAX / static_cast<uint32_t>(divisor) + 1};
}

// The channels of a group in shared memory. In planes (contiguous tensors) each has lines of its own and a position in
// a line is a column. In pixels (channels_last) a row is one line and column x, channel k is position x * channels + k.
// Either way neighbouring positions are neighbours in global memory.
struct Lines {
  int32_t count;     // lines of a row
  int32_t channels;  // in one line
  Division by_count;
  Division by_channels;
};

enum LineKind {
  kShared,  // one channel: attention that serves all classes
  kGroup,   // a group of channels, of which the last one uses fewer
  kLineKinds,
};

// A grid, the output being one of them.
struct GridLayout {
  Extent most;                 // rows and columns of it that any tile needs
  Division pitch[kLineKinds];  // from row to row of a line, in elements: a multiple of kVector
  int32_t items[kLineKinds];   // positions of all lines times runs of rows
};

// Where a map lies in shared memory. All in bytes, the offset a multiple of 16.
struct Place {
  int32_t offset;
  int32_t line;   // from line to line
  int32_t pitch;  // from row to row
};

// Rows of a head or level, interpolated along the columns of a grid, and the taps that lead there.
struct StretchedLayout {
  Place places[kLineKinds];
  int32_t grid;
  int32_t column_taps;  // offsets in bytes
  int32_t row_taps;
};

struct ScaleLayout {
  StretchedLayout head;    // of the head at its grid; or at the next one, where both resizes are composed
  StretchedLayout across;  // of the level at the next grid
  // A * L or A (lower scales) or P (upper scales but the first and last) on the grid, ready for being stretched:
  // transposed, pitch being from position to position.
  Place levels[kLineKinds];
  Place attention;  // A on the grid; a line serves all channels unless they have their own
  Place keep;       // 1 - R A on the output (lower scales), likewise
};

struct ForwardLayout {
  Extent tile;
  int32_t channels;  // of a group
  int32_t groups;
  int32_t output;  // the grid that is the output
  bool pixels;     // else planes
  Lines lines[kLineKinds];
  GridLayout grids[kGridSlots];
  ScaleLayout scales[kMaxScales];
  int32_t bytes;
};

// A lone scale's final resize gives the output a place of its own.
HMSA_HOST_DEVICE int output_grid(const Chain& chain) { return chain.needs_final_resize ? 1 : chain.unit; }
HMSA_HOST_DEVICE int next_grid(const Chain& chain, int i) { return i < chain.unit ? i + 1 : output_grid(chain); }
HMSA_HOST_DEVICE bool is_composed(const Chain& chain, int i) { return i == 0 && chain.has_composed(); }

// Whether the scale has values on its own grid that are resized once more.
HMSA_HOST_DEVICE bool has_level(const Chain& chain, int i) { return i > 0 && i != chain.unit; }

// Inputs that `outputs` consecutive outputs read, at most: from the first to the last of them the source moves by
// (outputs - 1) slope / den, and reads two.
inline int32_t most_sources(const AxisMap& map, int32_t outputs) {
  if (map.identity()) return outputs;
  const int64_t most = ((outputs - 1) * map.slope + map.den - 1) / map.den + 2;
  return most < map.in ? static_cast<int32_t>(most) : map.in;
}

inline Extent most_sources(const Resize& resize, Extent outputs) {
  return Extent{most_sources(resize.rows, outputs.height), most_sources(resize.columns, outputs.width)};
}

// Whether offsets inside a part of a map fit 32 bits.
template <typename S>
bool reach_is_narrow(const MapView<S>& map, int32_t channels, Extent part) {
  const auto size = [](int64_t stride) { return static_cast<double>(stride < 0 ? -stride : stride); };
  return size(map.channel) * channels + size(map.column) * part.width + size(map.row) * part.height <= INT32_MAX;
}

// Whether those between columns and channels of all heads do.
template <typename S>
bool heads_are_narrow(const ChainInputs<S>& inputs, int32_t channels) {
  bool narrow = true;
  for (int i = 0; i < inputs.chain.count; ++i) {
    const Extent row{0, inputs.chain.heads[i].width};
    narrow = narrow && reach_is_narrow(inputs.logits[i], channels, row) &&
             (i == 0 || reach_is_narrow(inputs.attention[i], channels, row));
  }
  return narrow;
}

// Which rows and columns of each grid a tile needs at most, and how its channels lie.
inline void plan_grids(const Chain& chain, int64_t classes, ForwardLayout& layout) {
  layout.output = output_grid(chain);
  layout.groups = static_cast<int32_t>((classes + layout.channels - 1) / layout.channels);
  const int32_t channels[kLineKinds] = {1, layout.channels};
  for (int kind = 0; kind < kLineKinds; ++kind) {
    const int32_t in_line = layout.pixels ? channels[kind] : 1;
    const int32_t count = layout.pixels ? 1 : channels[kind];
    layout.lines[kind] = Lines{count, in_line, division_by(count), division_by(in_line)};
  }
  layout.grids[layout.output].most = layout.tile;
  for (int i = chain.unit - 1; i > 0; --i) {
    layout.grids[i].most = most_sources(chain.across[i], layout.grids[i + 1].most);
  }
  for (int i = chain.unit + 1; i < chain.count; ++i) {
    layout.grids[i].most = most_sources(chain.across[i], layout.tile);
  }
  for (GridLayout& grid : layout.grids) {
    for (int kind = 0; kind < kLineKinds; ++kind) {
      const int32_t positions = grid.most.width * layout.lines[kind].channels;
      grid.pitch[kind] = division_by(positions > 0 ? rounded_up(positions, kVector) : kVector);
      grid.items[kind] =
          grid.pitch[kind].divisor * layout.lines[kind].count * rounded_up(grid.most.height, kRun) / kRun;
    }
  }
}

// Gives each map and table its place.
template <typename T, typename RowStep>
void place(const Chain& chain, ForwardLayout& layout) {
  layout.bytes = 0;
  const auto take = [&](size_t bytes) {
    const int32_t at = layout.bytes;
    layout.bytes += rounded_up(static_cast<int32_t>(bytes), 16);
    return at;
  };
  const auto as_map = [&](int32_t offset, int32_t height, int grid, int kind) {
    const int32_t pitch = static_cast<int32_t>(sizeof(T)) * layout.grids[grid].pitch[kind].divisor;
    return Place{offset, height * pitch, pitch};
  };
  const auto size = [&](const Place& map, int kind) { return layout.lines[kind].count * map.line; };
  for (int i = 0; i < chain.count; ++i) {
    ScaleLayout& scale = layout.scales[i];
    const bool composed = is_composed(chain, i);
    const int next = next_grid(chain, i);
    scale.head.grid = composed ? next : i;
    scale.across.grid = next;
    const Extent grid = layout.grids[scale.head.grid].most;
    const int32_t whole_runs = rounded_up(grid.height, kRun);
    const int32_t next_runs = rounded_up(layout.grids[next].most.height, kRun);

    scale.head.column_taps = take(grid.width * (composed ? sizeof(ComposedTaps<T>) : sizeof(Taps<T>)));
    scale.head.row_taps = take(whole_runs * (composed ? sizeof(ComposedTaps<T>) : sizeof(RowStep)));
    if (has_level(chain, i)) {
      scale.across.column_taps = take(layout.grids[next].most.width * sizeof(Taps<T>));
      scale.across.row_taps = take(next_runs * sizeof(RowStep));
    }
    // The stretched rows of the level take the place of those of the head, from which the level was made.
    const int32_t inner = composed ? most_sources(chain.across[0].rows, grid.height) : grid.height;
    const int32_t head_rows = most_sources(chain.up[i].rows, inner);
    const int32_t stretched = layout.bytes;
    for (int kind = 0; kind < kLineKinds; ++kind) {
      scale.head.places[kind] = as_map(stretched, head_rows, scale.head.grid, kind);
      scale.across.places[kind] = as_map(stretched, rounded_up(grid.height, 4), next, kind);  // made in fours
    }
    const int32_t head_size = size(scale.head.places[kGroup], kGroup);
    const int32_t level_size = has_level(chain, i) ? size(scale.across.places[kGroup], kGroup) : 0;
    take(head_size > level_size ? head_size : level_size);
    if (has_level(chain, i)) {
      // Four rows at a time; an odd number of fours, so that neighbouring positions lie in different banks.
      const int32_t rows = rounded_up(grid.height, 4) + (rounded_up(grid.height, 4) % 8 == 0 ? 4 : 0);
      const int32_t pitch = rows * static_cast<int32_t>(sizeof(T));
      const int32_t level = layout.bytes;
      for (int kind = 0; kind < kLineKinds; ++kind) {
        scale.levels[kind] = Place{level, pitch * layout.grids[i].pitch[kind].divisor, pitch};
      }
      take(size(scale.levels[kGroup], kGroup));
    }
    const auto as_attention = [&](int32_t height, int on) {
      Place map = as_map(layout.bytes, height, on, chain.class_wise ? kGroup : kShared);
      take(size(map, chain.class_wise ? kGroup : kShared) + sizeof(T));  // the element behind a column is read, too
      if (!chain.class_wise) map.line = 0;
      return map;
    };
    if (i > 0) scale.attention = as_attention(whole_runs, i);
    if (chain.is_lower(i)) scale.keep = as_attention(next_runs, next);
  }
}

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
