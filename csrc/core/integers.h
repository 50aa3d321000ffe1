// Quotients of integers that are not rounded towards zero. Divisors are positive.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace hmsa {

// a / b rounded up, for a >= 0.
template <typename Integer>
HMSA_HOST_DEVICE constexpr Integer divide_up(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// The smallest multiple of `unit` that is at least a, for a >= 0.
template <typename Integer>
HMSA_HOST_DEVICE constexpr Integer round_up(Integer a, Integer unit) {
  return divide_up(a, unit) * unit;
}

// a / b rounded down, for any a.
HMSA_HOST_DEVICE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -divide_up(-a, b); }

}  // namespace hmsa
