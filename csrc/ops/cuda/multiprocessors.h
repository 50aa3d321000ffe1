// How much of the GPU a launch may count on.
#pragma once

#include <cstdint>

#include "ops/cuda/launch.h"

namespace hmsa {
namespace cuda {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Blocks that keep the GPU busy: three for each multiprocessor.
inline int64_t wanted_blocks() { return 3 * static_cast<int64_t>(device_attribute(cudaDevAttrMultiProcessorCount)); }

// Bytes of shared memory with which so many blocks fit a multiprocessor. 1 KiB of each is the system's.
inline int32_t shared_budget(int blocks) {
  const int32_t share = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / blocks - 1024;
  const int32_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return (share < most ? share : most) / 16 * 16;
}

// Images side by side in a grid that has `tiles` blocks for each: enough for several waves of blocks, which are then
// of one size; a block goes on to other images with the tables that it has.
inline unsigned image_blocks(int64_t tiles, int64_t batch) {
  const int64_t most = 8 * wanted_blocks() / tiles + 1;
  const int64_t rounds = (batch + most - 1) / most;
  return static_cast<unsigned>((batch + rounds - 1) / rounds);
}

}  // namespace cuda
}  // namespace hmsa
