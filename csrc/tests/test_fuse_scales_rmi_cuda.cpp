// The CUDA kernels of the region mutual information loss, forward and backward, run on the CPU by host_run, against
// plain loops in double.
#include "host_run/cuda_host.h"
// GCC unrolls the loops over scales beyond kMaxScales, although chain.count bounds them, and warns of its own doing.
// AddressSanitizer and UndefinedBehaviorSanitizer watch the subscripts for real.
#pragma GCC diagnostic ignored "-Warray-bounds"
// The kernels see CUDA as a .cu file does.
#define HMSA_NO_INSTANTIATIONS
#include "ops/cuda/fuse_scales_channel_sums.cu"
#include "ops/cuda/fuse_scales_rmi_backward.cu"
#include "ops/cuda/fuse_scales_rmi_forward.cu"
#include "ops/cuda/fuse_scales_rmi_gradient.cu"
#include "ops/cuda/fuse_scales_rmi_pool.cu"
#include "ops/cuda/fuse_scales_rmi_probability.cu"
#include "ops/cuda/gradient_parts.cu"
#include "tests/fuse_scales_rmi_cases.h"

namespace {

using namespace testing;
using hmsa::host_run::PoisonedMemory;

// Workspaces small enough for several bands, and those of real launches.
constexpr int64_t kSmall = 3000;

template <typename S>
void forward(const RmiSetup<S>& setup, int64_t bytes, RmiResults& results) {
  const hmsa::FuseScalesRmiForward<S> problem = rmi_forward_problem(setup, results);
  const PoisonedMemory workspace(static_cast<size_t>(hmsa::cuda::forward::plan_moments(problem, bytes).bytes()));
  hmsa::cuda::forward::launch_in_parts(problem, bytes, workspace.data(), nullptr);
}

template <typename S>
void backward(const RmiSetup<S>& setup, const std::vector<double>& mean, int64_t bytes, StoredMaps<S>& maps) {
  const hmsa::FuseScalesRmiBackward<S> problem = rmi_backward_problem(setup, mean, maps);
  const auto numbers = static_cast<size_t>(hmsa::cuda::forward::BandMemory<S>(problem, bytes).numbers());
  const PoisonedMemory workspace(numbers * sizeof(hmsa::arithmetic_t<S>));
  hmsa::cuda::forward::launch_in_bands(problem, bytes, workspace.data(), nullptr);
}

template <typename S>
void expect_rmi(const Case& c, Layout layout, LabelType type = LabelType::kUint8) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const RmiSetup<S> setup(c, layout, type);
  StoredMaps<S> maps, other;
  RmiResults first, again;
  hmsa::host_run::seed() = 0;
  forward(setup, hmsa::cuda::forward::kProbabilityBytes, first);
  testing::expect_rmi(setup, first, what);
  backward(setup, first.mean, hmsa::cuda::forward::kGradientBytes, maps);
  expect_rmi_gradients(setup, maps, what);
  // In bands, the last digits of sums differ, but those of gradients do not.
  hmsa::host_run::seed() = 1;
  forward(setup, kSmall, again);
  testing::expect_rmi(setup, again, what + ", in bands");
  backward(setup, first.mean, kSmall, other);
  for (size_t m = 0; m < maps.size(); ++m) EXPECT(other[m]->same_bits(*maps[m]), what, ", in bands, map ", m);
}

// Chains of octaves, in a workspace of at most so many bytes.
template <typename S>
void octaves_forward(const RmiSetup<S>& setup, int64_t bytes, RmiResults& results) {
  const hmsa::FuseScalesRmiForward<S> problem = rmi_forward_problem(setup, results);
  hmsa::cuda::fuse::OctaveMomentsPlan plan;
  EXPECT(hmsa::cuda::fuse::plan_octave_moments(problem, bytes, plan), text_of(setup.c));
  EXPECT(plan.bytes() <= bytes, text_of(setup.c));
  const PoisonedMemory workspace(static_cast<size_t>(plan.bytes()));
  hmsa::cuda::fuse::launch_octave_moments(problem, plan, workspace.data(), nullptr);
}

