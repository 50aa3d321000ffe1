// Cross-entropy of the fused logits on the GPU, backward, from the inputs and the log-sum-exp that forward left.
//
//     dLoss/dz_c = A exp(z_c - lse) - [y = c] Y - w_c U
//     Y = go (1 - e) w_y    U = go e / C    A = Y + U sum_c w_c          go: of the pixel's loss, over the total weight
//
// A, Y and U are 0 at ignored pixels, and A is NaN at wrong labels.
//
// For chains of octaves this is made where it is used, in the one pass of octave_backward.cuh. For other chains it is made
// for a band of the output at a time, and the gradients of the inputs are gathered from there (band_backward.cuh).
#include "ops/cuda/band_backward.cuh"
#include "ops/cuda/block_sum.cuh"
#include "ops/cuda/class_tiles.cuh"
#include "ops/cuda/fuse_scales_cross_entropy.h"
#include "ops/cuda/label_slots.cuh"
#include "ops/cuda/octave_backward.cuh"
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

namespace fuse {
namespace {

// ---- chains of octaves ----------------------------------------------------------------------------------------------

HMSA_DEVICE Quad<int32_t> labels_at(int32_t offset) { return *shared_at<const Quad<int32_t>>(offset); }

// dLoss/dz as a source of octave_backward.cuh.
template <typename S, bool kSmooths>
struct SoftmaxSource {
  using T = arithmetic_t<S>;
  using Problem = FuseScalesCrossEntropyBackward<S>;
  static constexpr bool kMakes = true;
  // What the planes share of a pixel. Without smoothing Y is A, and U is 0.
  enum Row { kLogSumExp, kAll, kLabel, kOwn, kUniform };
  static constexpr int32_t kRows = kSmooths ? 5 : 3;
  const Problem& problem;

  // By the lanes of a warp, always in the same order.
  HMSA_DEVICE T sum_of_weights() const {
    if (problem.target.weight == nullptr) return static_cast<T>(problem.classes);
    T sum = 0;
    for (auto c = lane(); c < problem.classes; c += kLanes) sum += problem.target.weight[c];
    HMSA_UNROLL
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    return sum;
  }

  template <typename Block>
  HMSA_DEVICE void ahead(const Block& block, int32_t k) const {
    const Extent size = problem.chain.size;
    const CrossEntropyTarget<T>& target = problem.target;
    const PlaneView<const T>& grad = problem.grad_loss;
    const bool one_number = grad.row == 0 && grad.column == 0;
    const T all_weights = kSmooths ? sum_of_weights() : T(0);
    const auto over_total = [&](T go) { return problem.total_weight != nullptr ? go / *problem.total_weight : go; };
    const T same = one_number ? over_total(*grad.at(block.image, 0, 0)) : T(0);
    HMSA_ROLLED
    for (int r = 0; r < kOctaveBand; ++r) {
      const int32_t y = 4 * k + 2 + r;
      if (!block.place.exists || y < 0 || y >= size.height) continue;
      Quad<T> log_sum_exp, all, own, uniform;
      Quad<int32_t> labels;
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const int32_t x = block.column + j;
        const int32_t label = label_at(target, problem.classes, block.image, y, x);
        own.of[j] = T(0);
        uniform.of[j] = T(0);
        if (label >= 0) {
          const T go = one_number ? same : over_total(*grad.at(block.image, y, x));
          own.of[j] = go * (T(1) - target.label_smoothing) * cuda::weight_of(target, label);
          if (kSmooths) uniform.of[j] = go * target.label_smoothing / static_cast<T>(problem.classes);
        } else if (label == kWrongLabel) {
          own.of[j] = static_cast<T>(NAN);
        }
        labels.of[j] = label;
        all.of[j] = kSmooths ? own.of[j] + uniform.of[j] * all_weights : own.of[j];
        log_sum_exp.of[j] = problem.log_sum_exp[(block.image * size.height + y) * size.width + x];
      }
      put_quad(block.shared_row(k, r, kLogSumExp), log_sum_exp);
      put_quad(block.shared_row(k, r, kAll), all);
      *shared_at<Quad<int32_t>>(block.shared_row(k, r, kLabel)) = labels;
      if constexpr (kSmooths) {
        put_quad(block.shared_row(k, r, kOwn), own);
        put_quad(block.shared_row(k, r, kUniform), uniform);
      }
    }
  }

