// fuse_scales on the GPU, forward: every input read about once, every output written once, 16 bytes at a time.
//
// A block makes a tile of the output, a group of channels at a time (chain_tile.cuh): it copies the part of the heads that
// the tile needs to shared memory, and every thread makes quads of output rows from there. Attention is made before the
// first group; where it is class-wise, every block has one class. Nothing of the size of a grid exists in global memory.
#include "ops/cuda/chain_tile.cuh"
#include "ops/cuda/fuse_scales.h"

namespace hmsa {
namespace cuda {
namespace fuse {
namespace {

// Some 20 warps on a multiprocessor hide each other's barriers and latencies; 96 registers a thread.
constexpr int32_t kForwardThreads = 320;
template <typename T>
constexpr int kForwardBlocks = sizeof(T) == 4 ? 2 : 1;

// Of the output, in bytes.
struct Strides {
  int64_t row;
  int64_t pair;  // from a channel to the one that a thread makes with it
};

struct ForwardPlan {
  TileLayout tile;
  Extent size;     // of a tile
  Extent tiles;    // down and across
  int32_t groups;  // of channels
  int32_t shares;  // of the groups, each a block's
  bool quads;      // a quad of the output is one store
  Strides strides;
  int32_t bytes;
};

// P of an upper scale, to its level in shared memory.
template <typename S>
struct LevelSink {
  using T = arithmetic_t<S>;
  const ChainTile<S>& tile;
  int slot;
  int32_t to;
  static constexpr bool whole = true;

  HMSA_DEVICE bool begin(const Item& item) {
    to = tile.layout.levels[slot].at(item.k, item.row - tile.windows().rows[slot].lo) +
         item.q * static_cast<int32_t>(sizeof(Quad<T>));
    return true;
  }
  template <bool>
  HMSA_DEVICE void put(int, const Quad<T>& fused) const {
    put_quad(to, fused);
  }
  HMSA_DEVICE void next() { to += tile.layout.levels[slot].pitch; }
};

// P of the output, to global memory.
template <typename S>
struct OutputSink {
  using T = arithmetic_t<S>;
  const MapView<S>& output;
  const ChainTile<S>& tile;
  const Strides& strides;
  bool whole;
  S* to;
  int32_t columns;
  bool both;  // planes of the item are wanted

