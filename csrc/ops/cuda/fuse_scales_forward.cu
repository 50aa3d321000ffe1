// fuse_scales on the GPU, forward: every input read about once, every output written once, 16 bytes at a time.
//
// A block makes a tile of the output, a group of channels at a time (chain_tile.cuh): it copies the part of the heads that
// the tile needs to shared memory, and every thread makes quads of output rows from there. Attention is made before the
// first group; where it is class-wise, every block has one class. Nothing of the size of a grid exists in global memory.
//
// Chains of octaves whose output has its columns side by side are made by octave_forward.cuh.
#include "ops/cuda/chain_tile.cuh"
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/octave_forward.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

// Some 20 warps on a multiprocessor hide each other's barriers and latencies; 96 registers a thread.
constexpr int32_t kForwardThreads = 320;
template <typename T>
constexpr int kForwardBlocks = sizeof(T) == 4 ? 2 : 1;

// Of the output, in bytes.
struct Strides {
  int64_t row;
  int64_t pair;   // from a channel to the one that a thread makes with it
  int32_t pixel;  // in a warp's buffer
};

struct ForwardPlan {
  TileLayout tile;
  Extent size;     // of a tile
  Extent tiles;    // down and across
  int32_t groups;  // of channels
  int32_t shares;  // of the groups, each a block's
  bool quads;      // a quad of the output is one store
  bool pixels;     // warps have all channels of some pixels, which lie side by side
  int32_t buffers;
  int32_t buffer;  // bytes of a warp's
  Strides strides;
  int32_t bytes;
};

namespace {

// P of an upper scale, to its level in shared memory.
template <typename S>
struct LevelSink {
  using T = arithmetic_t<S>;
  const ChainTile<S>& tile;
  int slot;
  int32_t to;
  static constexpr bool whole = true;
  static constexpr bool kByWarps = false;

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
  static constexpr bool kByWarps = false;

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

// P of the output where channels are neighbours in memory and a block has them all: the lanes of a warp make a stretch of
// memory of each row. They put it together in shared memory and write it there from, quad by quad, whatever the number of
// classes.
template <typename S>
struct PixelSink {
  using T = arithmetic_t<S>;
  const MapView<S>& output;
  const ChainTile<S>& tile;
  const Strides& strides;
  int32_t buffer;  // of this warp
  int32_t place;   // of this lane in it
  StoredQuad<S>* to;
  int32_t quads;  // of the stretch
  bool wanted;
  bool both;
  static constexpr bool kByWarps = true;
  static constexpr bool whole = true;

  HMSA_DEVICE bool begin(const Item& item) {
    const Range range = tile.windows().columns[output_slot(tile.chain())];
    const int32_t side = tile.layout.by_pairs.quotient(thread() % 32);
    const int32_t first = item.wanted ? item.q - side : item.q;
    const int32_t column = range.lo + first * kQuad;
    const int32_t left = (range.hi - column) / kQuad;
    quads = smaller(tile.layout.warp_quads, left) * tile.count;
    wanted = item.wanted && side < left;
    both = wanted && item.k + tile.layout.pairs < tile.count;
    place = buffer + (side * kQuad * tile.count + item.k) * static_cast<int32_t>(sizeof(T));
    to = reinterpret_cast<StoredQuad<S>*>(output.at(tile.b, 0, item.row, column)) + thread() % 32;
    return true;
  }
  template <bool>
  HMSA_DEVICE void put(int p, const Quad<T>& fused) const {
    if (p == 0 ? !wanted : !both) return;
    const int32_t at = place + p * tile.layout.pairs * static_cast<int32_t>(sizeof(T));
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) *shared_at<T>(at + j * strides.pixel) = fused.of[j];
  }
  HMSA_DEVICE void next() {
    __syncwarp();
    const int32_t lane = thread() % 32;
    const int32_t from = buffer + lane * static_cast<int32_t>(sizeof(Quad<T>));
    const auto copy = [&](int32_t n) {
      store_whole(to[n].of, quad_at<T>(from + n * static_cast<int32_t>(sizeof(Quad<T>))));
    };
    if (lane < quads) copy(0);
    if (lane + 32 < quads) copy(32);
    HMSA_ROLLED
    for (int32_t n = 64; lane + n < quads; n += 32) copy(n);
    to = reinterpret_cast<StoredQuad<S>*>(reinterpret_cast<unsigned char*>(to) + strides.row);
    __syncwarp();
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
                axis == Axis::kRows ? windows.head_rows : windows.head_columns);
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
          tile.template fuse<true, kAnyLowers, 1, true>(slot, windows.rows[slot], sink);
          __syncthreads();
        }
      }
      if constexpr (kPlanes == 2) {
        if (plan.pixels && !(kUpper && (tile.more_rows || tile.more_columns))) {
          PixelSink<S> sink{
              problem.output, tile, plan.strides, plan.buffers + thread() / 32 * plan.buffer, 0, nullptr, 0,
              false,          false};
          tile.template fuse<kUpper, kLowers, kPlanes, false>(output, windows.rows[output], sink);
          __syncthreads();
          continue;
        }
      }
      OutputSink<S> sink{problem.output, tile, plan.strides, plan.quads, nullptr, 0, false};
      // Code of its own for composed taps that are two neighbours everywhere, as they are for ratios of whole numbers.
      if constexpr (!kUsual) {
        tile.template fuse<kUpper, kLowers, 1, true>(output, windows.rows[output], sink);
      } else if (kUpper && (tile.more_rows || tile.more_columns)) {
        tile.template fuse<kUpper, kLowers, 1, true>(output, windows.rows[output], sink);
      } else {
        tile.template fuse<kUpper, kLowers, kPlanes, false>(output, windows.rows[output], sink);
      }
      __syncthreads();
    }
  }
}

