// Cross-entropy of the fused logits on the GPU, forward: class_tiles.cuh with the softmax of each pixel taken on the way.
//
//     loss = (1 - e) w_y (lse - z_y) + e / C sum_c w_c (lse - z_c)          z fused logits, y label, e smoothing
//
// One pass over the inputs; per pixel a log-sum-exp is written, and the loss where the map is asked for. Else every tile
// leaves its sums of losses and weights in float64, which a second kernel adds up, always in the same order.
//
// Chains of octaves are gone through by octave_cross_entropy.cuh.
#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/class_tiles.cuh"
#include "ops/cuda/fuse_scales_cross_entropy.h"
#include "ops/cuda/label_slots.cuh"
#include "ops/cuda/octave_cross_entropy.cuh"
#include "ops/cuda/online_softmax.cuh"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

template <typename S>
struct CrossEntropySink {
  using T = arithmetic_t<S>;
  static constexpr bool kMirrors = false;
  // Numbers that are kept of each pixel. The logit of its label waits in the place of its log-sum-exp.
  enum Slot { kLargest, kSum, kLabel, kWeighted, kSlots };
  const FuseScalesCrossEntropyForward<S>& problem;
  const ClassLayout& layout;
  double* partial_sums;  // [B, tiles, 2]

  // sum_c w_c z_c is kept for smoothing only.
  static int slot_count(const CrossEntropyTarget<T>& target) {
    return target.label_smoothing != T(0) ? kSlots : kWeighted;
  }

  HMSA_DEVICE int views() const { return 1; }
  HMSA_DEVICE bool smooths() const { return problem.target.label_smoothing != T(0); }
  HMSA_DEVICE int64_t pixel(int64_t b, int32_t y, int32_t x) const {
    return (b * problem.chain.size.height + y) * problem.chain.size.width + x;
  }
  template <typename Block>
  HMSA_DEVICE T* slots(const Block& block, Slot slot) const {
    return slots_of<T>(block, layout, slot);
  }
  template <typename Block>
  HMSA_DEVICE int32_t* labels(const Block& block) const {
    return slots_of<int32_t>(block, layout, kLabel);
  }

  template <typename Block>
  HMSA_DEVICE void begin(const Block& block) const {
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t x) {
      slots(block, kLargest)[slot] = minus_infinity<T>();
      slots(block, kSum)[slot] = T(0);
      labels(block)[slot] = label_at(problem.target, problem.classes, block.b, y, x);
      if (smooths()) slots(block, kWeighted)[slot] = T(0);
    });
  }

  template <typename Block>
  HMSA_DEVICE void store(const Block& block, const Job& job, const Item& item,
                         const typename Block::Values* fused) const {
    const int32_t x = column_of(block, item);
    for_rows(block, item, [&](int r, int32_t slot, int32_t y) {
      const auto logits = first_of(fused[r], job.count);
      SoftmaxSum<T> softmax{slots(block, kLargest)[slot], slots(block, kSum)[slot]};
      T largest = softmax.largest;
      HMSA_UNROLL
      for (const T logit : logits.of) largest = max(largest, logit);
      softmax.add(logits, largest);
      slots(block, kLargest)[slot] = softmax.largest;
      slots(block, kSum)[slot] = softmax.sum;
      const int32_t k = labels(block)[slot] - static_cast<int32_t>(job.channel);
      if (k >= 0 && k < job.count) problem.log_sum_exp[pixel(block.b, y, x)] = element(logits, k);
      if (smooths()) slots(block, kWeighted)[slot] += weighted(logits, job);
    });
  }

  // The k-th, out of registers.
  template <int kCount>
  static HMSA_DEVICE T element(const Pack<T, kCount>& values, int32_t k) {
    T value = values.of[0];
    HMSA_UNROLL
    for (int j = 1; j < kCount; ++j) value = j == k ? values.of[j] : value;
    return value;
  }

  template <int kCount>
  HMSA_DEVICE T weighted(const Pack<T, kCount>& logits, const Job& job) const {
    T sum = T(0);
    HMSA_UNROLL
    for (int k = 0; k < kCount; ++k) {
      if (k < job.count) sum += weight_of(problem.target, static_cast<int32_t>(job.channel) + k) * logits.of[k];
    }
    return sum;
  }

  template <typename Block>
  HMSA_DEVICE void end(const Block& block) const {
    const T smoothing = problem.target.label_smoothing;
    double all_weights = 0;
    if (smooths()) all_weights = sum_of_weights(problem.target.weight, problem.classes, thread_index());
    double loss_sum = 0;
    double weight_sum = 0;
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t x) {
      const int64_t at = pixel(block.b, y, x);
      const T largest = slots(block, kLargest)[slot];
      const T log_sum = logarithm(slots(block, kSum)[slot]);
      const int32_t label = labels(block)[slot];
      T loss = T(0);
      if (label >= 0) {
        const T weight = weight_of(problem.target, label);
        loss = (T(1) - smoothing) * weight * ((largest - problem.log_sum_exp[at]) + log_sum);
        if (smooths()) {
          const T weighted = slots(block, kWeighted)[slot];
          loss += smoothing / static_cast<T>(problem.classes) *
                  (static_cast<T>(all_weights) * (largest + log_sum) - weighted);
        }
        weight_sum += weight;
      } else if (label == kWrongLabel) {
        loss = static_cast<T>(NAN);
      }
      loss_sum += loss;
      problem.log_sum_exp[at] = largest + log_sum;
      if (problem.reduction == Reduction::kNone) problem.loss[at] = loss;
    });
    loss_sum = block_sum(loss_sum, thread_index());
    weight_sum = block_sum(weight_sum, thread_index());
    if (thread_index() == 0) {
      double* to = partial_sums + (block.b * gridDim.x + blockIdx.x) * 2;
      to[0] = loss_sum;
      to[1] = weight_sum;
    }
  }
};

