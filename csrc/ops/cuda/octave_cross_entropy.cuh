// The cross-entropy of chains of octaves, forward (octave_pixels.cuh).
#pragma once

#include "ops/cuda/label_slots.cuh"
#include "ops/cuda/octave_pixels.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

template <typename S>
struct OctaveCrossEntropy : PixelEnding<3> {
  using Pixels = PixelEnding<3>;
  using Problem = FuseScalesCrossEntropyForward<S>;
  // What is kept of a pixel between chunks. The logit of its label waits in the place of its log-sum-exp.
  enum Kept { kLargest, kSum, kWeighted };
  // Of the losses and weights of a slot's pixels, in float64.
  struct alignas(16) Sums {
    double loss, weight;
  };

  const Problem& problem;
  explicit HMSA_DEVICE OctaveCrossEntropy(const Problem& of) : problem(of) {}

  // Behind the bands and what is kept: sums of the slots, and the sum of the weights of all classes.
  HMSA_HOST_DEVICE static int32_t bytes(const OctavePlan& plan) {
    return Pixels::bytes(plan) + kPixelSlots * static_cast<int32_t>(sizeof(Sums)) + 16;
  }
  template <typename Block>
  HMSA_DEVICE static Sums& sums_of(const OctavePlan& plan, int32_t slot) {
    return shared_at<Sums>(Block::kShared + Pixels::bytes(plan))[slot];
  }
  template <typename Block>
  HMSA_DEVICE static double& sum_of_weights(const OctavePlan& plan) {
    return *shared_at<double>(Block::kShared + bytes(plan) - 16);
  }

  HMSA_DEVICE bool smooths() const { return problem.target.label_smoothing != 0.0f; }

  template <typename Block>
  HMSA_DEVICE_PHASE void together(const Block& block, int32_t k) const {
    Pixels::for_pixels(block, k, [&](const Pixels::Place& place, const PlanesAt& planes) {
      const Extent size = problem.chain.size;
      const int64_t at = (block.image * size.height + place.y) * size.width + place.x;
      int32_t labels[2];
      HMSA_UNROLL
      for (int j = 0; j < 2; ++j) {
        labels[j] = label_at(problem.target, problem.classes, block.image, place.y, place.x + j);
      }
      Pair<float> before{{-INFINITY, -INFINITY}};
      PixelPair pixels{};
      if (block.chunk > 0) {
        before = Pixels::kept_at(block.plan, place, kLargest);
        pixels.sum = Pixels::kept_at(block.plan, place, kSum);
      }
      pixels.largest = before;
      for_planes(planes, [&](int32_t, const Pair<float>& logits) {
        HMSA_UNROLL
        for (int j = 0; j < 2; ++j) pixels.largest.of[j] = largest_of(pixels.largest.of[j], logits.of[j]);
      });
      add_exponentials(planes, before, pixels);
      Pair<float> weighted{};
      if (smooths()) {
        if (block.chunk > 0) weighted = Pixels::kept_at(block.plan, place, kWeighted);
        for (int32_t p = 0; p < planes.count; ++p) {
          const float weight = cuda::weight_of(problem.target, block.first_class + p);
          const Pair<float> logits = planes.pair(p);
          HMSA_UNROLL
          for (int j = 0; j < 2; ++j) weighted.of[j] += weight * logits.of[j];
        }
      }
      const bool last = block.chunk + 1 == block.plan.chunks;
      Pair<float> of_label{};
      HMSA_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int32_t p = labels[j] - block.first_class;
        const bool here = p >= 0 && p < planes.count;
        if (here) of_label.of[j] = planes.one(p, j);
        if (here && !last) problem.log_sum_exp[at + j] = of_label.of[j];
        if (last && labels[j] >= 0 && !here) of_label.of[j] = problem.log_sum_exp[at + j];
      }
      if (last) {
        end_pixels(block, place, at, pixels, labels, of_label, weighted);
      } else {
        Pixels::kept_at(block.plan, place, kLargest) = pixels.largest;
        Pixels::kept_at(block.plan, place, kSum) = pixels.sum;
        if (smooths()) Pixels::kept_at(block.plan, place, kWeighted) = weighted;
      }
    });
  }

  // All classes are known.
  template <typename Block>
  HMSA_DEVICE void end_pixels(const Block& block, const Pixels::Place& place, int64_t at, const PixelPair& pixels,
                              const int32_t (&labels)[2], const Pair<float>& of_label,
                              const Pair<float>& weighted) const {
    const float smoothing = problem.target.label_smoothing;
    Pair<float> losses, log_sum_exp;
    double weights = 0;
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      const float log_sum = log_of_sum(pixels.largest.of[j], pixels.sum.of[j]);
      log_sum_exp.of[j] = pixels.largest.of[j] + log_sum;
      losses.of[j] = labels[j] == kWrongLabel ? static_cast<float>(NAN) : 0.0f;
      if (labels[j] < 0) continue;
      const float weight = cuda::weight_of(problem.target, labels[j]);
      losses.of[j] = (1.0f - smoothing) * weight * ((pixels.largest.of[j] - of_label.of[j]) + log_sum);
      if (smooths()) {
        const auto all_weights = static_cast<float>(sum_of_weights<Block>(block.plan));
        losses.of[j] +=
            smoothing / static_cast<float>(problem.classes) * (all_weights * log_sum_exp.of[j] - weighted.of[j]);
      }
      weights += weight;
    }
    *reinterpret_cast<Pair<float>*>(problem.log_sum_exp + at) = log_sum_exp;
    if (problem.reduction == Reduction::kNone) {
      *reinterpret_cast<Pair<float>*>(problem.loss + at) = losses;
    }
    Sums& sums = sums_of<Block>(block.plan, place.slot);
    sums.loss += static_cast<double>(losses.of[0]) + losses.of[1];
    sums.weight += weights;
  }

  // The first warp, before the first image.
  template <typename Block>
  HMSA_DEVICE static void begin_sums(const Problem& problem, const OctavePlan& plan) {
    for (int32_t slot = lane(); slot < kPixelSlots; slot += kLanes) sums_of<Block>(plan, slot) = {0, 0};
    const float* const weight = problem.target.weight;
    double sum = 0;
    for (int64_t c = lane(); c < problem.classes; c += kLanes) sum += weight != nullptr ? weight[c] : 1.0f;
    sum = sum_of_warp(sum);
    if (lane() == 0) sum_of_weights<Block>(plan) = sum;
  }
  // The first warp, behind an image: its sums are written, and begin anew.
  template <typename Block>
  HMSA_DEVICE static void end_sums(const OctavePlan& plan, double* to) {
    Sums all{0, 0};
    for (int32_t slot = lane(); slot < kPixelSlots; slot += kLanes) {
      Sums& sums = sums_of<Block>(plan, slot);
      all.loss += sums.loss;
      all.weight += sums.weight;
      sums = {0, 0};
    }
    all.loss = sum_of_warp(all.loss);
    all.weight = sum_of_warp(all.weight);
    if (lane() == 0) {
      to[0] = all.loss;
      to[1] = all.weight;
    }
  }
  HMSA_DEVICE static double sum_of_warp(double value) {
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
  }
};

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((OctaveCrossEntropy<S>::kRegisters))
    cross_entropy_octave_kernel(HMSA_PARAMETER FuseScalesCrossEntropyForward<S> problem, HMSA_PARAMETER OctavePlan plan,
                                double* partial_sums /* [B, parts, 2] */) {
  using Ending = OctaveCrossEntropy<S>;
  using Block = OctaveForward<S, kUpper, kLower, Ending>;
  if (uniform(warp() == 0)) Ending::template begin_sums<Block>(problem, plan);
  for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
    go_down_image<Block>(problem, plan, b);
    meet();
    if (uniform(warp() == 0)) Ending::template end_sums<Block>(plan, partial_sums + 2 * (b * gridDim.x + blockIdx.x));
  }
}

