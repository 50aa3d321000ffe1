// Cross-entropy of the fused logits on the GPU, backward: dLoss/dz of a band of the output at a time, from the inputs and
// the log-sum-exp that forward left, and from there the gradients of the inputs (band_backward.cuh).
//
//     dLoss/dz_c = A exp(z_c - lse) - [y = c] Y - w_c U
//     Y = go (1 - e) w_y    U = go e / C    A = Y + U sum_c w_c          go: of the pixel's loss, over the total weight
//
// A, Y and U are 0 at ignored pixels, and A is NaN at wrong labels.
#include "ops/cuda/band_backward.cuh"
#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/class_tiles.cuh"
#include "ops/cuda/fuse_scales_cross_entropy.h"
#include "ops/cuda/label_slots.cuh"
#include "ops/cuda/online_softmax.cuh"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

// What the kernel needs of a problem: there is no room for all of it among a kernel's parameters.
template <typename S>
struct SoftmaxGradient : ChainInputs<S> {
  using T = arithmetic_t<S>;
  CrossEntropyTarget<T> target;
  PlaneView<const T> grad_loss;
  const T* log_sum_exp;
  const T* total_weight;
  MapView<T> grad;  // of a part of the fused logits
};

template <typename S>
struct SoftmaxGradientSink {
  using T = arithmetic_t<S>;
  static constexpr bool kMirrors = false;
  // Numbers that are kept of each pixel. Without smoothing Y is A, and U is 0.
  enum Slot { kLogSumExp, kAll, kLabel, kOwn, kUniform, kSlots };
  const SoftmaxGradient<S>& problem;
  const ClassLayout& layout;

  static int slot_count(const CrossEntropyTarget<T>& target) { return target.label_smoothing != T(0) ? kSlots : kOwn; }

  HMSA_DEVICE int views() const { return 1; }
  HMSA_DEVICE bool smooths() const { return problem.target.label_smoothing != T(0); }
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
    const T smoothing = problem.target.label_smoothing;
    T all_weights = T(0);
    if (smooths()) {
      all_weights = static_cast<T>(sum_of_weights(problem.target.weight, problem.classes, thread_index()));
    }
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t x) {
      const Extent size = problem.chain.size;
      const int32_t label = label_at(problem.target, problem.classes, block.b, y, x);
      T own = T(0);
      T uniform = T(0);
      if (label >= 0) {
        T go = *problem.grad_loss.at(block.b, y, x);
        if (problem.total_weight != nullptr) go /= *problem.total_weight;
        own = go * (T(1) - smoothing) * weight_of(problem.target, label);
        if (smooths()) uniform = go * smoothing / static_cast<T>(problem.classes);
      } else if (label == kWrongLabel) {
        own = static_cast<T>(NAN);
      }
      slots(block, kLogSumExp)[slot] = problem.log_sum_exp[(block.b * size.height + y) * size.width + x];
      slots(block, kAll)[slot] = own + uniform * all_weights;
      labels(block)[slot] = label;
      if (smooths()) {
        slots(block, kOwn)[slot] = own;
        slots(block, kUniform)[slot] = uniform;
      }
    });
  }

  template <typename Block>
  HMSA_DEVICE void store(const Block& block, const Job& job, const Item& item,
                         const typename Block::Values* fused) const {
    constexpr int kClasses = sizeof(fused->of) / sizeof(T);
    const auto first = static_cast<int32_t>(job.channel);
    const int32_t x = column_of(block, item);
    const MapView<T>& grad = problem.grad;
    T* to = grad.at(block.b, first, block.rows.grids[block.layout.output].lo + item.row, x);
    for_rows(block, item, [&](int r, int32_t slot, int32_t) {
      const T log_sum_exp = slots(block, kLogSumExp)[slot];
      const T all = slots(block, kAll)[slot];
      const T own = smooths() ? slots(block, kOwn)[slot] : all;
      const int32_t label = labels(block)[slot];
      T* at = to + r * grad.row;
      HMSA_UNROLL
      for (int k = 0; k < kClasses; ++k, at += grad.channel) {
        if (k >= job.count) break;
        T value = all * exponential(fused[r].of[k] - log_sum_exp);
        if (label == first + k) value -= own;
        if (smooths()) value -= weight_of(problem.target, first + k) * slots(block, kUniform)[slot];
        *at = value;
      }
    });
  }

  template <typename Block>
  HMSA_DEVICE void end(const Block&) const {}
};

template <typename S, int kCount>
__global__ void __launch_bounds__(kBlockThreads, kClassBlocksPerProcessor<arithmetic_t<S>>)
    softmax_gradient_kernel(HMSA_PARAMETER SoftmaxGradient<S> problem, HMSA_PARAMETER ClassLayout layout) {
  const SoftmaxGradientSink<S> sink{problem, layout};
  go_through_classes<kCount>(problem, layout, sink);
}

template <typename S>
void launch_softmax_gradient(const FuseScalesCrossEntropyBackward<S>& problem, const Part& part,
                             const MapView<arithmetic_t<S>>& grad, cudaStream_t stream) {
  const SoftmaxGradient<S> gradient{
      problem, problem.target, problem.grad_loss, problem.log_sum_exp, problem.total_weight, grad};
  const int slots = SoftmaxGradientSink<S>::slot_count(problem.target);
  const ClassLayout layout = plan_classes(problem, part, slots, true);
  const auto start = [&](auto kernel) {
    HMSA_LAUNCH(kernel, layout.grid(), layout.block(), layout.bytes, stream, gradient, layout);
  };
  constexpr int kMost = sizeof(arithmetic_t<S>) == sizeof(float) ? kClassesAtOnce : 1;
  start(layout.forward.channels == 1 ? softmax_gradient_kernel<S, 1> : softmax_gradient_kernel<S, kMost>);
}

// In bands of at most so many bytes.
template <typename S>
void launch_in_bands(const FuseScalesCrossEntropyBackward<S>& problem, int64_t bytes, void* workspace,
                     StreamHandle stream) {
  band_backward<S>(problem, problem, bytes, workspace, stream,
                   [&](const Part& part, const MapView<arithmetic_t<S>>& grad) {
                     launch_softmax_gradient(problem, part, grad, static_cast<cudaStream_t>(stream));
                   });
}

}  // namespace
}  // namespace forward

template <typename S>
int64_t fuse_scales_cross_entropy_backward_workspace(const FuseScalesCrossEntropyBackward<S>& problem) {
  return band_backward_workspace<S>(problem, problem, kBandBytes);
}

template <typename S>
void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<S>& problem, void* workspace,
                                               StreamHandle stream) {
  forward::launch_in_bands(problem, kBandBytes, workspace, stream);
}

HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_backward_workspace(const FuseScalesCrossEntropyBackward<float>&));
HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_backward_workspace(const FuseScalesCrossEntropyBackward<double>&));
HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_backward_workspace(const FuseScalesCrossEntropyBackward<Half>&));
HMSA_INSTANTIATE(int64_t fuse_scales_cross_entropy_backward_workspace(const FuseScalesCrossEntropyBackward<BFloat16>&));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<float>&, void*,
                                                                StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<double>&, void*,
                                                                StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<Half>&, void*,
                                                                StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<BFloat16>&, void*,
                                                                StreamHandle));

}  // namespace cuda
}  // namespace hmsa
