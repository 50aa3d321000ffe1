// fuse_scales on the GPU, forward: every input read about once, every output written once, 16 bytes at a time.
//
//     s >= 1    P = A * L + (1 - A) * R(P -> grid of s)
//     s <  1    P = R(A * L -> size) + (1 - R(A -> size)) * P         with L = U logits, A = U attention
//
// A block makes a tile of the output, a group of channels at a time. Every resize is done in two halves, columns first
// (forward_rows.cuh), so that an element of the output costs a few multiplications, and what lies below it is shared:
//
//     heads of all scales -> stretched rows                              each input is read once by a tile
//     stretched rows      -> A * L of lower scales, P of upper ones      on the part of their grids that the tile needs
//     these               -> stretched rows                              in the place of the heads' rows
//     all stretched rows  -> P of the output                             in registers, written once
//
// The largest scale's own grid is skipped: U and R in one step take its head to the next grid (ComposedMap). Attention
// goes the same way before the first group, or before each group where it is class-wise. Nothing of the size of a grid
// exists in global memory.
#include "ops/cuda/forward_block.cuh"
#include "ops/cuda/forward_layout.cuh"
#include "ops/cuda/fuse_scales.h"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

constexpr int kBlocksPerProcessor = 4;  // they hide each other's barriers and latencies; 64 registers a thread

// Writes P.
template <typename S, int kCount>
struct OutputMap {
  static constexpr bool kMirrors = false;
  const MapView<S>& map;

  template <typename Block>
  HMSA_DEVICE void store(const Block& block, const Job& job, const Item& item,
                         const typename Block::Values* fused) const {
    using Offset = typename Block::Offset;
    const int32_t column = block.column_of(kGroup, item.position);
    const int32_t channel = item.line + item.position - column * block.channels(kGroup);
    if (channel >= job.count) return;
    const int grid = block.layout.output;
    const int32_t height = block.rows.grids[grid].size() - item.row;
    S* corner = map.at(block.b, hidden(job.channel), block.rows.grids[grid].lo, block.columns.grids[grid].lo);
    S* to = corner + (channel * static_cast<Offset>(map.channel) + item.row * static_cast<Offset>(map.row) +
                      column * static_cast<Offset>(map.column));
    HMSA_UNROLL
    for (int r = 0; r < kRun; ++r, to += map.row) {
      if (r < height) forward::store(to, fused[r]);
    }
  }
};

template <typename S, int kCount, bool kPixels>
__global__ void __launch_bounds__(kBlockThreads, sizeof(arithmetic_t<S>) == 4 ? kBlocksPerProcessor : 2)
    fuse_scales_forward_kernel(HMSA_PARAMETER FuseScalesForward<S> problem, HMSA_PARAMETER ForwardLayout layout,
                               int32_t stripes) {
  HMSA_DYNAMIC_SHARED(unsigned char, memory);
  HMSA_SHARED(AxisRanges, ranges, [2]);
  HMSA_SHARED(JobOffsets, offsets, [1]);
  const Chain& chain = problem.chain;
  const int32_t y = static_cast<int32_t>(blockIdx.x / stripes) * layout.tile.height;
  const int32_t x = static_cast<int32_t>(blockIdx.x % stripes) * layout.tile.width;
  const OutputMap<S, kCount> output{problem.output};
  ForwardBlock<S, kCount, kPixels, OutputMap<S, kCount>> block{problem,   output,     layout, ranges[0],
                                                               ranges[1], offsets[0], memory, 0};
  block.make_ranges(
      Tile{{y, min(y + layout.tile.height, chain.size.height)}, {x, min(x + layout.tile.width, chain.size.width)}});
  block.make_tables();
  // y and z are limited to 65535 blocks: images go round, and z has a share of the groups.
  for (block.b = blockIdx.y; block.b < problem.batch; block.b += gridDim.y) {
    for (int32_t group = blockIdx.z; group < layout.groups; group += gridDim.z) {
      const int64_t channel = static_cast<int64_t>(group) * layout.channels;
      const int32_t count = static_cast<int32_t>(min(problem.classes - channel, int64_t{layout.channels}));
      const bool attend = chain.count > 1 && (chain.class_wise || group == static_cast<int32_t>(blockIdx.z));
      for (int logits = attend ? 0 : 1; logits < 2; ++logits) {
        block.run(logits || chain.class_wise ? Job{1 - logits, kGroup, channel, count, 0} : Job{1, kShared, 0, 1, 0});
      }
    }
  }
}

// ---- the launch ----------------------------------------------------------------------------------------------------

// Whether four positions side by side lie side by side in global memory, at a multiple of their size.
template <typename S>
bool lie_in_vectors(const FuseScalesForward<S>& problem, const ForwardLayout& layout) {
  const MapView<S>& output = problem.output;
  const Extent size = problem.chain.size;
  const int64_t classes = problem.classes;
  const auto whole = [](int64_t stride, int64_t count) { return count == 1 || stride % kVector == 0; };
  const bool base = reinterpret_cast<uintptr_t>(output.data) % sizeof(Pack<S, kVector>) == 0 &&
                    whole(output.batch, problem.batch) && whole(output.row, size.height);
  if (!layout.pixels) {
    return base && output.column == 1 && whole(output.channel, classes) && size.width % kVector == 0 &&
           layout.tile.width % kVector == 0;
  }
  // Four positions lie in one column or two, whose attention serves all channels.
  if (problem.chain.class_wise || layout.channels < kVector - 1) return false;
  if (layout.channels == classes && output.column == classes) {
    return base && size.width * classes % kVector == 0 && layout.tile.width * classes % kVector == 0;
  }
  return base && layout.channels % kVector == 0 && classes % kVector == 0 && whole(output.column, size.width);
}

