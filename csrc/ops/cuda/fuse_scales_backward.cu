// fuse_scales on the GPU, backward. The equations stand in ops/cpu/fuse_scales_backward.cpp.
//
// One launch per scale: a block owns a tile of the head's map and gathers, for all channels, what reaches it. The way
// from the output to the head is a path of adjoint resizes, each done rows first, then columns, with a factor (the
// attention) in between:
//
//     lower scale i       output --R^T-- grid i --(* A_i)-- U^T -- head
//     scale 1.0           output --(* A, if it is not the largest)-- U^T -- head
//     above 1.0           output --(* 1 - A)-- R^T -- grid --(* 1 - A)-- ... R^T -- grid i --(* A_i)-- U^T -- head
//
// Everything on the path but the incoming gradient lives in shared memory. Sums are taken in a fixed order, nothing is
// added by two blocks, and there are no atomics: the result is the same in every run.
//
// The gradient of attention that all channels share needs sum_c[g * P_before], which does not separate by tiles of the
// head: a first kernel makes that map (one number per pixel of the output).
#include "ops/cuda/chain_points.cuh"
#include "ops/cuda/fuse_scales.h"
#include "ops/cuda/fuse_scales_points.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kMaxSteps = kMaxScales;  // adjoint resizes between the output and a head

// ---- gradients of one scale -----------------------------------------------------------------------------------------

// The path from the output to the head of a scale.
struct Path {
  int scale;
  int steps;
  int32_t across[kMaxSteps];  // step s is the adjoint of chain.across[across[s]]
};

Path make_path(const Chain& chain, int i) {
  Path path{};
  path.scale = i;
  if (chain.is_lower(i)) {
    path.across[path.steps++] = i;
  } else if (chain.needs_final_resize) {
    path.across[path.steps++] = 0;
  } else {
    for (int j = chain.unit - 1; j >= i; --j) path.across[path.steps++] = j;
  }
  return path;
}

// Tiles along the path: levels[0] of the output, levels[s + 1] behind step s, the last one on the grid of the scale.
struct PathTiles {
  Tile levels[kMaxSteps + 1];
  Tile owned;
};

HMSA_HOST_DEVICE_CALL PathTiles path_tiles(const Chain& chain, const Path& path, const Tile& owned) {
  PathTiles tiles;
  tiles.owned = owned;
  tiles.levels[path.steps] = chain.up[path.scale].outputs(owned);
  for (int s = path.steps - 1; s >= 0; --s) tiles.levels[s] = chain.across[path.across[s]].outputs(tiles.levels[s + 1]);
  return tiles;
}

// Where everything lies in dynamic shared memory. Extents are the largest of any block, found on the host.
struct GradientLayout {
  Extent tile;  // of the head
  Extent levels[kMaxSteps + 1];
  int32_t tap_rows[kMaxSteps + 1];  // offsets in taps, by level: how its elements read the next level, or the head
  int32_t tap_columns[kMaxSteps + 1];
  int32_t reach_rows[kMaxSteps + 1];  // offsets in ranges: which elements of a level the next one, or the head, reaches
  int32_t reach_columns[kMaxSteps + 1];
  int32_t factor[kMaxSteps + 1];  // offsets in values: the factor on each level,
  int32_t sums;                   // the attention's gradient on the grid,
  int32_t level;                  // the gradient on the current level,
  int32_t rows;                   // and with its rows summed
  int32_t taps;                   // in all
  int32_t reaches;
  int32_t values;

  template <typename T>
  size_t bytes() const {
    return taps * sizeof(Taps<T>) + reaches * sizeof(Range) + values * sizeof(T);
  }
};

HMSA_HOST_DEVICE Range part_of(int32_t size, int32_t tile, int32_t k) {
  return Range{k * tile, k * tile + tile < size ? k * tile + tile : size};
}

int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// A factor other than 1 lies on level s of the path?
HMSA_HOST_DEVICE bool has_factor(const Chain& chain, const Path& path, int s) {
  if (s > 0) return path.across[s - 1] != path.scale || path.scale > 0;
  const bool passes_lower = chain.count - 1 > chain.unit && path.scale < chain.count - 1;
  return passes_lower || (!chain.is_lower(path.scale) && chain.unit > 0);
}

