// The CUDA kernels of the cross-entropy, forward, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/fuse_scales_cross_entropy_forward.cu"
#include "tests/label_cases.h"

#include <limits>

namespace {

using namespace testing;
using hmsa::Reduction;
using hmsa::cuda::forward::kClassesAtOnce;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
struct Result {
  std::vector<T> loss, log_sum_exp;
  T total_weight;

  bool same_bits(const Result& other) const {
    const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
    };
    return same(loss, other.loss) && same(log_sum_exp, other.log_sum_exp) &&
           std::memcmp(&total_weight, &other.total_weight, sizeof(T)) == 0;
  }
};

template <typename S>
Result<hmsa::arithmetic_t<S>> forward(const hmsa::FuseScalesCrossEntropyForward<S>& given, Size size) {
  using T = hmsa::arithmetic_t<S>;
  hmsa::FuseScalesCrossEntropyForward<S> problem = given;
  const auto pixels = static_cast<size_t>(problem.batch) * size.height * size.width;
  Result<T> result;
  result.loss.assign(problem.reduction == Reduction::kNone ? pixels : 1, T(-7));
  result.log_sum_exp.assign(pixels, T(-7));
  problem.loss = result.loss.data();
  problem.log_sum_exp = result.log_sum_exp.data();
  problem.total_weight = &result.total_weight;
  const int64_t numbers = hmsa::cuda::fuse_scales_cross_entropy_forward_workspace(problem);
  const hmsa::host_run::PoisonedMemory workspace(static_cast<size_t>(numbers) * sizeof(double));
  hmsa::cuda::launch_fuse_scales_cross_entropy_forward(problem, workspace.data(), nullptr);
  return result;
}

// Of fused logits up to about 4: each pixel's error is that of its logits, the means' is smaller.
template <typename T>
constexpr double kPixelTolerance = sizeof(T) == sizeof(float) ? 2e-5 : 1e-12;
template <typename T>
constexpr double kSumTolerance = sizeof(T) == sizeof(float) ? 1e-6 : 1e-12;

template <typename S>
void expect_forward(const Case& c, const Setup<S>& setup, Target target, Reduction reduction, LabelType type, bool gaps,
                    const std::string& layout) {
  using T = hmsa::arithmetic_t<S>;
  const std::string what = text_of(c) + ", " + layout + ", smoothing " + std::to_string(target.label_smoothing) +
                           ", reduction " + std::to_string(static_cast<int>(reduction));
  const std::vector<T> weight = stored_weights<T>(target);
  const bool weighted = weight.front() != T(1) || weight.back() != T(1);
  const StoredLabels labels(target.labels, type, gaps);
  hmsa::FuseScalesCrossEntropyForward<S> problem{};
  set_inputs(problem, c, setup);
  const T smoothing = static_cast<T>(target.label_smoothing);
  target.label_smoothing = smoothing;
  problem.target = {labels.view, weighted ? weight.data() : nullptr, target.ignore_index, smoothing};
  problem.reduction = reduction;
  hmsa::host_run::seed() = 0;
  const Result<T> got = forward(problem, c.size);

  const reference::CrossEntropy wanted = reference::cross_entropy(reference::fuse_scales(setup.problem), target);
  for (size_t i = 0; i < wanted.loss.values.size(); ++i) {
    EXPECT(near(got.log_sum_exp[i], wanted.log_sum_exp.values[i], kPixelTolerance<T>), what, ", log-sum-exp ", i, ": ",
           got.log_sum_exp[i], " instead of ", wanted.log_sum_exp.values[i]);
    if (reduction != Reduction::kNone) continue;
    EXPECT(near(got.loss[i], wanted.loss.values[i], kPixelTolerance<T>), what, ", pixel ", i, ": ", got.loss[i],
           " instead of ", wanted.loss.values[i]);
  }
  EXPECT(near(got.total_weight, wanted.total_weight, kSumTolerance<T> * wanted.total_weight), what, ", total weight ",
         got.total_weight, " instead of ", wanted.total_weight);
  if (reduction != Reduction::kNone) {
    const double loss = reduction == Reduction::kMean ? wanted.sum / wanted.total_weight : wanted.sum;
    EXPECT(near(got.loss[0], loss, kSumTolerance<T> * std::fabs(loss)), what, ": ", got.loss[0], " instead of ", loss);
  }
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    EXPECT(got.same_bits(forward(problem, c.size)), what, ", seed ", seed);
  }
}

