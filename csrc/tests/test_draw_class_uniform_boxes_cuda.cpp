// The CUDA kernel of draw_class_uniform_boxes, run on the CPU by host_run, against the CPU kernel, bit by bit.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cpu/draw_class_uniform_boxes.h"
#include "ops/cuda/draw_class_uniform_boxes.cu"
#include "tests/cpu_cases.h"
#include "tests/draw_class_uniform_boxes_cases.h"

namespace {

using namespace testing;

void launch(const hmsa::DrawClassUniformBoxes& problem) {
  hmsa::cuda::launch_draw_class_uniform_boxes(problem, nullptr);
}

// Fewer items than a block has threads, and more than all threads of the grid.
void boxes_equal_those_of_the_cpu() {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    SampledTables tables(5, 40, 7, seed % 3, seed);
    if (seed == 5) {
      tables.items(0) = 7000;
      tables.problem.first = 3;
      tables.problem.count = 6900;
    }
    tables.run([](const auto& problem) { hmsa::cpu::draw_class_uniform_boxes(problem, parts(1)); });
    const std::vector<int64_t> boxes = tables.boxes, classes = tables.classes;
    EXPECT_EQUAL(tables.missing(), 0);
    hmsa::host_run::seed() = seed;
    tables.run(launch);
    EXPECT(tables.boxes == boxes && tables.classes == classes, "seed ", seed);
  }
}

void wrong_tables_give_rows_of_minus_one() {
  expect_rows_of_minus_one([](SampledTables& tables) { tables.run(launch); });
}

}  // namespace

int main() {
  RUN_TEST(boxes_equal_those_of_the_cpu);
  RUN_TEST(wrong_tables_give_rows_of_minus_one);
  return testing::finish();
}
