// Region mutual information on the GPU, backward. Chains of octaves have fuse_scales_rmi_gradient.cu; for others, dLoss/dz
// of a band of the output at a time, from the inputs, and from there the gradients of the inputs (band_backward.cuh).
//
//     dLoss/dz = P / 16 * p (1 - p) + g * (p - y)       and 0 at ignored pixels
//
// P is the gradient of the pooled probability of a pixel's window, a correlation of the pooled probabilities and labels
// around it (core/fuse_scales_rmi.h), g that of the binary cross-entropy. A band first makes the probabilities of its
// pixels and of those two windows around it, then P / 16 of its windows, then dLoss/dz.
#include <algorithm>

#include "ops/cuda/band_backward.cuh"
#include "ops/cuda/fuse_scales_rmi.h"
#include "ops/cuda/fuse_scales_rmi_tiles.cuh"
#include "ops/cuda/octave_rmi_backward.cuh"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

// Of gradients; the probabilities of a band take about as much again, and half as much more for a small one.
constexpr int64_t kGradientBytes = int64_t{6} << 20;

template <typename S>
struct RmiGradientPart : ChainInputs<S> {
  using T = arithmetic_t<S>;
  CrossEntropyTarget<T> target;
  const double* grad_bce;
  MapView<const T> grad_pooled;  // P / 16, by window; null: 0
  Extent windows;
  MapView<T> grad;  // of a part of the fused logits
};

template <typename S>
struct RmiGradientSink {
  using T = arithmetic_t<S>;
  static constexpr bool kMirrors = false;
  enum Slot { kLabel, kSlots };
  const RmiGradientPart<S>& problem;
  const ClassLayout& layout;

  HMSA_DEVICE int views() const { return 1; }
  template <typename Block>
  HMSA_DEVICE int32_t* labels(const Block& block) const {
    return slots_of<int32_t>(block, layout, kLabel);
  }

  template <typename Block>
  HMSA_DEVICE void begin(const Block& block) const {
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t x) {
      labels(block)[slot] = label_at(problem.target, problem.classes, block.b, y, x);
    });
  }

  template <typename Block>
  HMSA_DEVICE void store(const Block& block, const Job& job, const Item& item,
                         const typename Block::Values* fused) const {
    constexpr int kClasses = sizeof(fused->of) / sizeof(T);
    const auto first = static_cast<int32_t>(job.channel);
    const int32_t x = column_of(block, item);
    const auto bce = static_cast<T>(*problem.grad_bce);
    for_rows(block, item, [&](int r, int32_t slot, int32_t y) {
      const int32_t label = labels(block)[slot];
      const int32_t k = rmi_group_of(y), l = rmi_group_of(x);
      const bool pools = problem.grad_pooled.data != nullptr && k < problem.windows.height && l < problem.windows.width;
      HMSA_UNROLL
      for (int j = 0; j < kClasses; ++j) {
        if (j >= job.count) break;
        const T z = fused[r].of[j];
        const Sigmoid<T> sigmoid(z);
        // p - y: where the label is the channel, -sigmoid(-z)
        T value = bce * (label == first + j ? -sigmoid.of(-z) : sigmoid.of(z));
        if (pools) value += *problem.grad_pooled.at(block.b, first + j, k, l) * sigmoid.slope();
        if (label == kIgnoredLabel) value = T(0);
        if (label == kWrongLabel) value = static_cast<T>(NAN);
        *problem.grad.at(block.b, first + j, y, x) = value;
      }
    });
  }

  template <typename Block>
  HMSA_DEVICE void end(const Block&) const {}
};

template <typename S, int kCount>
__global__ void __launch_bounds__(kBlockThreads, kClassBlocksPerProcessor<arithmetic_t<S>>)
    rmi_gradient_kernel(HMSA_PARAMETER RmiGradientPart<S> problem, HMSA_PARAMETER ClassLayout layout) {
  const RmiGradientSink<S> sink{problem, layout};
  go_through_classes<kCount>(problem, layout, sink);
}

// ---- P / 16 ---------------------------------------------------------------------------------------------------------

template <typename T>
struct PooledGradient {
  MapView<T> probability;
  CrossEntropyTarget<T> target;
  Extent size;
  int64_t all_classes;
  Range images, classes;
  Tile windows;
  const double* grad_covariance;  // [B, C, 18, 18]
  const double* mean;             // [B, C, 18]
  MapView<T> grad_pooled;
};

constexpr int kWeights = 2 * kRmiTaps * kRmiTaps;