  template <int r, typename Block>
  HMSA_DEVICE Quad<T> row(const Block& block, int32_t k, const Quad<T>& fused) const {
    const int32_t channel = block.first_class + warp();
    const Quad<T> log_sum_exp = quad_at<T>(block.shared_row(k, r, kLogSumExp));
    Quad<T> g;
    HMSA_UNROLL
    for (int j = 0; j < kQuad; ++j) g.of[j] = fast_exponential(fused.of[j] - log_sum_exp.of[j]);
    const Quad<int32_t> labels = labels_at(block.shared_row(k, r, kLabel));
    const Quad<T> all = quad_at<T>(block.shared_row(k, r, kAll));
    if constexpr (kSmooths) {
      const T weight = cuda::weight_of(problem.target, channel);
      const Quad<T> own = quad_at<T>(block.shared_row(k, r, kOwn));
      const Quad<T> uniform = quad_at<T>(block.shared_row(k, r, kUniform));
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const T of_label = labels.of[j] == channel ? own.of[j] : T(0);
        g.of[j] = all.of[j] * g.of[j] - (of_label + weight * uniform.of[j]);
      }
    } else {
      HMSA_UNROLL
      for (int j = 0; j < kQuad; ++j) g.of[j] = all.of[j] * (labels.of[j] == channel ? g.of[j] - T(1) : g.of[j]);
    }
    return g;
  }
};

template <typename S, bool kUpper, bool kLower, bool kSmooths>
using SoftmaxBackward = OctaveBackward<S, kUpper, kLower, SoftmaxSource<S, kSmooths>>;

template <typename S, bool kUpper, bool kLower, bool kSmooths>
__global__ void HMSA_MOST_REGISTERS((SoftmaxBackward<S, kUpper, kLower, kSmooths>::kRegisters))
    cross_entropy_octave_backward_kernel(HMSA_PARAMETER FuseScalesCrossEntropyBackward<S> problem,
                                         HMSA_PARAMETER OctavePlan plan) {
  go_back_octaves<SoftmaxBackward<S, kUpper, kLower, kSmooths>>(problem, plan);
}

// False if the chain is another one.
template <typename S>
bool launch_octaves(const FuseScalesCrossEntropyBackward<S>& problem, cudaStream_t stream) {
  if constexpr (sizeof(arithmetic_t<S>) != sizeof(float)) {
    return false;
  } else {
    if (!is_octave_of_end(problem.chain) || !has_short_maps<S>(problem, problem)) return false;
    const auto start = [&](auto kernel, dim3 grid, const OctavePlan& plan) {
      HMSA_LAUNCH(kernel, grid, dim3((plan.planes + 1) * kLanes), plan.bytes, stream, problem, plan);
    };
    return by_kind_of_end(problem.chain, [&](auto upper, auto lower) {
      constexpr bool kUpper = decltype(upper)::value;
      constexpr bool kLower = decltype(lower)::value;
      if (problem.target.label_smoothing != 0) {
        return start_planned<SoftmaxBackward<S, kUpper, kLower, true>>(
            problem, true, cross_entropy_octave_backward_kernel<S, kUpper, kLower, true>, start);
      }
      return start_planned<SoftmaxBackward<S, kUpper, kLower, false>>(
          problem, true, cross_entropy_octave_backward_kernel<S, kUpper, kLower, false>, start);
    });
  }
}

}  // namespace
}  // namespace fuse

template <typename S>
void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<S>& problem,
                                               const Workspace& workspace, StreamHandle stream) {
  if (!wants_gradients<S>(problem, problem)) return;
  if (fuse::launch_octaves(problem, static_cast<cudaStream_t>(stream))) return;
  const int64_t numbers = band_backward_workspace<S>(problem, problem, kBandBytes);
  forward::launch_in_bands(problem, kBandBytes, workspace(numbers), stream);
}

HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<float>&,
                                                                const Workspace&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<double>&,
                                                                const Workspace&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<Half>&,
                                                                const Workspace&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<BFloat16>&,
                                                                const Workspace&, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
