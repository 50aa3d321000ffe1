// Attention of a scale on a tile, made once per block and image for all channels.
//
// Attention is one map for all channels here: class-wise attention comes as one problem per channel.
#pragma once

#include "ops/cuda/axis_tables.cuh"

namespace hmsa {
namespace cuda {
namespace backward {

// Bytes of shared memory that the functions below need at `scratch` for tiles of these sizes; `grid` is 0 x 0 for grid_attention.
template <typename T>
int32_t attention_scratch_bytes(Extent tile, Extent grid) {
  const int32_t taps = tile.height + tile.width + grid.height + grid.width;
  return taps * static_cast<int32_t>(sizeof(Tap<T>)) + grid.height * grid.width * static_cast<int32_t>(sizeof(T));
}

// Calls body(y, x, A_j) for the elements of a tile of grid j. Ends with a barrier: what body wrote can be read, and the
// scratch memory used again.
template <typename T, typename Problem, typename Body>
HMSA_DEVICE_PHASE void grid_attention(const Problem& problem, int32_t b, int j, const Tile& tile, int32_t scratch,
                                      const Body& body) {
  const AxisTable<T> rows{shared_at<Tap<T>>(scratch), nullptr, tile.rows, {}};
  const AxisTable<T> columns{rows.taps + tile.rows.size(), nullptr, tile.columns, {}};
  rows.fill_taps(problem.chain.up[j].rows);
  columns.fill_taps(problem.chain.up[j].columns);
  __syncthreads();
  for_each(tile, [&](int32_t y, int32_t x) {
    body(y, x, sample(problem.attention[j], b, 0, rows.taps[y - tile.rows.lo], columns.taps[x - tile.columns.lo]));
  });
  __syncthreads();
}

// Calls body(y, x, R A_j) for the elements of a tile of the output. Ends with a barrier, too.
template <typename T, typename Problem, typename Body>
HMSA_DEVICE_PHASE void resized_attention(const Problem& problem, int32_t b, int j, const Tile& tile, int32_t scratch,
                                         const Body& body) {
  const Resize& across = problem.chain.across[j];
  const Tile grid = across.sources(tile);
  const AxisTable<T> rows{shared_at<Tap<T>>(scratch), nullptr, tile.rows, {}};
  const AxisTable<T> columns{rows.taps + tile.rows.size(), nullptr, tile.columns, {}};
  const auto tap_bytes = static_cast<int32_t>(sizeof(Tap<T>));
  const int32_t rest = scratch + (tile.rows.size() + tile.columns.size()) * tap_bytes;
  T* patch = shared_at<T>(rest + (grid.rows.size() + grid.columns.size()) * tap_bytes);
  const int32_t pitch = grid.columns.size();
  rows.fill_taps(across.rows);  // visible behind grid_attention's first barrier
  columns.fill_taps(across.columns);
  grid_attention<T>(problem, b, j, grid, rest, [&](int32_t y, int32_t x, T attention) {
    patch[(y - grid.rows.lo) * pitch + (x - grid.columns.lo)] = attention;
  });
  for_each(tile, [&](int32_t y, int32_t x) {
    const T value = interpolate(rows.taps[y - tile.rows.lo], [&](int32_t v) {
      const T* line = patch + (v - grid.rows.lo) * pitch - grid.columns.lo;
      return interpolate(columns.taps[x - tile.columns.lo], [&](int32_t u) { return line[u]; });
    });
    body(y, x, value);
  });
  __syncthreads();
}

}  // namespace backward
}  // namespace cuda
}  // namespace hmsa
