// The CUDA kernels of fuse_scales, forward, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/fuse_scales_forward.cu"
#include "tests/fuse_scales_cases.h"

#include <limits>

namespace {

using namespace testing;

// Which instantiation a launch takes. Names are those of the template's parameters.
enum class Path { kPlanes4, kPixels4, kOneByOne };

const char* name_of(Path path) {
  return path == Path::kPlanes4   ? "planes, four at once"
         : path == Path::kPixels4 ? "pixels, four at once"
                                  : "one by one";
}

template <typename S>
Path path_of(const hmsa::FuseScalesForward<S>& problem) {
  const hmsa::cuda::forward::ForwardLayout layout = hmsa::cuda::forward::plan(problem);
  if (!hmsa::cuda::forward::goes_in_vectors(problem, layout)) return Path::kOneByOne;
  return layout.pixels ? Path::kPixels4 : Path::kPlanes4;
}

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

template <typename S>
void expect_path(const Case& c, Layout layout, Path path) {
  const Setup<S> setup(c, layout);
  Stored<S> output(c.batch, c.channels, c.size, layout);
  const Path taken = path_of(forward_problem(c, setup, output));
  EXPECT(taken == path, text_of(c), ", ", name_of(layout), " goes ", name_of(taken), " instead of ", name_of(path));
  expect_forward<S>(c, layout);
}

void forward_matches_plain_loops() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kContiguous);
}

void forward_matches_in_channels_last() {
  for (const Case& c : cases()) expect_forward<float>(c, Layout::kChannelsLast);
}

// Every instantiation, on a shape that four positions divide and on one that they do not.
template <typename S>
void expect_every_path() {
  const bool wide = sizeof(S) <= sizeof(float);  // double goes one by one
  const Case even{{2.0, 1.0, 0.5}, {11, 12}, {{6, 6}, {3, 4}, {2, 2}}, 2, 5, false, false};
  const Case odd{{1.0, 0.5}, {11, 13}, {{3, 4}, {2, 2}}, 2, 5, false, false};
  expect_path<S>(even, Layout::kContiguous, wide ? Path::kPlanes4 : Path::kOneByOne);
  expect_path<S>(odd, Layout::kContiguous, Path::kOneByOne);
  expect_path<S>(even, Layout::kChannelsLast, wide ? Path::kPixels4 : Path::kOneByOne);
  expect_path<S>(odd, Layout::kChannelsLast, Path::kOneByOne);
  expect_path<S>(even, Layout::kGaps, Path::kOneByOne);
}

void every_dtype_takes_every_path() {
  expect_every_path<float>();
  expect_every_path<double>();
  expect_every_path<Half>();
  expect_every_path<BFloat16>();
}

void chains_of_all_kinds_match_four_at_once() {
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
    expect_path<float>(c, Layout::kContiguous, Path::kPlanes4);
    expect_path<float>(c, Layout::kChannelsLast, Path::kPixels4);
  }
}

void class_wise_attention_matches() {
  const Case c{{2.0, 1.0, 0.5}, {17, 20}, {{9, 10}, {5, 5}, {3, 3}}, 1, 7, true, false};
  expect_path<float>(c, Layout::kContiguous, Path::kPlanes4);
  expect_path<float>(c, Layout::kChannelsLast, Path::kOneByOne);
}

// Blocks that make several groups of channels, and groups that are divided among blocks; the last ones are ragged.
void groups_of_channels_match() {
  expect_path<float>({{1.0, 0.5}, {10, 24}, {{3, 6}, {2, 3}}, 1, 19, false, false}, Layout::kContiguous,
                     Path::kPlanes4);
  expect_path<float>({{1.0, 0.5}, {66, 132}, {{17, 33}, {9, 17}}, 2, 5, false, false}, Layout::kContiguous,
                     Path::kPlanes4);
  expect_path<float>({{1.0, 0.5}, {34, 40}, {{9, 10}, {5, 5}}, 1, 19, false, false}, Layout::kChannelsLast,
                     Path::kPixels4);
}

