// The softmax of a pixel over its classes, a few at a time: the largest logit so far, and the sum of exponentials
// relative to it, scaled down when a larger one comes.
#pragma once

#include "ops/cuda/forward_rows.cuh"

namespace hmsa {
namespace cuda {
namespace forward {

HMSA_DEVICE float exponential(float x) { return expf(x); }
HMSA_DEVICE double exponential(double x) { return exp(x); }
HMSA_DEVICE float logarithm(float x) { return logf(x); }
HMSA_DEVICE double logarithm(double x) { return log(x); }

template <typename T>
HMSA_DEVICE T minus_infinity() {
  return static_cast<T>(-INFINITY);
}

// Of no class yet: largest -inf, sum 0. NaN among the logits, or +inf, make the sum NaN; logits that are all -inf leave
// it 0.
template <typename T>
struct SoftmaxSum {
  T largest;
  T sum;

  // Adds logits, of which the largest so far, these included, is `now`.
  template <int kCount>
  HMSA_DEVICE void add(const Pack<T, kCount>& logits, T now) {
    const T base = now == minus_infinity<T>() ? T(0) : now;  // -inf - -inf would be NaN, and remain so
    if (now != largest) sum *= exponential(largest - base);
    HMSA_UNROLL
    for (int k = 0; k < kCount; ++k) sum += exponential(logits.of[k] - base);
    largest = now;
  }
};

// The first `count` of some logits; -inf, which adds nothing, in place of the others.
template <int kCount, typename T>
HMSA_DEVICE Pack<T, kCount> first_of(Pack<T, kCount> logits, int32_t count) {
  HMSA_UNROLL
  for (int k = 1; k < kCount; ++k) logits.of[k] = k < count ? logits.of[k] : minus_infinity<T>();
  return logits;
}

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
