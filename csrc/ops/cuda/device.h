// What the host code of the kernels asks of the GPU at hand. A device is asked once; after that an answer costs tens of
// nanoseconds, which a call of the runtime does not.
#pragma once

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif !defined(HMSA_HOST_RUN)
#error "a .cu file needs nvcc, or g++ with -include csrc/host_run/cuda_host.h"
#endif

#include "core/check.h"

namespace hmsa {
namespace cuda {

// Throws std::runtime_error when a call of the runtime failed; `what` names the call. The runtime forgets the error, which
// it would otherwise hand to the next code that asks, whoever's that is.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(concat(what, ": ", cudaGetErrorString(error)));
}

struct DeviceLimits {
  int multiprocessors;
  int shared_per_multiprocessor;  // bytes of shared memory, 1 KiB of each block's being the system's
  int shared_per_block;           // static and dynamic, of a kernel that has opted in to it
};

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

inline const DeviceLimits& device_limits(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
    return value;
  };
  const DeviceLimits limits{attribute(cudaDevAttrMultiProcessorCount),
                            attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                            attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  return known.emplace(device, limits).first->second;  // stays where it is when others are added
}

}  // namespace cuda
}  // namespace hmsa
