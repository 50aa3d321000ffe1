// fuse_scales on the GPU, forward.
//
// A block makes a tile of the output for all channels. The taps of all its axes and its attention are computed once;
// then, a few channels at a time, it makes the product A * L of every lower scale and P of every scale above 1.0 in
// shared memory, on just the part of their grids that the tile needs, and from there the output, which is written
// once. Nothing of the size of a grid exists in global memory.
#include "ops/cuda/chain_blocks.cuh"
#include "ops/cuda/fuse_scales.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kChannels = 4;  // made at a time: shares taps and attention, and amortises the barriers

// Where everything lies in dynamic shared memory. Extents are the largest of any block, found on the host.
struct ForwardLayout {
  Extent tile;                  // of the output
  Extent grids[kMaxScales];     // largest part of each grid
  int32_t up_rows[kMaxScales];  // offsets of taps, in taps
  int32_t up_columns[kMaxScales];
  int32_t across_rows[kMaxScales];
  int32_t across_columns[kMaxScales];
  int32_t attention[kMaxScales];  // offsets of values, in values: A on the grid,
  int32_t resized[kMaxScales];    // R A on the output (lower scales),
  int32_t level[kMaxScales];      // A * L (lower) or P (above the unit) on the grid, for kChannels channels
  int32_t taps;                   // in all
  int32_t values;

  template <typename T>
  size_t bytes() const {
    return taps * sizeof(Taps<T>) + values * sizeof(T);
  }
};

bool has_level(const Chain& chain, int i) { return i != chain.unit || chain.needs_final_resize; }

ForwardLayout make_layout(const Chain& chain, Extent tile) {
  ForwardLayout layout{};
  layout.tile = tile;
  for (int32_t y = 0; y < chain.size.height; y += tile.height) {
    const Range rows{y, y + tile.height < chain.size.height ? y + tile.height : chain.size.height};
    const ForwardTiles tiles = forward_tiles(chain, Tile{rows, {0, 1}});
    for (int i = 0; i < chain.count; ++i) {
      if (tiles.grids[i].rows.size() > layout.grids[i].height) layout.grids[i].height = tiles.grids[i].rows.size();
    }
  }
  for (int32_t x = 0; x < chain.size.width; x += tile.width) {
    const Range columns{x, x + tile.width < chain.size.width ? x + tile.width : chain.size.width};
    const ForwardTiles tiles = forward_tiles(chain, Tile{{0, 1}, columns});
    for (int i = 0; i < chain.count; ++i) {
      if (tiles.grids[i].columns.size() > layout.grids[i].width) {
        layout.grids[i].width = tiles.grids[i].columns.size();
      }
    }
  }
  const int copies = chain.class_wise ? kChannels : 1;
  for (int i = 0; i < chain.count; ++i) {
    const Extent grid = layout.grids[i];
    const Extent next = i < chain.unit ? layout.grids[i + 1] : tile;
    layout.up_rows[i] = layout.taps;
    layout.up_columns[i] = layout.up_rows[i] + grid.height;
    layout.across_rows[i] = layout.up_columns[i] + grid.width;
    layout.across_columns[i] = layout.across_rows[i] + next.height;
    layout.taps = layout.across_columns[i] + next.width;
    layout.attention[i] = layout.values;
    if (i > 0) layout.values += copies * grid.height * grid.width;
    layout.resized[i] = layout.values;
    if (chain.is_lower(i)) layout.values += copies * tile.height * tile.width;
    layout.level[i] = layout.values;
    if (has_level(chain, i)) layout.values += kChannels * grid.height * grid.width;
  }
  return layout;
}

template <typename S, typename T>
struct ForwardBlock {
  const FuseScalesForward<S>& problem;
  const ForwardLayout& layout;
  const ForwardTiles& tiles;
  Taps<T>* taps;
  T* values;
  int64_t b;

  HMSA_DEVICE AxisTaps<T> up_rows(int i) const { return {taps + layout.up_rows[i], tiles.grids[i].rows.lo}; }
  HMSA_DEVICE AxisTaps<T> up_columns(int i) const { return {taps + layout.up_columns[i], tiles.grids[i].columns.lo}; }
  HMSA_DEVICE const Tile& next(int i) const { return i < problem.chain.unit ? tiles.grids[i + 1] : tiles.output; }
  HMSA_DEVICE AxisTaps<T> across_rows(int i) const { return {taps + layout.across_rows[i], next(i).rows.lo}; }
  HMSA_DEVICE AxisTaps<T> across_columns(int i) const { return {taps + layout.across_columns[i], next(i).columns.lo}; }

