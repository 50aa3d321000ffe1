// Sums over a block of 256 threads, in an order that depends on nothing else.
#pragma once

#include "ops/cuda/launch.h"

namespace hmsa {
namespace cuda {

constexpr int kSumThreads = 256;
constexpr int kSumWarps = kSumThreads / 32;
constexpr int kBlockSumBytes = kSumWarps * sizeof(double);  // of static shared memory, however often a kernel sums

// The sum of the threads' values, for all of them. `thread`: 0 to 255, in order of the warps. Begins and ends with a
// barrier.
HMSA_DEVICE double block_sum(double value, int thread) {
  HMSA_SHARED(double, sums, [kSumWarps]);
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  __syncthreads();  // the last sum may still be read
  if (thread % 32 == 0) sums[thread / 32] = value;
  __syncthreads();
  double sum = sums[0];
  for (int warp = 1; warp < kSumWarps; ++warp) sum += sums[warp];
  return sum;
}

// Sum of the weights of all classes, likewise.
template <typename T>
HMSA_DEVICE double sum_of_weights(const T* weight /* [C]; null: all one */, int64_t classes, int thread) {
  if (weight == nullptr) return static_cast<double>(classes);
  double sum = 0;
  for (int64_t c = thread; c < classes; c += kSumThreads) sum += weight[c];
  return block_sum(sum, thread);
}

}  // namespace cuda
}  // namespace hmsa