// More channels than a line of pixels has room for.
void chunks_of_channels_match() {
  const auto with_channels = [](int channels) {
    return Case{{1.0, 0.5}, {9, 12}, {{3, 4}, {2, 2}}, 1, channels, false, false};
  };
  for (const int channels : {164, 161}) {
    const Case c = with_channels(channels);
    const Setup<Half> setup(c, Layout::kChannelsLast);
    Stored<Half> output(c.batch, c.channels, c.size, Layout::kChannelsLast);
    const hmsa::cuda::forward::ForwardLayout layout = hmsa::cuda::forward::plan(forward_problem(c, setup, output));
    EXPECT(layout.groups > 1 && channels % layout.channels != 0, "one group of ", layout.channels, " channels");
    expect_path<Half>(c, Layout::kChannelsLast, channels % 4 == 0 ? Path::kPixels4 : Path::kOneByOne);
  }
}

// A ratio between scales so large that a tile has to shrink.
void steep_ratios_shrink_the_tile() {
  const Case c{{40.0, 2.0, 1.0}, {12, 16}, {{480, 640}, {24, 32}, {3, 4}}, 1, 2, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  Stored<float> output(c.batch, c.channels, c.size, Layout::kContiguous);
  const hmsa::cuda::forward::ForwardLayout layout = hmsa::cuda::forward::plan(forward_problem(c, setup, output));
  EXPECT(layout.tile.height < 12, "a tile has ", layout.tile.height, " rows");
  expect_path<float>(c, Layout::kContiguous, Path::kPlanes4);
}

void layouts_may_be_mixed() {
  const Case c{{2.0, 1.0, 0.5}, {10, 12}, {{5, 6}, {3, 3}, {2, 2}}, 2, 5, false, false};
  for (const Layout inputs : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    for (const Layout output : {Layout::kContiguous, Layout::kChannelsLast}) expect_forward<float>(c, inputs, output);
  }
}

// Offsets inside a tile that need 64 bits: only the generic kernel has them.
void wide_strides_go_one_by_one() {
  const Case c{{1.0, 0.5}, {9, 8}, {{3, 2}, {2, 1}}, 1, 1, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  Stored<float> output(c.batch, c.channels, c.size, Layout::kContiguous);
  hmsa::FuseScalesForward<float> problem = forward_problem(c, setup, output);
  EXPECT(path_of(problem) == Path::kPlanes4);
  problem.output.channel = int64_t{1} << 40;
  problem.logits[1].channel = int64_t{1} << 40;
  EXPECT(path_of(problem) == Path::kOneByOne);
  hmsa::cuda::launch_fuse_scales_forward(problem, nullptr);
  expect_close<float>(output.load(), reference::fuse_scales(setup.problem), text_of(c) + ", wide strides");
}

void vectors_need_alignment() {
  const Case c{{1.0}, {4, 8}, {{2, 2}}, 1, 2, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  Stored<float> output(c.batch, c.channels, c.size, Layout::kContiguous);
  std::vector<float> memory(output.memory.size() + 8);
  for (int shift = 0; shift < 4; ++shift) {
    hmsa::FuseScalesForward<float> problem = forward_problem(c, setup, output);
    float* start = memory.data();
    while (reinterpret_cast<uintptr_t>(start) % 16 != 0) ++start;
    problem.output.data = start + shift;
    EXPECT(path_of(problem) == (shift == 0 ? Path::kPlanes4 : Path::kOneByOne), "shift ", shift);
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
  RUN_TEST(every_dtype_takes_every_path);
  RUN_TEST(chains_of_all_kinds_match_four_at_once);
  RUN_TEST(class_wise_attention_matches);
  RUN_TEST(groups_of_channels_match);
  RUN_TEST(chunks_of_channels_match);
  RUN_TEST(steep_ratios_shrink_the_tile);
  RUN_TEST(layouts_may_be_mixed);
  RUN_TEST(wide_strides_go_one_by_one);
  RUN_TEST(vectors_need_alignment);
  RUN_TEST(equal_sizes_are_copied);
  RUN_TEST(forward_matches_on_random_shapes);
  return testing::finish();
}
