// What a .cu file of this project needs of CUDA, for g++ and clang++: compiled with this header in front of it
// (-include), the very kernels that run on the GPU run on the CPU, under the sanitizers. For tests only; see README.md.
//
// Only what the kernels use is here. What is missing is missing on purpose where it would break a promise: there is no
// atomicAdd for floating point (results must not depend on the order of threads), and no plain __shared__.
#pragma once

#define HMSA_HOST_RUN 1

#include <limits.h>
#include <math.h>

#include <cassert>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "fibers.h"

// ---- Qualifiers ---------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ static_assert(false, "write HMSA_SHARED(type, name, extent): host_run fills it with NaN per block");

#define HMSA_SHARED(type, name, extent)                           \
  using name##_shared_type = type extent;                         \
  static ::hmsa::host_run::SharedVariable name##_shared_variable; \
  name##_shared_type& name = *static_cast<name##_shared_type*>(name##_shared_variable.get(sizeof(name##_shared_type)))

#define HMSA_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::hmsa::host_run::dynamic_shared())

// ---- Vector types, aligned as CUDA's: the sanitizer for undefined behaviour reports misaligned access ---------------

#define HMSA_HOST_RUN_VECTORS(element, name, align2, align4)                     \
  struct alignas(align2) name##2 { element x, y; };                              \
  struct alignas(align4) name##4 { element x, y, z, w; };                        \
  inline name##2 make_##name##2(element x, element y) { return name##2 {x, y}; } \
  inline name##4 make_##name##4(element x, element y, element z, element w) { return name##4 {x, y, z, w}; }

HMSA_HOST_RUN_VECTORS(float, float, 8, 16)
HMSA_HOST_RUN_VECTORS(double, double, 16, 16)
HMSA_HOST_RUN_VECTORS(int, int, 8, 16)
HMSA_HOST_RUN_VECTORS(unsigned int, uint, 8, 16)
HMSA_HOST_RUN_VECTORS(short, short, 4, 8)
HMSA_HOST_RUN_VECTORS(unsigned short, ushort, 4, 8)
HMSA_HOST_RUN_VECTORS(unsigned char, uchar, 2, 4)
#undef HMSA_HOST_RUN_VECTORS

// ---- Barriers and warps -------------------------------------------------------------------------------------------

#define HMSA_HOST_RUN_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(HMSA_HOST_RUN_SITE) {
  hmsa::host_run::barrier("__syncthreads", 0, hmsa::host_run::Reduction::kNone, file, line);
}
inline int __syncthreads_count(int predicate, HMSA_HOST_RUN_SITE) {
  return hmsa::host_run::barrier("__syncthreads_count", predicate, hmsa::host_run::Reduction::kCount, file, line);
}
inline int __syncthreads_and(int predicate, HMSA_HOST_RUN_SITE) {
  return hmsa::host_run::barrier("__syncthreads_and", predicate, hmsa::host_run::Reduction::kAnd, file, line);
}
inline int __syncthreads_or(int predicate, HMSA_HOST_RUN_SITE) {
  return hmsa::host_run::barrier("__syncthreads_or", predicate, hmsa::host_run::Reduction::kOr, file, line);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, HMSA_HOST_RUN_SITE) {
  hmsa::host_run::exchange("__syncwarp", mask, 0, -1, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HMSA_HOST_RUN_SITE) {
  return static_cast<unsigned>(hmsa::host_run::exchange("__ballot_sync", mask, predicate != 0, -1, file, line));
}
inline int __any_sync(unsigned mask, int predicate, HMSA_HOST_RUN_SITE) {
  return hmsa::host_run::exchange("__any_sync", mask, predicate != 0, -1, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HMSA_HOST_RUN_SITE) {
  return hmsa::host_run::exchange("__all_sync", mask, predicate != 0, -1, file, line) == mask;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, HMSA_HOST_RUN_SITE) {
  const int from = hmsa::host_run::segment_start(width) + (source & (width - 1));
  return hmsa::host_run::shuffle("__shfl_sync", mask, value, from, file, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, HMSA_HOST_RUN_SITE) {
  const int lane = hmsa::host_run::lane_of(*hmsa::host_run::machine().current);
  const int from = lane - static_cast<int>(delta);
  const bool inside = from >= hmsa::host_run::segment_start(width);
  return hmsa::host_run::shuffle("__shfl_up_sync", mask, value, inside ? from : lane, file, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, HMSA_HOST_RUN_SITE) {
  const int lane = hmsa::host_run::lane_of(*hmsa::host_run::machine().current);
  const int from = lane + static_cast<int>(delta);
  const bool inside = from < hmsa::host_run::segment_start(width) + width;
  return hmsa::host_run::shuffle("__shfl_down_sync", mask, value, inside ? from : lane, file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, HMSA_HOST_RUN_SITE) {
  const int lane = hmsa::host_run::lane_of(*hmsa::host_run::machine().current);
  const int from = lane ^ bits;  // an earlier segment may be read, a later one may not
  const bool inside = from < hmsa::host_run::segment_start(width) + width;
  return hmsa::host_run::shuffle("__shfl_xor_sync", mask, value, inside ? from : lane, file, line);
}
#undef HMSA_HOST_RUN_SITE

// ---- Memory -------------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}
template <typename T>
void __stcg(T* to, T value) {
  *to = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Fibers change only at barriers and warp operations, so every read-modify-write is atomic. Integers only.
template <typename T>
using atomic_integer = std::enable_if_t<std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), T>;
template <typename T>
atomic_integer<T> atomicAdd(T* to, std::common_type_t<T> value) {
  const T old = *to;
  *to = old + value;
  return old;
}
template <typename T>
atomic_integer<T> atomicMax(T* to, std::common_type_t<T> value) {
  const T old = *to;
  *to = old < value ? value : old;
  return old;
}
template <typename T>
atomic_integer<T> atomicMin(T* to, std::common_type_t<T> value) {
  const T old = *to;
  *to = value < old ? value : old;
  return old;
}
template <typename T>
atomic_integer<T> atomicOr(T* to, std::common_type_t<T> value) {
  const T old = *to;
  *to = old | value;
  return old;
}
template <typename T>
atomic_integer<T> atomicCAS(T* to, std::common_type_t<T> compare, std::common_type_t<T> value) {
  const T old = *to;
  if (old == compare) *to = value;
  return old;
}

// ---- Arithmetic ---------------------------------------------------------------------------------------------------

// As CUDA's: of a NaN and a number the number.
inline float min(float a, float b) { return fminf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
template <typename T>
std::enable_if_t<std::is_integral<T>::value, T> min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
std::enable_if_t<std::is_integral<T>::value, T> max(T a, T b) {
  return a < b ? b : a;
}

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
// The C library declares functions of these names, so they cannot be functions of ours.
#define __expf(x) ::expf(x)
#define __logf(x) ::logf(x)
#define rsqrtf(x) (1.0f / ::sqrtf(x))
#define rsqrt(x) (1.0 / ::sqrt(x))

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}
// Sum of the products of the four bytes, and a number more.
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int bits = 0; bits < 32; bits += 8) sum += ((a >> bits) & 0xffu) * ((b >> bits) & 0xffu);
  return sum;
}
// Sum of the products of two 16-bit numbers and two bytes, the low or the high ones, and a number more.
inline unsigned __dp2a_lo(unsigned a, unsigned b, unsigned sum) {
  return sum + (a & 0xffffu) * (b & 0xffu) + (a >> 16) * ((b >> 8) & 0xffu);
}
inline unsigned __dp2a_hi(unsigned a, unsigned b, unsigned sum) { return __dp2a_lo(a, b >> 16, sum); }
// Four of the eight bytes of two words; each of the selector's four low digits, from 0 to 7, names one.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = (static_cast<std::uint64_t>(high) << 32) | low;
  unsigned result = 0;
  for (int k = 0; k < 4; ++k) {
    result |= static_cast<unsigned>((bytes >> 8 * ((selector >> 4 * k) & 7u)) & 0xffu) << 8 * k;
  }
  return result;
}
// The low word of both, as 64 bits, moved to the right.
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<std::uint64_t>(high) << 32) | low) >> (shift & 31u));
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(__float_as_int(value)); }
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }

