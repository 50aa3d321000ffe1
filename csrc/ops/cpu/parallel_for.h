// How CPU kernels are given threads.
#pragma once

#include <cstdint>
#include <functional>

namespace hmsa {

// Runs body(begin, end) over parts of [0, count), on several threads or on one.
struct ParallelFor {
  int threads;
  std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& body)> run;
};

}  // namespace hmsa