// ---- the launch ----------------------------------------------------------------------------------------------------

// Whether there is code of its own for the chain.
template <typename S>
bool is_usual(const Chain& chain) {
  const int lowers = chain.count - 1 - chain.unit;
  return sizeof(arithmetic_t<S>) == sizeof(float) && chain.unit < 2 && (lowers == 1 || lowers == 2);
}

template <typename S>
ForwardPlan plan_for(const FuseScalesForward<S>& problem, Extent size, int32_t planes) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  const int at_once = is_usual<S>(chain) ? planes_of(chain.count - 1 - chain.unit, chain.unit > 0) : 1;
  const auto classes = static_cast<int32_t>(problem.classes);
  const MapView<S>& output = problem.output;
  ForwardPlan plan{};
  plan.size = size;
  plan.tiles = Extent{divide_up(chain.size.height, size.height), divide_up(chain.size.width, size.width)};
  plan.groups = divide_up(classes, planes);
  plan.tile.together = output.channel == 1 && output.column != 1;
  choose_head_quads(problem, plan.tile);
  Arena arena;
  place_tile<T>(chain, tile_sizes(chain, size), planes, at_once, kForwardThreads, arena, plan.tile);
  share_warps(chain, kForwardThreads / 32, plan.tile);
  const auto whole = [](int64_t stride, int64_t count) { return count == 1 || stride % kQuad == 0; };
  plan.pixels = plan.tile.together && at_once == 2 && planes == classes && plan.tile.pairs <= 32 &&
                output.column == classes && whole(output.row, chain.size.height) &&
                whole(output.batch, problem.batch) && chain.size.width % kQuad == 0 && size.width % kQuad == 0 &&
                aligned_for_quads(output.data);
  if (plan.pixels) {
    plan.buffer = plan.tile.warp_quads * planes * static_cast<int32_t>(sizeof(Quad<T>));
    plan.buffers = arena.take(static_cast<int64_t>(kForwardThreads / 32) * plan.buffer);
  }
  plan.quads = lies_in_quads(output, problem.batch, classes, chain.size) && size.width % kQuad == 0;
  plan.strides = Strides{output.row * static_cast<int64_t>(sizeof(S)),
                         output.channel * plan.tile.pairs * static_cast<int64_t>(sizeof(S)),
                         classes * static_cast<int32_t>(sizeof(T))};
  plan.bytes = arena.bytes;
  return plan;
}

// Warp instructions of a block that makes so many groups of channels. Rough: the constants are those of sm_90 code.
template <typename S>
double work_of(const FuseScalesForward<S>& problem, const ForwardPlan& plan, int32_t groups) {
  const Chain& chain = problem.chain;
  const TileLayout& tile = plan.tile;
  constexpr double kWarps = kForwardThreads / 32;
  const int output = output_slot(chain);
  const int at_once = is_usual<S>(chain) ? planes_of(chain.count - 1 - chain.unit, chain.unit > 0) : 1;
  const double lanes = at_once == 2 ? tile.pairs : tile.planes;
  const auto runs = [&](int slot, double planes, double start, double row) {
    const int32_t count = divide_up(tile.rows[slot], tile.run[slot]);
    const double warps = plan.pixels && slot == output && planes > 1
                             ? divide_up(tile.quads[slot], tile.warp_quads) * count
                             : tile.quads[slot] * planes * count / 32;
    return warps * (start + tile.run[slot] * row);
  };
  double tables = 0;
  double single = 0;
  double group = 700 * kWarps + runs(output, lanes, 250 + 150 * chain.count, (at_once == 2 ? 65 : 45) * chain.count);
  if (plan.pixels) group += runs(output, lanes, 0, 50);
  for (int i = 0; i < chain.count; ++i) {
    const double staged = static_cast<double>(tile.head_areas[i].divisor) * tile.planes / 32;
    group += staged * (tile.head_quads[i] ? 20 : tile.together ? 24 : 15);
    tables += tile.rows[i] + tile.quads[i] * kQuad;
    if (i > 0) single += runs(i, 1, 150, 60);
    if (!has_level(chain, i)) continue;
    tables += tile.rows[output] + tile.quads[output] * kQuad;
    single += runs(output, 1, 150, 60);
    group += runs(i, lanes, 200, at_once == 2 ? 100 : 60);
  }
  const double attended = chain.class_wise ? groups : 1;
  return 600 * kWarps + tables * 6 + attended * single + groups * group;
}

