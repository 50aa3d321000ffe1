#include "ops/cpu/draw_class_uniform_boxes.h"

#include <algorithm>

#include "core/integers.h"

namespace hmsa {
namespace cpu {

void draw_class_uniform_boxes(const DrawClassUniformBoxes& problem, const ParallelFor& parallel_for) {
  constexpr int64_t kPart = 64;  // items: enough that a thread is worth it
  parallel_for.run(divide_up(problem.count, kPart), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kPart; i < std::min(end * kPart, problem.count); ++i) draw_class_uniform_box(problem, i);
  });
}

}  // namespace cpu
}  // namespace hmsa
