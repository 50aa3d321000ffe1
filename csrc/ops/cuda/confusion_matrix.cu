// The confusion matrix on the GPU. Up to kMostShared classes, each block counts in a histogram in shared memory and
// writes it out whole; a second kernel adds these up and writes the result, so that nothing has to be cleared. A thread
// reads four labels side by side at once and adds a whole run of equal pairs at once, since labels seldom change. With
// more classes, runs are added to the result itself. Counts are integers, so that any order gives the same result.
#include "ops/cuda/confusion_matrix.h"

#include "core/integers.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/multiprocessors.h"

namespace hmsa {
namespace cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 16;
constexpr int kThreads = kLanes * kWarps;
constexpr int kMostShared = 110;            // classes whose histogram of 32-bit counts has about 48 KiB
constexpr int64_t kMostPartials = 1 << 21;  // 8 MiB
constexpr int64_t kFewPixels = 1 << 30;     // of a block: 32 bits count twice as many

// A warp takes stretches of a row. In each, a lane has kWords words of four pixels; those of all lanes lie side by side.
constexpr int kWords = 4;
constexpr int kWordPixels = 4;
constexpr int kStep = kLanes * kWordPixels;  // from a lane's word to its next
constexpr int kStretch = kWords * kStep;

using Count = unsigned long long;

HMSA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

// Rows of pixels, each in so many stretches.
struct Stretches {
  int64_t rows;
  int64_t width;
  int64_t row_stretches;
  int64_t total;
};

// Where the labels of a thread begin, and how many pixels are left of the row.
struct Place {
  int64_t target;  // offsets in elements
  int64_t prediction;
  int64_t left;  // may be none
};

// Calls body(place) for the stretches of the thread's warp.
template <typename Body>
HMSA_DEVICE void for_stretches(const ConfusionMatrix& problem, const Stretches& stretches, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + thread() / kLanes; k < stretches.total; k += step) {
    int64_t x = k * kStretch, y = 0, b = 0;
    if (stretches.rows > 1) {
      const int64_t row = k / stretches.row_stretches;
      x = (k - row * stretches.row_stretches) * kStretch;
      b = row / problem.height;
      y = row - b * problem.height;
    }
    x += thread() % kLanes * kWordPixels;
    const auto offset = [&](const LabelView& view) { return b * view.batch + y * view.row + x * view.column; };
    body(Place{offset(problem.target), offset(problem.prediction), stretches.width - x});
  }
}

// ---- labels as bytes ------------------------------------------------------------------------------------------------

constexpr uint32_t kSkipped = 255;  // truths that are ignored, and pixels behind the end of a row
constexpr uint32_t kNoClass = 254;
static_assert(kMostShared < static_cast<int>(kNoClass), "these are no classes");

template <typename L>
struct alignas(kWordPixels * sizeof(L) < 16 ? kWordPixels * sizeof(L) : 16) LabelWord {
  L labels[kWordPixels];
};

// The first four bytes, the first of them lowest.
template <typename L>
HMSA_DEVICE uint32_t word_of(const LabelWord<L>& labels) {
  uint32_t word;
  memcpy(&word, labels.labels, sizeof(word));
  return word;
}

// A class is itself. Bytes stay what they are if that says the same, which saves the comparisons.
template <bool kTarget>
struct Coding {
  int32_t classes;
  int64_t ignore_index;

  HMSA_DEVICE explicit Coding(const ConfusionMatrix& problem)
      : classes(problem.classes), ignore_index(problem.ignore_index) {}

  template <typename L>
  HMSA_DEVICE uint32_t operator()(L label) const {
    const auto wide = static_cast<int64_t>(label);
    const uint32_t code = wide >= 0 && wide < classes ? static_cast<uint32_t>(wide) : kNoClass;
    return kTarget && wide == ignore_index ? kSkipped : code;
  }
  HMSA_DEVICE bool keeps_bytes() const { return !kTarget || ignore_index == kSkipped; }
};

// The words of a thread, the first pixel in the lowest byte.
template <bool kTarget, typename L>
HMSA_DEVICE void read_words(const L* from, int64_t column, int64_t left, const Coding<kTarget>& code,
                            uint32_t (&words)[kWords]) {
  const bool aligned = reinterpret_cast<uintptr_t>(from) % alignof(LabelWord<L>) == 0;
  if (column == 1 && aligned && left >= kStretch - kStep + kWordPixels) {
    LabelWord<L> read[kWords];  // all are asked for before the first is needed
    HMSA_UNROLL
    for (int w = 0; w < kWords; ++w) read[w] = *reinterpret_cast<const LabelWord<L>*>(from + w * kStep);
    if (sizeof(L) == 1 && code.keeps_bytes()) {
      HMSA_UNROLL
      for (int w = 0; w < kWords; ++w) words[w] = word_of(read[w]);
      return;
    }
    HMSA_UNROLL
    for (int w = 0; w < kWords; ++w) {
      words[w] = 0;
      HMSA_UNROLL
      for (int k = 0; k < kWordPixels; ++k) words[w] |= code(read[w].labels[k]) << 8 * k;
    }
    return;
  }
  HMSA_UNROLL
  for (int w = 0; w < kWords; ++w) {
    words[w] = 0;
    HMSA_UNROLL
    for (int k = 0; k < kWordPixels; ++k) {
      const int x = w * kStep + k;
      words[w] |= (x < left ? code(from[x * column]) : kSkipped) << 8 * k;
    }
  }
}

