// The CUDA kernels of fuse_scales, forward, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/fuse_scales_forward.cu"
#include "tests/fuse_scales_cases.h"

#include <limits>

namespace {

using namespace testing;

template <typename S>
Stored<S> forward(const Case& c, const Setup<S>& setup, Layout layout) {
  Stored<S> output(c.batch, c.channels, c.size, layout);
  hmsa::cuda::launch_fuse_scales_forward(forward_problem(c, setup, output), nullptr);
  return output;
}

// Inputs may lie otherwise than the output.
template <typename S>
void expect_forward(const Case& c, Layout inputs, Layout layout) {
  const std::string what = text_of(c) + ", " + name_of(inputs) + " to " + name_of(layout);
  const Setup<S> setup(c, inputs);
  hmsa::host_run::seed() = 0;
  const Stored<S> output = forward(c, setup, layout);
  expect_close<S>(output.load(), reference::fuse_scales(setup.problem), what);
  EXPECT(output.gaps_untouched(), what);
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    EXPECT(output.same_bits(forward(c, setup, layout)), what, ", seed ", seed);
  }
}

template <typename S>
void expect_forward(const Case& c, Layout layout) {
  expect_forward<S>(c, layout, layout);
}

void forward_matches_plain_loops() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kContiguous);
}

void forward_matches_in_channels_last() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kChannelsLast);
}

// A width of whole quads and one that is not, contiguous, channels_last and with gaps.
template <typename S>
void expect_quads_and_others() {
  const Case even{{2.0, 1.0, 0.5}, {11, 12}, {{6, 6}, {3, 4}, {2, 2}}, 2, 5, false, false};
  const Case odd{{1.0, 0.5}, {11, 13}, {{3, 4}, {2, 2}}, 2, 5, false, false};
  expect_forward<S>(even, Layout::kContiguous);
  expect_forward<S>(odd, Layout::kContiguous);
  expect_forward<S>(even, Layout::kChannelsLast);
  expect_forward<S>(odd, Layout::kChannelsLast);
  expect_forward<S>(even, Layout::kGaps);
}

void every_dtype_matches_in_every_layout() {
  expect_quads_and_others<float>();
  expect_quads_and_others<double>();
  expect_quads_and_others<Half>();
  expect_quads_and_others<BFloat16>();
}

void chains_of_all_kinds_match() {
  const std::vector<Case> chains = {
      {{1.0}, {9, 8}, {{3, 2}}, 1, 5, false, false},    // one scale,
      {{0.5}, {19, 20}, {{3, 3}}, 1, 5, false, false},  // through a grid of its own
      {{2.0}, {9, 12}, {{5, 5}}, 1, 6, false, true},    //
      {{2.0, 1.5, 1.25, 1.0}, {10, 12}, {{5, 7}, {4, 5}, {4, 4}, {3, 4}}, 1, 3, false, true},  // levels above the unit
      {{1.0, 0.75, 0.5, 0.25}, {21, 12}, {{6, 3}, {4, 3}, {3, 2}, {2, 1}}, 1, 6, false, false},  // and below
      {{2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.3},
       {7, 8},
       {{4, 5}, {4, 4}, {3, 4}, {3, 3}, {2, 3}, {2, 2}, {1, 2}, {1, 1}},
       1,
       3,
       false,
       false},
      {{1.0, 0.5}, {8, 8}, {{8, 8}, {4, 4}}, 1, 3, false, false},               // heads as large as their grids
      {{1.1, 1.0, 0.5}, {4, 4}, {{2, 2}, {4, 4}, {1, 1}}, 1, 3, false, false},  // two scales with the same grid
      {{1.3, 1.2, 1.0, 0.5}, {4, 4}, {{2, 2}, {3, 3}, {4, 4}, {1, 1}}, 1, 3, false, false},  // also between levels
      {{1.0, 0.02}, {100, 60}, {{3, 2}, {1, 1}}, 1, 3, false, false},
  };
  for (const Case& c : chains) {
    expect_forward<float>(c, Layout::kContiguous);
    expect_forward<float>(c, Layout::kChannelsLast);
  }
}

void class_wise_attention_matches() {
  const Case c{{2.0, 1.0, 0.5}, {17, 20}, {{9, 10}, {5, 5}, {3, 3}}, 1, 7, true, false};
  expect_forward<float>(c, Layout::kContiguous);
  expect_forward<float>(c, Layout::kChannelsLast);
}