template <typename S>
void octaves_backward(const RmiSetup<S>& setup, const std::vector<double>& mean, int64_t bytes, StoredMaps<S>& maps) {
  const hmsa::FuseScalesRmiBackward<S> problem = rmi_backward_problem(setup, mean, maps);
  hmsa::cuda::fuse::OctaveGradientPlan plan;
  EXPECT(hmsa::cuda::fuse::plan_octave_gradient(problem, bytes, plan), text_of(setup.c));
  EXPECT(plan.bytes() <= bytes, text_of(setup.c));
  const PoisonedMemory workspace(static_cast<size_t>(plan.bytes()));
  hmsa::cuda::fuse::launch_octave_gradient(problem, plan, workspace.data(), nullptr);
}

// Bytes that do not hold all images of a case.
int64_t too_few_bytes(const Case& c) {
  const int64_t windows = (c.size.height / 4 + 1) * (c.size.width / 4 + 4);
  return (windows * 8 + 8000) * c.channels + 20000;
}

template <typename S>
void expect_octaves(const Case& c, Layout layout, LabelType type) {
  const std::string what = text_of(c) + ", " + name_of(layout);
  const RmiSetup<S> setup(c, layout, type);
  StoredMaps<S> maps, other;
  RmiResults first, again;
  hmsa::host_run::seed() = 0;
  octaves_forward(setup, hmsa::cuda::fuse::kRmiBytes, first);
  testing::expect_rmi(setup, first, what);
  octaves_backward(setup, first.mean, hmsa::cuda::fuse::kRmiBytes, maps);
  expect_rmi_gradients(setup, maps, what);
  // Neither the order of threads matters, nor what is done at a time.
  hmsa::host_run::seed() = 1;
  octaves_forward(setup, too_few_bytes(c), again);
  testing::expect_rmi(setup, again, what + ", in parts");
  octaves_backward(setup, first.mean, too_few_bytes(c), other);
  for (size_t m = 0; m < maps.size(); ++m) EXPECT(other[m]->same_bits(*maps[m]), what, ", in parts, map ", m);
}

void octaves_match_plain_loops() {
  for (const Case& c : rmi_octave_cases()) expect_octaves<float>(c, Layout::kContiguous, LabelType::kUint8);
  const Case c = rmi_octave_cases()[0];
  expect_octaves<float>(c, Layout::kGaps, LabelType::kInt64);
  expect_octaves<Half>(c, Layout::kChannelsLast, LabelType::kInt16);
  expect_octaves<BFloat16>(c, Layout::kContiguous, LabelType::kInt32);
}