  HMSA_DEVICE bool begin(const Item& item) {
    const Range range = tile.windows().columns[output_slot(tile.chain())];
    const int32_t column = range.lo + item.q * kQuad;
    columns = range.hi - column;
    to = output.at(tile.b, tile.channel + item.k, item.row, column);
    both = item.k + tile.layout.pairs < tile.count;
    return columns > 0;
  }
  template <bool kWhole>
  HMSA_DEVICE void put(int p, const Quad<T>& fused) const {
    if (p == 0) store_quad(to, output.column, kWhole, columns, fused);
    if (p > 0 && both) store_quad(beyond(to, strides.pair), output.column, kWhole, columns, fused);
  }
  HMSA_DEVICE void next() { to = beyond(to, strides.row); }
  static HMSA_DEVICE S* beyond(S* from, int64_t bytes) {
    return reinterpret_cast<S*>(reinterpret_cast<unsigned char*>(from) + bytes);
  }
};

// Planes of a thread: as many as its registers hold.
constexpr int planes_of(int lowers, bool upper) { return lowers == kAnyLowers || lowers + upper > 2 ? 1 : 2; }

template <typename S, bool kUpper, int kLowers>
__global__ void __launch_bounds__(kForwardThreads, kForwardBlocks<arithmetic_t<S>>)
    fuse_scales_forward_kernel(HMSA_PARAMETER FuseScalesForward<S> problem, HMSA_PARAMETER ForwardPlan plan) {
  using After = typename ChainTile<S>::After;
  constexpr int kPlanes = planes_of(kLowers, kUpper);
  const Chain& chain = problem.chain;
  // Usual chains have their indices in the code: what the layout says of them is then read from constant memory where it
  // is needed, and held in no register.
  constexpr bool kUsual = kLowers > 0;
  const int unit = kUsual ? (kUpper ? 1 : 0) : chain.unit;
  const int count = kUsual ? unit + 1 + kLowers : chain.count;
  const int output = kUsual ? unit : output_slot(chain);
  ChainTile<S> tile{problem, plan.tile, 0, 0, 0, false, false};
  TileWindows& windows = tile.windows();
  if (thread() < 2) {
    const Axis axis = thread() == 0 ? Axis::kRows : Axis::kColumns;
    const auto index =
        static_cast<int32_t>(axis == Axis::kRows ? blockIdx.x / plan.tiles.width : blockIdx.x % plan.tiles.width);
    const int32_t side = axis == Axis::kRows ? plan.size.height : plan.size.width;
    const Range range{index * side,
                      smaller((index + 1) * side, axis == Axis::kRows ? chain.size.height : chain.size.width)};
    set_windows(chain, axis, range, axis == Axis::kRows ? windows.rows : windows.columns,
                axis == Axis::kRows ? windows.head_rows : windows.head_columns, [](int) { return Range{0, 0}; });
    if (axis == Axis::kColumns) widen_to_quads(chain, plan.tile, windows.head_columns);
  }
  __syncthreads();
  const bool more_columns = tile.fill_columns();
  const bool more_rows = tile.fill_rows();
  tile.more_columns = __syncthreads_or(more_columns) != 0;
  tile.more_rows = __syncthreads_or(more_rows) != 0;

  // y and z are limited to 65535 blocks: images go round, and z has a share of the groups.
  for (tile.b = blockIdx.y; tile.b < problem.batch; tile.b += gridDim.y) {
    for (int32_t group = blockIdx.z; group < plan.groups; group += gridDim.z) {
      tile.channel = static_cast<int64_t>(group) * plan.tile.planes;
      tile.count = static_cast<int32_t>(min(problem.classes - tile.channel, int64_t{plan.tile.planes}));
      const bool attend = chain.count > 1 && (chain.class_wise || group == static_cast<int32_t>(blockIdx.z));
      if (attend) tile.stage_attention();
      tile.stage_heads();
      __syncthreads();
      // First A of every scale, then what is made with it: 1 - R A, A * L.
      if (attend) {
        HMSA_ROLLED
        for (int i = 1; i < count; ++i) tile.template resample<After::kNothing>(tile.attention_job(only_here(i)));
        __syncthreads();
        HMSA_ROLLED
        for (int i = unit + 1; i < count; ++i) {
          tile.template resample<After::kComplement>(tile.keep_job(only_here(i)));
        }
      }
      for (int i = unit + 1; i < count; ++i) {
        tile.template resample<After::kFactor, kPlanes>(tile.level_job(i));
      }
      __syncthreads();
      if constexpr (kLowers == kAnyLowers) {
        for (int slot = 1; slot < output; ++slot) {
          LevelSink<S> sink{tile, slot, 0};
          tile.template fuse<true, kAnyLowers, 1>(slot, windows.rows[slot], sink);
          __syncthreads();
        }
      }
      OutputSink<S> sink{problem.output, tile, plan.strides, plan.quads, nullptr, 0, false};
      tile.template fuse<kUpper, kLowers, kPlanes>(output, windows.rows[output], sink);
      __syncthreads();
    }
  }
}

// ---- the launch ----------------------------------------------------------------------------------------------------

template <typename S>
ForwardPlan plan_for(const FuseScalesForward<S>& problem, Extent size, int32_t planes, bool together) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  ForwardPlan plan{};
  plan.size = size;
  plan.tiles = Extent{divide_up(chain.size.height, size.height), divide_up(chain.size.width, size.width)};
  plan.groups = static_cast<int32_t>((problem.classes + planes - 1) / planes);
  Arena arena;
  const TileSizes sizes = tile_sizes(chain, size, [](int, Extent) { return Extent{0, 0}; });
  plan.tile.together = together;
  choose_head_quads(problem, plan.tile);
  place_tile<T>(chain, sizes, planes, chain.count, kForwardThreads, arena, plan.tile, 2);
  int32_t widest = 1;
  for (const int32_t quads : plan.tile.quads) widest = larger(widest, quads);
  arena.take(static_cast<int64_t>(kRun) * widest * sizeof(Quad<T>));  // the last run of a map may end below it
  plan.bytes = arena.bytes;
  return plan;
}

// The largest tile that fits so that several blocks share a multiprocessor; its work is divided evenly.
template <typename S>
ForwardPlan plan_forward(const FuseScalesForward<S>& problem) {
  using T = arithmetic_t<S>;
  const Extent size = problem.chain.size;
  const auto classes = static_cast<int32_t>(problem.classes);
  const bool apart = problem.chain.class_wise;
  const bool pixels = problem.output.channel == 1 && problem.output.column != 1;
  int32_t planes = apart ? 1 : smaller(classes, pixels ? 40 : 10);
  planes = divide_up(classes, divide_up(classes, planes));
  if (apart) planes = 1;
  Extent tile{smaller(size.height, pixels ? 16 : 64), smaller(size.width, pixels ? 32 : 64)};
  const int32_t budget = shared_budget(kForwardBlocks<T>);
  const int32_t most = shared_budget(1);
  ForwardPlan plan = plan_for(problem, tile, planes, pixels);
  while (plan.bytes > budget && (tile.height > 1 || tile.width > 1 || planes > 1)) {
    if (planes > 4) {
      planes = divide_up(planes, 2);
    } else if (plan.bytes <= most && tile.height * tile.width <= 512) {
      break;  // fewer blocks on a multiprocessor cost less than tiles of which most is rim
    } else if (tile.height > 8) {
      tile.height = divide_up(tile.height, 2);
    } else if (tile.width > 8) {
      tile.width = divide_up(tile.width, 2);
    } else if (planes > 1) {
      planes = divide_up(planes, 2);
    } else {
      tile = Extent{divide_up(tile.height, 2), divide_up(tile.width, 2)};
    }
    plan = plan_for(problem, tile, planes, pixels);
  }
  plan.quads = lies_in_quads(problem.output, problem.batch, problem.classes, size) && plan.size.width % kQuad == 0;
  plan.strides = Strides{problem.output.row * static_cast<int64_t>(sizeof(S)),
                         problem.output.channel * plan.tile.pairs * static_cast<int64_t>(sizeof(S))};
  // Few tiles share their groups among blocks, as many as the device runs at once.
  const int64_t tiles = static_cast<int64_t>(plan.tiles.height) * plan.tiles.width * problem.batch;
  const int64_t wanted = wanted_blocks() / tiles;
  plan.shares = static_cast<int32_t>(wanted < 1 ? 1 : wanted < plan.groups ? wanted : plan.groups);
  return plan;
}

}  // namespace
}  // namespace fuse

template <typename S>
void launch_fuse_scales_forward(const FuseScalesForward<S>& problem, StreamHandle stream) {
  const fuse::ForwardPlan plan = fuse::plan_forward(problem);
  const int64_t tiles = static_cast<int64_t>(plan.tiles.height) * plan.tiles.width;
  const dim3 grid(static_cast<unsigned>(tiles), problem.batch < 65535 ? problem.batch : 65535,
                  plan.shares < 65535 ? plan.shares : 65535);
  const auto start = [&](auto kernel) {
    HMSA_LAUNCH(kernel, grid, dim3(fuse::kForwardThreads), plan.bytes, static_cast<cudaStream_t>(stream), problem,
                plan);
  };
  // The usual chains have code of their own, in which every source of a row is in registers.
  const Chain& chain = problem.chain;
  const bool upper = chain.unit > 0;
  const int lowers = chain.count - 1 - chain.unit;
  using namespace fuse;
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    if (chain.unit < 2 && lowers == 1) {
      return start(upper ? fuse_scales_forward_kernel<S, true, 1> : fuse_scales_forward_kernel<S, false, 1>);
    }
    if (chain.unit < 2 && lowers == 2) {
      return start(upper ? fuse_scales_forward_kernel<S, true, 2> : fuse_scales_forward_kernel<S, false, 2>);
    }
  }
  start(upper ? fuse_scales_forward_kernel<S, true, kAnyLowers> : fuse_scales_forward_kernel<S, false, kAnyLowers>);
}

HMSA_INSTANTIATE(void launch_fuse_scales_forward(const FuseScalesForward<float>&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_forward(const FuseScalesForward<double>&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_forward(const FuseScalesForward<Half>&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_forward(const FuseScalesForward<BFloat16>&, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
