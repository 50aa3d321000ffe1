// The CUDA kernels of the backward of fuse_scales, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// GCC unrolls the loops over scales beyond kMaxScales, although chain.count bounds them, and warns of its own doing.
// AddressSanitizer and UndefinedBehaviorSanitizer watch the subscripts for real.
#pragma GCC diagnostic ignored "-Warray-bounds"
// The kernels see CUDA as a .cu file does.
#define HMSA_NO_INSTANTIATIONS
#include "ops/cuda/fuse_scales_backward.cu"
#include "ops/cuda/fuse_scales_channel_sums.cu"
#include "ops/cuda/gradient_parts.cu"
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
  std::unique_ptr<hmsa::host_run::PoisonedMemory> memory;
  const auto workspace = [&](int64_t numbers) {
    const size_t bytes = static_cast<size_t>(numbers) * sizeof(hmsa::arithmetic_t<S>);
    memory = std::make_unique<hmsa::host_run::PoisonedMemory>(bytes);
    return memory->data();
  };
  hmsa::cuda::launch_fuse_scales_backward(problem, workspace, nullptr);
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

template <typename S>
void expect_in_every_layout(const Case& c) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    expect_backward<S>(c, layout);
  }
}

// Rows of whole quads and others; several blocks; groups of channels with a rest.
void backward_matches_in_every_dtype_and_layout() {
  for (const Case& c : {Case{{1.0, 0.5}, {37, 64}, {{10, 16}, {5, 8}}, 2, 6, false, false},
                        Case{{1.0, 0.5}, {21, 43}, {{6, 11}, {3, 6}}, 1, 9, false, false},
                        Case{{2.0, 1.0, 0.5}, {17, 24}, {{9, 12}, {5, 6}, {3, 3}}, 1, 5, true, true}}) {
    expect_in_every_layout<float>(c);
    expect_in_every_layout<double>(c);
    expect_in_every_layout<Half>(c);
    expect_in_every_layout<BFloat16>(c);
  }
}

void backward_matches_on_random_shapes() {
  for (const Case& c : random_cases(14)) {
    expect_backward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
  }
}

// More channels together than a block takes at a time, in chunks of whole quads and others.
void backward_matches_with_many_channels() {
  for (const int channels : {40, 37}) {
    const Case c{{1.0, 0.5}, {11, 16}, {{3, 4}, {2, 2}}, 1, channels, false, false};
    expect_backward<float>(c, Layout::kContiguous);
    expect_backward<float>(c, Layout::kChannelsLast);
    expect_backward<Half>(c, Layout::kChannelsLast);
  }
}

// Heads larger than their grids: the two resizes of the largest scale are then done one after the other.
void backward_matches_where_resizes_do_not_compose() {
  expect_in_every_layout<float>({{2.0, 1.0}, {6, 7}, {{30, 33}, {3, 3}}, 1, 4, false, false});
  expect_in_every_layout<float>({{2.0, 1.5, 1.0, 0.6}, {7, 8}, {{30, 33}, {5, 6}, {3, 3}, {2, 3}}, 1, 4, false, true});
  expect_in_every_layout<float>({{0.5}, {20, 24}, {{15, 17}}, 1, 3, false, false});
}

bool is_octave(const Case& c) { return hmsa::cuda::fuse::is_octave(Setup<float>(c, Layout::kContiguous).chain); }

void octaves_match() {
  for (const Case& c : octave_cases()) {
    EXPECT(is_octave(c), text_of(c));
    expect_backward<float>(c, Layout::kContiguous);
    expect_backward<float>(c, Layout::kGaps);
    expect_backward<Half>(c, Layout::kChannelsLast);
    expect_backward<BFloat16>(c, Layout::kContiguous);
  }
  EXPECT(!is_octave({{1.0, 0.5}, {8, 12}, {{2, 3}, {1, 2}}, 1, 2, false, false}));
  EXPECT(!is_octave({{1.0, 0.5}, {16, 16}, {{2, 2}, {1, 1}}, 1, 2, false, false}));
  EXPECT(!is_octave({{1.0, 0.75}, {16, 16}, {{4, 4}, {3, 3}}, 1, 2, false, false}));
  EXPECT(!is_octave({{1.0, 0.5}, {8, 8}, {{2, 2}, {1, 1}}, 1, 2, true, false}));
  EXPECT(!is_octave({{1.0, 0.5}, {8, 8}, {{2, 2}, {1, 1}}, 1, 2, false, true}));
}