GradientLayout make_layout(const Chain& chain, const Path& path, Extent tile) {
  GradientLayout layout{};
  layout.tile = tile;
  const Extent head = chain.heads[path.scale];
  for (int32_t k = 0; k * tile.height < head.height; ++k) {
    const PathTiles tiles = path_tiles(chain, path, Tile{part_of(head.height, tile.height, k), {0, 1}});
    for (int s = 0; s <= path.steps; ++s) {
      layout.levels[s].height = larger(layout.levels[s].height, tiles.levels[s].rows.size());
    }
  }
  for (int32_t k = 0; k * tile.width < head.width; ++k) {
    const PathTiles tiles = path_tiles(chain, path, Tile{{0, 1}, part_of(head.width, tile.width, k)});
    for (int s = 0; s <= path.steps; ++s) {
      layout.levels[s].width = larger(layout.levels[s].width, tiles.levels[s].columns.size());
    }
  }
  int32_t level = 0;
  int32_t rows = 0;
  for (int s = 0; s <= path.steps; ++s) {
    const Extent from = layout.levels[s];
    const Extent to = s < path.steps ? layout.levels[s + 1] : tile;
    layout.tap_rows[s] = layout.taps;
    layout.tap_columns[s] = layout.tap_rows[s] + from.height;
    layout.taps = layout.tap_columns[s] + from.width;
    layout.reach_rows[s] = layout.reaches;
    layout.reach_columns[s] = layout.reach_rows[s] + to.height;
    layout.reaches = layout.reach_columns[s] + to.width;
    layout.factor[s] = layout.values;
    if (has_factor(chain, path, s)) layout.values += from.height * from.width;
    if (s > 0) level = larger(level, from.height * from.width);
    rows = larger(rows, to.height * from.width);
  }
  layout.sums = layout.values;
  if (path.steps > 0 && path.scale > 0) {
    layout.values += layout.levels[path.steps].height * layout.levels[path.steps].width;
  }
  layout.level = layout.values;
  layout.rows = layout.level + level;
  layout.values = layout.rows + rows;
  return layout;
}

// What a step reads. Three kinds, and one function each for what is done with them, keep the machine code small.

// The incoming gradient of a channel, times the factor on the output where there is one.
template <typename S, typename T>
struct GradSource {
  MapView<const S> grad;
  int64_t b;
  int64_t c;
  SharedPatch<T> factor;
  bool scaled;

  HMSA_DEVICE T operator()(int32_t y, int32_t x) const {
    const T value = read(grad.at(b, c, y, x));
    return scaled ? value * factor.at(y, x) : value;
  }
};

template <typename T>
struct PatchSource {
  SharedPatch<T> patch;

  HMSA_DEVICE T operator()(int32_t y, int32_t x) const { return patch.at(y, x); }
};

// kept * g * P_before (lower scale) or kept * g * (L - R P_before) (scale 1.0): summed over the channels by
// channel_sums_kernel, or for class-wise attention of one channel, made on the spot.
template <typename S, typename T>
struct SumsSource {
  ChainPoints<S, T> points;
  int scale;
  const T* map;  // [H, W], null for class-wise attention

  HMSA_DEVICE T operator()(int32_t y, int32_t x) const {
    const Chain& chain = points.problem.chain;
    if (map != nullptr) return map[static_cast<int64_t>(y) * chain.size.width + x];
    const T before = points.before(scale, y, x);
    const T factor = chain.is_lower(scale) ? before : points.logit(scale, y, x) - before;
    return points.kept(scale, y, x) * points.grad_output(y, x) * factor;
  }
};

// What arrives on the grid of the scale, before its own factor.
enum class Arrival {
  kPass,      // is only passed on
  kAdd,       // enters the attention's gradient: + value * L, or + value * (L - R P_before)
  kSubtract,  // enters the attention's gradient: - value
};

template <typename S, typename T>
struct GradientBlock {
  const FuseScalesBackward<S>& problem;
  const Path& path;
  const GradientLayout& layout;
  const PathTiles& tiles;
  Taps<T>* taps;
  Range* reaches;
  T* values;
  const T* sums_map;  // [B, H, W] from channel_sums_kernel
  int64_t b;