template <typename S>
void expect_forward(const Case& c, Layout layout, bool weights, double smoothing, Reduction reduction,
                    LabelType type = LabelType::kUint8, bool gaps = false) {
  const Setup<S> setup(c, layout);
  expect_forward<S>(c, setup, random_target(c, weights, smoothing), reduction, type, gaps, name_of(layout));
}

constexpr Reduction kReductions[] = {Reduction::kNone, Reduction::kSum, Reduction::kMean};

void loss_matches_plain_loops() {
  int k = 0;
  for (const Case& c : cases()) {
    expect_forward<float>(c, Layout::kContiguous, k % 2 == 1, k % 3 == 2 ? 0.1 : 0.0, kReductions[k % 3]);
    ++k;
  }
}

template <typename S>
void expect_everywhere(const Case& c) {
  for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
    expect_forward<S>(c, layout, true, 0.2, Reduction::kMean, LabelType::kInt64, true);
  }
  for (const Reduction reduction : kReductions) {
    expect_forward<S>(c, Layout::kContiguous, false, 0.0, reduction, LabelType::kInt16);
    expect_forward<S>(c, Layout::kChannelsLast, true, 0.1, reduction, LabelType::kInt32, true);
  }
}

void loss_matches_in_every_dtype_and_layout() {
  for (const Case& c : {Case{{1.0, 0.5}, {11, 13}, {{3, 4}, {2, 2}}, 2, 6, false, false},
                        Case{{2.0, 1.0, 0.5}, {9, 12}, {{5, 6}, {3, 3}, {2, 2}}, 1, 5, true, true}}) {
    expect_everywhere<float>(c);
    expect_everywhere<double>(c);
    expect_everywhere<Half>(c);
    expect_everywhere<BFloat16>(c);
  }
}

void loss_matches_on_random_shapes() {
  int k = 0;
  for (const Case& c : random_cases(16)) {
    expect_forward<double>(c, Layout::kGaps, true, k % 2 == 0 ? 0.3 : 0.0, kReductions[k % 3], LabelType::kInt64, true);
    expect_forward<float>(c, Layout::kChannelsLast, k % 2 == 0, 0.0, kReductions[(k + 1) % 3]);
    ++k;
  }
}

void loss_matches_with_many_classes() {
  for (const int classes : {1, 4, 150, 300}) {
    const Case c{{1.0}, {8, 9}, {{2, 3}}, 1, classes, false, false};
    expect_forward<float>(c, Layout::kContiguous, true, 0.1, Reduction::kMean, LabelType::kInt32);
    expect_forward<Half>(c, Layout::kChannelsLast, false, 0.0, Reduction::kNone, LabelType::kInt16);
  }
}

// Several tiles, images that go round, and the narrow tiles of a steep ratio between scales.
void tiles_cover_the_image() {
  expect_forward<float>({{1.0}, {70, 67}, {{9, 9}}, 1, 2, false, false}, Layout::kContiguous, true, 0.0,
                        Reduction::kMean);
  expect_forward<float>({{40.0, 2.0, 1.0}, {12, 16}, {{480, 640}, {24, 32}, {3, 4}}, 1, 2, false, false},
                        Layout::kContiguous, true, 0.0, Reduction::kNone);
}