// ---- Runtime: the devices of fibers.h -------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;  // static; 0 as long as the kernel has not run
  int maxDynamicSharedSizeBytes;
  int maxThreadsPerBlock;
};

// A failed call leaves its error behind until somebody asks, as CUDA does.
inline cudaError_t cudaGetLastError() { return std::exchange(hmsa::host_run::machine().last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return hmsa::host_run::machine().last_error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  // CUDA says no more than this; a test should.
  static std::string text;
  text = error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "invalid argument";
  if (!hmsa::host_run::machine().refusal.empty()) text += ", " + hmsa::host_run::machine().refusal;
  return text.c_str();
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = hmsa::host_run::kDeviceCount;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = hmsa::host_run::machine().device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  hmsa::host_run::Machine& m = hmsa::host_run::machine();
  if (device < 0 || device >= hmsa::host_run::kDeviceCount) return m.last_error = cudaErrorInvalidValue;
  m.device = device;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  hmsa::host_run::Machine& m = hmsa::host_run::machine();
  if (device < 0 || device >= hmsa::host_run::kDeviceCount) return m.last_error = cudaErrorInvalidValue;
  const hmsa::host_run::Device& of = hmsa::host_run::device(device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(hmsa::host_run::kSharedWithoutOptIn);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = of.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = of.l2_bytes;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = of.threads_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = of.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = of.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(of.shared_per_multiprocessor);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(of.shared_per_block);
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = static_cast<int>(hmsa::host_run::kReservedShared);
      return cudaSuccess;
  }
  return m.last_error = cudaErrorInvalidValue;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  hmsa::host_run::Machine& m = hmsa::host_run::machine();
  m.refusal.clear();
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
    return value >= -1 && value <= 100 ? cudaSuccess : m.last_error = cudaErrorInvalidValue;
  }
  const std::size_t most = hmsa::host_run::device(m.device).shared_per_block;
  if (value < 0 || static_cast<std::size_t>(value) + hmsa::host_run::static_bytes_of(kernel) > most) {
    return m.last_error = cudaErrorInvalidValue;
  }
  m.opted_in[{m.device, kernel}] = static_cast<std::size_t>(value);
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const hmsa::host_run::Machine& m = hmsa::host_run::machine();
  const std::size_t static_bytes = hmsa::host_run::static_bytes_of(kernel);
  const auto opted_in = m.opted_in.find({m.device, kernel});
  const std::size_t dynamic_bytes =
      opted_in == m.opted_in.end() ? hmsa::host_run::kSharedWithoutOptIn - static_bytes : opted_in->second;
  *attributes = cudaFuncAttributes{static_bytes, static_cast<int>(dynamic_bytes), 1024};
  return cudaSuccess;
}
template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
