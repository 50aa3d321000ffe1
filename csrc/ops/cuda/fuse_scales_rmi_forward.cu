// Region mutual information on the GPU, forward. Chains of octaves have octave_rmi_moments.cuh; for others, some rows of
// windows at a time, in the workspace: probabilities of their pixels (fuse_scales_rmi_probability.cu), from which blocks
// pool tiles of windows and take the moments of their neighbourhoods. Every block leaves the moments of a few tiles; they are merged with Chan's formula, always in the same order.
#include <algorithm>

#include "ops/cuda/fuse_scales_rmi.h"
#include "ops/cuda/fuse_scales_rmi_tiles.cuh"
#include "ops/cuda/octave_rmi_moments.cuh"
#include "ops/cuda/workspace.h"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

constexpr int64_t kProbabilityBytes = int64_t{11} << 20;
constexpr int64_t kPartialBytes = int64_t{2} << 20;
// Rows of windows below which the two that bands share cost too much: rather fewer classes at a time.
constexpr int32_t kFewRows = 8;

// How the work is divided. Nothing of it depends on the device but the blocks of the first kernel.
struct RmiPlan {
  bool moments;
  int32_t images, classes, rows;  // at a time; rows of windows
  int32_t bands;
  int64_t parts;  // blocks that divide the tiles of a class in a band, at most
  int64_t probability_bytes, partial_bytes, merged_bytes, sums;

  int64_t bytes() const { return probability_bytes + partial_bytes + merged_bytes + sums * 2 * sizeof(double); }
};

inline int64_t round_to_16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Pixels of band k: those of its own windows, and of the two rows behind them.
inline Range band_pixels(const RmiPlan& plan, Extent size, int32_t k, bool owned) {
  if (!plan.moments) return Range{0, size.height};
  const int32_t groups = rmi_groups(size.height);
  const int32_t lo = k * plan.rows;
  // The last band owns whatever is left.
  const int32_t end = k + 1 == plan.bands ? groups : lo + plan.rows;
  return rmi_pixels(Range{lo, owned ? end : std::min(end + kRmiReach, groups)}, size.height);
}

// Calls body(part, band): all parts of the work in their order.
template <typename S, typename Body>
void for_parts(const FuseScalesRmiForward<S>& problem, const RmiPlan& plan, const Body& body) {
  const Extent size = problem.chain.size;
  const auto batch = static_cast<int32_t>(problem.batch);
  const auto classes = static_cast<int32_t>(problem.classes);
  for (int32_t b = 0; b < batch; b += plan.images) {
    for (int32_t c = 0; c < classes; c += plan.classes) {
      for (int32_t k = 0; k < plan.bands; ++k) {
        body(Part{{b, std::min(b + plan.images, batch)},
                  {c, std::min(c + plan.classes, classes)},
                  {band_pixels(plan, size, k, false), {0, size.width}}},
             k);
      }
    }
  }
}

inline int64_t tiles_of(int32_t rows, int32_t columns) {
  return static_cast<int64_t>((rows + kTileRows - 1) / kTileRows) * ((columns + kTileColumns - 1) / kTileColumns);
}

template <typename S>
RmiPlan plan_moments(const FuseScalesRmiForward<S>& problem, int64_t probability_bytes) {
  const Extent size = problem.chain.size;
  const int32_t rows = rmi_neighbourhoods(size.height);
  const auto number = static_cast<int64_t>(sizeof(arithmetic_t<S>));
  RmiPlan plan{};
  plan.images = static_cast<int32_t>(problem.batch);
  plan.classes = static_cast<int32_t>(problem.classes);
  plan.rows = rows;
  plan.bands = 1;
  plan.moments = problem.covariance != nullptr && rows > 0;
  if (plan.moments) {
    const auto rows_of = [&](int32_t images, int32_t classes) {
      const int64_t row = static_cast<int64_t>(images) * classes * size.width * kRmiPool * number;
      return static_cast<int32_t>(std::min<int64_t>(probability_bytes / row - kRmiReach, rows));
    };
    while (plan.images > 1 && rows_of(plan.images, plan.classes) < rows) plan.images = (plan.images + 1) / 2;
    while (plan.classes > kClassesAtOnce && rows_of(plan.images, plan.classes) < std::min(rows, kFewRows)) {
      plan.classes = rounded_up(plan.classes / 2, kClassesAtOnce);
    }
    plan.rows = std::max(1, rows_of(plan.images, plan.classes));
    plan.bands = (rows + plan.rows - 1) / plan.rows;
    const int64_t of_class = kPartialBytes / static_cast<int64_t>(sizeof(RmiMoments)) / plan.images / plan.classes;
    plan.parts = std::max<int64_t>(1, std::min(of_class, tiles_of(plan.rows, rmi_neighbourhoods(size.width))));
    plan.partial_bytes = plan.parts * plan.images * plan.classes * static_cast<int64_t>(sizeof(RmiMoments));
    plan.merged_bytes = problem.batch * problem.classes * static_cast<int64_t>(sizeof(RmiMoments));
  }
  for_parts(problem, plan, [&](const Part& part, int32_t) {
    const ClassLayout layout = plan_probability(problem, part);
    plan.sums += layout.tile_count() * layout.shares * part.images.size();
    if (plan.moments) {
      plan.probability_bytes = std::max(
          plan.probability_bytes, round_to_16(part.output.area() * part.images.size() * part.classes.size() * number));
    }
  });
  return plan;
}

