// Centroids of classes by tile, on the GPU. A block takes a tile, or a share of one where tiles are few. A thread goes down
// a column of pixels, where labels seldom change, and adds whole runs to the sums of its block in shared memory, which 32
// bits hold: coordinates there are counted from the corner of a part of the tile. Each class has a thread that adds up the
// parts, and writes the centre of a whole tile; the sums of shares go to a second kernel. Everything until then is an
// integer, so that any order gives the same result.
#include "ops/cuda/class_tile_centroids.h"

#include "core/integers.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kBlocks = 4;  // that fit a multiprocessor
constexpr int kRows = 16;   // of a thread's column
constexpr int kPartRows = kWarps * kRows;
constexpr int kMostClasses = 256;
static_assert(kMostClasses <= kThreads, "each class has a thread");

// A part's count of a class and the sum of its columns share 32 bits.
constexpr int kColumnBits = 17;
static_assert(kPartRows * kLanes * (kLanes - 1) / 2 < 1 << kColumnBits, "all pixels of a part");
static_assert(kPartRows * kLanes < 1 << (32 - kColumnBits), "likewise");

using Count = unsigned long long;

HMSA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// How the tiles are cut into parts of kLanes columns and kPartRows rows, and how many shares these are divided into.
struct Parts {
  int64_t columns;
  int64_t count;  // of a tile
  int64_t shares;
  int64_t each;  // parts of a share
  int64_t tiles;
  int64_t tile_rows;
  int64_t tile_columns;
};

Parts parts_of(const ClassTileCentroids& problem) {
  Parts parts{};
  parts.columns = divide_up(min(problem.tile, problem.width), static_cast<int64_t>(kLanes));
  parts.count = divide_up(min(problem.tile, problem.height), static_cast<int64_t>(kPartRows)) * parts.columns;
  parts.tile_rows = problem.tile_rows();
  parts.tile_columns = problem.tile_columns();
  parts.tiles = problem.batch * parts.tile_rows * parts.tile_columns;
  const int64_t wanted = kBlocks * static_cast<int64_t>(multiprocessor_count()) / parts.tiles;
  parts.each = divide_up(parts.count, max(min(parts.count, wanted), int64_t{1}));
  parts.shares = divide_up(parts.count, parts.each);
  return parts;
}

// What a class adds up to.
struct Sums {
  Count count;
  Count rows;
  Count columns;
};

HMSA_DEVICE void write_centre(const ClassTileCentroids& problem, int64_t cell, const Sums& sums) {
  problem.counts[cell] = static_cast<int64_t>(sums.count);
  problem.centres[2 * cell] = static_cast<int64_t>(sums.rows);
  problem.centres[2 * cell + 1] = static_cast<int64_t>(sums.columns);
  problem.finish_cell(cell);
}

// A part of a tile. Rows and columns end where the tile does.
struct Part {
  int64_t image;
  int64_t top;
  int64_t left;
  int height;  // may be none: the last tiles are smaller
  int width;

  HMSA_DEVICE Part(const ClassTileCentroids& problem, const Parts& parts, int64_t tile, int64_t within) {
    const int64_t tile_row = tile / parts.tile_columns;
    image = tile_row / parts.tile_rows;
    const int64_t y = (tile_row - image * parts.tile_rows) * problem.tile;
    const int64_t x = (tile - tile_row * parts.tile_columns) * problem.tile;
    const int64_t row = within / parts.columns;
    top = y + row * kPartRows;
    left = x + (within - row * parts.columns) * kLanes;
    height = static_cast<int>(min(min(y + problem.tile, problem.height) - top, static_cast<int64_t>(kPartRows)));
    width = static_cast<int>(min(min(x + problem.tile, problem.width) - left, static_cast<int64_t>(kLanes)));
  }
};

// Adds the thread's stretch of a column: counts and columns in one number, and rows, as seen from the part's corner.
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
      atomicAdd(&sums[0][label], count * (1u << kColumnBits | static_cast<unsigned>(x)));
      // The rows of a run are first + start to first + k - 1; the product is even.
      atomicAdd(&sums[1][label], count * static_cast<unsigned>(2 * first + start + k - 1) / 2);
    }
    start = k;
  }
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    tile_sums_kernel(HMSA_PARAMETER ClassTileCentroids problem, HMSA_PARAMETER Parts parts,
                     Sums* shares /* [tiles, shares, K] */) {
  HMSA_SHARED(unsigned, sums, [2][kMostClasses]);
  const int c = thread();  // the thread's class, if there are so many
  sums[0][c] = sums[1][c] = 0;
  __syncthreads();
  for (int64_t index = blockIdx.x; index < parts.tiles * parts.shares; index += gridDim.x) {
    const int64_t tile = index / parts.shares;
    const int64_t begin = (index - tile * parts.shares) * parts.each;
    Sums total{0, 0, 0};
    for (int64_t within = begin; within < min(begin + parts.each, parts.count); ++within) {
      const Part part(problem, parts, tile, within);
      if (part.height <= 0 || part.width <= 0) continue;  // the same for the whole block
      add_column(problem, part, sums);
      __syncthreads();
      const Count count = sums[0][c] >> kColumnBits;
      total.count += count;
      total.rows += sums[1][c] + count * static_cast<Count>(part.top);
      total.columns += (sums[0][c] & ((1u << kColumnBits) - 1)) + count * static_cast<Count>(part.left);
      sums[0][c] = sums[1][c] = 0;
      __syncthreads();
    }
    if (c >= problem.classes) continue;
    if (parts.shares == 1) {
      write_centre(problem, tile * problem.classes + c, total);
    } else {
      shares[index * problem.classes + c] = total;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    tile_centres_kernel(HMSA_PARAMETER ClassTileCentroids problem, const Sums* shares /* [tiles, count, K] */,
                        int64_t count) {
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kThreads + thread();
  if (cell >= problem.cells()) return;
  const int64_t tile = cell / problem.classes;
  const Sums* const from = shares + tile * (count - 1) * problem.classes + cell;
  Sums total{0, 0, 0};
  HMSA_UNROLL_BY(4)
  for (int64_t k = 0; k < count; ++k) {
    const Sums& share = from[k * problem.classes];
    total.count += share.count;
    total.rows += share.rows;
    total.columns += share.columns;
  }
  write_centre(problem, cell, total);
}

}  // namespace

int64_t class_tile_centroids_sums(const ClassTileCentroids& problem) {
  const Parts parts = parts_of(problem);
  constexpr int64_t kNumbers = sizeof(Sums) / sizeof(Count);
  return parts.shares == 1 ? 0 : parts.tiles * parts.shares * problem.classes * kNumbers;
}

void launch_class_tile_centroids(const ClassTileCentroids& problem, unsigned long long* sums,
                                 StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const Parts parts = parts_of(problem);
  const auto shares = reinterpret_cast<Sums*>(sums);
  const dim3 blocks(static_cast<unsigned>(min(parts.tiles * parts.shares, 4 * wanted_blocks())));
  HMSA_LAUNCH(tile_sums_kernel, blocks, dim3(kThreads), 0, stream, problem, parts, shares);
  if (parts.shares == 1) return;
  const dim3 cell_blocks(static_cast<unsigned>(divide_up(problem.cells(), static_cast<int64_t>(kThreads))));
  HMSA_LAUNCH(tile_centres_kernel, cell_blocks, dim3(kThreads), 0, stream, problem, shares, parts.shares);
}

}  // namespace cuda
}  // namespace hmsa