int pieces_of(const Case& c, int scale) {
  using namespace hmsa::cuda::backward;
  const Setup<double> setup(c, Layout::kContiguous);
  const Path path = make_path(setup.chain, scale);
  return choose_layout<double>(setup.chain, path, setup.chain.heads[scale], c.batch, c.channels, false, sizeof(double))
      .piece_count();
}

// One element of a head reaches more of the image than shared memory holds: it is gathered in pieces.
void backward_matches_where_heads_are_tiny() {
  const Case wide{{1.0, 0.5}, {170, 190}, {{1, 1}, {1, 2}}, 1, 2, false, false};
  const Case upper{{1.5, 1.0, 0.5}, {142, 150}, {{2, 1}, {1, 1}, {1, 1}}, 2, 1, true, false};
  const Case above{{1.5, 1.0}, {142, 144}, {{1, 2}, {1, 1}}, 1, 9, false, true};
  const Case three{{2.0, 1.5, 1.0}, {90, 97}, {{1, 1}, {1, 1}, {1, 1}}, 1, 1, false, false};
  EXPECT(pieces_of(wide, 0) > 1 && pieces_of(wide, 1) > 1 && pieces_of(upper, 0) > 1 && pieces_of(above, 0) > 1);
  EXPECT(pieces_of(three, 1) > 1);
  expect_backward<double>(wide, Layout::kContiguous);
  expect_backward<double>(upper, Layout::kGaps);
  expect_backward<double>(above, Layout::kChannelsLast);
  expect_backward<double>(three, Layout::kContiguous);
}

// The incoming gradient as a slice of a map with more channels, channels_last.
void backward_reads_slices_of_channels() {
  for (const int channels : {8, 5}) {
    const Case c{{1.0, 0.5}, {13, 20}, {{4, 5}, {2, 3}}, 2, channels, false, false};
    const Setup<float> setup(c, Layout::kChannelsLast);
    Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
    Stored<float> dense(c.batch, channels, c.size, Layout::kChannelsLast);
    dense.store(g);
    Stored<float> slice(c.batch, channels + 4, c.size, Layout::kChannelsLast);
    slice.channels = channels;
    slice.store(g);
    const Gradients<float> wanted = backward(c, setup, dense, Layout::kChannelsLast, ~0u, ~0u);
    const Gradients<float> got = backward(c, setup, slice, Layout::kChannelsLast, ~0u, ~0u);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      EXPECT(got.logits[i]->same_bits(*wanted.logits[i]), text_of(c), ", scale ", i);
      EXPECT(got.attention[i]->same_bits(*wanted.attention[i]), text_of(c), ", scale ", i);
    }
  }
}

// Infinite gradients stay where they are when nothing is resized, and do not turn their neighbours into NaN.
void copies_keep_infinities_apart() {
  const Case c{{1.0}, {6, 8}, {{6, 8}}, 1, 2, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  Map g = random_map(c.batch, c.channels, c.size, -1, 1, 99);
  g.at(0, 1, 3, 4) = INFINITY;
  Stored<float> grad(c.batch, c.channels, c.size, Layout::kContiguous);
  grad.store(g);
  EXPECT(backward(c, setup, grad, Layout::kContiguous, ~0u, ~0u).logits[0]->same_bits(grad));
}

// Each gradient alone: the same bits as with all the others, and nothing written that was not asked for.
void gradients_do_not_depend_on_which_are_wanted() {
  const std::vector<Case> all = cases();
  for (const Case& c : {all[0], all[2], all[4], all[6], all[8]}) {
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
  RUN_TEST(backward_matches_with_many_channels);
  RUN_TEST(backward_matches_where_resizes_do_not_compose);
  RUN_TEST(octaves_match);
  RUN_TEST(backward_matches_where_heads_are_tiny);
  RUN_TEST(backward_reads_slices_of_channels);
  RUN_TEST(copies_keep_infinities_apart);
  RUN_TEST(gradients_do_not_depend_on_which_are_wanted);
  return testing::finish();
}