// What is promised of covariances: errors far below the ridge of the loss, whatever the maps. Where logits are constant or
// beyond doubt, labels are one class, absent or ignored, the matrices are singular but for it.
void degenerate_maps_stay_accurate() {
  using Edit = RmiSetup<float>::Edit;
  const auto logits = [](const auto& value) {
    return [value](reference::Problem& problem, const Labels& labels) {
      for (Map& map : problem.logits) {
        reference::for_all(map, [&](int b, int c, int y, int x) {
          const int row = y * labels.size.height / map.size.height, column = x * labels.size.width / map.size.width;
          map.at(b, c, y, x) = value(labels.at(b, row, column) == c, (x + y) % 3);
        });
      }
    };
  };
  const auto labels = [](const auto& value) {
    return [value](Labels& of) {
      for (int y = 0; y < of.size.height; ++y) {
        for (int x = 0; x < of.size.width; ++x) of.at(0, y, x) = value(y, x);
      }
    };
  };
  const std::vector<std::function<void(Labels&)>> label_maps = {
      labels([](int, int) { return 1; }),         // one class, the others are absent
      labels([](int, int x) { return x / 24; }),  // halves, one class is absent
      labels([](int, int) { return 255; }),       // all ignored
      labels([](int y, int x) { return (x / 4 + y / 4) % 3; }),
  };
  const std::vector<std::function<void(reference::Problem&, const Labels&)>> logit_maps = {
      logits([](bool, int) { return 0.7; }),
      logits([](bool is_class, int) { return is_class ? 50.0 : -50.0; }),
      logits([](bool is_class, int) { return is_class ? -50.0 : 50.0; }),
      logits([](bool, int noise) { return 1e-6 * noise; }),
  };
  const Case c = {{1.0, 0.5}, {32, 48}, {{8, 12}, {4, 6}}, 1, 3, false, false};
  for (size_t i = 0; i < label_maps.size(); ++i) {
    for (size_t j = 0; j < logit_maps.size(); ++j) {
      const std::string what = hmsa::concat("labels ", i, ", logits ", j);
      const Edit edit = [&](reference::Problem& problem, Labels& of) {
        label_maps[i](of);
        logit_maps[j](problem, of);
      };
      const RmiSetup<float> setup(c, Layout::kContiguous, LabelType::kUint8, edit);
      RmiResults results;
      octaves_forward(setup, hmsa::cuda::fuse::kRmiBytes, results);
      testing::expect_rmi(setup, results, what);
      for (size_t k = 0; k < setup.wanted.classes.size(); ++k) {
        const double got = half_log_det(&results.covariance[k * 18 * 18]);
        const double wanted = half_log_det(setup.wanted.classes[k].covariance[0].data());
        EXPECT(near(got, wanted, 1e-5), what, ", class ", k, ": log det ", got, " instead of ", wanted);
      }
      StoredMaps<float> maps;
      octaves_backward(setup, results.mean, hmsa::cuda::fuse::kRmiBytes, maps);
      expect_rmi_gradients(setup, maps, what);
    }
  }
}

void losses_match_plain_loops() {
  const std::vector<Case> all = cases();
  for (const size_t i : {size_t{0}, size_t{2}, size_t{6}, size_t{9}, size_t{12}}) {
    expect_rmi<float>(all[i], Layout::kContiguous);
  }
  for (const Case& c : rmi_cases()) expect_rmi<float>(c, Layout::kGaps, LabelType::kInt64);
}

void losses_match_in_every_dtype_and_layout() {
  const Case c = rmi_cases()[2];
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    expect_rmi<float>(c, layout, LabelType::kInt32);
  }
  expect_rmi<double>(c, Layout::kGaps, LabelType::kInt16);
  expect_rmi<Half>(c, Layout::kContiguous, LabelType::kInt64);
  expect_rmi<BFloat16>(c, Layout::kChannelsLast);
  expect_rmi<double>(rmi_cases()[3], Layout::kChannelsLast);
}

// Every order of threads and blocks gives the same bits.
void results_do_not_depend_on_the_order() {
  const Case c = rmi_cases()[3];
  const RmiSetup<float> setup(c, Layout::kContiguous, LabelType::kUint8);
  RmiResults first;
  StoredMaps<float> maps;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    RmiResults results;
    StoredMaps<float> other;
    forward(setup, 40 * kSmall, results);
    backward(setup, results.mean, 4 * kSmall, other);
    if (seed == 0) first = results, maps = std::move(other);
    EXPECT(results == first, "seed ", seed);
    for (size_t m = 0; seed > 0 && m < maps.size(); ++m) EXPECT(other[m]->same_bits(*maps[m]), "seed ", seed);
  }
}