// Offsets between channels that need 64 bits: one class at a time.
void wide_strides_match() {
  const Case c{{1.0, 0.5}, {9, 8}, {{3, 2}, {2, 1}}, 1, 1, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  hmsa::ChainInputs<float> inputs{};
  set_inputs(inputs, c, setup);
  EXPECT(hmsa::cuda::forward::takes_four_classes(inputs));
  setup.logits[1]->view.channel = int64_t{1} << 40;
  set_inputs(inputs, c, setup);
  EXPECT(!hmsa::cuda::forward::takes_four_classes(inputs));
  expect_forward<float>(c, setup, random_target(c, true, 0.1), Reduction::kNone, LabelType::kUint8, false, "wide");
}

void ignored_pixels_count_nothing() {
  const Case c{{1.0, 0.5}, {6, 7}, {{3, 4}, {2, 2}}, 2, 3, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  for (const int64_t ignore_index : {int64_t{255}, int64_t{-100}, int64_t{1}}) {
    for (const Reduction reduction : kReductions) {
      Target target = random_target(c, true, 0.1);
      target.ignore_index = ignore_index;
      // Of a class that is ignored, some pixels; of any other ignored value, all: the mean is 0 / 0.
      target.labels = random_labels(c.batch, c.size, c.channels, ignore_index, ignore_index == 1 ? 0.5 : 1.0, 3);
      expect_forward<float>(c, setup, target, reduction, LabelType::kInt16, false, "ignored");
    }
  }
}

void wrong_labels_make_the_loss_nan() {
  const Case c{{1.0}, {5, 6}, {{2, 3}}, 1, 3, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  for (const int64_t wrong : {int64_t{3}, int64_t{-1}, int64_t{200}, (int64_t{1} << 32) + 1}) {
    for (const Reduction reduction : kReductions) {
      Target target = random_target(c, false, 0.0);
      target.labels.at(0, 2, 3) = wrong;
      const LabelType type = wrong > 255 || wrong < 0 ? LabelType::kInt64 : LabelType::kUint8;
      expect_forward<float>(c, setup, target, reduction, type, false, "wrong " + std::to_string(wrong));
    }
  }
}

// Heads as large as the output, so that a logit is one pixel's. The first group of classes has nothing but -inf.
void infinite_logits_pass_through() {
  for (const int at : {0, 2, 6}) {
    for (const double value : {kInfinity, -kInfinity, static_cast<double>(NAN)}) {
      for (const double smoothing : {0.0, 0.1}) {
        const Case c{{1.0}, {4, 5}, {{4, 5}}, 1, 7, false, false};
        Setup<float> setup(c, Layout::kContiguous);
        Map& logits = setup.problem.logits[0];
        for (int k = 0; k < kClassesAtOnce; ++k) logits.at(0, k, 1, 2) = -kInfinity;
        for (int k = 0; k < c.channels; ++k) logits.at(0, k, 3, 3) = -kInfinity;
        logits.at(0, at, 2, 2) = value;
        logits.at(0, at, 1, 1) = -kInfinity;
        setup.logits[0]->store(logits);
        Target target = random_target(c, false, smoothing);
        // The plain resize multiplies infinities by weights of zero; equal sizes are copied by the kernels, as in PyTorch.
        using T = float;
        const StoredLabels labels(target.labels, LabelType::kUint8, false);
        hmsa::FuseScalesCrossEntropyForward<float> problem{};
        set_inputs(problem, c, setup);
        problem.target = {labels.view, nullptr, target.ignore_index, static_cast<T>(smoothing)};
        problem.reduction = Reduction::kNone;
        const Result<T> got = forward(problem, c.size);
        const reference::CrossEntropy wanted = reference::cross_entropy(logits, target);
        for (size_t i = 0; i < got.loss.size(); ++i) {
          EXPECT(near(got.loss[i], wanted.loss.values[i], 2e-5), value, " at class ", at, ", pixel ", i, ": ",
                 got.loss[i], " instead of ", wanted.loss.values[i]);
        }
      }
    }
  }
}

// Chains of octaves, and a lone scale with a head at a quarter.
void octaves_match() {
  const Layout layouts[] = {Layout::kContiguous, Layout::kGaps, Layout::kChannelsLast};
  const LabelType types[] = {LabelType::kUint8, LabelType::kInt16, LabelType::kInt32, LabelType::kInt64};
  int k = 0;
  for (const Case& c : quarter_cases()) {
    EXPECT(hmsa::cuda::fuse::is_octave_of_end(Setup<float>(c, Layout::kContiguous).chain), text_of(c));
    const LabelType type = c.channels > 256 ? LabelType::kInt32 : types[k % 4];
    expect_forward<float>(c, layouts[k % 3], k % 2 == 0, k % 4 < 2 ? 0.1 : 0.0, kReductions[k % 3], type, k % 2 == 1);
    expect_forward<float>(c, layouts[(k + 1) % 3], k % 2 == 1, 0.0, kReductions[(k + 1) % 3], type);
    if (k % 3 == 0) expect_forward<Half>(c, layouts[(k + 2) % 3], true, 0.2, Reduction::kNone, type);
    if (k % 3 == 1) expect_forward<BFloat16>(c, layouts[(k + 2) % 3], false, 0.0, Reduction::kMean, type);
    ++k;
  }
}

// Infinities and NaN anywhere in the logits, numbers whose exponentials need care, and wrong labels.
void special_problems_pass_through_octaves() {
  std::mt19937 random(3);
  for (const Case& c : quarter_cases()) {
    for (const std::string what : {"infinities and NaN", "mostly -inf", "large numbers", "wrong labels"}) {
      Setup<float> setup(c, Layout::kContiguous);
      spoil_logits(setup, what, random);
      Target target = random_target(c, false, 0.0);
      if (what == "wrong labels") target.labels.values[target.labels.values.size() / 2] = c.channels;
      const StoredLabels labels(target.labels, LabelType::kInt32, false);
      hmsa::FuseScalesCrossEntropyForward<float> problem{};
      set_inputs(problem, c, setup);
      problem.target = {labels.view, nullptr, target.ignore_index, 0.0f};
      problem.reduction = Reduction::kNone;
      const Result<float> got = forward(problem, c.size);
      const reference::CrossEntropy wanted = reference::cross_entropy(fused_once(setup.problem), target);
      for (size_t i = 0; i < got.loss.size(); ++i) {
        const double loss = wanted.loss.values[i];
        const double tolerance = what == "large numbers" ? 4e-6 * 2.4e38 : 2e-5;
        // The largest numbers have no difference in float.
        const bool fits = near(got.loss[i], loss, tolerance) || std::fabs(loss) > std::numeric_limits<float>::max();
        EXPECT(fits, text_of(c), ", ", what, ", pixel ", i, ": ", got.loss[i], " instead of ", loss);
      }
    }
  }
}

void no_images_have_no_loss() {
  const Case c{{1.0}, {4, 5}, {{4, 5}}, 1, 3, false, false};
  const Setup<float> setup(c, Layout::kContiguous);
  for (const Reduction reduction : {Reduction::kSum, Reduction::kMean}) {
    hmsa::FuseScalesCrossEntropyForward<float> problem{};
    set_inputs(problem, c, setup);
    problem.batch = 0;
    problem.reduction = reduction;
    const Result<float> got = forward(problem, c.size);
    EXPECT(near(got.loss[0], reduction == Reduction::kSum ? 0.0 : NAN, 0.0), got.loss[0]);
    EXPECT_EQUAL(got.total_weight, 0.0f);
  }
}

}  // namespace

int main() {
  RUN_TEST(loss_matches_plain_loops);
  RUN_TEST(loss_matches_in_every_dtype_and_layout);
  RUN_TEST(loss_matches_on_random_shapes);
  RUN_TEST(loss_matches_with_many_classes);
  RUN_TEST(tiles_cover_the_image);
  RUN_TEST(wide_strides_match);
  RUN_TEST(ignored_pixels_count_nothing);
  RUN_TEST(wrong_labels_make_the_loss_nan);
  RUN_TEST(infinite_logits_pass_through);
  RUN_TEST(octaves_match);
  RUN_TEST(special_problems_pass_through_octaves);
  RUN_TEST(no_images_have_no_loss);
  return testing::finish();
}
