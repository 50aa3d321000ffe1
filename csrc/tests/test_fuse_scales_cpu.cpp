// The CPU kernels of fuse_scales against plain loops in double, whatever the number of threads.
//
// Plain, this tests the row primitives of every instruction set that the processor has. Sanitized, the sources are
// compiled right here with their primitives in plain C++, so that the sanitizers see every access.
#include "ops/cpu/fuse_scales.h"
#include "tests/cpu_cases.h"
#include "tests/instruction_sets.h"

#if defined(__SANITIZE_ADDRESS__)
#include "ops/cpu/fuse_scales_backward.cpp"
#include "ops/cpu/fuse_scales_forward.cpp"
#endif

namespace {

using namespace testing;

template <typename S>
void expect_forward(const Case& c, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const Setup<S> setup(c, layout);
  Stored<S> output(c.batch, c.channels, c.size, layout);
  hmsa::FuseScalesForward<S> problem = forward_problem(c, setup, output);
  hmsa::cpu::fuse_scales_forward(problem, parts(1));
  expect_close<S>(output.load(), reference::fuse_scales(setup.problem), what);
  EXPECT(output.gaps_untouched(), what);
  for (const int threads : {2, 7}) {
    Stored<S> again(c.batch, c.channels, c.size, layout);
    problem.output = again.view;
    hmsa::cpu::fuse_scales_forward(problem, parts(threads));
    EXPECT(output.same_bits(again), what, ", threads ", threads);
  }
}

template <typename S>
void expect_backward(const Case& c, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const Setup<S> setup(c, layout);
  Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
  Stored<S> grad(c.batch, c.channels, c.size, layout);
  grad.store(g);
  const reference::Gradients wanted = reference::fuse_scales_backward(setup.problem, g);
  hmsa::FuseScalesBackward<S> problem{};
  problem.chain = setup.chain;
  problem.batch = c.batch;
  problem.classes = c.channels;
  problem.grad_output = grad.const_view();
  using Maps = std::vector<std::unique_ptr<Stored<S>>>;
  Maps first_logits, first_attention;
  for (const int threads : {1, 2, 7}) {
    Maps logits, attention;
    for (int i = 0; i < setup.chain.count; ++i) {
      const Stored<S>& z = *setup.logits[i];
      const Stored<S>& a = *setup.attention[i];
      logits.push_back(std::make_unique<Stored<S>>(c.batch, z.channels, z.size, layout));
      attention.push_back(std::make_unique<Stored<S>>(c.batch, a.channels, a.size, layout));
      problem.logits[i] = z.const_view();
      problem.grad_logits[i] = logits[i]->view;
      if (i == 0) continue;
      problem.attention[i] = a.const_view();
      problem.grad_attention[i] = attention[i]->view;
    }
    hmsa::cpu::fuse_scales_backward(problem, parts(threads));
    for (size_t i = 0; i < logits.size(); ++i) {
      const std::string scale = what + ", scale " + std::to_string(i) + ", threads " + std::to_string(threads);
      if (threads == 1) {
        expect_close<S>(logits[i]->load(), wanted.logits[i], scale + " logits");
        EXPECT(logits[i]->gaps_untouched() && attention[i]->gaps_untouched(), scale);
        if (i > 0) expect_close<S>(attention[i]->load(), wanted.attention[i], scale + " attention");
      } else {
        EXPECT(logits[i]->same_bits(*first_logits[i]) && attention[i]->same_bits(*first_attention[i]), scale);
      }
    }
    if (threads == 1) first_logits = std::move(logits), first_attention = std::move(attention);
  }
}

template <typename Expect>
void for_dtypes_and_layouts(Expect expect) {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{2}, size_t{4}, size_t{10}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) expect(all[i], layout);
  }
}

void forward_matches_plain_loops() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kContiguous);
  for (const Case& c : large_cases()) {
    expect_forward<float>(c, Layout::kGaps);
    expect_forward<float>(c, Layout::kChannelsLast);
    expect_forward<BFloat16>(c, Layout::kChannelsLast);
  }
}

void forward_matches_in_every_dtype_and_layout() {
  for_dtypes_and_layouts([](const Case& c, Layout layout) {
    expect_forward<float>(c, layout);
    expect_forward<double>(c, layout);
    expect_forward<Half>(c, layout);
    expect_forward<BFloat16>(c, layout);
  });
}

void forward_matches_on_random_shapes() {
  for (const Case& c : random_cases(60))
    expect_forward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
}

void backward_matches_plain_loops() {
  for (const Case& c : cases()) expect_backward<float>(c, Layout::kContiguous);
  for (const Case& c : large_cases()) {
    expect_backward<double>(c, Layout::kGaps);
    expect_backward<float>(c, Layout::kChannelsLast);
    expect_backward<BFloat16>(c, Layout::kChannelsLast);
  }
}

void backward_matches_in_every_dtype_and_layout() {
  for_dtypes_and_layouts([](const Case& c, Layout layout) {
    expect_backward<float>(c, layout);
    expect_backward<double>(c, layout);
    expect_backward<Half>(c, layout);
    expect_backward<BFloat16>(c, layout);
  });
}

void backward_matches_on_random_shapes() {
  for (const Case& c : random_cases(60)) {
    expect_backward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
  }
}

int run_all() {
  RUN_TEST(forward_matches_plain_loops);
  RUN_TEST(forward_matches_in_every_dtype_and_layout);
  RUN_TEST(forward_matches_on_random_shapes);
  RUN_TEST(backward_matches_plain_loops);
  RUN_TEST(backward_matches_in_every_dtype_and_layout);
  RUN_TEST(backward_matches_on_random_shapes);
  return testing::finish();
}

}  // namespace

int main() { return run_with_each_instruction_set(run_all); }