// ---- moments of a band ----------------------------------------------------------------------------------------------

// Where entry a of a neighbourhood lies from its first pooled pixel on, in a tile of the kind's windows.
HMSA_DEVICE int32_t offset_of(int32_t a, int32_t width) {
  const int32_t place = a % kRmiHalf;
  return place / kRmiSide * width + place % kRmiSide;
}

// One entry of some neighbourhoods' covariance, with the means of its two factors: merged as rmi_merge does.
struct EntryMoments {
  double count = 0, mean_a = 0, mean_b = 0, product = 0;

  HMSA_DEVICE void merge(double other_count, double other_a, double other_b, double other_product) {
    if (other_count == 0) return;
    const double all = count + other_count;
    const double share = other_count / all;
    const double apart_a = other_a - mean_a, apart_b = other_b - mean_b;
    product += other_product + apart_a * apart_b * (count * share);
    mean_a += apart_a * share;
    mean_b += apart_b * share;
    count = all;
  }
};

HMSA_DEVICE void store_entry(RmiMoments& to, int32_t i, int32_t a, int32_t b, const EntryMoments& entry) {
  to.products[i] = entry.product;
  if (a == b) to.mean[a] = entry.mean_a;
  if (i == 0) to.count = entry.count;
}

// What the moments kernel reads.
template <typename T>
struct MomentsProblem {
  MapView<T> probability;
  CrossEntropyTarget<T> target;
  Extent size;
  Range images, classes;
  Range rows;            // neighbourhoods by their first row of windows
  RmiMoments* partials;  // [images, classes, parts]
};

