// The prediction from chains of octaves (octave_pixels.cuh): the first class of the largest fused logit of each pixel,
// and its probability. Labels alone are made by octave_labels.cuh.
#pragma once

#include "ops/cuda/octave_pixels.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

// The first plane whose logit is NaN.
HMSA_DEVICE_CALL int32_t first_nan(const PlanesAt planes, int j) {
  int32_t p = 0;
  while (p + 1 < planes.count && !isnan(planes.one(p, j))) ++p;
  return p;
}

// The largest logits of these planes and of those before, and the first plane of each pixel's; -1 where it was one of
// those before.
HMSA_DEVICE void find_largest(const PlanesAt& planes, bool anew, const Pair<float>& before, Pair<float>& largest,
                              int32_t (&winner)[2]) {
  largest = before;
  HMSA_UNROLL
  for (int j = 0; j < 2; ++j) winner[j] = anew ? 0 : -1;
  const auto compare = [&](int32_t p, const Pair<float>& most) {
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      winner[j] = most.of[j] > largest.of[j] ? p : winner[j];
      largest.of[j] = largest_of(largest.of[j], most.of[j]);
    }
  };
  if (planes.count < 4) {
    for (int32_t p = 0; p < planes.count; ++p) compare(p, planes.pair(p));
  } else {
    // By fours, of which the last begin sooner. The winner is the first that is as large as the largest of its four.
    const int32_t last = planes.count - 4;
    HMSA_ROLLED
    for (int32_t p = 0; p < last + 4; p += 4) {
      const int32_t first = smaller(p, last);
      Pair<float> most = planes.pair(first);
      HMSA_UNROLL
      for (int i = 1; i < 4; ++i) {
        const Pair<float> logits = planes.pair(first + i);
        HMSA_UNROLL
        for (int j = 0; j < 2; ++j) most.of[j] = largest_of(most.of[j], logits.of[j]);
      }
      compare(first, most);
    }
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) {
      if (winner[j] < 0) continue;
      const int32_t first = winner[j];
      winner[j] = first + 3;
      HMSA_UNROLL
      for (int i = 2; i >= 0; --i) winner[j] = planes.one(first + i, j) == largest.of[j] ? first + i : winner[j];
    }
  }
  // The first NaN is larger than everything, as in PyTorch.
  HMSA_UNROLL
  for (int j = 0; j < 2; ++j) {
    if (isnan(largest.of[j])) winner[j] = isnan(before.of[j]) ? -1 : first_nan(planes, j);
  }
}

// Of two pixels, first_class + winner; behind the first chunk of classes the label stays where `winner` is less than 0.
template <typename L>
HMSA_DEVICE void put_labels(void* all, int64_t at, bool first_chunk, int32_t first_class, const int32_t (&winner)[2]) {
  L* const to = static_cast<L*>(all) + at;
  Pair<L> labels;
  HMSA_UNROLL
  for (int j = 0; j < 2; ++j) labels.of[j] = static_cast<L>(first_class + winner[j]);
  if (first_chunk) {
    *reinterpret_cast<Pair<L>*>(to) = labels;
    return;
  }
  HMSA_UNROLL
  for (int j = 0; j < 2; ++j) {
    if (winner[j] >= 0) to[j] = labels.of[j];
  }
}
template <typename S>
HMSA_DEVICE void put_labels(const FuseScalesArgmax<S>& problem, int64_t at, bool first_chunk, int32_t first_class,
                            const int32_t (&winner)[2]) {
  if (problem.classes <= 256) {
    put_labels<uint8_t>(problem.labels, at, first_chunk, first_class, winner);
  } else {
    put_labels<int32_t>(problem.labels, at, first_chunk, first_class, winner);
  }
}

template <typename S>
struct OctaveArgmax : PixelEnding<2> {
  using Pixels = PixelEnding<2>;
  using Problem = FuseScalesArgmax<S>;
  const Problem& problem;
  explicit HMSA_DEVICE OctaveArgmax(const Problem& of) : problem(of) {}

  template <typename Block>
  HMSA_DEVICE_PHASE void together(const Block& block, int32_t k) const {
    Pixels::for_pixels(block, k, [&](const Pixels::Place& place, const PlanesAt& planes) {
      const Extent size = problem.chain.size;
      const int64_t at = (block.image * size.height + place.y) * size.width + place.x;
      const bool last = block.chunk + 1 == block.plan.chunks;
      Pair<float> before{{-INFINITY, -INFINITY}};
      PixelPair pixels{};
      if (block.chunk > 0) {
        before = Pixels::kept_at(block.plan, place, 0);
        pixels.sum = Pixels::kept_at(block.plan, place, 1);
      }
      int32_t winner[2];
      find_largest(planes, block.chunk == 0, before, pixels.largest, winner);
      put_labels(problem, at, block.chunk == 0, block.first_class, winner);
      add_exponentials(planes, before, pixels);
      if (!last) {
        Pixels::kept_at(block.plan, place, 0) = pixels.largest;
        Pixels::kept_at(block.plan, place, 1) = pixels.sum;
      } else {
        Pair<float> confidence;
        HMSA_UNROLL
        for (int j = 0; j < 2; ++j) confidence.of[j] = inverse_of_sum(pixels.largest.of[j], pixels.sum.of[j]);
        *reinterpret_cast<Pair<float>*>(problem.confidence + at) = confidence;
      }
    });
  }
};

template <typename S, bool kUpper, bool kLower>
__global__ void HMSA_MOST_REGISTERS((OctaveArgmax<S>::kRegisters))
    argmax_octave_kernel(HMSA_PARAMETER FuseScalesArgmax<S> problem, HMSA_PARAMETER OctavePlan plan) {
  go_down_octaves<OctaveForward<S, kUpper, kLower, OctaveArgmax<S>>>(problem, plan);
}

// Whether the chain is one of octaves, and the results lie as they should.
template <typename S>
bool is_octave_prediction(const FuseScalesArgmax<S>& problem) {
  if (problem.views > 1 || !is_octave_of_end(problem.chain) || !has_short_heads(problem)) return false;
  const bool bytes = problem.classes <= 256;
  return (bytes ? lies_in_pairs(static_cast<uint8_t*>(problem.labels))
                : lies_in_pairs(static_cast<int32_t*>(problem.labels))) &&
         lies_in_pairs(problem.confidence);
}

// Calls start(kernel, grid, plan). False if nothing fits.
template <typename S, typename Start>
bool start_octaves(const FuseScalesArgmax<S>& problem, const Start& start) {
  return by_kind_of_end(problem.chain, [&](auto upper, auto lower) {
    constexpr bool kUpper = decltype(upper)::value;
    constexpr bool kLower = decltype(lower)::value;
    return start_planned<OctaveForward<S, kUpper, kLower, OctaveArgmax<S>>>(
        problem, true, argmax_octave_kernel<S, kUpper, kLower>, start);
  });
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
