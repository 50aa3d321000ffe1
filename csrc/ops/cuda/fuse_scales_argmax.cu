// The prediction from the fused logits on the GPU: class_tiles.cuh with the largest logit of each pixel, its class and
// the softmax's sum taken on the way, in one pass over the inputs.
//
// Two views: every resize is symmetric, so the chain of the mirrored images is run on their maps read from the right, and
// comes out unmirrored, pixel for pixel beside that of the first view.
//
// Chains of octaves with one view are predicted by octave_argmax.cuh, or octave_labels.cuh where no confidence is wanted.
#include "ops/cuda/class_tiles.cuh"
#include "ops/cuda/fuse_scales_argmax.h"
#include "ops/cuda/octave_labels.cuh"
#include "ops/cuda/online_softmax.cuh"

namespace hmsa {
namespace cuda {
namespace forward {
namespace {

template <typename S, int kCount>
struct ArgmaxSink {
  using T = arithmetic_t<S>;
  static constexpr bool kMirrors = true;
  // Numbers that are kept of each pixel. With two views the first view's logits of the classes at hand lie before them.
  enum Slot { kLargest, kSum, kLabel, kSlots };
  const FuseScalesArgmax<S>& problem;
  const ClassLayout& layout;

  static int slot_count(int views, int at_once) { return kSlots + (views > 1 ? at_once : 0); }

  HMSA_DEVICE int views() const { return problem.views; }
  HMSA_DEVICE int first_slot() const { return problem.views > 1 ? kCount : 0; }
  template <typename Block>
  HMSA_DEVICE T* slots(const Block& block, Slot slot) const {
    return slots_of<T>(block, layout, first_slot() + slot);
  }
  template <typename Block>
  HMSA_DEVICE int32_t* labels(const Block& block) const {
    return slots_of<int32_t>(block, layout, first_slot() + kLabel);
  }

  template <typename Block>
  HMSA_DEVICE void begin(const Block& block) const {
    for_pixels(block, [&](int32_t slot, int32_t, int32_t) {
      slots(block, kLargest)[slot] = minus_infinity<T>();
      slots(block, kSum)[slot] = T(0);
      labels(block)[slot] = 0;
    });
  }

  template <typename Block>
  HMSA_DEVICE void store(const Block& block, const Job& job, const Item& item, const Pack<T, kCount>* fused) const {
    for_rows(block, item, [&](int r, int32_t slot, int32_t) {
      Pack<T, kCount> logits = fused[r];
      if (problem.views > 1) {
        T* first_view = slots_of<T>(block, layout, 0) + slot * kCount;
        if (!job.mirrored) {
          forward::store(first_view, logits);
          return;
        }
        const Pack<T, kCount> first = load<kCount>(first_view);
        HMSA_UNROLL
        for (int k = 0; k < kCount; ++k) logits.of[k] = T(0.5) * (first.of[k] + logits.of[k]);
      }
      logits = first_of(logits, job.count);
      SoftmaxSum<T> softmax{slots(block, kLargest)[slot], slots(block, kSum)[slot]};
      T largest = softmax.largest;
      int32_t label = -1;
      HMSA_UNROLL
      for (int k = 0; k < kCount; ++k) {
        const T logit = logits.of[k];
        // The first NaN is larger than everything, as in PyTorch.
        const bool larger = logit > largest || (isnan(logit) && !isnan(largest));
        largest = larger ? logit : largest;
        label = larger ? static_cast<int32_t>(job.channel) + k : label;
      }
      softmax.add(logits, largest);
      slots(block, kLargest)[slot] = softmax.largest;
      slots(block, kSum)[slot] = softmax.sum;
      if (label >= 0) labels(block)[slot] = label;
    });
  }

  template <typename Block>
  HMSA_DEVICE void end(const Block& block) const {
    for_pixels(block, [&](int32_t slot, int32_t y, int32_t x) {
      const int64_t at = (block.b * problem.chain.size.height + y) * problem.chain.size.width + x;
      const int32_t label = labels(block)[slot];
      if (problem.classes <= 256) {
        static_cast<uint8_t*>(problem.labels)[at] = static_cast<uint8_t>(label);
      } else {
        static_cast<int32_t*>(problem.labels)[at] = label;
      }
      if (problem.confidence == nullptr) return;
      // The softmax of logits that are all -inf is NaN.
      const T sum = slots(block, kSum)[slot];
      if (problem.confidence != nullptr) problem.confidence[at] = sum == T(0) ? static_cast<T>(NAN) : T(1) / sum;
    });
  }
};

template <typename S, int kCount>
__global__ void __launch_bounds__(kBlockThreads, kClassBlocksPerProcessor<arithmetic_t<S>>)
    argmax_forward_kernel(HMSA_PARAMETER FuseScalesArgmax<S> problem, HMSA_PARAMETER ClassLayout layout) {
  const ArgmaxSink<S, kCount> sink{problem, layout};
  go_through_classes<kCount>(problem, layout, sink);
}

template <typename S>
ClassLayout plan(const FuseScalesArgmax<S>& problem) {
  const int at_once = takes_four_classes(problem) ? kClassesAtOnce : 1;
  const int slots = ArgmaxSink<S, 1>::slot_count(problem.views, at_once);
  return plan_classes(problem, whole(problem), slots, false);
}

}  // namespace
}  // namespace forward

template <typename S>
void launch_fuse_scales_argmax(const FuseScalesArgmax<S>& problem, StreamHandle stream) {
  if (problem.batch == 0) return;
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    const auto start = [&](auto kernel, dim3 grid, const fuse::OctavePlan& plan) {
      HMSA_LAUNCH(kernel, grid, dim3((plan.planes + 1) * fuse::kLanes), plan.bytes, static_cast<cudaStream_t>(stream),
                  problem, plan);
    };
    if (fuse::is_octave_prediction(problem)) {
      const bool alone = problem.confidence == nullptr;
      if (alone ? fuse::start_labels(problem, start) : fuse::start_octaves(problem, start)) return;
    }
  }
  const forward::ClassLayout layout = forward::plan(problem);
  const auto start = [&](auto kernel) {
    HMSA_LAUNCH(kernel, layout.grid(), layout.block(), layout.bytes, static_cast<cudaStream_t>(stream), problem,
                layout);
  };
  constexpr int kMost = sizeof(arithmetic_t<S>) == sizeof(float) ? forward::kClassesAtOnce : 1;
  start(layout.forward.channels == 1 ? forward::argmax_forward_kernel<S, 1> : forward::argmax_forward_kernel<S, kMost>);
}

HMSA_INSTANTIATE(void launch_fuse_scales_argmax(const FuseScalesArgmax<float>&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_argmax(const FuseScalesArgmax<double>&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_argmax(const FuseScalesArgmax<Half>&, StreamHandle));
HMSA_INSTANTIATE(void launch_fuse_scales_argmax(const FuseScalesArgmax<BFloat16>&, StreamHandle));

}  // namespace cuda
}  // namespace hmsa