  // The k-th channel's copy of a tile at an offset; one copy serves all channels of attention that is not class-wise.
  HMSA_DEVICE SharedPatch<T> level(int i, int k) const {
    return {values + layout.level[i] + k * layout.grids[i].height * layout.grids[i].width, tiles.grids[i]};
  }
  HMSA_DEVICE SharedPatch<T> attention(int i, int k) const {
    const int copy = problem.chain.class_wise ? k : 0;
    return {values + layout.attention[i] + copy * layout.grids[i].height * layout.grids[i].width, tiles.grids[i]};
  }
  HMSA_DEVICE SharedPatch<T> resized(int i, int k) const {
    const int copy = problem.chain.class_wise ? k : 0;
    return {values + layout.resized[i] + copy * layout.tile.height * layout.tile.width, tiles.output};
  }

  HMSA_DEVICE void make_taps() const {
    const Chain& chain = problem.chain;
    for (int i = 0; i < chain.count; ++i) {
      fill_taps(taps + layout.up_rows[i], chain.up[i].rows, tiles.grids[i].rows);
      fill_taps(taps + layout.up_columns[i], chain.up[i].columns, tiles.grids[i].columns);
      fill_taps(taps + layout.across_rows[i], chain.across[i].rows, next(i).rows);
      fill_taps(taps + layout.across_columns[i], chain.across[i].columns, next(i).columns);
    }
  }

  // Attention of channels c .. c + count - 1 (count = 1 where it is not class-wise). Ends with a barrier.
  HMSA_DEVICE void make_attention(int64_t c, int count) const {
    for (int i = 1; i < problem.chain.count; ++i) {
      const AxisTaps<T> rows = up_rows(i);
      const AxisTaps<T> columns = up_columns(i);
      for_each(tiles.grids[i], [&](int32_t y, int32_t x) {
        for (int k = 0; k < count; ++k) {
          attention(i, k).at(y, x) = sample(problem.attention[i], b, c + k, rows.at(y), columns.at(x));
        }
      });
    }
    __syncthreads();
    for (int i = problem.chain.unit + 1; i < problem.chain.count; ++i) {
      const AxisTaps<T> rows = across_rows(i);
      const AxisTaps<T> columns = across_columns(i);
      for_each(tiles.output, [&](int32_t y, int32_t x) {
        for (int k = 0; k < count; ++k) {
          resized(i, k).at(y, x) = sample(attention(i, k), rows.at(y), columns.at(x));
        }
      });
    }
    __syncthreads();
  }

  // P of upper scale i at one element of its grid.
  HMSA_DEVICE T upper(int i, int64_t c, int k, int32_t y, int32_t x) const {
    const T logit = sample(problem.logits[i], b, c + k, up_rows(i).at(y), up_columns(i).at(x));
    if (i == 0) return logit;
    const T before = sample(level(i - 1, k), across_rows(i - 1).at(y), across_columns(i - 1).at(x));
    return blend_upper(attention(i, k).at(y, x), logit, before);
  }

  // Channels c .. c + count - 1 of the tile. Ends with a barrier, since the next channels use the same memory.
  HMSA_DEVICE void make_channels(int64_t c, int count) const {
    const Chain& chain = problem.chain;
    for (int i = chain.unit + 1; i < chain.count; ++i) {
      const AxisTaps<T> rows = up_rows(i);
      const AxisTaps<T> columns = up_columns(i);
      for_each(tiles.grids[i], [&](int32_t y, int32_t x) {
        for (int k = 0; k < count; ++k) {
          const T logit = sample(problem.logits[i], b, c + k, rows.at(y), columns.at(x));
          level(i, k).at(y, x) = attention(i, k).at(y, x) * logit;
        }
      });
    }
    const int levels = chain.needs_final_resize ? chain.unit + 1 : chain.unit;
    for (int i = 0; i < levels; ++i) {
      for_each(tiles.grids[i], [&](int32_t y, int32_t x) {
        for (int k = 0; k < count; ++k) level(i, k).at(y, x) = upper(i, c, k, y, x);
      });
      __syncthreads();
    }
    if (levels == 0) __syncthreads();  // the products of the lower scales

    for_each(tiles.output, [&](int32_t y, int32_t x) {
      for (int k = 0; k < count; ++k) {
        T fused = chain.needs_final_resize
                      ? sample(level(chain.unit, k), across_rows(chain.unit).at(y), across_columns(chain.unit).at(x))
                      : upper(chain.unit, c, k, y, x);
        for (int i = chain.unit + 1; i < chain.count; ++i) {
          const T product = sample(level(i, k), across_rows(i).at(y), across_columns(i).at(x));
          fused = blend_lower(resized(i, k).at(y, x), product, fused);
        }
        write(problem.output.at(b, c + k, y, x), fused);
      }
    });
    __syncthreads();
  }
};