// A wrong label makes everything NaN, a NaN among the logits what is of its class; one at ignored pixels is nothing.
void octaves_are_loud() {
  const Case c = {{1.0, 0.5}, {24, 16}, {{6, 4}, {3, 2}}, 1, 3, false, false};
  const auto covariance_is_nan = [](const RmiResults& results, size_t k) {
    return std::isnan(results.covariance[k * 18 * 18]) && std::isnan(results.mean[k * 18 + 17]);
  };
  for (const bool ignored : {false, true}) {
    const RmiSetup<float> setup(c, Layout::kContiguous, LabelType::kUint8,
                                [&](reference::Problem& problem, Labels& of) {
                                  problem.logits[0].at(0, 1, 0, 0) = NAN;
                                  for (int64_t& label : of.values) label = ignored ? 255 : 0;
                                });
    RmiResults results;
    octaves_forward(setup, hmsa::cuda::fuse::kRmiBytes, results);
    EXPECT(std::isnan(results.bce) == !ignored, results.bce);
    EXPECT(covariance_is_nan(results, 1) == !ignored, "ignored ", ignored);
    EXPECT(!covariance_is_nan(results, 0) && !covariance_is_nan(results, 2), "ignored ", ignored);
  }
  const RmiSetup<float> setup(c, Layout::kContiguous, LabelType::kInt32,
                              [](reference::Problem&, Labels& of) { of.at(0, 20, 12) = 3; });
  RmiResults results;
  octaves_forward(setup, hmsa::cuda::fuse::kRmiBytes, results);
  EXPECT(std::isnan(results.bce), results.bce);
  for (size_t k = 0; k < 3; ++k) EXPECT(covariance_is_nan(results, k), "class ", k);
  StoredMaps<float> maps;
  octaves_backward(setup, std::vector<double>(3 * 18, 0.5), hmsa::cuda::fuse::kRmiBytes, maps);
  const Map gradient = maps[0]->load();
  for (int k = 0; k < 3; ++k) {
    EXPECT(std::isnan(gradient.at(0, k, 5, 3)), "class ", k);  // under the pixel
    EXPECT(!std::isnan(gradient.at(0, k, 0, 0)), "class ", k);
  }
}

// The binary cross-entropy is NaN, and so is the gradient of the pixel; pixels that do not share a window with it are
// not touched.
void wrong_labels_are_loud() {
  const Case c = {{1.0}, {21, 18}, {{21, 18}}, 1, 2, false, false};
  const RmiSetup<float> setup(c, Layout::kContiguous, LabelType::kInt32);
  Labels labels = setup.target.labels;
  labels.at(0, 9, 9) = 2;
  const StoredLabels stored(labels, LabelType::kInt32, false);
  RmiResults results;
  hmsa::FuseScalesRmiForward<float> problem = rmi_forward_problem(setup, results);
  problem.labels = stored.view;
  const PoisonedMemory workspace(static_cast<size_t>(hmsa::cuda::fuse_scales_rmi_forward_workspace(problem)));
  hmsa::cuda::launch_fuse_scales_rmi_forward(problem, workspace.data(), nullptr);
  EXPECT(std::isnan(results.bce), results.bce);
  StoredMaps<float> maps;
  hmsa::FuseScalesRmiBackward<float> backward = rmi_backward_problem(setup, results.mean, maps);
  backward.labels = stored.view;
  const PoisonedMemory more(static_cast<size_t>(hmsa::cuda::fuse_scales_rmi_backward_workspace(backward)) + 1);
  hmsa::cuda::launch_fuse_scales_rmi_backward(backward, more.data(), nullptr);
  const Map gradient = maps[0]->load();
  reference::for_all(gradient, [&](int b, int k, int y, int x) {
    EXPECT(std::isnan(gradient.at(b, k, y, x)) == (y == 9 && x == 9), "pixel ", y, ", ", x);
  });
}

}  // namespace

int main() {
  RUN_TEST(octaves_match_plain_loops);
  RUN_TEST(degenerate_maps_stay_accurate);
  RUN_TEST(losses_match_plain_loops);
  RUN_TEST(losses_match_in_every_dtype_and_layout);
  RUN_TEST(results_do_not_depend_on_the_order);
  RUN_TEST(octaves_are_loud);
  RUN_TEST(wrong_labels_are_loud);
  return finish();
}
