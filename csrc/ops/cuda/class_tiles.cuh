// Losses and predictions on the GPU: what a block does with a tile of the fused logits, class by class.
//
// A block owns a tile of the output and takes the classes four at a time through the pipeline of forward_block.cuh. Their
// channels lie side by side there, so that a thread has all four of a pixel in registers, for eight rows of a column; and
// it has the same pixels for every four classes. What a sink keeps of a pixel between them is in shared memory, in slots
// that only this thread uses. No map of logits exists anywhere.
//
// double, class-wise attention and strides that need 64 bits go one class at a time, by the same code.
#pragma once

#include <algorithm>

#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/forward_block.cuh"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace forward {

constexpr int kClassesAtOnce = kVector;

// 80 registers in float, 128 in double.
template <typename T>
constexpr int kClassBlocksPerProcessor = sizeof(T) == 4 ? 3 : 2;

// Where a block stands. In static shared memory, since every thread needs all of it.
struct ClassTables {
  AxisRanges ranges[2];
  JobOffsets offsets;
};
// A kernel's static shared memory, at most: not all of them sum.
constexpr int32_t kClassStaticBytes = sizeof(ClassTables) + kBlockSumBytes;

// Part of the fused logits [B, C, H, W].
struct Part {
  Range images;
  Range classes;
  Tile output;
};

template <typename S>
Part whole(const ChainInputs<S>& inputs) {
  const Extent size = inputs.chain.size;
  return Part{{0, static_cast<int32_t>(inputs.batch)},
              {0, static_cast<int32_t>(inputs.classes)},
              {{0, size.height}, {0, size.width}}};
}

struct ClassLayout {
  ForwardLayout forward;
  Part part;
  Extent tiles;    // down and across
  int32_t shares;  // of the classes, each a block's
  int32_t slots;   // offset in bytes of the pixels' slots: each [tile] of numbers of the arithmetic type
  int32_t bytes;   // of shared memory

  HMSA_HOST_DEVICE int32_t area() const { return forward.tile.height * forward.tile.width; }
  int64_t tile_count() const { return static_cast<int64_t>(tiles.height) * tiles.width; }
  dim3 grid() const {
    const int32_t images = part.images.size() < 65535 ? part.images.size() : 65535;
    return dim3(static_cast<unsigned>(tile_count()), images, shares);
  }
  dim3 block() const { return dim3(kBlockColumns, kBlockRows); }
};

// ---- on the device --------------------------------------------------------------------------------------------------
//
// A sink has these members beside those that forward_block.cuh asks for:
//
//   int views() const          how often the pipeline runs for each group of classes; more than 1 needs kMirrors
//   void begin(block) const    an image comes next; what other threads wrote for the last one was read
//   void end(block) const      all its classes were stored, visible to all threads

// Numbers of the pixels of a block's tile.
template <typename T, typename Block>
HMSA_DEVICE T* slots_of(const Block& block, const ClassLayout& layout, int slot) {
  return block.template at<T>(layout.slots + slot * layout.area() * static_cast<int32_t>(sizeof(typename Block::T)));
}

// Calls body(slot, y, x) for the pixels of a block's tile, divided among the threads always in the same way.
template <typename Block, typename Body>
HMSA_DEVICE void for_pixels(const Block& block, const Body& body) {
  const Extent tile = block.layout.tile;
  const Range rows = block.rows.grids[block.layout.output];
  const Range columns = block.columns.grids[block.layout.output];
  for (int32_t slot = thread_index(); slot < rows.size() * tile.width; slot += kBlockThreads) {
    const int32_t row = slot / tile.width;
    const int32_t column = slot - row * tile.width;
    if (column < columns.size()) body(slot, rows.lo + row, columns.lo + column);
  }
}

// Calls body(r, slot, y) for the rows of an item that are in the tile: each of one pixel, in the column that is returned.
template <typename Block, typename Body>
HMSA_DEVICE void for_rows(const Block& block, const Item& item, const Body& body) {
  const Range rows = block.rows.grids[block.layout.output];
  const int32_t column = block.column_of(kGroup, item.position);
  const int32_t width = block.layout.tile.width;
  HMSA_UNROLL
  for (int r = 0; r < kRun; ++r) {
    if (item.row + r < rows.size()) body(r, (item.row + r) * width + column, rows.lo + item.row + r);
  }
}
template <typename Block>
HMSA_DEVICE int32_t column_of(const Block& block, const Item& item) {
  return block.columns.grids[block.layout.output].lo + block.column_of(kGroup, item.position);
}