template <typename S>
__global__ void __launch_bounds__(kBlockThreads)
    fuse_scales_forward_kernel(HMSA_PARAMETER FuseScalesForward<S> problem, HMSA_PARAMETER ForwardLayout layout,
                               int32_t stripes) {
  using T = arithmetic_t<S>;
  HMSA_DYNAMIC_SHARED(unsigned char, memory);
  HMSA_SHARED(ForwardTiles, tiles, [1]);

  // Tiles of an image run along x; y is limited to 65535 blocks, so rows of tiles and images share x and z.
  const int32_t y = static_cast<int32_t>(blockIdx.x / stripes) * layout.tile.height;
  const int32_t x = static_cast<int32_t>(blockIdx.x % stripes) * layout.tile.width;
  if (thread_index() == 0) {
    const Extent size = problem.chain.size;
    const Tile output{{y, y + layout.tile.height < size.height ? y + layout.tile.height : size.height},
                      {x, x + layout.tile.width < size.width ? x + layout.tile.width : size.width}};
    tiles[0] = forward_tiles(problem.chain, output);
  }
  __syncthreads();

  Taps<T>* taps = reinterpret_cast<Taps<T>*>(memory);
  T* values = reinterpret_cast<T*>(memory + layout.taps * sizeof(Taps<T>));
  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    const ForwardBlock<S, T> block{problem, layout, tiles[0], taps, values, b};
    if (b == blockIdx.y) {
      block.make_taps();
      __syncthreads();
    }
    if (!problem.chain.class_wise) block.make_attention(0, 1);
    for (int64_t c = 0; c < problem.classes; c += kChannels) {
      const int count = problem.classes - c < kChannels ? static_cast<int>(problem.classes - c) : kChannels;
      if (problem.chain.class_wise) block.make_attention(c, count);
      block.make_channels(c, count);
    }
  }
}

}  // namespace

template <typename S>
void launch_fuse_scales_forward(const FuseScalesForward<S>& problem, StreamHandle stream) {
  using T = arithmetic_t<S>;
  const Chain& chain = problem.chain;
  // Four blocks on a multiprocessor hide each other's barriers. A large ratio between scales needs more memory for a
  // tile: then the tile shrinks, at worst to one element, whose sources are two rows and columns of every grid.
  constexpr size_t kBudget = 40 * 1024;
  Extent tile{16, 64};
  ForwardLayout layout = make_layout(chain, tile);
  while (layout.bytes<T>() > kBudget && tile.height * tile.width > 1) {
    (tile.height * 4 > tile.width ? tile.height : tile.width) /= 2;
    layout = make_layout(chain, tile);
  }
  const int32_t stripes = (chain.size.width + tile.width - 1) / tile.width;
  const int32_t bands = (chain.size.height + tile.height - 1) / tile.height;
  const dim3 grid(static_cast<unsigned>(stripes) * bands, problem.batch < 65535 ? problem.batch : 65535);
  HMSA_LAUNCH(fuse_scales_forward_kernel<S>, grid, dim3(kBlockColumns, kBlockRows), layout.bytes<T>(),
              static_cast<cudaStream_t>(stream), problem, layout, stripes);
}

template void launch_fuse_scales_forward(const FuseScalesForward<float>&, StreamHandle);
template void launch_fuse_scales_forward(const FuseScalesForward<double>&, StreamHandle);
template void launch_fuse_scales_forward(const FuseScalesForward<Half>&, StreamHandle);
template void launch_fuse_scales_forward(const FuseScalesForward<BFloat16>&, StreamHandle);

}  // namespace cuda
}  // namespace hmsa
