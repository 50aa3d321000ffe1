// The CPU kernels of the region mutual information loss against plain loops in double, whatever the number of threads.
//
// Plain, this tests the row primitives of every instruction set that the processor has. Sanitized, the sources are
// compiled right here with their primitives in plain C++, so that the sanitizers see every access.
#include "ops/cpu/fuse_scales_rmi.h"
#include "tests/cpu_cases.h"
#include "tests/fuse_scales_rmi_cases.h"
#include "tests/instruction_sets.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/fuse_scales_rmi_backward.cpp"
#include "ops/cpu/fuse_scales_rmi_forward.cpp"
#endif

namespace {

using namespace testing;

template <typename S>
void expect_rmi(const Case& c, Layout layout, LabelType type = LabelType::kUint8) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const RmiSetup<S> setup(c, layout, type);
  RmiResults first, again;
  const hmsa::cpu::WrongLabels wrong = hmsa::cpu::fuse_scales_rmi_forward(rmi_forward_problem(setup, first), parts(1));
  EXPECT_EQUAL(wrong.pixels, int64_t{0}, what);
  testing::expect_rmi(setup, first, what);
  StoredMaps<S> maps, other;
  hmsa::cpu::fuse_scales_rmi_backward(rmi_backward_problem(setup, first.mean, maps), parts(1));
  expect_rmi_gradients(setup, maps, what);
  for (const int threads : {2, 7}) {
    hmsa::cpu::fuse_scales_rmi_forward(rmi_forward_problem(setup, again), parts(threads));
    EXPECT(again == first, what, ", threads ", threads);
    hmsa::cpu::fuse_scales_rmi_backward(rmi_backward_problem(setup, first.mean, other), parts(threads));
    for (size_t m = 0; m < maps.size(); ++m) EXPECT(other[m]->same_bits(*maps[m]), what, ", threads ", threads);
  }
}

void losses_match_plain_loops() {
  for (const Case& c : cases()) expect_rmi<float>(c, Layout::kContiguous);
  for (const Case& c : rmi_cases()) expect_rmi<float>(c, Layout::kGaps, LabelType::kInt64);
  for (const Case& c : large_cases()) expect_rmi<float>(c, Layout::kChannelsLast, LabelType::kInt16);
}

void losses_match_in_every_dtype_and_layout() {
  const std::vector<Case> all = rmi_cases();
  for (const size_t i : {size_t{2}, size_t{3}, size_t{4}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_rmi<float>(all[i], layout, LabelType::kInt32);
      expect_rmi<double>(all[i], layout, LabelType::kInt16);
      expect_rmi<Half>(all[i], layout, LabelType::kInt64);
      expect_rmi<BFloat16>(all[i], layout);
    }
  }
}

void losses_match_on_random_shapes() {
  for (const Case& c : random_cases(40)) expect_rmi<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
}

// More bands and stripes of tiles than one.
void losses_match_in_many_tiles() {
  expect_rmi<double>({{1.0}, {109, 23}, {{27, 6}}, 1, 2, false, false}, Layout::kContiguous);
  expect_rmi<double>({{1.0, 0.5}, {13, 1047}, {{13, 1047}, {6, 130}}, 1, 1, false, false}, Layout::kContiguous);
}

void wrong_labels_are_counted() {
  const Case c = rmi_cases()[3];
  RmiSetup<float> setup(c, Layout::kContiguous, LabelType::kInt16);
  Labels labels = setup.target.labels;
  labels.at(0, 1, 2) = -3;
  labels.at(1, 37, 28) = 40;
  labels.at(1, 37, 27) = c.channels;
  const StoredLabels stored(labels, LabelType::kInt16, false);
  RmiResults results;
  hmsa::FuseScalesRmiForward<float> problem = rmi_forward_problem(setup, results);
  problem.labels = stored.view;
  const hmsa::cpu::WrongLabels wrong = hmsa::cpu::fuse_scales_rmi_forward(problem, parts(3));
  EXPECT_EQUAL(wrong.pixels, int64_t{3});
  EXPECT_EQUAL(wrong.least, int64_t{-3});
  EXPECT_EQUAL(wrong.largest, int64_t{40});
}

int run_all() {
  RUN_TEST(losses_match_plain_loops);
  RUN_TEST(losses_match_in_every_dtype_and_layout);
  RUN_TEST(losses_match_on_random_shapes);
  RUN_TEST(losses_match_in_many_tiles);
  RUN_TEST(wrong_labels_are_counted);
  return finish();
}

}  // namespace

int main() { return run_with_each_instruction_set(run_all); }