  HMSA_DEVICE const Chain& chain() const { return problem.chain; }
  HMSA_DEVICE const Tile& grid() const { return tiles.levels[path.steps]; }
  HMSA_DEVICE SharedPatch<T> factor(int s) const { return {values + layout.factor[s], tiles.levels[s]}; }
  HMSA_DEVICE SharedPatch<T> sums() const { return {values + layout.sums, grid()}; }
  HMSA_DEVICE SharedPatch<T> level(int s) const { return {values + layout.level, tiles.levels[s]}; }
  HMSA_DEVICE const Tile& target(int s) const { return s < path.steps ? tiles.levels[s + 1] : tiles.owned; }
  HMSA_DEVICE const Resize& resize(int s) const {
    return s < path.steps ? chain().across[path.across[s]] : chain().up[path.scale];
  }
  HMSA_DEVICE bool wants_attention() const { return problem.grad_attention[path.scale].data != nullptr; }

  HMSA_DEVICE_CALL void make_tables() const {
    for (int s = 0; s <= path.steps; ++s) {
      fill_taps(taps + layout.tap_rows[s], resize(s).rows, tiles.levels[s].rows);
      fill_taps(taps + layout.tap_columns[s], resize(s).columns, tiles.levels[s].columns);
      for (int32_t k = thread_index(); k < target(s).rows.size(); k += kBlockThreads) {
        reaches[layout.reach_rows[s] + k] = resize(s).rows.outputs(target(s).rows.lo + k);
      }
      for (int32_t k = thread_index(); k < target(s).columns.size(); k += kBlockThreads) {
        reaches[layout.reach_columns[s] + k] = resize(s).columns.outputs(target(s).columns.lo + k);
      }
    }
  }

  // Factors of the path for channel c. Ends with a barrier.
  HMSA_DEVICE_CALL void make_factors(int64_t c) const {
    const ChainPoints<S, T> points{problem, b, c};
    const int i = path.scale;
    if (has_factor(chain(), path, 0)) {
      for_each(tiles.levels[0], [&](int32_t y, int32_t x) {
        T value = points.kept(i, y, x);
        if (!chain().is_lower(i) && chain().unit > 0) {
          const T attention = points.attention(chain().unit, y, x);
          value *= i == chain().unit ? attention : T(1) - attention;
        }
        factor(0).at(y, x) = value;
      });
    }
    for (int s = 1; s <= path.steps; ++s) {
      if (!has_factor(chain(), path, s)) continue;
      const int j = path.across[s - 1];
      for_each(tiles.levels[s], [&](int32_t y, int32_t x) {
        const T attention = points.attention(j, y, x);
        factor(s).at(y, x) = j == i ? attention : T(1) - attention;
      });
    }
    __syncthreads();
  }

  static HMSA_DEVICE T weight_towards(const Taps<T>& taps, int32_t i) {
    return (taps.first == i ? T(1) - taps.weight : T(0)) + (taps.second == i ? taps.weight : T(0));
  }

  // The first half of an adjoint resize: rows of from(y, x), summed, in shared memory. Begins where all of `from` is
  // visible to the block, and ends with a barrier.
  template <typename From>
  HMSA_DEVICE_CALL SharedPatch<T> sum_rows(int s, const From& from) const {
    const Tile source = tiles.levels[s];
    const SharedPatch<T> rows{values + layout.rows, Tile{target(s).rows, source.columns}};
    const Taps<T>* row_taps = taps + layout.tap_rows[s];
    const Range* row_reaches = reaches + layout.reach_rows[s];
    for_each(rows.tile, [&](int32_t i, int32_t x) {
      const Range reach = row_reaches[i - rows.tile.rows.lo];
      T sum = 0;
      for (int32_t y = reach.lo; y < reach.hi; ++y) sum += weight_towards(row_taps[y - source.rows.lo], i) * from(y, x);
      rows.at(i, x) = sum;
    });
    __syncthreads();
    return rows;
  }

  // The second half, for one element.
  HMSA_DEVICE T sum_columns(int s, const SharedPatch<T>& rows, int32_t y, int32_t i) const {
    const Taps<T>* column_taps = taps + layout.tap_columns[s];
    const Range reach = reaches[layout.reach_columns[s] + (i - target(s).columns.lo)];
    T sum = 0;
    for (int32_t x = reach.lo; x < reach.hi; ++x) {
      sum += weight_towards(column_taps[x - rows.tile.columns.lo], i) * rows.at(y, x);
    }
    return sum;
  }