template <typename S, int kCount>
__global__ void __launch_bounds__(kBlockThreads, kClassBlocksPerProcessor<arithmetic_t<S>>)
    cross_entropy_forward_kernel(HMSA_PARAMETER FuseScalesCrossEntropyForward<S> problem,
                                 HMSA_PARAMETER ClassLayout layout, double* partial_sums) {
  const CrossEntropySink<S> sink{problem, layout, partial_sums};
  go_through_classes<kCount>(problem, layout, sink);
}

// One block.
template <typename T>
__global__ void cross_entropy_total_kernel(const double* partial_sums /* [count, 2] */, int64_t count,
                                           Reduction reduction, T* loss, T* total_weight) {
  const int thread = static_cast<int>(threadIdx.x);
  double sums[2] = {0, 0};
  for (int64_t k = thread; k < count; k += kSumThreads) {
    sums[0] += partial_sums[2 * k];
    sums[1] += partial_sums[2 * k + 1];
  }
  const double loss_sum = block_sum(sums[0], thread);
  const double weight_sum = block_sum(sums[1], thread);
  if (thread != 0) return;
  *total_weight = static_cast<T>(weight_sum);
  if (reduction == Reduction::kSum) *loss = static_cast<T>(loss_sum);
  if (reduction == Reduction::kMean) *loss = static_cast<T>(loss_sum / weight_sum);
}

template <typename S>
ClassLayout plan(const FuseScalesCrossEntropyForward<S>& problem) {
  return plan_classes(problem, whole(problem), CrossEntropySink<S>::slot_count(problem.target), false);
}

}  // namespace
}  // namespace forward

template <typename S>
int64_t fuse_scales_cross_entropy_forward_workspace(const FuseScalesCrossEntropyForward<S>& problem) {
  if (problem.batch == 0) return 0;
  const Extent parts = fuse::parts_of_octaves(problem);
  const int64_t count = static_cast<int64_t>(parts.height) * parts.width;
  return 2 * problem.batch * (count > 0 ? count : forward::plan(problem).tile_count());
}

template <typename S>
void launch_fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<S>& problem, void* workspace,
                                              StreamHandle stream_handle) {
  using T = arithmetic_t<S>;
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const auto partial_sums = static_cast<double*>(workspace);
  int64_t count = 0;
  bool started = problem.batch == 0;
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    const auto start = [&](auto kernel, dim3 grid, const fuse::OctavePlan& plan) {
      count = problem.batch * grid.x;
      HMSA_LAUNCH(kernel, grid, dim3((plan.planes + 1) * fuse::kLanes), plan.bytes, stream, problem, plan,
                  partial_sums);
    };
    started = started || fuse::start_octaves(problem, start);
  }
  if (!started) {
    const forward::ClassLayout layout = forward::plan(problem);
    count = problem.batch * layout.tile_count();
    const auto start = [&](auto kernel) {
      HMSA_LAUNCH(kernel, layout.grid(), layout.block(), layout.bytes, stream, problem, layout, partial_sums);
    };
    constexpr int kMost = sizeof(T) == sizeof(float) ? forward::kClassesAtOnce : 1;
    start(layout.forward.channels == 1 ? forward::cross_entropy_forward_kernel<S, 1>
                                       : forward::cross_entropy_forward_kernel<S, kMost>);
  }
  HMSA_LAUNCH(forward::cross_entropy_total_kernel<T>, dim3(1), dim3(kSumThreads), 0, stream, partial_sums, count,
              problem.reduction, problem.loss, problem.total_weight);
}

HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_forward_workspace(const FuseScalesCrossEntropyForward<float>&));
HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_forward_workspace(const FuseScalesCrossEntropyForward<double>&));
HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_forward_workspace(const FuseScalesCrossEntropyForward<Half>&));
HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_forward_workspace(const FuseScalesCrossEntropyForward<BFloat16>&));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<float>&, void*,
                                                               StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<double>&, void*,
                                                               StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<Half>&, void*,
                                                               StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<BFloat16>&, void*,
                                                               StreamHandle));

}  // namespace cuda
}  // namespace hmsa
