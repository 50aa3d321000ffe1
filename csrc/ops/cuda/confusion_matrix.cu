// The confusion matrix on the GPU. A thread goes down a column of pixels, where labels seldom change, and adds a whole run
// of equal pairs at once: to a histogram of its block in shared memory while that is small, else to the result. Counts
// are integers, so that atomic additions give the same result in any order.
#include "ops/cuda/confusion_matrix.h"

#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kRows = 16;                // of a thread's column
constexpr int kLargestShared = 110;      // classes whose histogram of 32-bit counts fits 48 KiB
constexpr int64_t kFewPixels = 1 << 30;  // of a block: 32 bits count twice as many

constexpr int64_t kFoldedWidth = 512;  // of flat labels as an image

using Count = unsigned long long;

HMSA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// Writes zeros.
__global__ void clear_counts_kernel(int64_t* counts, int64_t size, int64_t* invalid) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + thread(); k < size; k += step) counts[k] = 0;
  if (blockIdx.x == 0 && thread() == 0) *invalid = 0;
}

// Calls body(target, prediction) for the pixels of a thread's columns, from tile to tile of the block's.
template <typename Body>
HMSA_DEVICE void for_columns(const ConfusionMatrix& problem, int64_t stripes, int64_t bands, const Body& body) {
  for (int64_t tile = blockIdx.x; tile < problem.batch * bands * stripes; tile += gridDim.x) {
    const int64_t b = tile / (bands * stripes);
    const int64_t rest = tile - b * (bands * stripes);
    const int64_t x = rest % stripes * kLanes + thread() % kLanes;
    const int64_t begin = (rest / stripes * kWarps + thread() / kLanes) * kRows;
    if (x >= problem.width) continue;
    for (int64_t y = begin; y < min(begin + kRows, problem.height); ++y) {
      body(problem.target.at(b, y, x), problem.prediction.at(b, y, x));
    }
  }
}

template <bool kShared>
__global__ void confusion_matrix_kernel(HMSA_PARAMETER ConfusionMatrix problem, int64_t stripes, int64_t bands) {
  HMSA_DYNAMIC_SHARED(unsigned, histogram);  // [K, K]
  const auto counts = reinterpret_cast<Count*>(problem.counts);
  const int64_t cells = static_cast<int64_t>(problem.classes) * problem.classes;
  if (kShared) {
    for (int64_t k = thread(); k < cells; k += kThreads) histogram[k] = 0;
    __syncthreads();
  }
  unsigned invalid = 0;
  int64_t cell = kSkippedPixel;
  unsigned run = 0;
  const auto finish_run = [&] {
    if (cell == kInvalidPixel) invalid += run;
    if (cell < 0) return;
    if (kShared) {
      atomicAdd(histogram + cell, run);
    } else {
      atomicAdd(counts + cell, static_cast<Count>(run));
    }
  };
  for_columns(problem, stripes, bands, [&](int64_t target, int64_t prediction) {
    const int64_t next = confusion_cell(target, prediction, problem.classes, problem.ignore_index);
    if (next != cell) {
      finish_run();
      cell = next;
      run = 0;
    }
    ++run;
  });
  finish_run();
  if (invalid > 0) atomicAdd(reinterpret_cast<Count*>(problem.invalid), static_cast<Count>(invalid));
  if (kShared) {
    __syncthreads();
    for (int64_t k = thread(); k < cells; k += kThreads) {
      if (histogram[k] != 0) atomicAdd(counts + k, static_cast<Count>(histogram[k]));
    }
  }
}

// Adds the pixels of a problem.
void launch_counting(const ConfusionMatrix& problem, cudaStream_t stream) {
  const int64_t stripes = (problem.width + kLanes - 1) / kLanes;
  const int64_t bands = (problem.height + kWarps * kRows - 1) / (kWarps * kRows);
  const int64_t tiles = problem.batch * stripes * bands;
  if (tiles == 0) return;
  // Few blocks, which add their histograms once; but none with more pixels than its counts can hold.
  constexpr int64_t kTilePixels = kThreads * kRows;
  const int64_t most = tiles * kTilePixels / kFewPixels + 1;
  const int64_t wanted = 2 * wanted_blocks();
  const dim3 grid(static_cast<unsigned>(min(tiles, wanted > most ? wanted : most)));
  if (problem.classes <= kLargestShared) {
    const auto bytes = sizeof(unsigned) * static_cast<size_t>(problem.classes) * static_cast<size_t>(problem.classes);
    HMSA_LAUNCH(confusion_matrix_kernel<true>, grid, dim3(kThreads), bytes, stream, problem, stripes, bands);
  } else {
    HMSA_LAUNCH(confusion_matrix_kernel<false>, grid, dim3(kThreads), 0, stream, problem, stripes, bands);
  }
}

// Lines of pixels as rows of `width` each, or what is left behind them.
LabelView folded(LabelView labels, int64_t width) {
  labels.row = width * labels.column;
  return labels;
}
LabelView moved(LabelView labels, int64_t columns) {
  constexpr int64_t kBytes[] = {1, 2, 4, 8};
  const int64_t bytes = columns * labels.column * kBytes[static_cast<int>(labels.type)];
  labels.data = static_cast<const unsigned char*>(labels.data) + bytes;
  return labels;
}

}  // namespace

void launch_confusion_matrix(const ConfusionMatrix& problem, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t cells = static_cast<int64_t>(problem.classes) * problem.classes;
  const auto clear_blocks = static_cast<unsigned>(min(cells / kThreads + 1, wanted_blocks()));
  HMSA_LAUNCH(clear_counts_kernel, dim3(clear_blocks), dim3(kThreads), 0, stream, problem.counts, cells,
              problem.invalid);
  ConfusionMatrix rest = problem;
  if (problem.height == 1 && problem.width > kFoldedWidth) {
    // Flat labels: a single row would leave most threads without work.
    ConfusionMatrix rows = problem;
    rows.height = problem.width / kFoldedWidth;
    rows.width = kFoldedWidth;
    rows.prediction = folded(problem.prediction, kFoldedWidth);
    rows.target = folded(problem.target, kFoldedWidth);
    launch_counting(rows, stream);
    rest.width -= rows.height * rows.width;
    rest.prediction = moved(problem.prediction, rows.height * rows.width);
    rest.target = moved(problem.target, rows.height * rows.width);
  }
  launch_counting(rest, stream);
}

}  // namespace cuda
}  // namespace hmsa