  // Step s of the path, to level(s + 1); the last one reports to the attention's gradient. Ends with a barrier.
  HMSA_DEVICE_CALL void finish_step(int s, const SharedPatch<T>& rows, int64_t c, Arrival arrival) const {
    const ChainPoints<S, T> points{problem, b, c};
    const int i = path.scale;
    const SharedPatch<T> next = level(s + 1);
    const bool last = s + 1 == path.steps;
    const bool scaled = has_factor(chain(), path, s + 1);
    for_each(next.tile, [&](int32_t y, int32_t x) {
      const T value = sum_columns(s, rows, y, x);
      if (last && arrival == Arrival::kAdd) {
        T logit = sample(problem.logits[i], b, c, taps[layout.tap_rows[path.steps] + (y - grid().rows.lo)],
                         taps[layout.tap_columns[path.steps] + (x - grid().columns.lo)]);
        if (!chain().is_lower(i)) logit -= points.before(i, y, x);
        sums().at(y, x) += value * logit;
      } else if (last && arrival == Arrival::kSubtract) {
        sums().at(y, x) -= value;
      }
      next.at(y, x) = scaled ? value * factor(s + 1).at(y, x) : value;
    });
    __syncthreads();
  }

  // The whole path from the output to level(path.steps).
  template <typename From>
  HMSA_DEVICE void walk(const From& from, int64_t c, Arrival arrival) const {
    for (int s = 0; s < path.steps; ++s) {
      finish_step(s, s == 0 ? sum_rows(s, from) : sum_rows(s, PatchSource<T>{level(s)}), c, arrival);
    }
  }

  // The last step, U^T, written to the gradient of the head. Ends with a barrier.
  template <typename From>
  HMSA_DEVICE void write_head(const MapView<S>& map, int64_t c, const From& from) const {
    finish_head(map, c, sum_rows(path.steps, from));
  }

  HMSA_DEVICE_CALL void finish_head(const MapView<S>& map, int64_t c, const SharedPatch<T>& rows) const {
    for_each(tiles.owned,
             [&](int32_t y, int32_t x) { write(map.at(b, c, y, x), sum_columns(path.steps, rows, y, x)); });
    __syncthreads();
  }

  HMSA_DEVICE void logits_gradient(int64_t c) const {
    const GradSource<S, T> from{problem.grad_output, b, c, factor(0), has_factor(chain(), path, 0)};
    walk(from, c, wants_attention() ? Arrival::kAdd : Arrival::kPass);
    const MapView<S>& map = problem.grad_logits[path.scale];
    if (map.data == nullptr) return;
    if (path.steps == 0) {
      write_head(map, c, from);
    } else {
      write_head(map, c, PatchSource<T>{level(path.steps)});
    }
  }

  HMSA_DEVICE void attention_gradient(int64_t c) const {
    const int i = path.scale;
    const T* map = chain().class_wise ? nullptr : sums_map + b * chain().size.height * chain().size.width;
    const SumsSource<S, T> from{ChainPoints<S, T>{problem, b, c}, i, map};
    if (path.steps == 0) {
      write_head(problem.grad_attention[i], c, from);
      return;
    }
    if (chain().is_lower(i)) walk(from, c, Arrival::kSubtract);
    write_head(problem.grad_attention[i], c, PatchSource<T>{sums()});
  }

  HMSA_DEVICE void begin_attention(int64_t c) const {
    make_factors(c);
    if (wants_attention() && path.steps > 0) {
      for_each(grid(), [&](int32_t y, int32_t x) { sums().at(y, x) = 0; });
    }
  }

  HMSA_DEVICE void run() const {
    const bool class_wise = chain().class_wise;
    if (!class_wise) begin_attention(0);
    for (int64_t c = 0; c < problem.classes; ++c) {
      if (class_wise) begin_attention(c);
      logits_gradient(c);
      if (class_wise && wants_attention()) attention_gradient(c);
    }
    if (!class_wise && wants_attention()) attention_gradient(0);
  }
};