template <typename S>
bool is_octave_cross_entropy(const FuseScalesCrossEntropyForward<S>& problem) {
  if (sizeof(arithmetic_t<S>) != sizeof(float)) return false;
  return is_octave_of_end(problem.chain) && has_short_heads(problem) && lies_in_pairs(problem.log_sum_exp) &&
         (problem.reduction != Reduction::kNone || lies_in_pairs(problem.loss));
}

// How the blocks divide the output; no parts if the chain is another one.
template <typename S>
Extent parts_of_octaves(const FuseScalesCrossEntropyForward<S>& problem) {
  OctavePlan plan{};
  if constexpr (sizeof(arithmetic_t<S>) == sizeof(float)) {
    if (!is_octave_cross_entropy(problem)) return {0, 0};
    by_kind_of_end(problem.chain, [&](auto upper, auto lower) {
      constexpr bool kUpper = decltype(upper)::value;
      constexpr bool kLower = decltype(lower)::value;
      if (!plan_octaves<OctaveForward<S, kUpper, kLower, OctaveCrossEntropy<S>>>(problem, plan)) plan.parts = {0, 0};
    });
  }
  return plan.parts;
}

// Calls start(kernel, grid, plan). False if the chain is another one.
template <typename S, typename Start>
bool start_octaves(const FuseScalesCrossEntropyForward<S>& problem, const Start& start) {
  if (!is_octave_cross_entropy(problem)) return false;
  return by_kind_of_end(problem.chain, [&](auto upper, auto lower) {
    constexpr bool kUpper = decltype(upper)::value;
    constexpr bool kLower = decltype(lower)::value;
    return start_planned<OctaveForward<S, kUpper, kLower, OctaveCrossEntropy<S>>>(
        problem, true, cross_entropy_octave_kernel<S, kUpper, kLower>, start);
  });
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