// Block (tile, class, image), a thread for each window of the tile.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) rmi_correlate_kernel(HMSA_PARAMETER PooledGradient<T> problem) {
  HMSA_SHARED(double, pooled, [2][kMostWindows]);
  HMSA_SHARED(double, weights, [kWeights + 1]);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t across = (problem.windows.columns.size() + kTileColumns - 1) / kTileColumns;
  const int32_t tile_row = static_cast<int32_t>(blockIdx.x) / across;
  const int32_t k0 = problem.windows.rows.lo + tile_row * kTileRows;
  const int32_t l0 = problem.windows.columns.lo + (static_cast<int32_t>(blockIdx.x) - tile_row * across) * kTileColumns;
  const Tile tile{{k0, min(k0 + kTileRows, problem.windows.rows.hi)},
                  {l0, min(l0 + kTileColumns, problem.windows.columns.hi)}};
  const Tile around{{k0 - kRmiReach, tile.rows.hi + kRmiReach}, {l0 - kRmiReach, tile.columns.hi + kRmiReach}};
  const int32_t width = around.columns.size();
  const int32_t k = k0 + thread / kTileColumns, l = l0 + thread % kTileColumns;
  const bool has_window = k < tile.rows.hi && l < tile.columns.hi;
  const uint32_t row_places = rmi_places(k, rmi_neighbourhoods(problem.size.height));
  const uint32_t column_places = rmi_places(l, rmi_neighbourhoods(problem.size.width));
  constexpr uint32_t kEverywhere = (1u << kRmiSide) - 1;
  const bool inside = row_places == kEverywhere && column_places == kEverywhere;
  for (int32_t image = problem.images.lo + blockIdx.z; image < problem.images.hi; image += gridDim.z) {
    for (int32_t c = problem.classes.lo + blockIdx.y; c < problem.classes.hi; c += gridDim.y) {
      const int64_t at = image * problem.all_classes + c;
      const double* grad = problem.grad_covariance + at * kRmiVector * kRmiVector;
      const double* mean = problem.mean + at * kRmiVector;
      __syncthreads();  // the last class was read
      pool_windows(pooled, problem.probability, problem.target, image, c, problem.size, around);
      // Weights of a window that has all places, which nearly all have.
      if (thread < kWeights) {
        weights[thread] = rmi_weight(grad, thread / (kRmiTaps * kRmiTaps), thread / kRmiTaps % kRmiTaps - kRmiReach,
                                     thread % kRmiTaps - kRmiReach, kEverywhere, kEverywhere);
      } else if (thread == kWeights) {
        weights[kWeights] = rmi_constant(grad, mean, kEverywhere, kEverywhere);
      }
      __syncthreads();
      if (!has_window) continue;
      double sum = inside ? weights[kWeights] : rmi_constant(grad, mean, row_places, column_places);
      const int32_t first = (k - k0) * width + (l - l0);
      for (int32_t i = 0; i < kWeights; ++i) {
        const int32_t kind = i / (kRmiTaps * kRmiTaps);
        const int32_t dy = i / kRmiTaps % kRmiTaps, dx = i % kRmiTaps;
        const double weight =
            inside ? weights[i] : rmi_weight(grad, kind, dy - kRmiReach, dx - kRmiReach, row_places, column_places);
        sum += weight * pooled[kind][first + dy * width + dx];
      }
      *problem.grad_pooled.at(image, c, k, l) = static_cast<T>(sum);
    }
  }
}

// ---- host -----------------------------------------------------------------------------------------------------------

// Windows that the pixels of a part lie in, and pixels of these and of two windows around them.
inline Range windows_of(Range pixels, int32_t side) {
  if (pixels.empty()) return Range{0, 0};
  return Range{rmi_group_of(pixels.lo), std::min(rmi_group_of(pixels.hi - 1) + 1, rmi_windows(side))};
}
inline Range pixels_around(Range windows, int32_t side) {
  if (windows.empty()) return Range{0, 0};
  return rmi_pixels(Range{std::max(windows.lo - kRmiReach, 0), std::min(windows.hi + kRmiReach, rmi_windows(side))},
                    side);
}

// Numbers for each image and class of a band, at most; the two axes do not depend on each other.
struct BandNumbers {
  int64_t probability, grad_pooled;
};
inline BandNumbers most_numbers(const Chain& chain, Extent parts) {
  int64_t windows[2] = {0, 0}, pixels[2] = {0, 0};
  for (int axis = 0; axis < 2; ++axis) {
    const int32_t count = axis == 0 ? parts.height : parts.width;
    const int32_t side = axis == 0 ? chain.size.height : chain.size.width;
    for (int32_t k = 0; k < count; ++k) {
      const Extent division = axis == 0 ? Extent{count, 1} : Extent{1, count};
      const Tile output = gradient_part(chain, division, axis == 0 ? k : 0, axis == 0 ? 0 : k).output;
      const Range range = windows_of(axis == 0 ? output.rows : output.columns, side);
      windows[axis] = std::max<int64_t>(windows[axis], range.size());
      pixels[axis] = std::max<int64_t>(pixels[axis], pixels_around(range, side).size());
    }
  }
  return BandNumbers{pixels[0] * pixels[1], windows[0] * windows[1]};
}

template <typename S>
struct BandMemory {
  int64_t gradients = 0;  // numbers, for band_backward
  int64_t probability = 0;
  int64_t grad_pooled = 0;

  BandMemory(const FuseScalesRmiBackward<S>& problem, int64_t bytes) {
    if (!wants_gradients<S>(problem, problem)) return;
    const BandPlan plan = plan_bands<S>(problem, problem, bytes);
    gradients = plan.numbers();
    if (problem.grad_covariance == nullptr) return;
    const BandNumbers numbers = most_numbers(problem.chain, plan.parts);
    probability = numbers.probability * plan.images * plan.classes;
    grad_pooled = numbers.grad_pooled * plan.images * plan.classes;
  }
  int64_t numbers() const { return gradients + probability + grad_pooled; }
};