// Block (part, class, image): some consecutive tiles, a thread for each entry of the covariance.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) rmi_moments_kernel(HMSA_PARAMETER MomentsProblem<T> problem) {
  HMSA_SHARED(double, pooled, [2][kMostWindows]);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t columns = rmi_neighbourhoods(problem.size.width);
  const int32_t across = (columns + kTileColumns - 1) / kTileColumns;
  const int32_t down = (problem.rows.size() + kTileRows - 1) / kTileRows;
  const int64_t tiles = static_cast<int64_t>(down) * across;
  const bool has_entry = thread < kRmiProducts;
  int32_t a = 0, b = 0;
  if (has_entry) rmi_entries(thread, a, b);
  for (int32_t image = blockIdx.z; image < problem.images.size(); image += gridDim.z) {
    for (int32_t c = blockIdx.y; c < problem.classes.size(); c += gridDim.y) {
      EntryMoments all;
      const int64_t end = tiles * (blockIdx.x + 1) / gridDim.x;
      for (int64_t tile = tiles * blockIdx.x / gridDim.x; tile < end; ++tile) {
        const int32_t k = problem.rows.lo + static_cast<int32_t>(tile / across) * kTileRows;
        const int32_t l = static_cast<int32_t>(tile % across) * kTileColumns;
        const Tile starts{{k, min(k + kTileRows, problem.rows.hi)}, {l, min(l + kTileColumns, columns)}};
        const Tile windows{{k, starts.rows.hi + kRmiReach}, {l, starts.columns.hi + kRmiReach}};
        const int32_t width = windows.columns.size();
        const auto count = static_cast<int32_t>(windows.area());
        __syncthreads();  // the last tile was read
        pool_windows(pooled, problem.probability, problem.target, problem.images.lo + image, problem.classes.lo + c,
                     problem.size, windows);
        // Centred at the mean of the tile: block_sum begins with a barrier.
        double centre_a = 0, centre_b = 0;
        for (int kind = 0; kind < 2; ++kind) {
          double sum = 0;
          for (int32_t i = thread; i < count; i += kSumThreads) sum += pooled[kind][i];
          const double centre = block_sum(sum, thread) / count;
          for (int32_t i = thread; i < count; i += kSumThreads) pooled[kind][i] -= centre;
          centre_a = kind == a / kRmiHalf ? centre : centre_a;
          centre_b = kind == b / kRmiHalf ? centre : centre_b;
        }
        __syncthreads();
        if (!has_entry) continue;
        const double* first = pooled[a / kRmiHalf] + offset_of(a, width);
        const double* second = pooled[b / kRmiHalf] + offset_of(b, width);
        double sum_a = 0, sum_b = 0, sum = 0;
        for (int32_t y = 0; y < starts.rows.size(); ++y) {
          for (int32_t x = 0; x < starts.columns.size(); ++x) {
            const double value_a = first[y * width + x], value_b = second[y * width + x];
            sum_a += value_a;
            sum_b += value_b;
            sum += value_a * value_b;
          }
        }
        const auto n = static_cast<double>(starts.area());
        all.merge(n, centre_a + sum_a / n, centre_b + sum_b / n, sum - sum_a * sum_b / n);
      }
      if (has_entry) {
        const int64_t at = (static_cast<int64_t>(image) * problem.classes.size() + c) * gridDim.x + blockIdx.x;
        store_entry(problem.partials[at], thread, a, b, all);
      }
    }
  }
}

// Adds the parts of a band to what was merged of the bands before. Block (class, image).
__global__ void rmi_merge_kernel(const RmiMoments* partials, int64_t parts, Range images, Range classes, bool first,
                                 int64_t all_classes, RmiMoments* merged /* [B, C] */) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  int32_t a = 0, b = 0;
  rmi_entries(thread, a, b);
  for (int32_t image = blockIdx.y; image < images.size(); image += gridDim.y) {
    for (int32_t c = blockIdx.x; c < classes.size(); c += gridDim.x) {
      RmiMoments& to = merged[(images.lo + image) * all_classes + classes.lo + c];
      EntryMoments all;
      if (!first) all.merge(to.count, to.mean[a], to.mean[b], to.products[thread]);
      for (int64_t k = 0; k < parts; ++k) {
        const RmiMoments& part = partials[(static_cast<int64_t>(image) * classes.size() + c) * parts + k];
        all.merge(part.count, part.mean[a], part.mean[b], part.products[thread]);
      }
      __syncthreads();  // count and means were read
      store_entry(to, thread, a, b, all);
    }
  }
}

__global__ void rmi_write_kernel(const RmiMoments* merged, int64_t count, double* mean /* [count, 18] */,
                                 double* covariance /* [count, 18, 18] */) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    for (int32_t i = thread; i < kRmiVector * kRmiVector; i += kSumThreads) {
      const int32_t a = i / kRmiVector, b = i % kRmiVector;
      covariance[k * kRmiVector * kRmiVector + i] = merged[k].products[a < b ? rmi_product(a, b) : rmi_product(b, a)];
      if (b == 0) mean[k * kRmiVector + a] = merged[k].mean[a];
    }
  }
}

// One block.
__global__ void rmi_total_kernel(const double* sums /* [count, 2] */, int64_t count, double* bce, double* valid) {
  const int thread = static_cast<int>(threadIdx.x);
  double totals[2] = {0, 0};
  for (int64_t k = thread; k < count; k += kSumThreads) {
    totals[0] += sums[2 * k];
    totals[1] += sums[2 * k + 1];
  }
  const double all = block_sum(totals[0], thread);
  const double pixels = block_sum(totals[1], thread);
  if (thread != 0) return;
  *bce = all;
  *valid = pixels;
}

inline unsigned grid_side(int64_t count) { return static_cast<unsigned>(std::min<int64_t>(count, 65535)); }