template <typename S, typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    fuse_scales_backward_kernel(HMSA_PARAMETER FuseScalesBackward<S> problem, HMSA_PARAMETER Path path,
                                HMSA_PARAMETER GradientLayout layout, const T* sums_map /* [B, H, W] */,
                                int32_t stripes) {
  HMSA_DYNAMIC_SHARED(unsigned char, memory);
  HMSA_SHARED(PathTiles, tiles, [1]);
  if (thread_index() == 0) {
    const Extent head = problem.chain.heads[path.scale];
    const Tile owned{part_of(head.height, layout.tile.height, static_cast<int32_t>(blockIdx.x / stripes)),
                     part_of(head.width, layout.tile.width, static_cast<int32_t>(blockIdx.x % stripes))};
    tiles[0] = path_tiles(problem.chain, path, owned);
  }
  __syncthreads();
  Taps<T>* taps = reinterpret_cast<Taps<T>*>(memory);
  T* values = reinterpret_cast<T*>(memory + layout.taps * sizeof(Taps<T>));
  Range* reaches = reinterpret_cast<Range*>(memory + layout.taps * sizeof(Taps<T>) + layout.values * sizeof(T));
  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    const GradientBlock<S, T> block{problem, path, layout, tiles[0], taps, reaches, values, sums_map, b};
    if (b == blockIdx.y) {
      block.make_tables();
      __syncthreads();
    }
    block.run();
  }
}

// Maps of channel sums: for every lower scale and, where it is not the largest, scale 1.0.
template <typename S>
bool needs_channel_sums(const FuseScalesBackward<S>& problem, int i) {
  const Chain& chain = problem.chain;
  return !chain.class_wise && i > 0 && i >= chain.unit && problem.grad_attention[i].data != nullptr;
}

template <typename S, typename T>
void launch_scale(const FuseScalesBackward<S>& problem, int i, const T* sums_map, cudaStream_t stream) {
  const Path path = make_path(problem.chain, i);
  const Extent head = problem.chain.heads[i];
  constexpr size_t kBudget = 96 * 1024;  // two blocks on a multiprocessor of compute capability 8.0 and 9.0
  Extent tile{16, 32};
  GradientLayout layout = make_layout(problem.chain, path, tile);
  while (layout.bytes<T>() > kBudget && tile.height * tile.width > 1) {
    (tile.height * 2 > tile.width ? tile.height : tile.width) /= 2;
    layout = make_layout(problem.chain, path, tile);
  }
  const auto images = static_cast<unsigned>(problem.batch < 65535 ? problem.batch : 65535);
  if (layout.bytes<T>() > kBudget) {
    launch_element_gradients(problem, i, stream);
    return;
  }
  const int32_t stripes = (head.width + tile.width - 1) / tile.width;
  const int32_t bands = (head.height + tile.height - 1) / tile.height;
  const dim3 grid(static_cast<unsigned>(stripes) * bands, images);
  HMSA_LAUNCH((fuse_scales_backward_kernel<S, T>), grid, dim3(kBlockColumns, kBlockRows), layout.bytes<T>(), stream,
              problem, path, layout, sums_map, stripes);
}

}  // namespace

template <typename S>
int64_t fuse_scales_backward_workspace(const FuseScalesBackward<S>& problem) {
  int64_t maps = 0;
  for (int i = 0; i < problem.chain.count; ++i) maps += needs_channel_sums(problem, i) ? 1 : 0;
  return maps * problem.batch * problem.chain.size.height * problem.chain.size.width;
}

template <typename S>
void launch_fuse_scales_backward(const FuseScalesBackward<S>& problem, void* workspace, StreamHandle stream_handle) {
  using T = arithmetic_t<S>;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const Extent size = problem.chain.size;
  T* sums_map = static_cast<T*>(workspace);
  for (int i = 0; i < problem.chain.count; ++i) {
    const bool sums = needs_channel_sums(problem, i);
    if (sums) launch_channel_sums(problem, i, sums_map, stream);
    if (problem.grad_logits[i].data != nullptr || problem.grad_attention[i].data != nullptr) {
      launch_scale(problem, i, sums_map, stream);
    }
    if (sums) sums_map += problem.batch * size.height * size.width;
  }
}

template int64_t fuse_scales_backward_workspace(const FuseScalesBackward<float>&);
template int64_t fuse_scales_backward_workspace(const FuseScalesBackward<double>&);
template int64_t fuse_scales_backward_workspace(const FuseScalesBackward<Half>&);
template int64_t fuse_scales_backward_workspace(const FuseScalesBackward<BFloat16>&);
template void launch_fuse_scales_backward(const FuseScalesBackward<float>&, void*, StreamHandle);
template void launch_fuse_scales_backward(const FuseScalesBackward<double>&, void*, StreamHandle);
template void launch_fuse_scales_backward(const FuseScalesBackward<Half>&, void*, StreamHandle);
template void launch_fuse_scales_backward(const FuseScalesBackward<BFloat16>&, void*, StreamHandle);

}  // namespace cuda
}  // namespace hmsa