// Blocks that make several groups of channels, and groups that are divided among blocks; the last ones are ragged.
void groups_of_channels_match() {
  expect_forward<float>({{1.0, 0.5}, {10, 24}, {{3, 6}, {2, 3}}, 1, 19, false, false}, Layout::kContiguous);
  expect_forward<float>({{1.0, 0.5}, {66, 132}, {{17, 33}, {9, 17}}, 2, 5, false, false}, Layout::kContiguous);
  expect_forward<float>({{1.0, 0.5}, {34, 40}, {{9, 10}, {5, 5}}, 1, 19, false, false}, Layout::kChannelsLast);
}

// More channels than a block takes at a time.
void chunks_of_channels_match() {
  for (const int channels : {164, 161}) {
    expect_forward<Half>({{1.0, 0.5}, {9, 12}, {{3, 4}, {2, 2}}, 1, channels, false, false}, Layout::kChannelsLast);
    expect_forward<Half>({{1.0, 0.5}, {9, 12}, {{3, 4}, {2, 2}}, 1, channels, false, false}, Layout::kContiguous);
  }
}

// A ratio between scales so large that a tile has to shrink.
void steep_ratios_match() {
  expect_forward<float>({{40.0, 2.0, 1.0}, {12, 16}, {{480, 640}, {24, 32}, {3, 4}}, 1, 2, false, false},
                        Layout::kContiguous);
}

// Grids of which three rows or columns lie on one of the head: the first one's taps and the second one's differ.
void ratios_of_three_match() {
  expect_forward<float>({{1.0, 0.5}, {19, 48}, {{5, 12}, {3, 6}}, 1, 3, false, false}, Layout::kContiguous);
  expect_forward<float>({{1.0, 0.5}, {48, 19}, {{12, 5}, {6, 3}}, 1, 3, false, false}, Layout::kChannelsLast);
  expect_forward<float>({{2.0, 1.0, 0.5}, {18, 36}, {{12, 24}, {6, 12}, {3, 6}}, 1, 3, false, false},
                        Layout::kContiguous);
}

void layouts_may_be_mixed() {
  const Case c{{2.0, 1.0, 0.5}, {10, 12}, {{5, 6}, {3, 3}, {2, 2}}, 2, 5, false, false};
  for (const Layout inputs : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    for (const Layout output : {Layout::kContiguous, Layout::kChannelsLast}) expect_forward<float>(c, inputs, output);
  }
}