template <typename S>
void launch_rmi_gradient(const RmiGradientPart<S>& problem, const Part& part, cudaStream_t stream) {
  const ClassLayout layout = plan_classes(problem, part, RmiGradientSink<S>::kSlots, true);
  const auto start = [&](auto kernel) {
    HMSA_LAUNCH(kernel, layout.grid(), layout.block(), layout.bytes, stream, problem, layout);
  };
  constexpr int kMost = sizeof(arithmetic_t<S>) == sizeof(float) ? kClassesAtOnce : 1;
  start(layout.forward.channels == 1 ? rmi_gradient_kernel<S, 1> : rmi_gradient_kernel<S, kMost>);
}

// In bands of gradients of at most so many bytes.
template <typename S>
void launch_in_bands(const FuseScalesRmiBackward<S>& problem, int64_t bytes, void* workspace,
                     StreamHandle stream_handle) {
  using T = arithmetic_t<S>;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const BandMemory<S> memory(problem, bytes);
  T* probabilities = static_cast<T*>(workspace) + memory.gradients;
  T* grad_pooled = probabilities + memory.probability;
  const Extent size = problem.chain.size;
  const CrossEntropyTarget<T> target{problem.labels, nullptr, problem.ignore_index, T(0)};
  band_backward<S>(problem, problem, bytes, workspace, stream_handle, [&](const Part& part, const MapView<T>& grad) {
    RmiGradientPart<S> gradient{
        problem, target, problem.grad_bce, {}, {rmi_windows(size.height), rmi_windows(size.width)}, grad};
    const Tile windows{windows_of(part.output.rows, size.height), windows_of(part.output.columns, size.width)};
    if (problem.grad_covariance != nullptr && !windows.empty()) {
      Part around = part;
      around.output = Tile{pixels_around(windows.rows, size.height), pixels_around(windows.columns, size.width)};
      const RmiPart<S> inputs{problem, target, view_of_part(probabilities, around), nullptr, 0};
      launch_probability(inputs, around, stream_handle);
      Part pooled = part;
      pooled.output = windows;
      const MapView<T> to = view_of_part(grad_pooled, pooled);
      const PooledGradient<T> correlation{
          inputs.probability,      target,       size, problem.classes, part.images, part.classes, windows,
          problem.grad_covariance, problem.mean, to};
      const int64_t tiles = static_cast<int64_t>((windows.rows.size() + kTileRows - 1) / kTileRows) *
                            ((windows.columns.size() + kTileColumns - 1) / kTileColumns);
      HMSA_LAUNCH(
          rmi_correlate_kernel<T>,
          dim3(static_cast<unsigned>(tiles), std::min(part.classes.size(), 65535), std::min(part.images.size(), 65535)),
          dim3(kSumThreads), 0, stream, correlation);
      gradient.grad_pooled = {to.data, to.batch, to.channel, to.row, to.column};
    }
    launch_rmi_gradient(gradient, part, stream);
  });
}

}  // namespace
}  // namespace forward

template <typename S>
int64_t fuse_scales_rmi_backward_workspace(const FuseScalesRmiBackward<S>& problem) {
  if (!wants_gradients<S>(problem, problem)) return 0;
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    fuse::OctaveGradientPlan plan;
    if (fuse::plan_octave_gradient(problem, fuse::kRmiBytes, plan)) return plan.bytes();
  }
  return forward::BandMemory<S>(problem, forward::kGradientBytes).numbers() *
         static_cast<int64_t>(sizeof(arithmetic_t<S>));
}

template <typename S>
void launch_fuse_scales_rmi_backward(const FuseScalesRmiBackward<S>& problem, void* workspace, StreamHandle stream) {
  if (!wants_gradients<S>(problem, problem)) return;
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    fuse::OctaveGradientPlan plan;
    if (fuse::plan_octave_gradient(problem, fuse::kRmiBytes, plan)) {
      return fuse::launch_octave_gradient(problem, plan, workspace, stream);
    }
  }
  forward::launch_in_bands(problem, forward::kGradientBytes, workspace, stream);
}

HMSA_INSTANTIATE(int64_t fuse_scales_rmi_backward_workspace(const FuseScalesRmiBackward<float>&));
HMSA_INSTANTIATE(int64_t fuse_scales_rmi_backward_workspace(const FuseScalesRmiBackward<double>&));
HMSA_INSTANTIATE(int64_t fuse_scales_rmi_backward_workspace(const FuseScalesRmiBackward<Half>&));
HMSA_INSTANTIATE(int64_t fuse_scales_rmi_backward_workspace(const FuseScalesRmiBackward<BFloat16>&));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_backward(const FuseScalesRmiBackward<float>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_backward(const FuseScalesRmiBackward<double>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_backward(const FuseScalesRmiBackward<Half>&, void*, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_rmi_backward(const FuseScalesRmiBackward<BFloat16>&, void*, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
