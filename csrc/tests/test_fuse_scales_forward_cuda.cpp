// The CUDA kernel of fuse_scales, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/fuse_scales_forward.cu"
#include "tests/fuse_scales_cases.h"

namespace {

using namespace testing;

template <typename S>
Stored<S> forward(const Case& c, const Setup<S>& setup, Layout layout) {
  Stored<S> output(c.batch, c.channels, c.size, layout);
  hmsa::FuseScalesForward<S> problem{};
  problem.chain = setup.chain;
  problem.batch = c.batch;
  problem.classes = c.channels;
  for (int i = 0; i < setup.chain.count; ++i) {
    problem.logits[i] = setup.logits[i]->const_view();
    if (i > 0) problem.attention[i] = setup.attention[i]->const_view();
  }
  problem.output = output.view;
  hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
  return output;
}

template <typename S>
void expect_forward(const Case& c, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const Setup<S> setup(c, layout);
  hmsa::host_run::seed() = 0;
  const Stored<S> output = forward(c, setup, layout);
  expect_close<S>(output.load(), reference::fuse_scales(setup.problem), what);
  EXPECT(output.gaps_untouched(), what);
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    EXPECT(output.same_bits(forward(c, setup, layout)), what, ", seed ", seed);
  }
}

void forward_matches_plain_loops() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kContiguous);
}

void forward_matches_in_every_dtype_and_layout() {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{0}, size_t{2}, size_t{4}, size_t{10}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_forward<float>(all[i], layout);
      expect_forward<double>(all[i], layout);
      expect_forward<Half>(all[i], layout);
      expect_forward<BFloat16>(all[i], layout);
    }
  }
}

void forward_matches_on_random_shapes() {
  for (const Case& c : random_cases(30))
    expect_forward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
}

}  // namespace

int main() {
  RUN_TEST(forward_matches_plain_loops);
  RUN_TEST(forward_matches_in_every_dtype_and_layout);
  RUN_TEST(forward_matches_on_random_shapes);
  return testing::finish();
}
