// The CUDA kernel of the prediction, run on the CPU by host_run, against plain loops in double.
#include "host_run/cuda_host.h"
// The kernels see CUDA as a .cu file does.
#include "ops/cuda/fuse_scales_argmax.cu"
#include "tests/label_cases.h"

#include <limits>

namespace {

using namespace testing;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
struct Result {
  std::vector<int32_t> labels;
  std::vector<T> confidence;

  bool same_bits(const Result& other) const {
    return labels == other.labels &&
           std::memcmp(confidence.data(), other.confidence.data(), confidence.size() * sizeof(T)) == 0;
  }
};

// `c` has the images of all views.
template <typename S>
Result<hmsa::arithmetic_t<S>> predict(const Case& c, const Setup<S>& setup, int views, bool confident = true) {
  hmsa::FuseScalesArgmax<S> problem{};
  set_inputs(problem, c, setup);
  problem.batch = c.batch / views;
  problem.views = views;
  const auto pixels = static_cast<size_t>(problem.batch) * c.size.height * c.size.width;
  Result<hmsa::arithmetic_t<S>> result;
  result.confidence.assign(pixels, -7);
  problem.confidence = confident ? result.confidence.data() : nullptr;
  std::vector<uint8_t> bytes(pixels, 0xee);
  result.labels.assign(pixels, -7);
  problem.labels = c.channels <= 256 ? static_cast<void*>(bytes.data()) : result.labels.data();
  hmsa::cuda::launch_fuse_scales_argmax(problem, nullptr);
  if (c.channels <= 256) result.labels.assign(bytes.begin(), bytes.end());
  return result;
}

Map fused_of(const reference::Problem& problem, int views) {
  const Map fused = reference::fuse_scales(problem);
  return views == 2 ? reference::average_views(fused) : fused;
}

// Where two classes are as good as equal either will do.
template <typename S>
void expect_prediction(const Case& c, const Setup<S>& setup, const Map& fused, int views, const std::string& what) {
  using T = hmsa::arithmetic_t<S>;
  const double tolerance = sizeof(T) == sizeof(float) ? 2e-5 : 1e-12;
  hmsa::host_run::seed() = 0;
  const Result<T> got = predict(c, setup, views);
  const reference::Prediction wanted = reference::argmax(fused);
  int differ = 0;
  reference::for_all(wanted.confidence, [&](int b, int, int y, int x) {
    const size_t i = (static_cast<size_t>(b) * c.size.height + y) * c.size.width + x;
    const auto label = static_cast<int>(got.labels[i]);
    const auto best = static_cast<int>(wanted.labels.at(b, y, x));
    differ += label != best;
    EXPECT(label >= 0 && label < c.channels, what, ", pixel ", i, ": ", label);
    EXPECT(label == best || fused.at(b, best, y, x) - fused.at(b, label, y, x) <= tolerance, what, ", pixel ", i, ": ",
           label, " instead of ", best);
    EXPECT(near(got.confidence[i], wanted.confidence.values[i], tolerance), what, ", pixel ", i, ": ",
           got.confidence[i], " instead of ", wanted.confidence.values[i]);
  });
  EXPECT(differ * 20 <= static_cast<int>(got.labels.size()), what, ": ", differ, " labels differ");
  for (uint64_t seed = 1; seed < kSeeds; ++seed) {
    hmsa::host_run::seed() = seed;
    EXPECT(got.same_bits(predict(c, setup, views)), what, ", seed ", seed);
    EXPECT(got.labels == predict(c, setup, views, false).labels, what, ", labels alone, seed ", seed);
  }
}

template <typename S>
void expect_prediction(Case c, Layout layout, int views) {
  c.batch *= views;
  const Setup<S> setup(c, layout);
  const std::string what = text_of(c) + ", " + name_of(layout) + ", views " + std::to_string(views);
  expect_prediction(c, setup, fused_of(setup.problem, views), views, what);
}

void prediction_matches_plain_loops() {
  for (const Case& c : cases()) expect_prediction<float>(c, Layout::kContiguous, 1);
}

void two_views_match_plain_loops() {
  for (const Case& c : cases()) expect_prediction<float>(c, Layout::kChannelsLast, 2);
}

template <typename S>
void expect_everywhere() {
  for (const Case& c : {Case{{1.0, 0.5}, {11, 13}, {{3, 4}, {2, 2}}, 2, 6, false, false},
                        Case{{2.0, 1.0, 0.5}, {9, 12}, {{5, 6}, {3, 3}, {2, 2}}, 1, 5, true, true}}) {
    for (const Layout layout : {Layout::kContiguous, Layout::kChannelsLast, Layout::kGaps}) {
      for (const int views : {1, 2}) expect_prediction<S>(c, layout, views);
    }
  }
}

void prediction_matches_in_every_dtype_and_layout() {
  expect_everywhere<float>();
  expect_everywhere<double>();
  expect_everywhere<Half>();
  expect_everywhere<BFloat16>();
}

void prediction_matches_on_random_shapes() {
  int k = 0;
  for (const Case& c : random_cases(20)) {
    expect_prediction<double>(c, Layout::kGaps, 1 + k % 2);
    expect_prediction<float>(c, Layout::kContiguous, 2 - k % 2);
    ++k;
  }
}

// Up to 256 classes are stored as bytes.
void prediction_matches_with_many_classes() {
  for (const int classes : {1, 4, 150, 256, 257, 300}) {
    const Case c{{1.0}, {8, 9}, {{2, 3}}, 1, classes, false, false};
    expect_prediction<float>(c, Layout::kContiguous, 1);
    expect_prediction<Half>(c, Layout::kChannelsLast, 2);
  }
}

// Logits of a head as large as the output, so that each is one pixel's.
void expect_pixels(const std::vector<std::vector<double>>& pixels) {
  const Case c{{1.0}, {1, static_cast<int>(pixels.size())}, {{1, static_cast<int>(pixels.size())}}, 1, 7, false, false};
  Setup<float> setup(c, Layout::kContiguous);
  Map& logits = setup.problem.logits[0];
  for (int x = 0; x < c.size.width; ++x) {
    for (int k = 0; k < c.channels; ++k) logits.at(0, k, 0, x) = pixels[static_cast<size_t>(x)][static_cast<size_t>(k)];
  }
  setup.logits[0]->store(logits);
  const Result<float> got = predict(c, setup, 1);
  const reference::Prediction wanted = reference::argmax(logits);
  for (int x = 0; x < c.size.width; ++x) {
    EXPECT_EQUAL(got.labels[static_cast<size_t>(x)], wanted.labels.at(0, 0, x), "pixel ", x);
    EXPECT(near(got.confidence[static_cast<size_t>(x)], wanted.confidence.at(0, 0, 0, x), 1e-6), "pixel ", x, ": ",
           got.confidence[static_cast<size_t>(x)], " instead of ", wanted.confidence.at(0, 0, 0, x));
  }
}

void ties_go_to_the_first_class() {
  expect_pixels({{0, 0, 0, 0, 0, 0, 0}, {1, 2, 2, 1, 2, 2, 1}, {1, 1, 1, 1, 1, 3, 3}, {-0.0, 0.0, -1, 0.0, 0, -1, -1}});
}

void infinite_logits_go_as_in_pytorch() {
  const double inf = kInfinity;
  const double nan = NAN;
  expect_pixels({{0, 1, nan, 3, 4, 5, 6},
                 {0, 1, 2, 3, 4, nan, 6},
                 {nan, 1, nan, 3, 4, nan, inf},
                 {inf, 1, 2, 3, 4, 5, nan},
                 {0, 1, 2, inf, 4, inf, 6},
                 {-inf, -inf, -inf, -inf, -inf, -inf, -inf},
                 {-inf, -inf, -inf, -inf, 1, -inf, 1},
                 {-inf, 2, -inf, -inf, -inf, -inf, -inf},
                 {-inf, -inf, -inf, -inf, -inf, -inf, nan}});
}

// ---- chains of octaves, and a lone scale with a head at a quarter ---------------------------------------------------

void octaves_match() {
  const Layout layouts[] = {Layout::kContiguous, Layout::kGaps, Layout::kChannelsLast};
  int k = 0;
  for (const Case& c : quarter_cases()) {
    EXPECT(hmsa::cuda::fuse::is_octave_of_end(Setup<float>(c, Layout::kContiguous).chain), text_of(c));
    expect_prediction<float>(c, layouts[k % 3], 1);
    if (k % 2 == 0) expect_prediction<Half>(c, layouts[(k + 1) % 3], 1);
    if (k % 2 == 1) expect_prediction<BFloat16>(c, layouts[(k + 1) % 3], 1);
    ++k;
  }
  expect_prediction<float>(octave_cases()[1], Layout::kContiguous, 2);
}

// Every class looks like one of the first three.
void ties_in_octaves_go_to_the_first_class() {
  for (const Case& c : quarter_cases()) {
    Setup<float> setup(c, Layout::kContiguous);
    for (size_t i = 0; i < c.scales.size(); ++i) {
      Map& logits = setup.problem.logits[i];
      reference::for_all(
          logits, [&](int b, int k, int y, int x) { logits.at(b, k, y, x) = std::round(logits.at(b, k % 3, y, x)); });
      setup.logits[i]->store(logits);
    }
    for (const int32_t label : predict(c, setup, 1).labels) EXPECT(label < 3, text_of(c), ": ", label);
    expect_prediction(c, setup, reference::fuse_scales(setup.problem), 1, text_of(c) + ", ties");
  }
}

// Infinities and NaN anywhere in the logits, and numbers whose exponentials need care.
void special_logits_pass_through_octaves() {
  std::mt19937 random(3);
  for (const Case& c : quarter_cases()) {
    for (const std::string what : {"infinities and NaN", "mostly -inf", "large numbers"}) {
      Setup<float> setup(c, Layout::kContiguous);
      spoil_logits(setup, what, random);
      expect_prediction(c, setup, fused_once(setup.problem), 1, text_of(c) + ", " + what);
    }
  }
}

// ---- classes that labels alone do without ---------------------------------------------------------------------------

// Labels alone are those with a confidence. Returns the share of the planes that were fused for them.
template <typename S>
double share_of_fused_planes(const Case& c, const Setup<S>& setup, const std::string& what) {
  hmsa::host_run::seed() = 0;
  const std::vector<int32_t> wanted = predict(c, setup, 1).labels;
  hmsa::cuda::fuse::fused_planes() = {};
  for (uint64_t seed = 0; seed < 2; ++seed) {
    hmsa::host_run::seed() = seed;
    EXPECT(predict(c, setup, 1, false).labels == wanted, what, ", seed ", seed);
  }
  const hmsa::cuda::fuse::FusedPlanes planes = hmsa::cuda::fuse::fused_planes();
  EXPECT(planes.all > 0, what);
  return static_cast<double>(planes.fused) / static_cast<double>(planes.all);
}

// Logits of every scale from value(k, y, x), where y and x are places in the output from 0 to 1.
template <typename S, typename Value>
void set_logits(Setup<S>& setup, const Case& c, const Value& value) {
  for (size_t i = 0; i < c.scales.size(); ++i) {
    Map& logits = setup.problem.logits[i];
    reference::for_all(logits, [&](int b, int k, int y, int x) {
      logits.at(b, k, y, x) = value(k, (y + 0.5) / c.heads[i].height, (x + 0.5) / c.heads[i].width);
    });
    setup.logits[i]->store(logits);
  }
}

template <typename S>
void set_attention(Setup<S>& setup, double value, bool one_only) {
  for (size_t i = 1; i < setup.attention.size(); ++i) {
    Map& attention = setup.problem.attention[i];
    if (one_only) {
      attention.at(0, 0, attention.size.height / 2, attention.size.width / 2) = value;
    } else {
      for (double& number : attention.values) number = value;
    }
    setup.attention[i]->store(attention);
  }
}

// Sizes that are odd in units of eight, parts of the first and of the last bands, several images.
std::vector<Case> cases_of_labels_alone() {
  return {
      {{1.0, 0.5}, {104, 264}, {{26, 66}, {13, 33}}, 2, 9, false, false},
      {{2.0, 1.0}, {36, 132}, {{18, 66}, {9, 33}}, 1, 8, false, false},
      {{2.0, 1.0, 0.5}, {72, 120}, {{36, 60}, {18, 30}, {9, 15}}, 1, 19, false, false},
      {{1.0}, {44, 140}, {{11, 35}}, 2, 9, false, false},
  };
}

std::mt19937 noise_of_labels(11);
double noise(double spread) { return spread * (noise_of_labels() / 4294967296.0 - 0.5); }

// Few classes lead, here and there; the others follow far behind, or close, but each below one of the leaders.
template <typename S>
void expect_few_classes(const Case& c) {
  const auto region = [&](double y, double x) { return static_cast<int>(2.9 * y + y * x) % c.channels; };
  const auto smooth = [&](int k, double y, double x) {
    return (k == region(y, x) ? 4.0 : k == c.channels - 1 ? 3.0 : 0.0) + std::sin(3 * y + 2 * x);
  };
  for (const double spread : {0.0, 0.5, 2.5, 8.0}) {
    Setup<S> setup(c, Layout::kContiguous);
    set_logits(setup, c, [&](int k, double y, double x) { return smooth(k, y, x) + noise(spread); });
    const std::string what = text_of(c) + ", spread " + std::to_string(spread);
    const double share = share_of_fused_planes(c, setup, what);
    EXPECT(share < (spread < 1 ? 0.8 : 1.01), what, ": ", share, " of the planes");
    if (spread < 1) EXPECT(hmsa::cuda::fuse::fused_planes().crews > 1, what);
  }
}

void labels_alone_are_the_same_where_classes_fall() {
  for (const Case& c : cases_of_labels_alone()) {
    expect_few_classes<float>(c);
    expect_few_classes<Half>(c);
  }
  expect_few_classes<BFloat16>(cases_of_labels_alone()[0]);
}

void one_class_is_not_fused() {
  for (const Case& c : cases_of_labels_alone()) {
    for (const int leader : {0, c.channels - 1}) {
      Setup<float> setup(c, Layout::kGaps);
      set_logits(setup, c, [&](int k, double, double) { return (k == leader ? 3.0 : 0.0) + noise(2); });
      EXPECT_EQUAL(share_of_fused_planes(c, setup, text_of(c)), 0.0, text_of(c));
      for (const int32_t label : predict(c, setup, 1, false).labels) EXPECT_EQUAL(label, leader, text_of(c));
    }
  }
}

// Some classes are equal, or differ by a few units in the last place, or by about as much as the margin.
void near_ties_of_labels_alone() {
  const double reaches[] = {1.0, 1e-30, 1e20};
  int number = 0;
  for (const Case& c : cases_of_labels_alone()) {
    for (const double apart : {0.0, 1.0, 30.0, 256.0 * static_cast<double>(c.scales.size()), 2000.0}) {
      const double reach = reaches[number++ % 3];
      Setup<float> setup(c, Layout::kContiguous);
      set_logits(setup, c, [&](int k, double y, double x) {
        const double ground = k % 3 == 0 ? 1.0 + 0.3 * std::sin(9 * x + 4 * y) : -1.0;
        return reach * (ground + (k % 2 == 0 ? 0.0 : 1.2e-7 * (apart + noise(4))));
      });
      share_of_fused_planes(c, setup, text_of(c) + ", apart " + std::to_string(apart));
    }
  }
}

// Where the rule does not hold all classes are fused, in the blocks that see it.
void labels_alone_of_special_numbers() {
  const auto with_leader = [&](const Case& c) {
    Setup<float> setup(c, Layout::kContiguous);
    set_logits(setup, c, [&](int k, double, double) { return (k == 1 ? 3.0 : 0.0) + noise(1); });
    return setup;
  };
  for (const Case& c : cases_of_labels_alone()) {
    for (const double special : {kInfinity, -kInfinity, static_cast<double>(NAN), 3e38}) {
      for (const int k : {0, 1, c.channels - 1}) {
        Setup<float> setup = with_leader(c);
        for (size_t i = 0; i < c.scales.size(); ++i) {
          Map& logits = setup.problem.logits[i];
          logits.at(0, k, c.heads[i].height / 2, c.heads[i].width / 2) = special;
          setup.logits[i]->store(logits);
        }
        const std::string what = text_of(c) + ", " + std::to_string(special) + " of class " + std::to_string(k);
        EXPECT(share_of_fused_planes(c, setup, what) > 0, what);
      }
    }
    if (c.scales.size() == 1) continue;
    for (const double attention : {0.0, 1.0, -1e-6, 1.000001, 1.5, static_cast<double>(NAN)}) {
      for (const bool one_only : {false, true}) {
        Setup<float> setup = with_leader(c);
        set_attention(setup, attention, one_only);
        const std::string what = text_of(c) + ", attention " + std::to_string(attention);
        const double share = share_of_fused_planes(c, setup, what);
        const bool holds = attention >= 0 && attention <= 1;
        EXPECT(holds ? share == 0 : one_only ? share > 0 : share == 1, what, ": ", share, " of the planes");
      }
    }
  }
}

}  // namespace

int main() {
  RUN_TEST(prediction_matches_plain_loops);
  RUN_TEST(two_views_match_plain_loops);
  RUN_TEST(prediction_matches_in_every_dtype_and_layout);
  RUN_TEST(prediction_matches_on_random_shapes);
  RUN_TEST(prediction_matches_with_many_classes);
  RUN_TEST(ties_go_to_the_first_class);
  RUN_TEST(infinite_logits_go_as_in_pytorch);
  RUN_TEST(octaves_match);
  RUN_TEST(ties_in_octaves_go_to_the_first_class);
  RUN_TEST(special_logits_pass_through_octaves);
  RUN_TEST(labels_alone_are_the_same_where_classes_fall);
  RUN_TEST(one_class_is_not_fused);
  RUN_TEST(near_ties_of_labels_alone);
  RUN_TEST(labels_alone_of_special_numbers);
  return testing::finish();
}
