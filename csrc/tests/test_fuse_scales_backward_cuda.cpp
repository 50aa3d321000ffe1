// The CUDA kernels of the backward of fuse_scales, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// GCC unrolls the loops over scales beyond kMaxScales, although chain.count bounds them, and warns of its own doing.
// AddressSanitizer and UndefinedBehaviorSanitizer watch the subscripts for real.
#pragma GCC diagnostic ignored "-Warray-bounds"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/fuse_scales_backward.cu"
#include "ops/cuda/fuse_scales_points.cu"
#include "tests/fuse_scales_cases.h"

namespace {

using namespace testing;

template <typename S>
struct Gradients {
  std::vector<std::unique_ptr<Stored<S>>> logits, attention;
};

// Bit i of `wanted_logits` and `wanted_attention`: whether the gradient of scale i is asked for.
template <typename S>
Gradients<S> backward(const Case& c, const Setup<S>& setup, const Stored<S>& grad, Layout layout,
                      unsigned wanted_logits, unsigned wanted_attention) {
  Gradients<S> gradients;
  hmsa::FuseScalesBackward<S> problem{};
  problem.chain = setup.chain;
  problem.batch = c.batch;
  problem.classes = c.channels;
  problem.grad_output = grad.const_view();
  for (int i = 0; i < setup.chain.count; ++i) {
    const Stored<S>& logits = *setup.logits[i];
    const Stored<S>& attention = *setup.attention[i];
    gradients.logits.push_back(std::make_unique<Stored<S>>(c.batch, logits.channels, logits.size, layout));
    gradients.attention.push_back(std::make_unique<Stored<S>>(c.batch, attention.channels, attention.size, layout));
    problem.logits[i] = logits.const_view();
    if (wanted_logits >> i & 1) problem.grad_logits[i] = gradients.logits[i]->view;
    if (i == 0) continue;
    problem.attention[i] = attention.const_view();
    if (wanted_attention >> i & 1) problem.grad_attention[i] = gradients.attention[i]->view;
  }
  const auto numbers = static_cast<size_t>(hmsa::cuda::fuse_scales_backward_workspace(problem));
  const hmsa::host_run::PoisonedMemory workspace(numbers * sizeof(hmsa::arithmetic_t<S>));
  hmsa::cuda::launch_fuse_scales_backward(problem, workspace.data(), nullptr);
  return gradients;
}

template <typename S>
void expect_backward(const Case& c, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const Setup<S> setup(c, layout);
  Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
  Stored<S> grad(c.batch, c.channels, c.size, layout);
  grad.store(g);
  const reference::Gradients wanted = reference::fuse_scales_backward(setup.problem, g);
  hmsa::host_run::seed() = 0;
  const Gradients<S> got = backward(c, setup, grad, layout, ~0u, ~0u);
  for (size_t i = 0; i < c.scales.size(); ++i) {
    const std::string scale = what + ", scale " + std::to_string(i);
    expect_close<S>(got.logits[i]->load(), wanted.logits[i], scale + " logits");
    EXPECT(got.logits[i]->gaps_untouched(), scale);
    if (i == 0) continue;
    expect_close<S>(got.attention[i]->load(), wanted.attention[i], scale + " attention");
    EXPECT(got.attention[i]->gaps_untouched(), scale);
  }
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    const Gradients<S> again = backward(c, setup, grad, layout, ~0u, ~0u);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      EXPECT(got.logits[i]->same_bits(*again.logits[i]), what, ", seed ", seed, ", scale ", i);
      EXPECT(got.attention[i]->same_bits(*again.attention[i]), what, ", seed ", seed, ", scale ", i);
    }
  }
}

void backward_matches_plain_loops() {
  for (const Case& c : cases()) expect_backward<float>(c, Layout::kContiguous);
}

void backward_matches_in_every_dtype_and_layout() {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{2}, size_t{4}, size_t{10}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_backward<float>(all[i], layout);
      expect_backward<double>(all[i], layout);
      expect_backward<Half>(all[i], layout);
      expect_backward<BFloat16>(all[i], layout);
    }
  }
}

void backward_matches_on_random_shapes() {
  for (const Case& c : random_cases(15)) {
    expect_backward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
  }
}

// One element of a head reaches more of the image than shared memory holds: kernels of their own.
void backward_matches_where_heads_are_tiny() {
  expect_backward<double>({{1.0, 0.5}, {100, 130}, {{1, 1}, {1, 2}}, 1, 2, false, false}, Layout::kContiguous);
  expect_backward<double>({{1.5, 1.0, 0.5}, {94, 140}, {{2, 1}, {1, 1}, {1, 1}}, 2, 1, true, false}, Layout::kGaps);
  expect_backward<double>({{1.5, 1.0}, {95, 135}, {{1, 2}, {1, 1}}, 1, 2, false, true}, Layout::kChannelsLast);
  expect_backward<double>({{0.5}, {110, 130}, {{1, 1}}, 1, 2, false, false}, Layout::kContiguous);
}

// Each gradient alone: the same bits as with all the others, and nothing written that was not asked for.
void gradients_do_not_depend_on_which_are_wanted() {
  const std::vector<Case> all = cases();
  for (const Case& c : {all[2], all[4], all[6], all[8]}) {
    const Setup<float> setup(c, Layout::kContiguous);
    Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
    Stored<float> grad(c.batch, c.channels, c.size, Layout::kContiguous);
    grad.store(g);
    const Gradients<float> every = backward(c, setup, grad, Layout::kContiguous, ~0u, ~0u);
    const Gradients<float> none = backward(c, setup, grad, Layout::kContiguous, 0, 0);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      const Gradients<float> one = backward(c, setup, grad, Layout::kContiguous, 1u << i, 0);
      const Gradients<float> other = backward(c, setup, grad, Layout::kContiguous, 0, 1u << i);
      for (size_t j = 0; j < c.scales.size(); ++j) {
        EXPECT(one.logits[j]->same_bits(*(i == j ? every : none).logits[j]), text_of(c), ", ", i, ", ", j);
        EXPECT(one.attention[j]->same_bits(*none.attention[j]), text_of(c), ", ", i, ", ", j);
        EXPECT(other.logits[j]->same_bits(*none.logits[j]), text_of(c), ", ", i, ", ", j);
        EXPECT(other.attention[j]->same_bits(*(i == j ? every : none).attention[j]), text_of(c), ", ", i, ", ", j);
      }
    }
  }
}

}  // namespace

int main() {
  RUN_TEST(backward_matches_plain_loops);
  RUN_TEST(backward_matches_in_every_dtype_and_layout);
  RUN_TEST(backward_matches_on_random_shapes);
  RUN_TEST(backward_matches_where_heads_are_tiny);
  RUN_TEST(gradients_do_not_depend_on_which_are_wanted);
  return testing::finish();
}