// A kernel's body. `inputs` must be a kernel's parameter, or a part of one.
template <int kCount, typename S, typename Sink>
HMSA_DEVICE void go_through_classes(const ChainInputs<S>& inputs, const ClassLayout& layout, const Sink& sink) {
  HMSA_DYNAMIC_SHARED(unsigned char, memory);
  HMSA_SHARED(ClassTables, tables, [1]);
  const Chain& chain = inputs.chain;
  const Part& part = layout.part;
  const Extent tile = layout.forward.tile;
  const int32_t y = part.output.rows.lo + static_cast<int32_t>(blockIdx.x / layout.tiles.width) * tile.height;
  const int32_t x = part.output.columns.lo + static_cast<int32_t>(blockIdx.x % layout.tiles.width) * tile.width;
  AxisRanges* ranges = tables[0].ranges;
  ForwardBlock<S, kCount, true, Sink> block{inputs, sink, layout.forward, ranges[0], ranges[1], tables[0].offsets,
                                            memory, 0};
  block.make_ranges(
      Tile{{y, min(y + tile.height, part.output.rows.hi)}, {x, min(x + tile.width, part.output.columns.hi)}});
  block.make_tables();
  for (block.b = part.images.lo + static_cast<int32_t>(blockIdx.y); block.b < part.images.hi; block.b += gridDim.y) {
    sink.begin(block);
    const int32_t begin = part.classes.lo + static_cast<int32_t>(blockIdx.z) * kCount;
    for (int32_t c = begin; c < part.classes.hi; c += static_cast<int32_t>(gridDim.z) * kCount) {
      const int32_t count = min(part.classes.hi - c, kCount);
      // Attention that serves all classes is made once, unless the other view's takes its place.
      const bool attend = chain.count > 1 && (chain.class_wise || sink.views() > 1 || c == begin);
      HMSA_ROLLED
      for (int step = 0; step < 2 * sink.views(); ++step) {
        const int32_t attention = step % 2 == 0;
        if (attention && !attend) continue;
        const bool shared = attention && !chain.class_wise;
        block.run(Job{attention, shared ? kShared : kGroup, shared ? 0 : c, shared ? 1 : count, step / 2});
      }
    }
    sink.end(block);
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

// Whether four classes at once are possible; else one.
template <typename S>
bool takes_four_classes(const ChainInputs<S>& inputs) {
  return sizeof(arithmetic_t<S>) == sizeof(float) && !inputs.chain.class_wise &&
         heads_are_narrow(inputs, kClassesAtOnce);
}

// The tiles of a part for so many blocks on a multiprocessor. `slots`: numbers that a sink keeps of each pixel.
// `shares_classes`: whether blocks may divide the classes of a tile among themselves. `*is_cut`: whether tiles are smaller
// than they would be if there were more shared memory.
template <typename S>
ClassLayout divide_into_tiles(const ChainInputs<S>& inputs, const Part& part, int slots, bool shares_classes,
                              int blocks, bool* is_cut) {
  using T = arithmetic_t<S>;
  const auto parts_of = [](int32_t size, int32_t part) { return (size + part - 1) / part; };
  ClassLayout layout{};
  layout.part = part;
  ForwardLayout& forward = layout.forward;
  forward.pixels = true;
  forward.channels = takes_four_classes(inputs) ? kClassesAtOnce : 1;
  // A run of rows for every thread: four classes of 32 columns are 128 positions.
  const Extent size{part.output.rows.size(), part.output.columns.size()};
  forward.tile = Extent{size.height < 64 ? size.height : 64, size.width < 32 ? size.width : 32};
  const int64_t wanted = wanted_blocks();
  const auto divide = [&] {
    layout.tiles = Extent{parts_of(size.height, forward.tile.height), parts_of(size.width, forward.tile.width)};
    plan_grids(inputs.chain, part.classes.size(), forward);
    place<T, RowStep<T>>(inputs.chain, forward);
    layout.slots = forward.bytes;
    layout.bytes = layout.slots + slots * layout.area() * static_cast<int32_t>(sizeof(T));
  };
  divide();
  // Small images: rather idle threads than idle multiprocessors.
  while (!shares_classes && layout.tile_count() * part.images.size() < wanted && forward.tile.height > 2 * kRun) {
    forward.tile.height = rounded_up(forward.tile.height / 2, kRun);
    divide();
  }
  const int32_t budget = shared_budget(blocks, kClassStaticBytes);
  *is_cut = layout.bytes > budget;
  while (layout.bytes > budget && forward.tile.height * forward.tile.width > 1) {
    Extent& tile = forward.tile;
    if (tile.height > kRun) {
      tile.height = (tile.height - 1) / kRun * kRun;
    } else {
      (tile.width > 1 ? tile.width : tile.height) /= 2;
    }
    divide();
  }
  // Tiles of about one height: a wave of blocks is as long as its longest.
  forward.tile.height = std::min(forward.tile.height, rounded_up(parts_of(size.height, layout.tiles.height), kRun));
  divide();
  layout.shares = 1;
  if (shares_classes) {
    const int64_t shares = wanted / (layout.tile_count() * part.images.size());
    layout.shares = shares < 1 ? 1 : shares < forward.groups ? static_cast<int32_t>(shares) : forward.groups;
  }
  return layout;
}

// Predicted time, in arbitrary units: rounds in which all threads of a block make runs of rows on the grids of a tile, rims
// included, and one for the barriers. A multiprocessor with 24 warps is busy all the time, one with fewer waits. The
// shares are estimates.
inline double cost_of_tiles(const ClassLayout& layout, int blocks) {
  int64_t rounds = 1;
  for (const GridLayout& grid : layout.forward.grids) {
    rounds += grid.most.height > 0 ? (grid.items[kGroup] + kBlockThreads - 1) / kBlockThreads : 0;
  }
  const double busy = std::min(1.0, 0.35 * blocks);
  return static_cast<double>(layout.tile_count()) * static_cast<double>(rounds) / busy;
}

// How a part is divided into tiles: for as many blocks on a multiprocessor as registers allow, or for fewer where small
// tiles would cost more than idle time, as they do for long chains on devices with little shared memory.
template <typename S>
ClassLayout plan_classes(const ChainInputs<S>& inputs, const Part& part, int slots, bool shares_classes) {
  int blocks = kClassBlocksPerProcessor<arithmetic_t<S>>;
  bool is_cut = false;
  ClassLayout best = divide_into_tiles(inputs, part, slots, shares_classes, blocks, &is_cut);
  double lowest = cost_of_tiles(best, blocks);
  while (is_cut && --blocks > 0) {
    const ClassLayout layout = divide_into_tiles(inputs, part, slots, shares_classes, blocks, &is_cut);
    const double cost = cost_of_tiles(layout, blocks);
    if (cost >= lowest) continue;
    lowest = cost;
    best = layout;
  }
  return best;
}

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
