// How much of the GPU a launch may count on.
#pragma once

#include <cstdint>

#include "ops/cuda/device.h"

namespace hmsa {
namespace cuda {

// Of the current device, from the cache of device.h.
inline const DeviceLimits& device_limits() { return device_limits(current_device()); }
inline int32_t multiprocessor_count() { return device_limits().multiprocessors; }
inline int32_t shared_per_multiprocessor() { return device_limits().shared_per_multiprocessor; }
inline int32_t shared_per_block() { return device_limits().shared_per_block; }

// Blocks that keep the GPU busy: three for each multiprocessor.
inline int64_t wanted_blocks() { return 3 * static_cast<int64_t>(multiprocessor_count()); }

// Bytes of dynamic shared memory with which so many blocks fit a multiprocessor, beside `static_bytes` of each. 1 KiB of
// each is the system's; memory is given in units of 128 bytes.
inline int32_t shared_budget(int blocks, int32_t static_bytes = 0) {
  const DeviceLimits& limits = device_limits();
  const int32_t share = limits.shared_per_multiprocessor / blocks / 128 * 128 - 1024;
  const int32_t most = share < limits.shared_per_block ? share : limits.shared_per_block;
  return (most - static_bytes) / 16 * 16;
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
