// Endings of octave_forward.cuh that need all classes of a pixel.
//
// Every warp puts the rows of its plane into shared memory. Behind the barrier some of the warps go through the classes
// of the band's pixels, each thread for two neighbours, while the others begin the next band in a second buffer. Where a
// block takes the classes in several chunks, what an ending keeps of a pixel between them is in shared memory, too, in
// slots that only this thread uses. No map of logits exists anywhere.
//
// Exponentials are powers of two: 2^(z L - M) with L = log2 e and M = m L, rounded, for the largest logit m. A logit then
// costs one multiplication and addition, and the error of M, known exactly, is taken off their sum in the end.
#pragma once

#include "ops/cuda/octave_forward.cuh"

namespace hmsa {
namespace cuda {
namespace fuse {

constexpr int32_t kPixelPairs = kOwnedUnits * kUnit / 2;             // of a row
constexpr int32_t kPixelWarps = kOctaveBand * kPixelPairs / kLanes;  // of pairs of a band
constexpr int32_t kPixelSlots = kPixelWarps * kLanes;
static_assert(kPixelSlots == kOctaveBand * kPixelPairs, "the pairs of a band are whole warps");

constexpr float kLn2 = 0.693147182f;

// ---- arithmetic of pixels -------------------------------------------------------------------------------------------

// NaN if one of them is.
HMSA_DEVICE float largest_of(float a, float b) {
#if defined(__CUDACC__)
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#else
  return isnan(a) || a > b ? a : b;
#endif
}

// Whether the error of M is so small that its exponential is that of a straight line.
HMSA_DEVICE bool is_moderate(float largest) { return fabsf(largest) < 1024.0f; }
HMSA_DEVICE float base_of(float largest) { return __fmul_rn(largest, kLog2e); }
// What the logarithm to the base of two of a sum of powers is too large by.
HMSA_DEVICE float error_of_base(float largest) { return fmaf(largest, kLog2e, -base_of(largest)); }

// What is known of the softmax of two neighbouring pixels: the largest logit so far, and the sum of exponentials relative
// to it (of powers of two, relative to its base, where it is moderate).
struct PixelPair {
  Pair<float> largest, sum;
};

// The planes of two pixels in shared memory.
struct PlanesAt {
  static constexpr int32_t kPlane = kOctaveBand * kLineColumns * static_cast<int32_t>(sizeof(float));
  int32_t first;  // offset of plane 0
  int32_t count;

  HMSA_DEVICE Pair<float> pair(int32_t p) const { return *shared_at<const Pair<float>>(first + p * kPlane); }
  HMSA_DEVICE float one(int32_t p, int j) const { return shared_at<const float>(first + p * kPlane)[j]; }
};

// Calls body(p, pair) for all planes, four of them at once.
template <typename Body>
HMSA_DEVICE void for_planes(const PlanesAt& planes, const Body& body) {
  int32_t p = 0;
  HMSA_ROLLED
  for (; p + 4 <= planes.count; p += 4) {
    HMSA_UNROLL
    for (int i = 0; i < 4; ++i) body(p + i, planes.pair(p + i));
  }
  HMSA_ROLLED
  for (; p < planes.count; ++p) body(p, planes.pair(p));
}

// As PyTorch does for infinities and NaN: those among the logits make the sum NaN, but for -inf; logits that are all -inf
// leave it 0.
HMSA_DEVICE_CALL float careful_sum(const PlanesAt planes, int j, float largest, float before, float sum) {
  const float base = largest == -INFINITY ? 0.0f : largest;  // -inf - -inf would be NaN, and remain so
  if (before != largest) sum *= expf(before - base);
  for (int32_t p = 0; p < planes.count; ++p) sum += expf(planes.one(p, j) - base);
  return sum;
}

// Adds the planes' exponentials to sums that were relative to the largest logits `before`.
HMSA_DEVICE void add_exponentials(const PlanesAt& planes, const Pair<float>& before, PixelPair& pixels) {
  const Pair<float> sum = pixels.sum;
  Pair<float> base;
  HMSA_UNROLL
  for (int j = 0; j < 2; ++j) {
    base.of[j] = base_of(pixels.largest.of[j]);
    pixels.sum.of[j] *= power_of_two(__fsub_rn(base_of(before.of[j]), base.of[j]));
  }
  for_planes(planes, [&](int32_t, const Pair<float>& logits) {
    HMSA_UNROLL
    for (int j = 0; j < 2; ++j) pixels.sum.of[j] += power_of_two(fmaf(logits.of[j], kLog2e, -base.of[j]));
  });
  HMSA_UNROLL
  for (int j = 0; j < 2; ++j) {
    if (is_moderate(pixels.largest.of[j])) continue;
    pixels.sum.of[j] = careful_sum(planes, j, pixels.largest.of[j], before.of[j], sum.of[j]);
  }
}

// log of the sum of exponentials relative to the largest logit.
HMSA_DEVICE float log_of_sum(float largest, float sum) {
  return is_moderate(largest) ? fmaf(-kLn2, error_of_base(largest), logf(sum)) : logf(sum);
}

// 1 / sum: the probability of the largest logit. Logits that are all -inf have none, as in PyTorch.
HMSA_DEVICE float inverse_of_sum(float largest, float sum) {
  const float inverse = sum == 0.0f ? static_cast<float>(NAN) : __fdividef(1.0f, sum);
  return is_moderate(largest) ? fmaf(inverse, kLn2 * error_of_base(largest), inverse) : inverse;
}

// ---- endings --------------------------------------------------------------------------------------------------------

// What endings over pixels have in common; kKept: floats of a pixel that are kept between chunks.
template <int kKept>
struct PixelEnding {
  struct Plane {};
  static constexpr int kRegisters = 88;  // 20 warps or more fit
  static constexpr int32_t kMoreBands = 3;
  static constexpr int32_t kBandsBefore = 0;
  static constexpr bool kPlanesTogether = true;