// Cycles until the busiest multiprocessor is done with its blocks.
template <typename S>
double cycles_of(const FuseScalesForward<S>& problem, ForwardPlan& plan, int32_t multiprocessors, int32_t shared) {
  const int64_t tiles = static_cast<int64_t>(plan.tiles.height) * plan.tiles.width * problem.batch;
  const int32_t resident = smaller(kForwardBlocks<arithmetic_t<S>>, shared / (plan.bytes + 1024));
  // Few tiles share their groups among blocks, as many as the device runs at once.
  const int64_t wanted = static_cast<int64_t>(multiprocessors) * resident / tiles;
  plan.shares = static_cast<int32_t>(wanted < 1 ? 1 : wanted < plan.groups ? wanted : plan.groups);
  const double work = work_of(problem, plan, divide_up(plan.groups, plan.shares));
  const int64_t blocks = (tiles * plan.shares + multiprocessors - 1) / multiprocessors;
  // A warp alone starts an instruction every eight cycles; together they start three a cycle.
  const auto round = [&](double count) {
    const double rate = 0.13 * (kForwardThreads / 32) * count;
    return count * work / (rate < 3 ? rate : 3);
  };
  return blocks / resident * round(resident) + (blocks % resident > 0 ? round(blocks % resident) : 0);
}

// The tile and the number of channels at a time that take the least time; where nothing fits, as little as there is.
template <typename S>
ForwardPlan plan_forward(const FuseScalesForward<S>& problem) {
  const Chain& chain = problem.chain;
  const auto classes = static_cast<int32_t>(problem.classes);
  const int32_t multiprocessors = multiprocessor_count();
  const int32_t shared = shared_per_multiprocessor();
  const int32_t most = shared_budget(1);
  const int32_t most_planes = chain.class_wise ? 1 : classes;
  ForwardPlan best{};
  double least = 0;
  const auto consider = [&](Extent size, int32_t planes) {
    size = Extent{smaller(size.height, chain.size.height), smaller(size.width, round_up(chain.size.width, kQuad))};
    // Groups of one size, of whole pairs.
    planes = divide_up(classes, divide_up(classes, smaller(planes, most_planes)));
    if (chain.class_wise) planes = 1;
    if (planes > 1 && planes < classes) planes = round_up(planes, 2);
    ForwardPlan plan = plan_for(problem, size, planes);
    if (plan.bytes > most) return;
    const double cycles = cycles_of(problem, plan, multiprocessors, shared);
    if (best.bytes > 0 && cycles >= least) return;
    best = plan;
    least = cycles;
  };
  const bool together = problem.output.channel == 1 && problem.output.column != 1;
  const int32_t side = kQuad * larger(1, 32 / divide_up(smaller(classes, 64), 2));
  for (const int32_t height : {64, 40, 32, 16}) {
    for (const int32_t width : {128, 64, 32}) {
      for (const int32_t planes : {40, 20, 10, 4}) {
        if (together) {
          consider(Extent{height, larger(1, width / side) * side}, planes);
        } else {
          consider(Extent{height, width}, planes);
        }
      }
    }
  }
  Extent size{smaller(chain.size.height, 16), smaller(chain.size.width, 16)};
  int32_t planes = smaller(4, most_planes);
  while (best.bytes == 0) {
    consider(size, planes);
    if (best.bytes > 0) break;
    if (planes > 1) {
      planes /= 2;
    } else if (size.height == 1 && size.width == 1) {
      best = plan_for(problem, size, planes);
    } else {
      size = Extent{divide_up(size.height, 2), divide_up(size.width, 2)};
    }
  }
  return best;
}

}  // namespace
}  // namespace fuse

template <typename S>
void launch_fuse_scales_forward(const FuseScalesForward<S>& problem, StreamHandle stream) {
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    const auto start = [&](auto kernel, dim3 grid, const fuse::OctavePlan& plan) {
      HMSA_LAUNCH(kernel, grid, dim3((plan.planes + 1) * fuse::kLanes), plan.bytes, static_cast<cudaStream_t>(stream),
                  problem, plan);
    };
    if (fuse::start_octaves(problem, start)) return;
  }
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