template <bool kTarget>
HMSA_DEVICE void read_words(const ConfusionMatrix& problem, int64_t offset, int64_t left, uint32_t (&words)[kWords]) {
  const LabelView& view = kTarget ? problem.target : problem.prediction;
  visit_label_type(view.type, [&](auto label) {
    const auto* from = static_cast<const decltype(label)*>(view.data) + offset;
    read_words(from, view.column, left, Coding<kTarget>(problem), words);
  });
}

// ---- counting -------------------------------------------------------------------------------------------------------

// The histogram of a block: a row for each class of the truth, then one for those that are no class, and one for those
// that are skipped; a column for each class of the prediction and one for those that are no class.
struct Histogram {
  unsigned* counts;
  int classes;

  HMSA_DEVICE int columns() const { return classes + 1; }
  HMSA_DEVICE int cells() const { return (classes + 2) * columns(); }
  HMSA_DEVICE unsigned* cell(uint32_t target, uint32_t prediction) const {
    const int row = min(static_cast<int>(target), classes) + (target == kSkipped ? 1 : 0);
    return counts + row * columns() + min(static_cast<int>(prediction), classes);
  }
};

int64_t histogram_bytes(int32_t classes) {
  return static_cast<int64_t>(sizeof(unsigned)) * (classes + 2) * (classes + 1);
}

// Writes the histogram's classes, and behind them how many pixels are invalid.
HMSA_DEVICE void write_partial(const Histogram& histogram, uint32_t* partial /* [K * K + 1] */) {
  const int classes = histogram.classes;
  for (int k = thread(); k < classes * classes; k += kThreads) {
    const int row = k / classes;
    partial[k] = histogram.counts[k + row];  // rows there are longer by one
  }
  if (thread() >= kLanes) return;
  unsigned invalid = 0;
  for (int k = thread(); k <= classes; k += kLanes) {
    invalid += histogram.counts[classes * histogram.columns() + k];
    if (k < classes) invalid += histogram.counts[k * histogram.columns() + classes];
  }
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) invalid += __shfl_xor_sync(0xffffffffu, invalid, lanes);
  if (thread() == 0) partial[classes * classes] = invalid;
}

__global__ void __launch_bounds__(kThreads)
    confusion_matrix_kernel(HMSA_PARAMETER ConfusionMatrix problem, HMSA_PARAMETER Stretches stretches,
                            uint32_t* partials /* [blocks, K * K + 1] */) {
  HMSA_DYNAMIC_SHARED(unsigned, counts);
  const Histogram histogram{counts, problem.classes};
  for (int k = thread(); k < histogram.cells(); k += kThreads) counts[k] = 0;
  __syncthreads();
  unsigned* cell = histogram.cell(kSkipped, 0);
  unsigned pixel = 0, start = 0;  // of the thread's pixels, one after the other: this one, and the first of the run
  for_stretches(problem, stretches, [&](const Place& place) {
    uint32_t targets[kWords], predictions[kWords];
    read_words<true>(problem, place.target, place.left, targets);
    read_words<false>(problem, place.prediction, place.left, predictions);
    HMSA_UNROLL
    for (int k = 0; k < kWords * kWordPixels; ++k) {
      const int w = k / kWordPixels, bits = 8 * (k % kWordPixels);
      unsigned* const next = histogram.cell((targets[w] >> bits) & 0xffu, (predictions[w] >> bits) & 0xffu);
      if (next != cell) {
        atomicAdd(cell, pixel + k - start);
        start = pixel + k;
      }
      cell = next;
    }
    pixel += kWords * kWordPixels;
  });
  atomicAdd(cell, pixel - start);
  __syncthreads();
  const int64_t size = static_cast<int64_t>(problem.classes) * problem.classes + 1;
  write_partial(histogram, partials + blockIdx.x * size);
}

// Adds the histograms up: a lane for each cell, the blocks divided among the warps.
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const uint32_t* partials /* [blocks, cells + 1] */, int blocks, int64_t cells, int64_t* counts,
                        int64_t* invalid) {
  HMSA_SHARED(Count, sums, [kWarps][kLanes]);
  const int lane = thread() % kLanes, warp = thread() / kLanes;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kLanes + lane;
  Count sum = 0;
  if (cell <= cells) {
    HMSA_UNROLL_BY(8)
    for (int k = warp; k < blocks; k += kWarps) sum += __ldg(partials + k * (cells + 1) + cell);
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || cell > cells) return;
  HMSA_UNROLL
  for (int k = 1; k < kWarps; ++k) sum += sums[k][lane];
  *(cell < cells ? counts + cell : invalid) = static_cast<int64_t>(sum);
}