// Whether offsets fit 32 bits: in a tile of the output, and between columns and channels of a head.
template <typename S>
bool is_narrow(const FuseScalesForward<S>& problem, const ForwardLayout& layout) {
  return reach_is_narrow(problem.output, layout.channels, layout.tile) && heads_are_narrow(problem, layout.channels);
}

// Makes a tile need less memory: first the rows, as long as few are made twice, then the channels. A large ratio
// between scales may take it down to one element, whose sources are a few rows and columns of every grid.
bool shrink(ForwardLayout& layout) {
  const auto halve = [](int32_t& n, int32_t least) {
    if (n <= least) return false;
    n = (n + 1) / 2;
    return true;
  };
  Extent& tile = layout.tile;
  if (halve(tile.height, layout.pixels ? 8 : 32)) return true;
  if (layout.channels > (layout.pixels ? 8 : 2)) {
    layout.channels = rounded_up((layout.channels + 1) / 2, layout.pixels ? kVector : 1);
    return true;
  }
  return halve(tile.height, 8) || halve(layout.channels, 1) || halve(tile.width, kVector) || halve(tile.height, 1) ||
         halve(tile.width, 1);
}

template <typename T, typename S>
ForwardLayout make_layout(const FuseScalesForward<S>& problem, int32_t budget) {
  const Chain& chain = problem.chain;
  const int32_t classes = static_cast<int32_t>(problem.classes);
  ForwardLayout layout{};
  layout.pixels = problem.output.channel == 1 && problem.output.column != 1;
  // Tall: what a thread does before and after it goes down a column is as much as what it does there.
  layout.tile = layout.pixels ? Extent{32, 64} : Extent{64, 32};
  layout.channels = layout.pixels || classes < 4 ? classes : 4;
  // A row of all channels of its pixels, some three hundred positions long, is written in one piece; very many channels
  // go in chunks of forty, or a tile would be so narrow that most of its sources are its neighbours', too.
  if (layout.pixels && classes > 80) {
    const int32_t chunks = (classes + 39) / 40;
    layout.channels = rounded_up((classes + chunks - 1) / chunks, classes % kVector == 0 ? kVector : 1);
  }
  while (layout.pixels && layout.tile.width > 4 && layout.tile.width * layout.channels > 320) layout.tile.width /= 2;
  if (chain.size.height < layout.tile.height) layout.tile.height = chain.size.height;
  if (chain.size.width < layout.tile.width) layout.tile.width = chain.size.width;
  do {
    plan_grids(chain, problem.classes, layout);
    place<T, RowStep<T>>(chain, layout);
  } while (layout.bytes > budget && shrink(layout));
  return layout;
}

int32_t device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

template <typename S>
ForwardLayout plan(const FuseScalesForward<S>& problem) {
  constexpr int32_t kReserved = 1024 + 2 * sizeof(AxisRanges) + sizeof(JobOffsets);  // by the driver, and static
  const int32_t shared = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return make_layout<arithmetic_t<S>>(problem, shared / kBlocksPerProcessor - kReserved);
}

template <typename S>
bool goes_in_vectors(const FuseScalesForward<S>& problem, const ForwardLayout& layout) {
  return sizeof(arithmetic_t<S>) == sizeof(float) && lie_in_vectors(problem, layout) && is_narrow(problem, layout);
}

}  // namespace
}  // namespace forward

template <typename S>
void launch_fuse_scales_forward(const FuseScalesForward<S>& problem, StreamHandle stream) {
  const Extent size = problem.chain.size;
  const forward::ForwardLayout layout = forward::plan(problem);
  const int32_t stripes = (size.width + layout.tile.width - 1) / layout.tile.width;
  const int32_t bands = (size.height + layout.tile.height - 1) / layout.tile.height;
  const int64_t tiles = static_cast<int64_t>(stripes) * bands;
  // Few tiles share their groups among blocks, as many as the device runs at once.
  const int64_t wanted = forward::kBlocksPerProcessor * forward::device_attribute(cudaDevAttrMultiProcessorCount) /
                         (tiles * problem.batch);
  const int64_t shares = wanted < 1 ? 1 : wanted < layout.groups ? wanted : layout.groups;
  const dim3 grid(static_cast<unsigned>(tiles), problem.batch < 65535 ? problem.batch : 65535,
                  shares < 65535 ? shares : 65535);
  const auto start = [&](auto kernel) {
    HMSA_LAUNCH(kernel, grid, dim3(forward::kBlockColumns, forward::kBlockRows), layout.bytes,
                static_cast<cudaStream_t>(stream), problem, layout, stripes);
  };
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    if (forward::goes_in_vectors(problem, layout)) {
      return start(layout.pixels ? forward::fuse_scales_forward_kernel<S, forward::kVector, true>
                                 : forward::fuse_scales_forward_kernel<S, forward::kVector, false>);
    }
  }
  start(forward::fuse_scales_forward_kernel<S, 1, true>);
}

template void launch_fuse_scales_forward(const FuseScalesForward<float>&, StreamHandle);
template void launch_fuse_scales_forward(const FuseScalesForward<double>&, StreamHandle);
template void launch_fuse_scales_forward(const FuseScalesForward<Half>&, StreamHandle);
template void launch_fuse_scales_forward(const FuseScalesForward<BFloat16>&, StreamHandle);

}  // namespace cuda
}  // namespace hmsa
