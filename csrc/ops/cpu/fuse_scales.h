// CPU kernels of fuse_scales: launched over plain pointers, so that tests can call them without torch.
#pragma once

#include <functional>

#include "core/half.h"
#include "core/problem.h"

namespace hmsa {

// Runs body(begin, end) over parts of [0, count), on several threads or on one.
struct ParallelFor {
  int threads;
  std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& body)> run;
};

namespace cpu {

template <typename S>
void fuse_scales_forward(const FuseScalesForward<S>& problem, const ParallelFor& parallel_for);

template <typename S>
void fuse_scales_backward(const FuseScalesBackward<S>& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