  HMSA_HOST_DEVICE static int32_t bands(const OctavePlan& plan) { return 2 * plan.units.height + 1; }
  HMSA_HOST_DEVICE static int32_t buffer_bytes(const OctavePlan& plan) { return plan.planes * PlanesAt::kPlane; }
  HMSA_HOST_DEVICE static int32_t kept_bytes(const OctavePlan& plan) {
    return plan.chunks == 1 ? 0 : bands(plan) * kPixelSlots * static_cast<int32_t>(sizeof(Pair<float>));
  }
  HMSA_HOST_DEVICE static int32_t bytes(const OctavePlan& plan) {
    return 2 * buffer_bytes(plan) + kKept * kept_bytes(plan);
  }

  template <typename Block>
  HMSA_DEVICE static int32_t buffer_of(const Block& block, int32_t k) {
    return Block::kShared + (k & 1) * buffer_bytes(block.plan);
  }
  template <int r, typename Block>
  HMSA_DEVICE void row(const Block& block, Plane&, int32_t k, const Quad<float>& fused) const {
    put_quad(buffer_of(block, k) + warp() * Block::kBandBytes + r * Block::kRow + Block::quad_offset(), fused);
  }
  template <typename Block>
  HMSA_DEVICE void begin(const Block&, Plane&, int64_t) const {}
  template <typename Block>
  HMSA_DEVICE void ahead(const Block&, int32_t) const {}
  template <typename Block>
  HMSA_DEVICE void end(const Block&, Plane&) const {}

  // Two neighbouring pixels of a band.
  struct Place {
    int32_t y, x;  // of the first
    int32_t slot;  // of the band
    int32_t kept;  // offset of what is kept
  };
  HMSA_DEVICE static Pair<float>& kept_at(const OctavePlan& plan, const Place& place, int number) {
    return *shared_at<Pair<float>>(place.kept + number * kept_bytes(plan));
  }

  // Calls body(place, planes) for the pairs of pixels of a band that the block owns, divided among the threads always in
  // the same way.
  template <typename Block, typename Body>
  HMSA_DEVICE static void for_pixels(const Block& block, int32_t k, const Body& body) {
    for_pixels(block, k, PlanesAt{buffer_of(block, k), block.count}, thread(), block.plan.planes * kLanes, body);
  }
  // Of some planes only, by so many threads.
  template <typename Block, typename Body>
  HMSA_DEVICE static void for_pixels(const Block& block, int32_t k, const PlanesAt& planes, int32_t number,
                                     int32_t threads, const Body& body) {
    constexpr int32_t kPairBytes = static_cast<int32_t>(sizeof(Pair<float>));
    HMSA_ROLLED
    for (int32_t slot = number; slot < kPixelSlots; slot += threads) {
      const int32_t row = slot / kPixelPairs;
      const int32_t pair = slot - row * kPixelPairs;
      const int32_t y = kOctaveBand * k + 2 + row;
      const int32_t x = block.unit_columns.lo * kUnit + 2 * pair;
      const Extent size = block.problem.chain.size;
      if (y < 0 || y >= size.height || x >= smaller(block.unit_columns.hi * kUnit, size.width)) continue;
      const int32_t kept =
          Block::kShared + 2 * buffer_bytes(block.plan) + ((k - block.first_band()) * kPixelSlots + slot) * kPairBytes;
      const int32_t first = planes.first + row * Block::kRow + (kUnit / 2 + pair) * kPairBytes;
      body(Place{y, x, slot, kept}, PlanesAt{first, planes.count});
    }
  }
};

// ---- the host -------------------------------------------------------------------------------------------------------

// Whether two neighbouring numbers are one store.
template <typename V>
bool lies_in_pairs(const V* numbers) {
  return reinterpret_cast<uintptr_t>(numbers) % alignof(Pair<V>) == 0;
}

}  // namespace fuse
}  // namespace cuda
}  // namespace hmsa