// Offsets between channels that need 64 bits.
void wide_strides_match() {
  const Case c{{1.0, 0.5}, {9, 8}, {{3, 2}, {2, 1}}, 1, 1, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  Stored<float> output(c.batch, c.channels, c.size, Layout::kContiguous);
  hmsa::FuseScalesForward<float> problem = forward_problem(c, setup, output);
  problem.output.channel = int64_t{1} << 40;
  problem.logits[1].channel = int64_t{1} << 40;
  hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
  expect_close<float>(output.load(), reference::fuse_scales(setup.problem), text_of(c) + ", wide strides");
}

// A quad is one store only where it lies at a multiple of its size.
void any_alignment_matches() {
  const Case c{{1.0}, {4, 8}, {{2, 2}}, 1, 2, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  Stored<float> output(c.batch, c.channels, c.size, Layout::kContiguous);
  std::vector<float> memory(output.memory.size() + 8);
  for (int shift = 0; shift < 4; ++shift) {
    hmsa::FuseScalesForward<float> problem = forward_problem(c, setup, output);
    float* start = memory.data();
    while (reinterpret_cast<uintptr_t>(start) % 16 != 0) ++start;
    problem.output.data = start + shift;
    hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
    std::memcpy(output.memory.data(), start + shift, output.memory.size() * sizeof(float));
    expect_close<float>(output.load(), reference::fuse_scales(setup.problem), text_of(c) + ", shifted");
  }
}

// A resize that keeps its size is a copy: no zero weight turns a neighbour's infinity into NaN.
void equal_sizes_are_copied() {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    const Case c{{1.0}, {9, 8}, {{9, 8}}, 1, 3, false, false};
    const Setup<float> setup(c, layout);
    *setup.logits[0]->view.at(0, 1, 4, 4) = std::numeric_limits<float>::infinity();
    *setup.logits[0]->view.at(0, 1, 2, 1) = -std::numeric_limits<float>::infinity();
    *setup.logits[0]->view.at(0, 2, 0, 0) = -0.0f;
    *setup.logits[0]->view.at(0, 2, 0, 1) = std::numeric_limits<float>::max();
    EXPECT(forward(c, setup, layout).same_bits(*setup.logits[0]), name_of(layout));
  }
  const Case c{{1.0, 0.5}, {8, 8}, {{8, 8}, {4, 4}}, 1, 1, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  *setup.logits[0]->view.at(0, 0, 3, 3) = std::numeric_limits<float>::infinity();
  const Stored<float> output = forward(c, setup, Layout::kContiguous);
  for (int i = 0; i < 64; ++i) {
    EXPECT(i == 27 ? output.memory[i] == std::numeric_limits<float>::infinity() : std::isfinite(output.memory[i]),
           "element ", i, " is ", output.memory[i]);
  }
}

void octaves_match() {
  for (const Case& c : octave_cases()) {
    const Setup<float> setup(c, Layout::kContiguous);
    EXPECT(hmsa::cuda::fuse::is_octave(setup.chain), text_of(c));
    for (const Layout inputs : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      expect_forward<float>(c, inputs, Layout::kContiguous);
    }
    expect_forward<Half>(c, Layout::kContiguous);
    expect_forward<BFloat16>(c, Layout::kChannelsLast, Layout::kContiguous);
    expect_forward<float>(c, Layout::kChannelsLast);
  }
}

// An infinity in any element of any input: infinities and NaN where PyTorch has them, at the borders of the maps, too.
void infinities_pass_through_octaves() {
  for (const Case& c : {Case{{1.0, 0.5}, {8, 8}, {{2, 2}, {1, 1}}, 1, 2, false, false},
                        Case{{1.0, 0.5}, {16, 24}, {{4, 6}, {2, 3}}, 1, 2, false, false},
                        Case{{2.0, 1.0}, {12, 8}, {{6, 4}, {3, 2}}, 1, 2, false, false},
                        Case{{2.0, 1.0, 0.5}, {24, 24}, {{12, 12}, {6, 6}, {3, 3}}, 1, 2, false, false}}) {
    for (size_t i = 0; i < c.scales.size(); ++i) {
      for (int n = 0; n < c.heads[i].height * c.heads[i].width; ++n) {
        Setup<float> setup(c, Layout::kContiguous);
        Map& logits = setup.problem.logits[i];
        logits.at(0, 1, n / c.heads[i].width, n % c.heads[i].width) = INFINITY;
        setup.logits[i]->store(logits);
        const Map wanted = reference::fuse_scales(setup.problem);
        const Map got = forward(c, setup, Layout::kContiguous).load();
        for (size_t e = 0; e < got.values.size(); ++e) {
          const double a = got.values[e];
          const double b = wanted.values[e];
          EXPECT(std::isnan(a) == std::isnan(b) && std::isinf(a) == std::isinf(b), text_of(c), ", scale ", i,
                 ", infinite element ", n, ", output ", e, ": ", a, " instead of ", b);
        }
      }
    }
  }
}

void forward_matches_on_random_shapes() {
  for (const Case& c : random_cases(30)) {
    expect_forward<double>(c, c.batch == 1 ? Layout::kGaps : Layout::kChannelsLast);
  }
  for (Case c : random_cases(30)) {
    c.size.width = (c.size.width + 3) / 4 * 4;  // heads of any size will do
    expect_forward<float>(c, c.batch == 1 ? Layout::kContiguous : Layout::kChannelsLast);
  }
}

}  // namespace

int main() {
  RUN_TEST(forward_matches_plain_loops);
  RUN_TEST(forward_matches_in_channels_last);
  RUN_TEST(every_dtype_matches_in_every_layout);
  RUN_TEST(chains_of_all_kinds_match);
  RUN_TEST(class_wise_attention_matches);
  RUN_TEST(groups_of_channels_match);
  RUN_TEST(chunks_of_channels_match);
  RUN_TEST(steep_ratios_match);
  RUN_TEST(ratios_of_three_match);
  RUN_TEST(layouts_may_be_mixed);
  RUN_TEST(wide_strides_match);
  RUN_TEST(any_alignment_matches);
  RUN_TEST(equal_sizes_are_copied);
  RUN_TEST(octaves_match);
  RUN_TEST(infinities_pass_through_octaves);
  RUN_TEST(forward_matches_on_random_shapes);
  return testing::finish();
}
