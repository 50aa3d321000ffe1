// Storage types for float16 and bfloat16, and their conversions to and from float.
//
// Nothing is computed in half precision: kernels read these, calculate in float and round once, to nearest even. The
// structs are bit-compatible with every other float16 and bfloat16 (torch's, CUDA's, numpy's). Under nvcc the
// conversions are the hardware's; elsewhere they are integer arithmetic without branches, which compilers vectorise.
// A NaN stays a NaN (made quiet), infinities and subnormals are exact in both directions.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace hmsa {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// What a stored element is calculated in: double for double, float for everything else.
template <typename S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename S>
using arithmetic_t = typename Arithmetic<S>::type;

#if defined(__CUDACC__)

HMSA_HOST_DEVICE float to_float(Half value) {
  __half_raw raw;
  raw.x = value.bits;
  return __half2float(__half(raw));
}

HMSA_HOST_DEVICE float to_float(BFloat16 value) {
  __nv_bfloat16_raw raw;
  raw.x = value.bits;
  return __bfloat162float(__nv_bfloat16(raw));
}

HMSA_HOST_DEVICE Half to_half(float value) { return Half{static_cast<__half_raw>(__float2half_rn(value)).x}; }

HMSA_HOST_DEVICE BFloat16 to_bfloat16(float value) {
  return BFloat16{static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(value)).x};
}

#else

namespace half_detail {

HMSA_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

HMSA_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Chooses by bits: a ternary around float arithmetic becomes a branch, which GCC then does not vectorise.
HMSA_HOST_DEVICE uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// The rest of the exponent's bias when a 5-bit exponent (bias 15) becomes an 8-bit one (bias 127).
constexpr uint32_t kRebias = (127u - 15u) << 23;

}  // namespace half_detail

HMSA_HOST_DEVICE float to_float(Half value) {
  using namespace half_detail;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Exponent 31 (infinity, NaN) is re-biased twice, to 255.
  const uint32_t special = magnitude >= 0x7c00u ? kRebias : 0u;
  const uint32_t quiet = magnitude > 0x7c00u ? 0x00400000u : 0u;
  const uint32_t normal = ((magnitude << 13) + kRebias + special) | quiet;
  // Below 2^-14 the bits count multiples of 2^-24, each of which is a normal float.
  const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return float_of(sign | (select(magnitude < 0x0400u, subnormal, normal)));
}

HMSA_HOST_DEVICE Half to_half(float value) {
  using namespace half_detail;
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Drop 13 bits of the mantissa, ties to even; the carry may run into the exponent, as it should.
  const uint32_t normal = (magnitude - kRebias + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // 0.5f has its last bit at 2^-24, so the sum is rounded to a multiple of 2^-24 and its low bits count them.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
  uint32_t half = select(magnitude < 0x38800000u, subnormal, normal);  // 2^-14
  half = select(magnitude >= 0x477ff000u, 0x7c00u, half);              // 65520, halfway from the largest to 2^16
  half = select(magnitude > 0x7f800000u, nan, half);
  return Half{static_cast<uint16_t>(sign | half)};
}

HMSA_HOST_DEVICE float to_float(BFloat16 value) {
  using namespace half_detail;
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  return float_of(bits | select((bits & 0x7fffffffu) > 0x7f800000u, 0x00400000u, 0u));
}

HMSA_HOST_DEVICE BFloat16 to_bfloat16(float value) {
  using namespace half_detail;
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x0040u;
  return BFloat16{static_cast<uint16_t>(select((bits & 0x7fffffffu) > 0x7f800000u, nan, rounded))};
}

#endif

// A stored element as the number that kernels calculate with ...
HMSA_HOST_DEVICE float to_arithmetic(float value) { return value; }
HMSA_HOST_DEVICE double to_arithmetic(double value) { return value; }
HMSA_HOST_DEVICE float to_arithmetic(Half value) { return to_float(value); }
HMSA_HOST_DEVICE float to_arithmetic(BFloat16 value) { return to_float(value); }

// ... and back, rounded once.
HMSA_HOST_DEVICE void from_arithmetic(float* to, float value) { *to = value; }
HMSA_HOST_DEVICE void from_arithmetic(double* to, double value) { *to = value; }
HMSA_HOST_DEVICE void from_arithmetic(Half* to, float value) { *to = to_half(value); }
HMSA_HOST_DEVICE void from_arithmetic(BFloat16* to, float value) { *to = to_bfloat16(value); }

}  // namespace hmsa