// ---- many classes ---------------------------------------------------------------------------------------------------

// Writes zeros.
__global__ void clear_counts_kernel(int64_t* counts, int64_t size, int64_t* invalid) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + thread(); k < size; k += step) counts[k] = 0;
  if (blockIdx.x == 0 && thread() == 0) *invalid = 0;
}

__global__ void many_classes_kernel(HMSA_PARAMETER ConfusionMatrix problem, HMSA_PARAMETER Stretches stretches) {
  const auto counts = reinterpret_cast<Count*>(problem.counts);
  Count invalid = 0, run = 0;
  int64_t cell = kSkippedPixel;
  const auto finish_run = [&] {
    if (cell == kInvalidPixel) invalid += run;
    if (cell >= 0) atomicAdd(counts + cell, run);
  };
  const auto label = [](const LabelView& view, int64_t offset) {
    return LabelView{view.data, view.type, 0, 0, 1}.at(0, 0, offset);
  };
  for_stretches(problem, stretches, [&](const Place& place) {
    for (int w = 0; w < kWords; ++w) {
      HMSA_UNROLL
      for (int k = 0; k < kWordPixels; ++k) {
        const int x = w * kStep + k;
        if (x >= place.left) continue;
        const int64_t next = confusion_cell(label(problem.target, place.target + x * problem.target.column),
                                            label(problem.prediction, place.prediction + x * problem.prediction.column),
                                            problem.classes, problem.ignore_index);
        if (next != cell) {
          finish_run();
          cell = next;
          run = 0;
        }
        ++run;
      }
    }
  });
  finish_run();
  if (invalid > 0) atomicAdd(reinterpret_cast<Count*>(problem.invalid), invalid);
}

// ---- launches -------------------------------------------------------------------------------------------------------

Stretches stretches_of(const ConfusionMatrix& problem) {
  // Both in one piece: a single row.
  const auto is_dense = [&](const LabelView& view) {
    return (problem.height == 1 || view.row == problem.width * view.column) &&
           (problem.batch == 1 || view.batch == problem.height * problem.width * view.column);
  };
  const bool one_row = is_dense(problem.prediction) && is_dense(problem.target);
  Stretches stretches{};
  stretches.rows = one_row ? 1 : problem.batch * problem.height;
  stretches.width = one_row ? problem.batch * problem.height * problem.width : problem.width;
  stretches.row_stretches = divide_up(stretches.width, static_cast<int64_t>(kStretch));
  stretches.total = stretches.rows * stretches.row_stretches;
  return stretches;
}

// Of the counting: few, since each writes its histogram; but none with more pixels than its counts can hold.
int64_t counting_blocks(const ConfusionMatrix& problem, const Stretches& stretches) {
  const int64_t size = static_cast<int64_t>(problem.classes) * problem.classes + 1;
  const int64_t wanted = min(2 * static_cast<int64_t>(multiprocessor_count()), kMostPartials / size);
  const int64_t least = stretches.total / (kFewPixels / kStretch) + 1;
  return min(divide_up(stretches.total, static_cast<int64_t>(kWarps)), max(wanted, least));
}

bool has_partials(const ConfusionMatrix& problem) { return problem.classes <= kMostShared; }

}  // namespace

int64_t confusion_matrix_partials(const ConfusionMatrix& problem) {
  if (!has_partials(problem)) return 0;
  const int64_t size = static_cast<int64_t>(problem.classes) * problem.classes + 1;
  return counting_blocks(problem, stretches_of(problem)) * size;
}

void launch_confusion_matrix(const ConfusionMatrix& problem, uint32_t* partials, StreamHandle stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t cells = static_cast<int64_t>(problem.classes) * problem.classes;
  const Stretches stretches = stretches_of(problem);
  if (has_partials(problem)) {
    const auto blocks = static_cast<unsigned>(counting_blocks(problem, stretches));
    if (blocks > 0) {
      const auto bytes = static_cast<size_t>(histogram_bytes(problem.classes));
      HMSA_LAUNCH(confusion_matrix_kernel, dim3(blocks), dim3(kThreads), bytes, stream, problem, stretches, partials);
    }
    const dim3 grid(static_cast<unsigned>(cells / kLanes + 1));
    HMSA_LAUNCH(add_partials_kernel, grid, dim3(kThreads), 0, stream, partials, static_cast<int>(blocks), cells,
                problem.counts, problem.invalid);
    return;
  }
  const dim3 clear_blocks(static_cast<unsigned>(min(cells / kThreads + 1, wanted_blocks())));
  HMSA_LAUNCH(clear_counts_kernel, clear_blocks, dim3(kThreads), 0, stream, problem.counts, cells, problem.invalid);
  const auto blocks = static_cast<unsigned>(
      min(divide_up(stretches.total, static_cast<int64_t>(kWarps)), 2 * static_cast<int64_t>(multiprocessor_count())));
  if (blocks == 0) return;
  HMSA_LAUNCH(many_classes_kernel, dim3(blocks), dim3(kThreads), 0, stream, problem, stretches);
}

}  // namespace cuda
}  // namespace hmsa