template <typename S>
void launch_in_parts(const FuseScalesRmiForward<S>& problem, int64_t probability_bytes, void* workspace,
                     cudaStream_t stream) {
  using T = arithmetic_t<S>;
  const RmiPlan plan = plan_moments(problem, probability_bytes);
  const Extent size = problem.chain.size;
  const CrossEntropyTarget<T> target{problem.labels, nullptr, problem.ignore_index, T(0)};
  WorkspaceParts memory(workspace);
  auto* probabilities = memory.take<T>(plan.probability_bytes);
  auto* partials = memory.take<RmiMoments>(plan.partial_bytes);
  auto* merged = memory.take<RmiMoments>(plan.merged_bytes);
  auto* sums = memory.take<double>(0);
  int64_t sum_count = 0;
  for_parts(problem, plan, [&](const Part& part, int32_t band) {
    RmiPart<S> inputs{problem, target, {}, sums + 2 * sum_count, band_pixels(plan, size, band, true).hi};
    if (plan.moments) inputs.probability = view_of_part(probabilities, part);
    const ClassLayout layout = plan_probability(problem, part);
    sum_count += layout.tile_count() * layout.shares * part.images.size();
    launch_probability(inputs, part, stream);
    if (!plan.moments) return;
    const Range rows{band * plan.rows, std::min((band + 1) * plan.rows, rmi_neighbourhoods(size.height))};
    const int64_t parts = std::min(plan.parts, tiles_of(rows.size(), rmi_neighbourhoods(size.width)));
    const MomentsProblem<T> moments{inputs.probability, target, size, part.images, part.classes, rows, partials};
    HMSA_LAUNCH(rmi_moments_kernel<T>,
                dim3(static_cast<unsigned>(parts), grid_side(part.classes.size()), grid_side(part.images.size())),
                dim3(kSumThreads), 0, stream, moments);
    HMSA_LAUNCH(rmi_merge_kernel, dim3(grid_side(part.classes.size()), grid_side(part.images.size())),
                dim3(kRmiProducts), 0, stream, partials, parts, part.images, part.classes, band == 0, problem.classes,
                merged);
  });
  HMSA_LAUNCH(rmi_total_kernel, dim3(1), dim3(kSumThreads), 0, stream, sums, sum_count, problem.bce, problem.valid);
  const int64_t count = problem.batch * problem.classes;
  if (plan.moments) {
    HMSA_LAUNCH(rmi_write_kernel, dim3(grid_side(count)), dim3(kSumThreads), 0, stream, merged, count, problem.mean,
                problem.covariance);
  }
}

}  // namespace
}  // namespace forward

template <typename S>
int64_t fuse_scales_rmi_forward_workspace(const FuseScalesRmiForward<S>& problem) {
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    fuse::OctaveMomentsPlan plan;
    if (fuse::plan_octave_moments(problem, fuse::kRmiBytes, plan)) return plan.bytes();
  }
  return forward::plan_moments(problem, forward::kProbabilityBytes).bytes();
}

template <typename S>
void launch_fuse_scales_rmi_forward(const FuseScalesRmiForward<S>& problem, void* workspace, StreamHandle stream) {
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    fuse::OctaveMomentsPlan plan;
    if (fuse::plan_octave_moments(problem, fuse::kRmiBytes, plan)) {
      return fuse::launch_octave_moments(problem, plan, workspace, stream);
    }
  }
  forward::launch_in_parts(problem, forward::kProbabilityBytes, workspace, static_cast<cudaStream_t>(stream));
}

HMSA_INSTANTIATE(int64_t fuse_scales_rmi_forward_workspace(const FuseScalesRmiForward<float>&));
HMSA_INSTANTIATE(int64_t fuse_scales_rmi_forward_workspace(const FuseScalesRmiForward<double>&));
HMSA_INSTANTIATE(int64_t fuse_scales_rmi_forward_workspace(const FuseScalesRmiForward<Half>&));
HMSA_INSTANTIATE(int64_t fuse_scales_rmi_forward_workspace(const FuseScalesRmiForward<BFloat16>&));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_forward(const FuseScalesRmiForward<float>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_forward(const FuseScalesRmiForward<double>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_forward(const FuseScalesRmiForward<Half>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_forward(const FuseScalesRmiForward<BFloat16>&, void*, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
