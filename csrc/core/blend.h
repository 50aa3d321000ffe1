// The arithmetic of one element, used by every kernel.
#pragma once

#include "core/host_device.h"

namespace hmsa {

// (1 - weight) a + weight b, as two products: a + weight (b - a) would turn inf - inf into NaN where PyTorch has inf.
template <typename T>
HMSA_HOST_DEVICE T lerp(T a, T b, T weight) {
  return (T(1) - weight) * a + weight * b;
}

// P = A * L + (1 - A) * P_before, for a scale of 1 and above.
template <typename T>
HMSA_HOST_DEVICE T blend_upper(T attention, T logit, T before) {
  return attention * logit + (T(1) - attention) * before;
}

// P = R(A * L) + (1 - R A) * P_before, for a scale below 1: the product was resized before it came here.
template <typename T>
HMSA_HOST_DEVICE T blend_lower(T resized_attention, T resized_product, T before) {
  return resized_product + (T(1) - resized_attention) * before;
}

}  // namespace hmsa
