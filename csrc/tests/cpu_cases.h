// For tests of the CPU kernels: divisions of the work, and shapes that have to be divided.
#pragma once

#include "ops/cpu/parallel_for.h"
#include "tests/fuse_scales_cases.h"

namespace testing {

// Divides the work as so many threads would, and does the last part first.
inline hmsa::ParallelFor parts(int count) {
  return {count, [count](int64_t total, const std::function<void(int64_t, int64_t)>& body) {
            for (int part = count - 1; part >= 0; --part) {
              const int64_t begin = total * part / count;
              const int64_t end = total * (part + 1) / count;
              if (begin < end) body(begin, end);
            }
          }};
}

// More rows and columns than a thread takes at once.
inline std::vector<Case> large_cases() {
  return {
      {{1.0, 0.5}, {70, 1100}, {{70, 1100}, {35, 138}}, 1, 2, false, false},
      {{1.5, 1.0, 0.5}, {3, 4200}, {{1, 1575}, {3, 1050}, {1, 525}}, 1, 2, true, false},
      // Rows and columns of a grid that nothing reads, and levels that are passed on.
      {{7.0, 1.0}, {9, 21}, {{63, 147}, {9, 21}}, 1, 2, false, false},
      {{6.0, 3.0, 1.5, 1.0}, {23, 31}, {{50, 100}, {69, 93}, {9, 12}, {23, 31}}, 1, 2, false, false},
      {{6.0, 2.5, 1.0, 0.5}, {23, 31}, {{9, 12}, {57, 77}, {6, 8}, {3, 4}}, 1, 2, true, true},
      // Pixels of more channels than turn at a time, and more columns than a part has.
      {{2.0, 1.0, 0.5}, {37, 300}, {{19, 150}, {10, 75}, {5, 38}}, 2, 6, false, false},
      {{0.5}, {19, 301}, {{5, 75}}, 1, 5, false, false},
  };
}

}  // namespace testing
