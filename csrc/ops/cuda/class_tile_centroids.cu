// Centroids of classes by tile, on the GPU. A block takes parts of tiles. A thread goes down a column of pixels, where
// labels seldom change, and adds whole runs to the sums of its block in shared memory, which 32 bits hold: coordinates
// there are counted from the corner of the part. Everything is an integer, so that atomic additions give the same result
// in any order; the last kernel divides.
#include "ops/cuda/class_tile_centroids.h"

#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kRows = 16;  // of a thread's column
constexpr int kPartRows = kWarps * kRows;
constexpr int kMostClasses = 256;

using Count = unsigned long long;

HMSA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// How the tiles are cut into parts of kLanes columns and kPartRows rows.
struct Parts {
  int64_t rows;     // of parts in a tile
  int64_t columns;  // likewise
  int64_t total;
};

Parts parts_of(const ClassTileCentroids& problem) {
  Parts parts{};
  parts.rows = (min(problem.tile, problem.height) + kPartRows - 1) / kPartRows;
  parts.columns = (min(problem.tile, problem.width) + kLanes - 1) / kLanes;
  parts.total = problem.batch * problem.tile_rows() * problem.tile_columns() * parts.rows * parts.columns;
  return parts;
}

__global__ void clear_tiles_kernel(int64_t* counts, int64_t* centres, int64_t cells) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + thread(); k < cells; k += step) {
    counts[k] = 0;
    centres[2 * k] = 0;
    centres[2 * k + 1] = 0;
  }
}

// A part of a tile: where it lies, and the first of the tile's cells. Rows and columns end where the tile does.
struct Part {
  int64_t image;
  int64_t top;
  int64_t left;
  int height;  // may be none: the last tiles are smaller
  int width;
  int64_t cell;

  HMSA_DEVICE Part(const ClassTileCentroids& problem, const Parts& parts, int64_t index) {
    const int64_t tile = index / (parts.rows * parts.columns);
    const int64_t within = index - tile * (parts.rows * parts.columns);
    const int64_t tile_row = tile / problem.tile_columns();
    image = tile_row / problem.tile_rows();
    const int64_t y = tile_row % problem.tile_rows() * problem.tile;
    const int64_t x = tile % problem.tile_columns() * problem.tile;
    top = y + within / parts.columns * kPartRows;
    left = x + within % parts.columns * kLanes;
    height = static_cast<int>(min(min(y + problem.tile, problem.height) - top, static_cast<int64_t>(kPartRows)));
    width = static_cast<int>(min(min(x + problem.tile, problem.width) - left, static_cast<int64_t>(kLanes)));
    cell = tile * problem.classes;
  }
};

// Adds the thread's stretch of a column: counts, rows and columns as seen from the part's corner.
HMSA_DEVICE void add_column(const ClassTileCentroids& problem, const Part& part, unsigned (*sums)[kMostClasses]) {
  const int x = thread() % kLanes;
  const int first = thread() / kLanes * kRows;
  const int rows = min(kRows, part.height - first);
  if (x >= part.width || rows <= 0) return;
  const uint8_t* from = problem.labels.at(part.image, part.top + first, part.left + x);
  int labels[kRows];  // all are asked for before the first is needed
  HMSA_UNROLL
  for (int k = 0; k < kRows; ++k) labels[k] = k < rows ? from[k * problem.labels.row] : -1;
  int start = 0;
  HMSA_UNROLL
  for (int k = 1; k <= kRows; ++k) {
    if (k < kRows && labels[k] == labels[k - 1]) continue;
    const int label = labels[k - 1];
    if (label >= 0 && label < problem.classes) {
      const auto count = static_cast<unsigned>(k - start);
      atomicAdd(&sums[0][label], count);
      // The rows of a run are first + start to first + k - 1; the product is even.
      atomicAdd(&sums[1][label], count * static_cast<unsigned>(2 * first + start + k - 1) / 2);
      atomicAdd(&sums[2][label], count * static_cast<unsigned>(x));
    }
    start = k;
  }
}

__global__ void tile_sums_kernel(HMSA_PARAMETER ClassTileCentroids problem, HMSA_PARAMETER Parts parts) {
  HMSA_SHARED(unsigned, sums, [3][kMostClasses]);
  for (int64_t index = blockIdx.x; index < parts.total; index += gridDim.x) {
    const Part part(problem, parts, index);
    if (part.height <= 0 || part.width <= 0) continue;  // the same for the whole block
    for (int k = thread(); k < 3 * kMostClasses; k += kThreads) sums[k / kMostClasses][k % kMostClasses] = 0;
    __syncthreads();
    add_column(problem, part, sums);
    __syncthreads();
    for (int c = thread(); c < problem.classes; c += kThreads) {
      const Count count = sums[0][c];
      if (count == 0) continue;
      const auto counts = reinterpret_cast<Count*>(problem.counts) + part.cell + c;
      const auto centres = reinterpret_cast<Count*>(problem.centres) + 2 * (part.cell + c);
      atomicAdd(counts, count);
      atomicAdd(centres, sums[1][c] + count * static_cast<Count>(part.top));
      atomicAdd(centres + 1, sums[2][c] + count * static_cast<Count>(part.left));
    }
    __syncthreads();
  }
}

__global__ void tile_centres_kernel(HMSA_PARAMETER ClassTileCentroids problem, int64_t cells) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + thread(); k < cells; k += step) {
    problem.finish_cell(k);
  }
}

}  // namespace

void launch_class_tile_centroids(const ClassTileCentroids& problem, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t cells = problem.cells();
  const int64_t most = 4 * wanted_blocks();
  const dim3 cell_blocks(static_cast<unsigned>(min((cells + kThreads - 1) / kThreads, most)));
  HMSA_LAUNCH(clear_tiles_kernel, cell_blocks, dim3(kThreads), 0, stream, problem.counts, problem.centres, cells);
  const Parts parts = parts_of(problem);
  const dim3 part_blocks(static_cast<unsigned>(min(parts.total, most)));
  HMSA_LAUNCH(tile_sums_kernel, part_blocks, dim3(kThreads), 0, stream, problem, parts);
  HMSA_LAUNCH(tile_centres_kernel, cell_blocks, dim3(kThreads), 0, stream, problem, cells);
}

}  // namespace cuda
}  // namespace hmsa
